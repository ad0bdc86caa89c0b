"""What a failed connection means for the download."""

from __future__ import annotations

import socket
import ssl

import httpx

from cloche.errors import DownloadBrokenError, DownloadRefusedError

#: OpenSSL's verification results (x509_vfy.h) that have a plain name and a remedy.
_VERDICTS = (
    (
        {62, 64},  # HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH
        "is for another name",
        "Is the host spelled as its certificate has it?",
    ),
    (
        {2, 18, 19, 20, 21},  # issuer unknown, or self-signed
        "is from an authority that is not trusted",
        "If it is yours, put its certificate in the file that download.ca_file names.",
    ),
    ({10}, "has expired", "The server's operator must renew it."),
    ({9}, "is not valid yet", "Is the clock of this machine right?"),
)


def broken(error: httpx.TransportError) -> DownloadBrokenError | DownloadRefusedError:
    """The error to raise: most may mend, a wrong name or certificate do not."""
    host = error.request.url.host
    why = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _untrusted(host, cause)
        if isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME:
            return DownloadRefusedError(
                f"There is no host {host}.", why=why, fix="Is the URL spelled right?"
            )
        cause = cause.__cause__ or cause.__context__
    return DownloadBrokenError(
        f"The connection to {host} failed.", why=why, fix="Retry later; what came is kept."
    )


def _untrusted(host: str, error: ssl.SSLCertVerificationError) -> DownloadRefusedError:
    for codes, meaning, fix in _VERDICTS:
        if error.verify_code in codes:
            return DownloadRefusedError(
                f"The certificate of {host} {meaning}.", why=error.verify_message, fix=fix
            )
    return DownloadRefusedError(
        f"The certificate of {host} is not valid.", why=error.verify_message
    )
