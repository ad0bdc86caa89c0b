"""No secret is shown, whatever it looks like."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from cloche.errors import SettingsError
from cloche.settings import hide_passwords, load, mask, mask_url

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://u:{SECRET}@h:6379/0", "redis://u:****@h:6379/0"),
        (f"redis://:{SECRET}@h/0", "redis://:****@h/0"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        (f"redis://h/0?password={SECRET}&x=1", "redis://h/0?password=****&x=1"),
        (f"redis://h/0?x=1&access_token={SECRET}", "redis://h/0?x=1&access_token=****"),
        (f"redis://:a/{SECRET}@h/0", "redis://:****@h/0"),
        (f"redis://:a#{SECRET}@h/0", "redis://:****@h/0"),
        (f"redis://:a@{SECRET}@h/0", "redis://:****@h/0"),
        (f"redis://:a?{SECRET}@h/0", "redis://****"),
        (f"redis://h:1?password=x@{SECRET}", "redis://****"),
        (f"redis://me:{SECRET}@with@at@h/0", "redis://me:****@h/0"),
        (
            f"redis+socket://:{SECRET}@/run/r.sock?virtual_host=1",
            "redis+socket://:****@/run/r.sock?virtual_host=1",
        ),
        (f"redis://:{SECRET}@h1/0;redis://:{SECRET}@h2/0", "redis://:****@h1/0;redis://:****@h2/0"),
        (f"redis://h/0#{SECRET}", "redis://h/0#****"),
        (f"db+postgresql://u:{SECRET}@h/d", "db+postgresql://u:****@h/d"),
        ("sqlite:////tmp/x.db", "sqlite:////tmp/x.db"),
        ("django-db", "django-db"),
        ("redis://h:6379", "redis://h:6379"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("mongodb://h1:27017,h2:27018/d", "mongodb://h1:27017,h2:27018/d"),
        # Somebody forgot the host, the scheme or the port.
        (f"redis://:{SECRET}", "redis://:****"),
        (f"amqp://u:{SECRET}/x", "amqp://u:****"),
        ("h:6379/0", "h:6379/0"),
        (f"u:{SECRET}@h:6379", "u:****@h:6379"),
        (f"u:{SECRET}", "****"),
        ("", ""),
        (
            f"azurestoragequeues://{SECRET}@https://a.core.net",
            "azurestoragequeues://****@https://a.core.net",
        ),
        (
            f"azureblockblob://AccountName=a;AccountKey={SECRET}==;E=s",
            "azureblockblob://AccountName=a;AccountKey=****;E=s",
        ),
        (SECRET, "****"),
    ],
)
def test_a_url_keeps_all_but_its_secrets(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@given(st.text(string.printable, min_size=1))
def test_no_password_however_odd_is_left_in_a_url(odd: str) -> None:
    assert SECRET not in mask_url(f"redis://user:{odd}{SECRET}{odd}@host:6379/0")


def test_masking_reaches_any_depth() -> None:
    value = {"a": [SecretStr(SECRET), f"redis://:{SECRET}@h"], "token": SECRET, "b": (1, None)}
    assert mask(value) == {"a": ["****", "redis://:****@h"], "token": "****", "b": (1, None)}


def test_secrets_are_in_no_representation() -> None:
    environ = {"REDIS_URL": f"redis://:{SECRET}@h", "CLOCHE_SERVICE__TOKEN": SECRET}
    resolved = load(environ=environ, directory=Path("/nonexistent"))
    assert SECRET not in repr(resolved) + str(resolved) + repr(resolved.candidates)


@pytest.mark.parametrize(
    "environ",
    [
        {"REDIS_URL": SECRET},
        {"REDIS_URL": f"http://:{SECRET}@h"},
        {"DATABASE_URL": SECRET},
        {"CLOCHE_BROKER": SECRET},
        {"CLOCHE_BROKER": f'{{"ulr": "redis://:{SECRET}@h"}}'},
        {"CLOCHE_SERVICE__TOKEM": SECRET},
        {"CLOCHE_SERVICE__PORT": f"redis://:{SECRET}@h"},
        {"CLOCHE_DOWNLOAD__MAX_SIZE": f"redis://:{SECRET}@h"},
        {"CLOCHE_TIMEZONE": f"redis://:{SECRET}@h"},
        {"CLOCHE_DOWNLOAD__ALLOW_NETWORKS": f"redis://:{SECRET}@h"},
        {"CLOCHE_ROUTES": f'[{{"token": "{SECRET}"}}]'},
    ],
)
def test_no_message_quotes_a_secret(environ: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ=environ, directory=Path("/nonexistent"))
    assert SECRET not in str(caught.value) + repr(caught.value)


def test_a_secret_that_is_a_number_is_refused_unquoted(tmp_path: Path) -> None:
    (tmp_path / "cloche.toml").write_text("service.token = 8675309\n")
    with pytest.raises(SettingsError) as caught:
        load(environ={}, directory=tmp_path)
    assert caught.value.problems == ("cloche.toml:1: service.token must be text: put it in quotes",)


@pytest.mark.parametrize(
    "text",
    [
        f"Port could not be cast to integer value as '{SECRET}'",
        f"cannot reach redis://:{SECRET}/x@h:1/0 now",
        f"url 'postgresql://h/d?password={SECRET}&user=u' is wrong",
        f"postgresql://h/d?pass%77ord={SECRET}",
        f"connection failed: host=h password={SECRET} user=u",
        f"ssl_password = '{SECRET} and more'",
        f"redis://:a?b{SECRET}@h/0;redis://:{SECRET}#c@h/1",
    ],
)
def test_a_message_of_somebody_else_shows_no_password(text: str) -> None:
    assert SECRET not in hide_passwords(text)
