"""Every setting: its name, type, default and meaning. Frozen; unknown keys refused.

A key is written with dots (``broker.url``), as a variable with ``CLOCHE_`` in front and
``__`` for each dot (``CLOCHE_BROKER__URL``), in TOML as tables (``[broker]`` ``url = …``).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from cloche.settings.families import (
    FAMILIES,
    FamilySettings,
    checked_limits,
    default_families,
)
from cloche.settings.quantities import (
    Age,
    BrokerUrl,
    Bytes,
    DatabaseUrl,
    Name,
    Network,
    Port,
    ResultUrl,
    Seconds,
    TimeZone,
    Token,
    is_loopback,
)
from cloche.settings.schedule import CatchUp, ScheduleSettings
from cloche.settings.section import Section


class BrokerSettings(Section):
    """How the message broker is reached, and whether Cloche runs one itself."""

    url: BrokerUrl | None = Field(
        None,
        description="Broker URL (redis://, rediss://, amqp://…); unset: a broker is found or run",
    )
    embedded: Literal["auto", "always", "never"] = Field(
        "auto",
        description="auto: run a broker only if no URL is set and none answers on localhost:6379",
    )
    port: Port | None = Field(None, description="Loopback port of the embedded broker; unset: free")
    fsync: Literal["always", "everysec"] = Field(
        "everysec", description="When the embedded broker forces its log to disk (appendfsync)"
    )
    connect_timeout: Seconds = Field(5, description="Seconds to wait for a connection")
    socket_timeout: Seconds = Field(5, description="Seconds to wait for a reply")
    socket_keepalive: bool = Field(True, description="TCP keepalive on broker connections")
    health_check_interval: int = Field(5, ge=0, description="Seconds between PINGs on idle links")
    pool_limit: int = Field(10, ge=1, description="Most connections a publisher process keeps")
    start_tries: int = Field(5, ge=1, description="Tries to reach the broker before giving up")
    publish_timeout: Seconds = Field(
        10, description="Seconds a publisher retries before the outage reaches its caller"
    )
    transport: Literal["cloche", "stock"] = Field(
        "cloche",
        description="On Redis and Valkey: Cloche's transport, which loses no task, or kombu's own",
    )
    lease: Seconds = Field(
        30, ge=1, description="Cloche's transport: silence after which a worker's tasks move on"
    )
    max_deliveries: int = Field(
        3, ge=1, description="Cloche's transport: workers a task may kill before it is set aside"
    )
    publish_on_outage: Literal["raise", "spool"] = Field(
        "raise",
        description="Cloche's transport: tell the caller, or keep tasks on disk until it is back",
    )
    quorum_queues: bool | None = Field(
        None,
        description="RabbitMQ: quorum queues with delivery limit, dead letters and native delay; "
        "unset: only in applications made by create_app()",
    )
    remind: Seconds = Field(
        60, ge=1, description="Seconds between two log lines about an outage that lasts"
    )
    visibility_timeout: int = Field(
        3600,
        ge=1,
        description="Stock Redis transport: seconds until an unacked task is redelivered",
    )

    @property
    def redelivery(self) -> float:
        """Seconds after which another worker gets what a killed one held."""
        return self.lease if self.transport == "cloche" else self.visibility_timeout


class ResultSettings(Section):
    """Where task results are kept."""

    url: ResultUrl | None = Field(
        None,
        description="Result backend (redis://, db+…, django-db, rpc://); unset: the broker",
    )
    expires: Age = Field(timedelta(hours=1), description="Age at which results are dropped")
    socket_timeout: Seconds = Field(10, description="Seconds to wait for a reply")
    connect_timeout: Seconds = Field(5, description="Seconds to wait for a connection")
    extended: bool = Field(True, description="Store name, args, worker and queue with a result")


class DatabaseSettings(Section):
    """Where downloads, execution logs and history are kept."""

    url: DatabaseUrl | None = Field(
        None, description="SQLAlchemy URL (sqlite, postgresql); unset: SQLite in the run directory"
    )


class TaskSettings(Section):
    """Defaults of every task that does not say otherwise; families refine them."""

    default_queue: str | None = Field(
        None,
        min_length=1,
        description="Queue of unrouted tasks; unset: default, or what an existing app says",
    )
    acks_late: bool = Field(True, description="Acknowledge after the task ran, not before")
    max_retries: int = Field(3, ge=0, description="Retries of a task that asks for one")
    retry_delay: Seconds = Field(60, description="Seconds before a retry")
    soft_time_limit: Seconds | None = Field(
        None, description="Seconds until SoftTimeLimitExceeded is raised in a task"
    )
    time_limit: Seconds | None = Field(None, description="Seconds until a task is killed")

    @model_validator(mode="after")
    def _soft_below_hard(self) -> Self:
        return checked_limits(self)


class Route(Section):
    """Tasks whose name matches ``pattern`` (``*`` and ``?``) go to ``queue``."""

    pattern: str = Field(min_length=1, description="Task names, * and ? allowed")
    queue: str = Field(min_length=1, description="Queue they go to")


class WorkerDefaults(Section):
    """What every worker is where ``[workers.NAME]`` does not say otherwise."""

    pool: Literal["auto", "prefork", "threads", "solo", "asyncio"] = Field(
        "auto", description="Worker pool; auto: asyncio if all its tasks are async, else prefork"
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        description="Tasks at once; unset: cores, at most 4 (threads 10, asyncio 1000)",
    )
    sync_concurrency: int | None = Field(
        None,
        ge=1,
        description="asyncio: plain def tasks at once; unset: 8, and no more than concurrency",
    )
    prefetch: int = Field(1, ge=0, description="Messages fetched ahead per slot")
    max_tasks_per_child: int | None = Field(
        1000,
        ge=1,
        description="Tasks after which a process is replaced; not prefork: only if set here",
    )
    max_memory_per_child: Bytes | None = Field(
        512 * 1024**2,
        ge=1,
        description="Bytes a pool process may grow by after its first task until it is replaced; "
        "not prefork: resident bytes of the worker",
    )


class WorkerSettings(WorkerDefaults):
    """One named worker (or ``processes`` of them) that ``cloche up`` runs."""

    queues: tuple[str, ...] = Field((), description="Queues it consumes; empty: all declared ones")
    exclude_queues: tuple[str, ...] = Field((), description="Queues it leaves to other workers")
    processes: int | None = Field(
        None, ge=1, description="How many such workers; unset: 1, of asyncio one per core"
    )

    def on(self, defaults: WorkerDefaults) -> WorkerSettings:
        """This worker, with what only ``defaults`` say."""
        said = defaults.model_dump(exclude_unset=True)
        return WorkerSettings.model_validate({**said, **self.model_dump(exclude_unset=True)})


class BeatSettings(Section):
    """The scheduler."""

    enabled: bool = Field(True, description="Whether cloche up runs the scheduler")
    scheduler: str | None = Field(
        None,
        min_length=1,
        description="Celery's beat_scheduler: module:Class; unset: as the application says",
    )
    max_interval: Seconds = Field(5, gt=0, description="Most seconds between looks at the schedule")
    name: str | None = Field(
        None,
        min_length=1,
        description="Of schedulers with one name on a broker one works; unset: the application's",
    )
    lock: Seconds = Field(
        15, ge=1, description="Seconds of silence after which a stand-by scheduler takes over"
    )
    late: Seconds = Field(
        30, description="Seconds after which a run that nobody has sent counts as missed"
    )
    catch_up: CatchUp = Field(
        "once", description="Missed runs, when a scheduler is back: once for all of them, or skip"
    )
    schedules: dict[Name, ScheduleSettings] = Field(
        default_factory=dict, description="Schedules by name, besides the application's own"
    )


class WatchdogSettings(Section):
    """What ``cloche up`` does about a worker that lives and works no more."""

    enabled: bool = Field(True, description="Whether hung workers are restarted")
    after: Seconds = Field(
        60,
        ge=1,
        description="Seconds without progress, tasks waiting, after which a worker hangs",
    )


class ReloadSettings(Section):
    """Development: workers and scheduler are started anew when the project's code changes."""

    enabled: bool = Field(False, description="As cloche up --reload says")
    paths: tuple[Path, ...] = Field(
        (Path("."),), min_length=1, description="Directories whose Python files are watched"
    )


