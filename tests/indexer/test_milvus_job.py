"""Jobs that build an index in Milvus."""

import contextlib
from pathlib import Path

import pytest

import indexer
from cognate.encoder import Encoder
from cognate.errors import CognateError, UnavailableError
from cognate.index_kinds import Layout
from cognate.milvus.connection import MilvusConnection
from cognate.milvus.location import MilvusOptions
from cognate.opening import open_index
from tests.indexer.test_batch_job import texts, write
from tests.milvus.collections import Milvus, lite


def test_a_job_whose_milvus_goes_away_keeps_what_is_done_and_goes_on(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path / "records.jsonl", [{"text": text, "id": f"r{text}"} for text in texts(50)])
    milvus = Milvus(tmp_path / "data")
    try:
        with pytest.raises(UnavailableError, match="does not answer"):
            indexer.build(source, tiny_bundle, milvus.location, on_progress=lambda count: milvus.kill())
        milvus.start()
        tally = indexer.Tally()
        manifest = indexer.build(source, tiny_bundle, milvus.location, tally=tally)
        assert (manifest.count, tally.resumed, tally.encoded) == (50, 50, 0)
        with contextlib.closing(open_index(milvus.location)) as index:
            found = index.search(Encoder(tiny_bundle).encode(texts(50)), 1)
            assert [hit.text for (hit,) in found] == texts(50)
        assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".job")]
    finally:
        milvus.kill()


def test_what_a_killed_job_had_written_is_dropped(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": text} for text in texts(5)])
    with lite(tmp_path) as alias:
        with pytest.MonkeyPatch.context() as patch:
            # As a kill does: nothing is tidied up.
            patch.setattr("cognate.milvus.publishing._insert", _interrupt)
            patch.setattr("cognate.milvus.publishing._drop", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                indexer.build(source, tiny_bundle, alias)
        with contextlib.closing(MilvusConnection(alias, MilvusOptions())) as connection:
            (left,) = connection.client.list_collections()
            indexer.build(source, tiny_bundle, alias)
            (there,) = connection.client.list_collections()
        assert there != left


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_milvus_cannot_take_is_refused_before_it_is_encoded(tiny_bundle: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "records.jsonl", [{"text": "a", "id": "x"}, {"text": "é" * 40_000, "id": "y"}])
    with lite(tmp_path) as alias:
        with pytest.raises(CognateError, match=r"records have text of 80000 bytes \('y'\), and Milvus takes"):
            indexer.build(source, tiny_bundle, alias)
        with pytest.raises(CognateError, match="an index in Milvus is of kind flat or hnsw"):
            indexer.build(source, tiny_bundle, alias, layout=Layout("ivf_pq"))
        with contextlib.closing(MilvusConnection(alias, MilvusOptions())) as connection:
            assert connection.client.list_collections() == []
