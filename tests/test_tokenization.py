"""Texts to tokens: long ones, odd ones, and ones that are no text."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from cognate import tokenization
from cognate.bundle import Bundle
from cognate.errors import CognateError
from cognate.tokenization import TextTokenizer

words = st.sampled_from(
    [
        "door",
        "printer",
        "open",
        "x" * 150,
        "unknown",
        "怎样",
        "!!",
        "e\u0301",
        "\u05e9\u05dc\u05d5\u05dd",
        " ",
        "\x00",
        "-",
        "👩‍👩‍👧‍👦",
        "\u0301" * 20,
    ]
)
joins = st.sampled_from(["", " ", "\n", "   "])
long_texts = st.lists(st.tuples(words, joins), min_size=1, max_size=40).map(
    lambda parts: "".join(word + join for word, join in parts) * 12
)


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> TextTokenizer:
    return TextTokenizer(Bundle.open(tiny_bundle))


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> tokenizers.Tokenizer:
    """The tokenizers package's own, which cuts nothing."""
    plain = tokenizers.Tokenizer.from_file(str(Bundle.open(tiny_bundle).tokenizer))
    plain.no_padding()
    plain.no_truncation()
    return plain


def cut_by_hand(plain: tokenizers.Tokenizer, text: str) -> tuple[list[int], int]:
    ids = plain.encode(text).ids
    return (ids, 0) if len(ids) <= 64 else ([*ids[:63], ids[-1]], len(ids) - 64)


@given(long_texts)
def test_what_is_cut_is_counted(tokenizer: TextTokenizer, plain: tokenizers.Tokenizer, text: str) -> None:
    (cut,) = tokenizer.tokenize([text[: 64 * 64]])
    assert (list(cut.ids), cut.lost) == cut_by_hand(plain, text[: 64 * 64])


@given(long_texts)
def test_a_long_text_that_is_read_in_part_has_the_tokens_of_the_whole(
    tokenizer: TextTokenizer, plain: tokenizers.Tokenizer, text: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "LONG_TEXT", 1)
        (cut,) = tokenizer.tokenize([text])
    ids, lost = cut_by_hand(plain, text)
    assert list(cut.ids) == ids
    assert cut.lost <= lost
    assert cut.truncated == (lost > 0)


@pytest.mark.parametrize("joined", ["the door ", "door", "怎", "...", "e\u0301 ", "\u202eabc "])
def test_of_ten_million_characters_only_the_beginning_is_read(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, joined: str
) -> None:
    text = joined * (10_000_000 // len(joined))
    read = []
    whole = tokenizer._whole

    class Counting:
        def encode(self, text: str, **options: object) -> tokenizers.Encoding:
            read.append(len(text))
            return whole.encode(text, **options)

    monkeypatch.setitem(tokenizer.__dict__, "_whole", Counting())
    (cut,) = tokenizer.tokenize([text])
    assert cut.truncated
    assert sum(read) < 500_000
    assert list(cut.ids) == list(tokenizer.tokenize([text[:200_000]])[0].ids)


def test_nothing_is_looked_at_past_4096_characters_for_each_token(tokenizer: TextTokenizer) -> None:
    (spaces, text) = tokenizer.tokenize([" " * 300_000 + "door", " " * 200_000 + "door"])
    assert len(spaces.ids) == 2
    assert spaces.truncated
    assert len(text.ids) == 3
    assert not text.truncated


# Split


@given(long_texts)
def test_windows_fit_the_model_overlap_and_leave_nothing_out(tokenizer: TextTokenizer, text: str) -> None:
    windows = list(tokenizer.split(text))
    tokenized = tokenizer.tokenize(windows)
    assert not any(window.truncated for window in tokenized)
    start = end = 0
    for window in windows:
        # Nothing lies between two windows but what the tokenizer drops.
        assert not tokenizer.tokenize([text[end:start]])[0].ids[1:-1]
        end, following = tokenizer._window(text, start, 62)
        assert text[start:end] == window
        assert start < following <= end
        start = following
    assert end == len(text)


def test_a_text_that_fits_is_one_window(tokenizer: TextTokenizer) -> None:
    for text in ("", " ", "open the door", " ".join(["door"] * 62)):
        assert list(tokenizer.split(text)) == [text]


def test_windows_begin_between_words_and_leave_room_for_the_prompt(tokenizer: TextTokenizer) -> None:
    text = " ".join(["door", "printers", "open"] * 60)
    windows = list(tokenizer.split(text, "what is the "))
    assert len(windows) > 3
    assert {word for window in windows for word in window.split()} == {"door", "printers", "open"}
    assert not any(cut.truncated for cut in tokenizer.tokenize(windows, "what is the "))


def test_a_word_longer_than_a_window_is_cut_inside(tokenizer: TextTokenizer) -> None:
    windows = list(tokenizer.split("!" * 500))
    assert 500 <= sum(map(len, windows)) <= 600


# No text


@pytest.mark.parametrize("prompt", ["", "the "])
@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "ok \udc80 bytes", "a" * 10_000 + "\ud800"])
def test_an_unpaired_surrogate_is_refused_by_position(
    tokenizer: TextTokenizer, prompt: str, text: str
) -> None:
    with pytest.raises(
        CognateError, match=r"text 7 has an unpaired surrogate, U\+D[89CDF].., at character \d+, "
    ):
        tokenizer.tokenize(["fine", "fine 👩", text], prompt, first=5)


@pytest.mark.parametrize("text", [None, b"bytes", 7])
@pytest.mark.parametrize("prompt", ["", "the "])
def test_what_is_no_string_is_refused(tokenizer: TextTokenizer, text: object, prompt: str) -> None:
    with pytest.raises(CognateError, match="text 1 is of type (NoneType|bytes|int); a text is a string"):
        tokenizer.tokenize(["fine", text], prompt)  # type: ignore[list-item]
