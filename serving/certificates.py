"""The certificate that a server shows and whom it trusts, as their files hold them now."""

import logging
import ssl
from pathlib import Path

from cognate.errors import CognateError

_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]
"""Inode, size and time of change of each file."""


class Certificates:
    """What connections are encrypted by, as its files say.

    The server asks before each handshake. Files that have changed since are read then, so that a renewed
    certificate needs no restart and no signal; connections that stand keep what they were made with.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        """Read the files.

        Args:
            certificate: PEM, the server's certificate first, then those between it and the root.
            key: PEM, its private key, not encrypted.
            client_ca: PEM, the roots that a client's certificate must come from. None: clients need none.

        Raises:
            CognateError: A file cannot be read, or they do not belong together.
        """
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._seen = self._stamp()
        self._current = self._read()

    def context(self) -> ssl.SSLContext:
        """For the next handshake."""
        if self._stamp() != self._seen:
            self.reload()
        return self._current

    def reload(self) -> None:
        """Read the files again, whether or not they seem changed; bad ones change nothing, and are logged."""
        # Looked at before the reading: a file that changes meanwhile is read again.
        self._seen = self._stamp()
        try:
            self._current = self._read()
        except CognateError as error:
            _log.warning("%s; the certificate from before stays in use", error)
        else:
            _log.info("read the certificate %s", self._certificate)

    def _read(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        try:
            # A password, or OpenSSL would ask for it at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except OSError as error:
            raise CognateError(_why(error, f"{self._certificate} and {self._key}")) from None
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except OSError as error:
                raise CognateError(_why(error, str(self._client_ca))) from None
        return context

    def _stamp(self) -> _Stamp:
        stamps = []
        for file in (self._certificate, self._key, self._client_ca):
            try:
                found = file.stat() if file else None
            except OSError:
                found = None
            stamps.append((found.st_ino, found.st_size, found.st_mtime_ns) if found else (0, 0, 0))
        return tuple(stamps)


def _why(error: OSError, files: str) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "not PEM").lower().replace("_", " ")
        return f"{files} cannot be used for TLS: {reason}; give PEM files, the key not encrypted"
    return f"{files} cannot be read: {error.strerror}"
