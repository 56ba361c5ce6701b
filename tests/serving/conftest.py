"""Servers on free ports, each with an event loop in a thread of its own, and what they serve."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import serving.server
from cognate.bundle import BundleManifest, Prompts, fingerprint_of
from cognate.encoder import Encoder
from serving import Settings
from tests.serving.servers import (
    RECORDS,
    GatedEncoder,
    Running,
    Stubs,
    serve_with_small_limits,
    version_records,
    write_index,
)
from tests.serving.transport import Client, Transport, open_channel


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with a prompt before queries, so that it shows which input type a text had."""
    folder = tmp_path_factory.mktemp("serving") / "bundle"
    shutil.copytree(tiny_bundle, folder)
    fields = BundleManifest.read(folder).model_dump(
        exclude={"artifact", "format_version", "created_at", "versions", "files", "prompts", "fingerprint"}
    )
    prompts = Prompts(query="how do i ")
    fingerprint = fingerprint_of(folder, max_length=fields["max_length"], prompts=prompts)
    BundleManifest.write(folder, **fields, prompts=prompts, fingerprint=fingerprint)
    return folder


@pytest.fixture(scope="session")
def encoder(bundle: Path) -> Encoder:
    return Encoder(bundle)


@pytest.fixture(scope="session")
def index(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of RECORDS."""
    return write_index(tmp_path_factory.mktemp("serving") / "index", encoder, RECORDS)


@pytest.fixture
def versions(encoder: Encoder, tmp_path: Path) -> Path:
    """A folder with three versions of an index: v1, v2 and v3."""
    for version in ("v1", "v2", "v3"):
        write_index(tmp_path / "versions" / version, encoder, version_records(version))
    return tmp_path / "versions"


@pytest.fixture
def serve(bundle: Path, index: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers with settings of the test's own, and stops them at its end."""
    running: list[Running] = []

    def start(**settings: Any) -> Running:
        defaults = {"bundle": bundle, "indexes": {"default": index}, "port": 0, "device": "cpu"}
        running.append(Running(Settings.load(**{**defaults, **settings})))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def serve_gated(
    serve: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Running, GatedEncoder]]]:
    """Starts servers whose model waits at a gate."""
    monkeypatch.setattr(serving.server, "Encoder", GatedEncoder)
    encoders: list[GatedEncoder] = []

    def start(**settings: Any) -> tuple[Running, GatedEncoder]:
        running = serve(**settings)
        encoders.append(GatedEncoder.made)
        encoders[-1].forget()
        return running, encoders[-1]

    yield start
    for encoder in encoders:
        encoder.gate.set()


@pytest.fixture(scope="module")
def running(bundle: Path, index: Path) -> Iterator[Running]:
    """A server with two indexes of the same records, and small limits."""
    server = serve_with_small_limits(bundle, index)
    yield server
    server.stop()


@pytest.fixture
def stubs(running: Running) -> Stubs:
    return running.stubs


@pytest.fixture
def transport() -> Iterator[Transport]:
    """A server of the transport alone."""
    with Transport() as running:
        yield running


@pytest.fixture
def client(transport: Transport) -> Iterator[Client]:
    """A client of it by h2."""
    with Client(transport.target) as connected:
        yield connected


@pytest.fixture
def channel(transport: Transport) -> Iterator[grpc.Channel]:
    """A client of it by grpcio."""
    with open_channel(transport) as opened:
        yield opened
