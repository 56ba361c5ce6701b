"""A server with an index, and a client of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cognate import Client, Encoder
from serving import Settings
from tests.serving.servers import RECORDS, Running, write_index


@pytest.fixture(scope="package")
def encoder(tiny_bundle: Path) -> Encoder:
    return Encoder(tiny_bundle)


@pytest.fixture(scope="package")
def client(tiny_bundle: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    index = write_index(tmp_path_factory.mktemp("integrations") / "index", encoder, RECORDS)
    server = Running(Settings.load(bundle=tiny_bundle, indexes={"faq": index}, port=0, device="cpu"))
    with Client(server.server.address) as client:
        yield client
    server.stop()
