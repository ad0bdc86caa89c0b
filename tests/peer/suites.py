"""The suites that run on stock URLs and on ours, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Pools of Celery's; in "eager" tasks run in the caller, in "none" a suite runs no task.
PREFORK, THREADS, SOLO, ASYNCIO, EAGER, NONE = (
    "prefork",
    "threads",
    "solo",
    "asyncio",
    "eager",
    "none",
)

#: What the runner itself needs in a suite's environment.
_TOOLS = ("pytest-timeout", "pytest-rerunfailures")


@dataclass(frozen=True, slots=True)
class Suite:
    """A project's tests, as its source distribution on PyPI carries them.

    ``unpacked``: what of the distribution is unpacked, as prefixes of paths; never the package,
    which is installed like its users do. ``tests``: pytest's arguments. ``adapter``: the module in
    ``inside`` that puts the URL and the pool into them. ``requirements``: what pip installs, after
    Cloche; ``requirement_files`` are the distribution's own. ``wanted``: why tests may
    pass on stock only, by the start of their names.
    """

    name: str
    project: str
    version: str
    sha256: str
    unpacked: tuple[str, ...]
    tests: tuple[str, ...]
    adapter: str
    pools: tuple[str, ...]
    requirements: tuple[str, ...] = ()
    requirement_files: tuple[str, ...] = ()
    wanted: Mapping[str, str] = field(default_factory=dict)

    @property
    def distribution(self) -> str:
        """The name of the archive and of the directory in it, without an ending."""
        return f"{self.project.replace('-', '_')}-{self.version}"

    @property
    def installs(self) -> tuple[str, ...]:
        """pip's arguments."""
        return (*self.requirements, *_TOOLS)


SUITES = (
    Suite(
        name="celery",
        project="celery",
        version="5.7.0",
        sha256="6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0",
        unpacked=("t/", "requirements/", "pyproject.toml"),
        tests=("t/integration",),
        adapter="celery",
        pools=(PREFORK, THREADS, ASYNCIO),
        requirements=("celery==5.7.0",),
        requirement_files=("test.txt", "test-integration.txt"),
    ),
    Suite(
        name="kombu",
        project="kombu",
        version="5.7.0",
        sha256="31e62fdfd2381caa3422f8e02b84a491d9a2180ddda74507b57f4cb1e1c2c2c9",
        unpacked=("t/", "setup.cfg"),
        tests=("t/integration/test_redis.py", "t/integration/test_redis_brpop_qos.py"),
        adapter="kombu",
        pools=(NONE,),
        requirements=("kombu==5.7.0", "pytest==9.1.1"),
        wanted={
            f"t/integration/test_redis.py::test_RedisRestore{name}": (
                "reads kombu's `unacked` hash and index; ours keeps leases"
            )
            for name in ("Visible", "BindingLookupFailure", "AtShutdown")
        }
        | {
            "t/integration/test_redis.py::test_RedisSentinelFanoutCompat": (
                "replaces the inside of kombu's SentinelChannel, so that it needs no Sentinel"
            )
        }
        | {
            f"t/integration/test_redis_brpop_qos.py::{name}": (
                "expects the next message in the answer to the command in flight; ours may be a "
                "fetch that has found none, and the next one brings it"
            )
            for name in (
                "test_hub_pauses_pending_brpop_until_ack[message]",
                "test_drain_events_resumes_pending_brpop_without_resending",
            )
        },
    ),
    Suite(
        name="sentry",
        project="sentry-sdk",
        version="2.75.0",
        sha256="c38ac2d4b2435c11da821e173bb9d9088c98f41ae92f559ce0e424170a8e1a29",
        unpacked=("tests/", "pyproject.toml"),
        tests=("tests/integrations/celery",),
        adapter="sentry",
        pools=(EAGER, SOLO, THREADS, ASYNCIO),
        requirements=(
            "sentry-sdk==2.75.0",
            "pytest<9",  # pytest-forked's children end with an internal error on 9
            "pytest-forked",
            "pytest-localserver",
            "jsonschema",
            "werkzeug",
            "newrelic",
        ),
    ),
    Suite(
        name="opentelemetry",
        project="opentelemetry-instrumentation-celery",
        version="0.66b2",
        sha256="843645ecd28e85d16851eb6c24c082ee00c3102ba091752f095fc7628fcfb7bd",
        unpacked=("tests/",),
        tests=("tests",),
        adapter="opentelemetry",
        pools=(SOLO, THREADS, ASYNCIO),
        requirements=(
            "opentelemetry-instrumentation-celery==0.66b2",
            "opentelemetry-test-utils==0.66b2",
            "pytest",
        ),
    ),
    Suite(
        name="django-celery-results",
        project="django-celery-results",
        version="2.6.0",
        sha256="9abcd836ae6b61063779244d8887a88fe80bbfaba143df36d3cb07034671277c",
        unpacked=("t/", "setup.cfg"),
        tests=("t/unit",),
        adapter="django",
        pools=(NONE,),
        requirements=(
            "django-celery-results==2.6.0",
            "Django>=5.2,<6",
            "pytest>=6.2.5,<8",
            "pytest-django>=4.5.2",
            "pytz",
        ),
    ),
    Suite(
        name="django-celery-beat",
        project="django-celery-beat",
        version="2.9.0",
        sha256="92404650f52fcb44cf08e2b09635cb1558327c54b1a5d570f0e2d3a22130934c",
        unpacked=("t/", "setup.cfg"),
        tests=("t/unit",),
        adapter="django",
        pools=(NONE,),
        requirements=(
            "django-celery-beat==2.9.0",
            "Django>=5.2,<6",
            "pytest>=6.2.5,<9",
            "pytest-django>=4.5.2,<5",
            "ephem",
        ),
    ),
)
