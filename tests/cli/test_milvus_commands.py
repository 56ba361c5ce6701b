"""``cognate index`` with an index in Milvus."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.milvus.collections import lite


def test_an_index_in_milvus_is_built_looked_at_verified_and_updated(
    cognate: Callable, tiny_bundle: Path, tmp_path: Path
) -> None:
    records = tmp_path / "records.jsonl"
    records.write_text('{"id": "a", "text": "open the door"}\n{"id": "b", "text": "reset the password"}\n')
    with lite(tmp_path) as alias:
        arguments = ("index", "build", records, "--bundle", tiny_bundle, "--out", alias)
        built = cognate(*arguments, "--backend", "milvus")
        assert built.out.startswith(f"{alias}: an index of 2 records, flat, 32 dimensions, recall@10 1.0000")
        assert "is there already; give --force" in cognate(*arguments).check_one_line_error()
        assert "do not fit" in cognate(*arguments, "--backend", "faiss").check_one_line_error()
        told = json.loads(cognate("index", "info", alias, "--json").out)
        assert (told["count"], told["kind"], told["parameters"]["backend"]) == (2, "flat", "milvus")
        assert told["location"].startswith(f"milvus:{alias.server}/faq_")
        assert (
            "2 records were encoded again" in cognate("index", "verify", alias, "--bundle", tiny_bundle).out
        )
        (tmp_path / "ids.txt").write_text("a\n")
        records.write_text('{"id": "b", "text": "new"}\n{"id": "c", "text": "newer"}\n')
        changes = ("--upsert", records, "--delete", tmp_path / "ids.txt")
        updated = cognate("index", "update", alias, "--bundle", tiny_bundle, *changes)
        assert updated.out == f"{alias}: 1 records inserted, 1 replaced, 1 deleted; it holds 2\n"
        for command, says in (
            (("compact", alias), "Milvus compacts by itself"),
            (("export", alias, "--out", tmp_path / "v.npy"), "with its own tools"),
            (("merge", alias, alias, "--out", tmp_path / "m"), "merge folders"),
        ):
            assert says in cognate("index", *command).check_one_line_error()


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("milvus://localhost:1/faq", "Milvus at localhost:1 does not answer"),
        ("milvus://root:hunter2@localhost:1/faq", "give USER:PASSWORD in COGNATE_MILVUS_TOKEN"),
        ("milvus:nowhere/milvus.db/faq", "there is no folder for nowhere/milvus.db"),
        ("milvus://localhost/faq", "this is no index in Milvus; write"),
    ],
)
def test_what_cannot_be_opened_is_one_line(cognate: Callable, index: str, says: str) -> None:
    error = cognate("index", "info", index).check_one_line_error()
    assert says in error
    assert "hunter2" not in error