class WebSettings(Section):
    """One web server of ours."""

    enabled: bool = Field(True, description="Whether cloche up runs it")
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")
    port: Port = Field(8000, description="Port to listen on")
    token: Token | None = Field(
        None, description="Bearer token asked of every request; needed to listen beyond loopback"
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Further Host names accepted (loopback names always are)"
    )


class ServiceSettings(WebSettings):
    """The service people and programs use: downloads and their page."""


class DashboardSettings(WebSettings):
    """The operators' page."""

    port: Port = Field(8001, description="Port to listen on")


class DownloadSettings(Section):
    """The ``download`` task family."""

    directory: Path | None = Field(
        None, description="Where files are kept; unset: downloads in the run directory"
    )
    max_size: Bytes = Field(2 * 1024**3, ge=1, description="Largest file accepted, bytes")
    quota: Bytes | None = Field(
        None, ge=1, description="Most bytes all files may take together; unset: the disk's"
    )
    reserve: Bytes = Field(
        64 * 1024**2, ge=0, description="Bytes of the disk that downloads leave free for others"
    )
    per_host: int = Field(2, ge=1, description="Downloads from one host at once on this machine")
    connect_timeout: Seconds = Field(10, gt=0, description="Seconds to wait for a connection")
    read_timeout: Seconds = Field(30, gt=0, description="Seconds without a byte until it is broken")
    resumes: int = Field(
        5, ge=0, description="Broken transfers in a row, without a new byte, resumed at once"
    )
    max_redirects: int = Field(5, ge=0, description="Redirects followed, each checked anew")
    fresh_for: Age = Field(
        timedelta(hours=1), description="Age until which a cached file is served without asking"
    )
    allow_networks: tuple[Network, ...] = Field(
        (), description="Private networks that may be contacted all the same, e.g. 127.0.0.0/8"
    )
    ca_file: Path | None = Field(
        None, description="Certificates (PEM) of authorities trusted besides the public ones"
    )
    user_agent: str = Field(
        "Cloche (+https://pypi.org/project/cloche/)",
        min_length=1,
        description="User-Agent header sent with downloads",
    )
    backend: Literal["auto", "http", "yt-dlp"] = Field(
        "http",
        description="http: plain files; yt-dlp: media pages; auto: yt-dlp where it knows the site",
    )


