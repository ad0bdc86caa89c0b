"""Hide secrets in everything that is shown, whatever shape they come in.

When in doubt a part is hidden: a masked host is a nuisance, a shown password is a leak.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import SecretStr

HIDDEN = "****"
#: Result backends that are plain words and so cannot hold a secret.
_PLAIN = frozenset({"django-db", "django-cache", "disabled", "rpc"})
_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|api_?key|access_?key|auth|credential|signature", re.IGNORECASE
)
# kombu separates failover alternatives with ";".
_ALTERNATIVE = re.compile(r";(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_PARAMETER = re.compile(r"([?&;])([^=&;?]+)=([^&;]*)")


def mask_url(url: str) -> str:
    """``redis://u:pw@h/0?token=x`` -> ``redis://u:****@h/0?token=****``.

    Scheme, user, host, port and path stay. What is no URL is hidden whole.
    """
    if url in _PLAIN:
        return url
    return ";".join(_mask_one(part) for part in _ALTERNATIVE.split(url))


def _mask_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return HIDDEN
    rest, _, fragment = rest.partition("#") if "@" not in rest.partition("#")[2] else (rest, "", "")
    if "@" in rest.partition("?")[2]:  # a "?" in a password, or an "@" in a parameter: who knows
        return f"{scheme}://{HIDDEN}"
    # The last "@" ends the user part even where an unescaped "/" sits in the password.
    user, at, place = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    shown = f"{name}{colon and ':' + HIDDEN}{at}" + _PARAMETER.sub(_mask_parameter, place)
    return f"{scheme}://{shown}" + (f"#{HIDDEN}" if fragment else "")


def _mask_parameter(match: re.Match[str]) -> str:
    value = HIDDEN if _SECRET_NAME.search(match[2]) else match[3]
    return f"{match[1]}{match[2]}={value}"


def mask(value: object) -> object:
    """``value`` fit to be shown: secrets hidden, URLs without their passwords, at any depth."""
    if isinstance(value, SecretStr):
        return mask_url(value.get_secret_value())
    if isinstance(value, str):
        return mask_url(value) if "://" in value else value
    if isinstance(value, Mapping):
        return {key: _mask_named(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mask(item) for item in value)
    return value


def _mask_named(name: str, value: object) -> object:
    if isinstance(value, str) and _SECRET_NAME.search(name) and "://" not in value:
        return HIDDEN
    return mask(value)
