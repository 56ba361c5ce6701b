"""The certificate that a server shows and whom it trusts, as their files hold them now."""

import logging
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from cognate.errors import CognateError

_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]
"""Inode, size and time of change of each file."""


class Certificates:
    """Credentials for TLS that follow their files. Safe to use from several threads.

    gRPC asks before each handshake. Files that have changed since are read then, so that a renewed
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
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._current = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """What a port listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            self._follow(self._current),  # type: ignore[arg-type]
            require_client_authentication=bool(self._client_ca),
        )

    def reload(self) -> None:
        """Read the files again, whether or not they seem changed; bad ones change nothing, and are logged."""
        with self._lock:
            self._reload()

    def _follow(
        self, known: grpc.ServerCertificateConfiguration
    ) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        """What gRPC asks before a handshake: the new configuration, or None where there is none."""

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal known
            with self._lock:
                if self._stamp() != self._seen:
                    self._reload()
                if known is self._current:
                    return None
                known = self._current
                return known

        return fetch

    def _reload(self) -> None:
        # Looked at before the reading: a file that changes meanwhile is read again.
        self._seen = self._stamp()
        try:
            self._current = self._read()
        except CognateError as error:
            _log.warning("%s; the certificate from before stays in use", error)
        else:
            _log.info("read the certificate %s", self._certificate)

    def _read(self) -> grpc.ServerCertificateConfiguration:
        # gRPC takes anything, and then fails at every handshake: let OpenSSL look at the files first.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A password, or OpenSSL would ask for it at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except OSError as error:
            raise CognateError(_why(error, f"{self._certificate} and {self._key}")) from None
        try:
            if self._client_ca:
                context.load_verify_locations(self._client_ca)
            return grpc.ssl_server_certificate_configuration(
                [(self._key.read_bytes(), self._certificate.read_bytes())],
                root_certificates=self._client_ca.read_bytes() if self._client_ca else None,
            )
        except OSError as error:
            raise CognateError(_why(error, str(self._client_ca))) from None

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