class LogSettings(Section):
    """The execution log."""

    batch: int = Field(50, ge=1, description="Records that are sent without waiting for more")
    interval: Seconds = Field(2, gt=0, description="Longest a record waits for others, seconds")
    max_batch: int = Field(5000, ge=1, description="Most records in one message, when many wait")
    max_batch_size: Bytes = Field(
        512 * 1024, ge=1024, description="Bytes after which a message takes no further record"
    )
    buffer: int = Field(20_000, ge=1, description="Most records a process keeps in memory")
    overflow: Literal["spool", "block", "drop_oldest", "drop_newest"] = Field(
        "spool", description="What log() does when the buffer is full; drops are counted"
    )
    fallback: Literal["spool", "direct", "drop"] = Field(
        "spool",
        description="Where records go while the broker is away: disk, straight to the database, "
        "nowhere; cloche logs fallback changes it at run time",
    )
    durable: bool = Field(
        False, description="log() returns only when its record is in a file of this machine"
    )
    fsync: Literal["always", "interval", "never"] = Field(
        "interval", description="When those files are forced to the disk"
    )
    max_spool: Bytes = Field(
        256 * 1024**2, ge=1024, description="Most bytes on disk; what comes then is dropped"
    )
    max_queued: int = Field(
        2000, ge=1, description="Messages in the queue after which the broker counts as away"
    )
    max_message: Bytes = Field(
        16 * 1024, ge=64, description="Longest message in bytes; the rest is cut, with a mark"
    )
    max_details: Bytes = Field(
        64 * 1024, ge=64, description="Largest details in bytes; larger ones are cut, with a mark"
    )
    keep: Age = Field(
        timedelta(days=30),
        ge=timedelta(hours=1),
        description="Age at which records are removed; on PostgreSQL by whole days",
    )


class StopSettings(Section):
    """How a stop goes."""

    soft: Seconds = Field(30, description="worker_soft_shutdown_timeout of the workers, seconds")
    grace: Seconds = Field(
        45,
        description="Seconds a process may take to stop before it is killed; unset: 15 more than "
        "stop.soft, at least 45",
    )

    @model_validator(mode="after")
    def _grace_covers_soft(self) -> Self:
        if "grace" not in self.model_fields_set:
            # Frozen for others; pydantic wants the same object back.
            self.__dict__["grace"] = max(self.grace, self.soft + 15)
        if self.grace < self.soft:
            raise ValueError(
                f"stop.grace ({self.grace:g} s) must not be below stop.soft ({self.soft:g} s), "
                "or workers are killed before their tasks may finish"
            )
        return self


