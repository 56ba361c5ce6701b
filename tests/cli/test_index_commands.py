"""``cognate index list``, ``load``, ``rollback`` and ``unload`` against a running server."""

import json
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
