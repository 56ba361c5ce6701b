"""``cognate index list``, ``load``, ``rollback`` and ``unload`` against a running server."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cognate.encoder import Encoder
from cognate.index import Index
from serving import Settings
from tests.serving.servers import Running, version_records, write_index


@pytest.fixture(scope="module")
def versions(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    for version in ("v1", "v2"):
        write_index(folder / version, Encoder(tiny_bundle), version_records(version))
    return folder


@pytest.fixture
def target(tiny_bundle: Path, versions: Path) -> Iterator[str]:
    """A server that may be changed."""
    settings = Settings.load(
        bundle=tiny_bundle, indexes={"faq": versions / "v1"}, index_roots=[versions], admin=True, port=0
    )
    server = Running(settings)
    yield server.server.address
    server.stop()


def test_a_version_is_loaded_listed_rolled_back_and_unloaded(
    cognate: Callable, target: str, versions: Path
) -> None:
    first, second = Index(versions / "v1").version, Index(versions / "v2").version
    loaded = cognate("index", "load", "faq", versions / "v2", "--target", target)
    assert loaded.out == f"faq: version {second} serves, 6 records; version {first} was before\n"
    listed = cognate("index", "list", "--target", target)
    assert all(word in listed.out for word in ("faq", first, second, "serving"))
    back = json.loads(cognate("index", "rollback", "faq", "--target", target, "--json").out)
    assert (back["name"], back["version"], back["previous_version"]) == ("faq", first, second)
    (described,) = json.loads(cognate("index", "list", "--target", target, "--json").out)
    assert described == back
    assert cognate("index", "unload", "faq", "--target", target).out == "faq is unloaded\n"
    assert cognate("index", "list", "--target", target).out == f"{target} has no index\n"


def test_what_the_server_refuses_is_one_line(cognate: Callable, target: str) -> None:
    for arguments, says in (
        (("load", "faq", "/etc"), "path: is not below a folder that this server may load indexes from"),
        (("rollback", "faq"), "the index faq has no previous version"),
        (("unload", "other"), "there is no index named 'other'; the indexes are faq"),
    ):
        refused = cognate("index", *arguments, "--target", target)
        assert says in refused.check_one_line_error()


def test_an_index_is_updated_and_compacted_on_the_disk(
    cognate: Callable, versions: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index"
    shutil.copytree(versions / "v1", index)
    (tmp_path / "new.jsonl").write_text('{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}\n')
    (tmp_path / "old.txt").write_text("v1/0\nv1/1\n")
    arguments = (
        "--bundle",
        tiny_bundle,
        "--upsert",
        tmp_path / "new.jsonl",
        "--delete",
        tmp_path / "old.txt",
    )
    updated = cognate("index", "update", index, *arguments)
    assert updated.out == f"{index}: 1 records inserted, 0 replaced, 2 deleted; it holds 5\n"
    assert "1 records had an id that a later one has too, and the last counts" in updated.err
    again = json.loads(cognate("index", "update", index, *arguments, "--json").out)
    assert (again["inserted"], again["replaced"], again["deleted"], again["count"]) == (0, 1, 0, 5)
    told = json.loads(cognate("index", "info", index, "--json").out)["updates"]
    assert (told["revision"], told["changed"]) == (3, 3)
    assert "holds all 5 records" in cognate("index", "compact", index).out
    assert "nothing has changed" in cognate("index", "compact", index).out
    refused = cognate("index", "update", index, "--bundle", tiny_bundle)
    assert "nothing to do" in refused.check_one_line_error()
    shutil.rmtree(index)
    shutil.copytree(versions / "v2", index)
    refused = cognate("index", "info", index)
    assert "was built again as version" in refused.check_one_line_error()


def test_a_server_is_told_to_write_and_delete_records(
    cognate: Callable, versions: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    shutil.copytree(versions / "v1", tmp_path / "index")
    server = Running(
        Settings.load(bundle=tiny_bundle, indexes={"faq": tmp_path / "index"}, updates=True, port=0)
    )
    target = server.server.address
    try:
        (tmp_path / "new.jsonl").write_text('{"id": "v1/0", "text": "b"}\n{"id": "a", "text": "c"}\n')
        written = cognate("index", "upsert", "faq", tmp_path / "new.jsonl", "--target", target)
        assert written.out == "faq: 1 records inserted, 1 replaced\n"
        deleted = cognate("index", "delete", "faq", "a", "no such id", "--target", target)
        assert deleted.out == "faq: 1 of 2 records deleted\n"
        (tmp_path / "new.jsonl").write_text('{"text": "c"}\n')
        refused = cognate("index", "upsert", "faq", tmp_path / "new.jsonl", "--target", target)
        assert "new.jsonl:1: there is no id" in refused.check_one_line_error()
    finally:
        server.stop()


def test_the_plot_has_the_quickest_on_top_and_the_most_accurate_at_the_right() -> None:
    from cognate.cli.index import tradeoff_plot
    from cognate.index import IndexManifest
    from cognate.index_kinds import SearchParameters
    from cognate.index_tuning import TradeoffPoint

    def point(nprobe: int | None, recall: float, rate: float) -> TradeoffPoint:
        return TradeoffPoint(
            parameters=None if nprobe is None else SearchParameters(nprobe=nprobe),
            recall_at_10=recall,
            queries_per_second=rate,
            bytes_per_record=1,
        )

    points = [point(None, 1.0, 10), point(1, 0.5, 10_000), point(2, 0.75, 1000), point(4, 0.99, 100)]
    used = {"fast": points[2].parameters, "balanced": points[3].parameters}
    lines = tradeoff_plot(IndexManifest.model_construct(tradeoff=points, search=used))
    drawn = {
        mark: (row, line.index(mark))
        for row, line in enumerate(lines[1:13])
        for mark in "*FBE"
        if mark in line
    }
    assert sorted(drawn, key=lambda mark: drawn[mark][0]) == ["*", "F", "B", "E"]
    assert sorted(drawn, key=lambda mark: drawn[mark][1]) == ["*", "F", "B", "E"]
    assert lines[1].startswith("10,000 |*")
    assert lines[12].endswith("E")
    # One point alone, and an index that nobody can search in no time, are drawn too.
    assert any(
        "E" in line for line in tradeoff_plot(IndexManifest.model_construct(tradeoff=points[:1], search={}))
    )
