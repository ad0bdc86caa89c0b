"""The name a downloaded file is offered under: never a path, never a surprise."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote, unquote_to_bytes, urlsplit

#: Most bytes of a name; file systems allow 255, users add suffixes.
_LONGEST = 200
#: Device names that Windows refuses whatever their extension.
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")
_FORBIDDEN = re.compile(r'[<>:"|?*]')
#: One parameter of the header: name=token or name="quoted \" string" (RFC 6266 section 4.1).
_PARAMETER = re.compile(r';\s*([\w!#$%&\'+^`|~.-]+\*?)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"]*)')


def choose(disposition: str | None, url: str) -> str:
    """The sanitised name from Content-Disposition, else from the URL's path."""
    return sanitise(from_disposition(disposition or "") or from_url(url))


def from_disposition(header: str) -> str:
    """``filename*`` (RFC 5987) before ``filename``; empty if there is neither."""
    found = {name.lower(): value.strip() for name, value in _PARAMETER.findall(f";{header}")}
    extended = _extended(found.get("filename*", "").strip('"'))
    if extended:
        return extended
    plain = found.get("filename", "")
    if plain.startswith('"'):
        plain = re.sub(r"\\(.)", r"\1", plain[1:-1])
    return _utf8_if_it_is(plain)


def from_url(url: str) -> str:
    """The last segment of the URL's path, decoded."""
    return unquote(urlsplit(url).path.rsplit("/", 1)[-1])


def sanitise(name: str) -> str:
    """A plain file name: no directories, control or formatting characters, at most 200 bytes."""
    name = unicodedata.normalize("NFC", name).replace("\\", "/").rsplit("/", 1)[-1]
    # Cc: control, Cf: invisible, among them those that reverse the reading direction and so
    # disguise an extension; Cs: lone surrogates, which cannot be encoded.
    name = "".join(c for c in name if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    name = _FORBIDDEN.sub("_", name).strip(" .")
    if _RESERVED.match(name):
        name = f"_{name}"
    return _shortened(name) or "download"


def _extended(value: str) -> str:
    charset, _, rest = value.partition("'")
    _, _, encoded = rest.partition("'")
    if charset.lower() not in ("utf-8", "iso-8859-1"):
        return ""
    return unquote_to_bytes(encoded).decode(charset, "replace")


def _utf8_if_it_is(value: str) -> str:
    """Undo the Latin-1 that headers are decoded as, for servers that send raw UTF-8."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _shortened(name: str) -> str:
    """Cut in the middle of a name, so that its extension stays."""
    if len(name.encode()) <= _LONGEST:
        return name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > 20:
        stem, dot, extension = name, "", ""
    room = _LONGEST - len(f"{dot}{extension}".encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + extension
