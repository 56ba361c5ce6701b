"""TLS: who is trusted, what is refused, and certificates that are renewed while the server runs."""

import contextlib
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cognate import AsyncClient, Client
from cognate.client import RequestError
from cognate.errors import CognateError
from serving.certificates import Certificates
from tests.certificates import DAY, NOW, Authority, in_one_file
from tests.serving.servers import Running

Serve = Callable[..., Running]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@contextlib.contextmanager
def client(running: Running, **options: object) -> Iterator[Client]:
    with Client(running.server.address, timeout=20, **options) as made:
        yield made


def shown_name(running: Running, authority: Authority) -> str:
    """The name in the certificate that a new connection gets to see."""
    context = ssl.create_default_context(cafile=authority.file)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", running.server.port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        certificate = connection.getpeercert()
    assert certificate
    return dict(pair for (pair,) in certificate["subject"])["commonName"]  # type: ignore[misc]


def test_clients_that_trust_the_authority_are_answered(serve: Serve, authority: Authority) -> None:
    certificate, key = authority.issue("server")
    running = serve(tls_certificate=certificate, tls_key=key)
    with client(running, ca=authority.file) as trusting:
        assert trusting.is_ready()
        assert len(trusting.search("door", top_k=2)) == 2


def test_clients_that_trust_others_or_use_no_tls_are_not(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server")
    running = serve(tls_certificate=certificate, tls_key=key)
    for options in ({"ca": Authority(tmp_path, "other").file}, {"tls": True}):
        with client(running, **options) as wary, pytest.raises(RequestError) as caught:
            wary.search("door")
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        assert "certificate verify failed: unable to get local issuer" in str(caught.value)
    with client(running) as plain, pytest.raises(RequestError) as caught:
        plain.search("door")
    assert "closed the connection; does it ask for TLS" in str(caught.value)


def test_a_name_with_an_address_at_which_nothing_listens_hides_no_mistake(
    serve: Serve, authority: Authority, tmp_path: Path, connect: Callable[..., Any]
) -> None:
    certificate, key = authority.issue("server")
    running = serve(tls_certificate=certificate, tls_key=key)
    for options, sentence in (
        ({}, "closed the connection; does it ask for TLS"),
        ({"tls": True}, "certificate verify failed: unable to get local issuer"),
        ({"ca": Authority(tmp_path, "other").file}, "certificate verify failed: unable to get local issuer"),
    ):
        # That is ::1 too, and gRPC tells of the one or the other.
        wary = connect(f"localhost:{running.server.port}", **options)
        with pytest.raises(RequestError, match=sentence):
            wary.search("door")


def test_an_expired_certificate_is_not_trusted_and_its_successor_is(
    serve: Serve, authority: Authority
) -> None:
    certificate, key = authority.issue("server", ends=NOW - DAY)
    running = serve(tls_certificate=certificate, tls_key=key)
    with client(running, ca=authority.file) as wary, pytest.raises(RequestError) as caught:
        wary.search("door")
    assert "certificate has expired" in str(caught.value)
    authority.issue("server")
    with client(running, ca=authority.file) as trusting:
        assert trusting.search("door")


def test_with_a_client_ca_only_clients_with_a_certificate_of_it_are_answered(
    serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server")
    running = serve(tls_certificate=certificate, tls_key=key, tls_client_ca=authority.file)
    with client(running, ca=authority.file, certificate=in_one_file(authority.issue("us"))) as known:
        assert known.search("door")
    stranger = in_one_file(Authority(tmp_path / "other").issue("stranger"))
    for options in ({}, {"certificate": stranger}):
        with client(running, ca=authority.file, **options) as unknown, pytest.raises(RequestError) as caught:
            unknown.search("door")
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE


def test_a_renewed_certificate_is_shown_to_the_next_connection_and_calls_go_on(
    serve: Serve, authority: Authority
) -> None:
    certificate, key = authority.issue("first")
    running = serve(tls_certificate=certificate, tls_key=key)
    with client(running, ca=authority.file) as standing:
        assert standing.search("door")
        assert shown_name(running, authority) == "first"
        for new, old in zip(authority.issue("second"), (certificate, key), strict=True):
            new.replace(old)
        assert shown_name(running, authority) == "second"
        assert standing.search("door")


def test_a_bad_new_certificate_leaves_the_old_one_and_is_logged_once(
    serve: Serve, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = authority.issue("first")
    running = serve(tls_certificate=certificate, tls_key=key)
    # As between the writing of the one file and of the other.
    new_certificate, new_key = authority.issue("second")
    new_certificate.replace(certificate)
    for _ in range(3):
        assert shown_name(running, authority) == "first"
    (logged,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{certificate} and {key} cannot be used for TLS: key values mismatch" in logged
    assert logged.endswith("the certificate from before stays in use")
    new_key.replace(key)
    assert shown_name(running, authority) == "second"


def test_a_reload_reads_files_that_seem_unchanged(serve: Serve, authority: Authority) -> None:
    certificate, key = authority.issue("first")
    running = serve(tls_certificate=certificate, tls_key=key)
    for new, old in zip(authority.issue("other"), (certificate, key), strict=True):
        stamp = old.stat()
        content = new.read_bytes()
        # The same file, of the same size and time.
        old.write_bytes(content.ljust(stamp.st_size, b"\n"))
        os.truncate(old, max(len(content), stamp.st_size))
        os.utime(old, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    running.server.reload()
    assert shown_name(running, authority) == "other"


def test_what_cannot_be_used_is_one_sentence(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("a")
    _, other = authority.issue("b")
    none, text = tmp_path / "none.pem", tmp_path / "text.pem"
    text.write_text("no PEM")
    for files, sentence in (
        ((certificate, other), "cannot be used for TLS: key values mismatch"),
        ((text, key), "cannot be used for TLS: "),
        ((certificate, text), "cannot be used for TLS: "),
        ((none, key), "No such file or directory"),
        ((certificate, key, text), "text.pem cannot be used for TLS: "),
        ((certificate, key, none), "none.pem cannot be read: No such file or directory"),
    ):
        with pytest.raises(CognateError) as caught:
            Certificates(*files)
        assert sentence in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_a_client_cannot_use_is_one_sentence(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = authority.issue("a")
    text = tmp_path / "text.pem"
    text.write_text("no PEM")
    for options, sentence in (
        ({"ca": tmp_path / "none.pem"}, "none.pem cannot be read: No such file or directory"),
        ({"ca": text}, "text.pem has no certificate in it"),
        ({"certificate": certificate}, "a.pem has no private key in it"),
        ({"api_key": "two\nlines"}, "the API key is empty, or has characters other than ASCII"),
        ({"api_key": ""}, "the API key is empty"),
    ):
        for kind in (Client, AsyncClient):
            with pytest.raises(CognateError, match=sentence):
                kind("localhost", **options)
