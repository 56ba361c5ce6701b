"""``cognate keys new``: the entry for the file on standard output, the key itself beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.keys import hash_of, read_keys


def test_the_entry_can_go_into_the_file_and_the_key_is_not_in_it(cognate: Callable, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    names = ("a", "b")
    made = []
    with file.open("w") as opened:
        for name in names:
            finished = cognate("keys", "new", "--name", name, "--right", "search", "--index", "faq")
            assert finished.code == 0
            opened.write(finished.out)
            made.append(finished.err.split()[-1])
    for key, name, read in zip(made, names, read_keys(file), strict=True):
        assert read.name == name
        assert read.sha256 == hash_of(key)
        assert read.rights == {"search"}
        assert read.indexes == {"faq"}
        assert key not in file.read_text()


def test_json_has_both(cognate: Callable, tmp_path: Path) -> None:
    arguments = ("--right", "encode", "--right", "admin", "--calls-per-second", "5", "--burst-seconds", "2")
    finished = cognate("keys", "new", "--name", "a", *arguments, "--json")
    document = json.loads(finished.out)
    (tmp_path / "keys.toml").write_text(document["entry"])
    (key,) = read_keys(tmp_path / "keys.toml")
    assert key.sha256 == hash_of(document["key"])
    assert key.rights == {"encode", "admin"}
    assert (key.calls_per_second, key.texts_per_second, key.burst_seconds) == (5, None, 2)
    assert key.indexes is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--name", "a b", "--right", "search"), "name: "),
        (("--name", "a", "--right", "root"), "rights.0: "),
        (("--name", "a", "--right", "search", "--texts-per-second", "0"), "texts_per_second: "),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], sentence: str, cognate: Callable) -> None:
    assert sentence in cognate("keys", "new", *arguments).check_one_line_error()
