"""A certificate authority of our own, made with the openssl program."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Authority:
    """Signs certificates for servers; ``file`` is what its clients must trust."""

    def __init__(self, directory: Path, name: str = "Test authority") -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self.file = directory / "authority.pem"
        self._key = directory / "authority.key"
        extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
        added = [word for text in extensions for word in ("-addext", text)]
        self._request(self.file, self._key, name, "-x509", "-days", "2", *added)

    def certificate(self, host: str, *, days: int = 2) -> tuple[Path, Path]:
        """(certificate, key) files for a server of that name."""
        base = self._directory / host
        request, key, signed = (base.with_name(f"{host}.{end}") for end in ("csr", "key", "pem"))
        self._request(request, key, host)
        extensions = base.with_name(f"{host}.ext")
        extensions.write_text(
            f"subjectAltName=DNS:{host}\nbasicConstraints=CA:FALSE\n"
            "keyUsage=digitalSignature\nextendedKeyUsage=serverAuth\n"
            "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        )
        authority: list[str | Path] = ["-CA", self.file, "-CAkey", self._key, "-CAcreateserial"]
        _openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-out",
            signed,
            *authority,
            "-days",
            str(days),
            "-extfile",
            extensions,
        )
        return signed, key

    def _request(self, out: Path, key: Path, name: str, *more: str) -> None:
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
        _openssl("req", *more, *kind, "-keyout", key, "-out", out, "-subj", f"/CN={name}")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
