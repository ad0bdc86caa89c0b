"""Hide secrets in everything that is shown, whatever shape they come in.

When in doubt a part is hidden: a masked host is a nuisance, a shown password is a leak.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote

from pydantic import SecretStr

HIDDEN = "****"
#: Result backends that are plain words and so cannot hold a secret.
_PLAIN = frozenset({"django-db", "django-cache", "disabled", "rpc"})
_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|(?:access|account|api|private|shared)_?key|auth|credential|signature",
    re.IGNORECASE,
)
#: Transports whose user is the key (kombu.transport.azurestoragequeues).
_KEY_AS_USER = frozenset({"azurestoragequeues"})
# kombu separates failover alternatives with ";".
_ALTERNATIVE = re.compile(r";(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_PARAMETER = re.compile(r"(^|[?&;])([^=&;?]+)=([^&;]*)")
# Without an "@" there is no password, unless somebody forgot the host behind it. Several hosts
# with their ports are separated by commas.
_NO_PORT = re.compile(r"([^:/@\[\]?;#]*:)(?!\d*(?:[/?;#,]|$))")
#: A place without its scheme, which people forget; any other word may be a secret.
_PLACE = re.compile(r"(?:.*@)?[\w.-]+:\d+(?:/.*)?", re.DOTALL)


def mask_url(url: str) -> str:
    """``redis://u:pw@h/0?token=x`` -> ``redis://u:****@h/0?token=****``.

    Scheme, user, host, port and path stay. What is no URL is hidden whole, but for ``host:port``.
    """
    if not url or url in _PLAIN:
        return url
    return ";".join(_mask_one(part) for part in _ALTERNATIVE.split(url))


def _mask_one(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _mask_place("", url) if _PLACE.fullmatch(url) else HIDDEN
    return _mask_place(f"{scheme}://", rest)


def _mask_place(scheme: str, rest: str) -> str:
    """What stands behind ``scheme``, which is empty or ends in ``://``."""
    rest, _, fragment = rest.partition("#") if "@" not in rest.partition("#")[2] else (rest, "", "")
    if "@" in rest.partition("?")[2]:  # a "?" in a password, or an "@" in a parameter: who knows
        return f"{scheme}{HIDDEN}"
    forgotten = "@" not in rest and _NO_PORT.match(rest)
    if forgotten:
        return f"{scheme}{forgotten[1]}{HIDDEN}"
    # The last "@" ends the user part even where an unescaped "/" sits in the password.
    user, at, place = rest.rpartition("@")
    name, colon, _ = user.partition(":")
    if name and scheme.removesuffix("://") in _KEY_AS_USER:
        name = HIDDEN
    shown = f"{name}{colon and ':' + HIDDEN}{at}" + _PARAMETER.sub(_mask_parameter, place)
    return f"{scheme}{shown}" + (f"#{HIDDEN}" if fragment else "")


def _mask_parameter(match: re.Match[str]) -> str:
    value = HIDDEN if _SECRET_NAME.search(unquote(match[2])) else match[3]
    return f"{match[1]}{match[2]}={value}"


#: A URL inside a text, up to the next space or quotation mark: a password may hold anything else.
#: What ends a clause is not of it.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'`<>]+?(?=[:,.;)]*(?:[\s\"'`<>]|$))")
#: ``password=…`` outside of a URL, as drivers write what they were given.
_ASSIGNED = re.compile(
    r"(?i)\b([\w.-]*(?:password|passwd|pwd|secret|token|(?:access|account|api)_?key)[\w.-]*\s*=\s*)"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;)&]+)"
)
#: urllib's complaint about a port quotes what may be half a password.
_PORT = re.compile(r"(Port could not be cast to integer value as )(['\"]).*\2")


def hide_passwords(text: str) -> str:
    """A text of somebody else (a driver's message) with the passwords in it hidden."""
    text = _URL.sub(lambda found: mask_url(found[0]), text)
    text = _PORT.sub(rf"\1\2{HIDDEN}\2", text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


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