def _with_default_families(value: object, info: ValidationInfo) -> object:
    """A family named in a file refines its default instead of replacing it.

    A guest has only those that are named, and with the execution log what ends it.
    """
    if not isinstance(value, dict):
        return value
    defaults: dict[str, Any] = default_families()
    guest = bool(info.context and info.context.get("guest"))
    if guest:  # a queue called "logs" may be the project's
        for name in defaults:
            defaults[name] = defaults[name].model_copy(update={"queue": f"cloche.{name}"})
    needed = {other for one in FAMILIES if one.name in value for other in one.needs}
    merged = {name: one for name, one in defaults.items() if not guest or name in needed}
    for name, family in value.items():
        base = defaults.get(name)
        if base is not None and isinstance(family, dict):
            family = {**base.model_dump(), **family}
        merged[name] = family
    return merged


class Settings(Section):
    """All of Cloche's settings."""

    app: str = Field(
        "cloche", min_length=1, description="The Celery application, as celery -A takes it"
    )
    run_dir: Path = Field(Path(".cloche"), description="Where Cloche keeps its files")
    timezone: TimeZone = Field("UTC", description="Time zone of schedules")
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    results: ResultSettings = Field(default_factory=ResultSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    tasks: TaskSettings = Field(default_factory=TaskSettings)
    families: Annotated[dict[Name, FamilySettings], BeforeValidator(_with_default_families)] = (
        Field(default_factory=default_families, description="Task families by name")
    )
    routes: tuple[Route, ...] = Field((), description="Routes, first match, the specific first")
    expect_tasks: tuple[str, ...] = Field(
        (), description="Tasks every worker must know; one that is missing is told at its start"
    )
    worker: WorkerDefaults = Field(default_factory=WorkerDefaults)
    workers: dict[Name, WorkerSettings] = Field(
        default_factory=dict, description="Workers by name; empty: simple mode"
    )
    beat: BeatSettings = Field(default_factory=BeatSettings)
    watchdog: WatchdogSettings = Field(default_factory=WatchdogSettings)
    reload: ReloadSettings = Field(default_factory=ReloadSettings)
    service: ServiceSettings = Field(default_factory=ServiceSettings)
    dashboard: DashboardSettings = Field(default_factory=DashboardSettings)
    download: DownloadSettings = Field(default_factory=DownloadSettings)
    logs: LogSettings = Field(default_factory=LogSettings)
    stop: StopSettings = Field(default_factory=StopSettings)

    @property
    def keeps_rows(self) -> bool:
        """Whether anything is kept in the database: families or pages that need it."""
        rows = any(one.keeps_rows and one.name in self.families for one in FAMILIES)
        return rows or self.service.enabled or self.dashboard.enabled

    @model_validator(mode="after")
    def _families_hold_together(self) -> Self:
        """A family's limit must also fit the one it takes from ``[tasks]``."""
        for name, family in self.families.items():
            limits = {
                limit: getattr(family, limit) or getattr(self.tasks, limit)
                for limit in ("soft_time_limit", "time_limit")
            }
            try:
                checked_limits(family.model_copy(update=limits))
            except ValueError as error:
                raise ValueError(f"family {name}, with what it takes from tasks: {error}") from None
        return self

    @model_validator(mode="after")
    def _nobody_is_let_in(self) -> Self:
        """A server that others can reach has a token."""
        for name in ("service", "dashboard"):
            web: WebSettings = getattr(self, name)
            if web.enabled and web.token is None and not is_loopback(web.host):
                raise ValueError(
                    f"{name}.host is {web.host}, which others can reach, and there is no token: "
                    f"set {name}.token to a long random secret, or {name}.host to 127.0.0.1"
                )
        return self

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        service, dashboard = self.service, self.dashboard
        if service.enabled and dashboard.enabled and service.port == dashboard.port:
            raise ValueError(f"service.port and dashboard.port are both {service.port}")
        return self
