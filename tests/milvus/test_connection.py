"""Connecting to Milvus refuses a server that cannot keep an index."""

from pathlib import Path

import pytest

from cognate.errors import CognateError
from cognate.milvus import connection
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.location import MilvusOptions
from tests.milvus.collections import lite


def test_a_server_that_is_too_old_is_refused_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lite(tmp_path) as location:
        MilvusConnection(location, MilvusOptions()).close()
        monkeypatch.setattr(connection, "OLDEST", (99, 0))
        with pytest.raises(CognateError, match=r"is version \S+; cognate needs 99.0 or newer, so update it"):
            MilvusConnection(location, MilvusOptions())
