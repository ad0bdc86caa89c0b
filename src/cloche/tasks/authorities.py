"""The certificate authorities that tasks trust: the public ones (certifi), and the user's."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from cloche.errors import SettingsError


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """A client's TLS context; raises `SettingsError` when ``ca_file`` cannot be used."""
    context = httpx.create_ssl_context(trust_env=False)
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(
                f"download.ca_file cannot be used: {ca_file}.",
                why=str(error),
                fix="It must be a file of certificates in PEM form that this process may read.",
            ) from error
    return context


def bundle(ca_file: Path) -> str:
    """All of them in PEM form, for programs that read one file; raises as `trusting` does."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, trusting(ca_file).get_ca_certs(True)))
