"""Names of downloaded files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloche.tasks.download.filename import choose, from_disposition, sanitise


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("attachment", ""),
        ("attachment; filename=plain.txt", "plain.txt"),
        ('attachment; filename="with space; and semicolon.txt"', "with space; and semicolon.txt"),
        (r'attachment; filename="a \"quoted\" name"', 'a "quoted" name'),
        ("attachment; filename*=UTF-8''%E2%82%AC%20rates.txt", "€ rates.txt"),
        ("attachment; filename=\"fallback.txt\"; filename*=utf-8'en'%C3%A9.txt", "é.txt"),
        ("attachment; filename*=iso-8859-1''%E9.txt", "é.txt"),
        ("attachment; filename*=utf-7''x; filename=y", "y"),
        ("ATTACHMENT; FileName = up.txt", "up.txt"),
        ("attachment; filename=\u00c3\u00a9.txt", "é.txt"),
    ],
)
def test_the_disposition_header_is_read(header: str, name: str) -> None:
    assert from_disposition(header) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("..", "download"),
        ("", "download"),
        (".htaccess", "htaccess"),
        ("a\x00b\r\nc.txt", "abc.txt"),
        ("evil\u202etxt.exe", "eviltxt.exe"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ('a<b>:"c|?*', "a_b___c___"),
        ("trailing. . ", "trailing"),
    ],
)
def test_names_are_made_harmless(raw: str, name: str) -> None:
    assert sanitise(raw) == name


def test_a_long_name_keeps_its_extension() -> None:
    name = sanitise("é" * 300 + ".tar")
    assert name.endswith(".tar")
    assert len(name.encode()) <= 200


def test_the_url_names_the_file_when_the_header_does_not() -> None:
    assert choose(None, "https://h/dir/a%20b.zip?x=/y") == "a b.zip"
    assert choose("attachment; filename=", "https://h/") == "download"


@given(st.text())
def test_no_name_is_ever_a_path(raw: str) -> None:
    name = sanitise(raw)
    assert name
    assert not set(name) & set('/\\\0\r\n"')
    assert name not in (".", "..")
    assert len(name.encode()) <= 200
