"""The file of keys: what it takes, and what is wrong in one sentence."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cognate.errors import CognateError
from serving.keys import PREFIX, Key, Right, entry, hash_of, new_key, read_keys

HASH = "a" * 64
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
RATES = st.none() | st.floats(0.001, 1e9)


def write(folder: Path, content: str | bytes) -> Path:
    file = folder / "keys.toml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_keys_are_long_and_never_alike() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    for key in keys:
        assert key.startswith(PREFIX)
        # 32 bytes in base64.
        assert len(key) == len(PREFIX) + 43


@given(
    st.builds(
        Key,
        name=NAMES,
        sha256=st.just(HASH),
        rights=st.frozensets(st.sampled_from(get_args(Right)), min_size=1),
        indexes=st.none() | st.frozensets(NAMES, min_size=1, max_size=5),
        calls_per_second=RATES,
        texts_per_second=RATES,
        burst_seconds=st.floats(0.001, 86400),
    )
)
def test_an_entry_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, key: Key) -> None:
    assert read_keys(write(tmp_path_factory.mktemp("keys"), entry(key))) == [key]


def test_an_entry_does_not_tell_the_key() -> None:
    key = new_key()
    written = entry(Key(name="a", sha256=hash_of(key), rights=frozenset({"search"})))
    assert key not in written
    assert hash_of(key) in written


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "keys: field required"),
        ("keys = []", "keys: list should have at least 1 item"),
        ("keys = 1", "keys: input should be a valid list"),
        ("[[keys]", "is no TOML file"),
        (b"\xff", "is no TOML file"),
        ('[[keys]]\nname = "a"\nrights = ["search"]', "keys.0.sha256: field required"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrights = []', "keys.0.rights: frozenset should have"),
        (f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrights = ["root"]', "keys.0.rights.0: input should be"),
        (
            f'[[keys]]\nname = "a b"\nsha256 = "{HASH}"\nrights = ["search"]',
            "keys.0.name: string should match",
        ),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrights = ["search"]\nindex = ["a"]',
            "there is no keys.0.index; a key has name, sha256, rights",
        ),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrights = ["search"]\ncalls_per_second = nan',
            "keys.0.calls_per_second: ",
        ),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrights = ["search"]\n' * 2,
            "two keys have the name a",
        ),
        (
            f'[[keys]]\nname = "a"\nsha256 = "{HASH}"\nrights = ["search"]\n'
            f'[[keys]]\nname = "b"\nsha256 = "{HASH}"\nrights = ["search"]\n',
            "two keys have the sha256",
        ),
        ("#" * (1024 * 1024 + 1), "is larger than 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    with pytest.raises(CognateError) as caught:
        read_keys(write(tmp_path, content))
    assert "keys.toml" in str(caught.value)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_where_its_hash_belongs_is_not_shown(tmp_path: Path) -> None:
    key = new_key()
    with pytest.raises(CognateError) as caught:
        read_keys(write(tmp_path, f'[[keys]]\nname = "a"\nsha256 = "{key}"\nrights = ["search"]'))
    assert "keys.0.sha256" in str(caught.value)
    assert key not in str(caught.value)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CognateError, match="No such file or directory; give a file of keys"):
        read_keys(tmp_path / "none.toml")
