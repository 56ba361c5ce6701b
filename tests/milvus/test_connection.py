"""Connecting to Milvus: what is refused, and what is not logged."""

from pathlib import Path

import numpy as np
import pytest

from cognate.bundle import Bundle
from cognate.errors import CognateError
from cognate.milvus import connection
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.location import MilvusOptions
from cognate.records import Record
from tests.milvus.collections import lite, publish_records


def test_a_server_that_is_too_old_is_refused_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lite(tmp_path) as location:
        MilvusConnection(location, MilvusOptions()).close()
        monkeypatch.setattr(connection, "OLDEST", (99, 0))
        with pytest.raises(CognateError, match=r"is version \S+; cognate needs 99.0 or newer, so update it"):
            MilvusConnection(location, MilvusOptions())


def test_what_milvus_lite_lacks_and_nobody_needs_is_not_logged(
    tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records, vectors = [Record("open the door")], np.eye(1, 32, dtype=np.float32)
    with lite(tmp_path) as location:
        publish_records(location, Bundle.open(tiny_bundle), records, vectors, note=tmp_path / "note")
    assert caplog.messages == []
