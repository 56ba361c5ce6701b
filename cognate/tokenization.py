"""Texts to token ids, by the bundle's tokenizer, whatever the text."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import tokenizers

from cognate.bundle import Bundle
from cognate.errors import ArtifactError, CognateError

CHARACTERS_AT_A_TIME = 256 * 1024
"""Of the texts, tokenised in one call: bounds the memory that it takes."""

FEW_TEXTS = 16
"""Are tokenised by the thread that asks for it. More are divided among threads of the tokenizer, for which a
server's event loop would wait, while the model has the cores."""

LONG_TEXT = 64
"""Characters for each token that the model reads, above which a text is first cut, so that 10 MB of text take
milliseconds and not seconds."""

LONGEST_TEXT = 4096
"""Characters for each token that the model reads, beyond which no text is looked at."""

OVERLAP = 8
"""One part in so many of a window is also in the next, where a text is split."""


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as the model reads it.

    Attributes:
        ids: Token ids, special tokens and prompt included, at most max_length.
        lost: Tokens of the text that were cut off. Exact, but for a text of more than 64 characters for each
            token of max_length: of that it is at least so many.
    """

    ids: Sequence[int]
    lost: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the text had more tokens."""
        return self.lost > 0


class TextTokenizer:
    """A bundle's tokenizer. Safe to use from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        """Load it.

        Raises:
            ArtifactError: The file is no tokenizer.
        """
        self.max_length = bundle.manifest.max_length
        try:
            self._cutting = tokenizers.Tokenizer.from_file(str(bundle.tokenizer))
        except Exception as error:  # tokenizers raises bare Exception
            raise ArtifactError(
                f"{bundle.tokenizer} is no tokenizer: {error}; export the bundle again"
            ) from None
        self._cutting.no_padding()
        self._cutting.enable_truncation(self.max_length)
        self._special = self._cutting.num_special_tokens_to_add(False)

    def tokenize(self, texts: Sequence[str], prompt: str = "", *, first: int = 0) -> list[TokenizedText]:
        """Turn texts into token ids, cut at max_length.

        Args:
            texts: Any number.
            prompt: Put before each.
            first: What the first text is called where one is refused.

        Returns:
            One for each text, in order.

        Raises:
            CognateError: A text is no string, or has an unpaired surrogate, which is in no Unicode text.
        """
        tokenized: list[TokenizedText] = []
        for some in _some_at_a_time(texts):
            try:
                tokenized += self._tokenize(some, prompt)
            except TypeError:
                _refuse(some, first + len(tokenized))
                raise
        return tokenized

    def split(self, text: str, prompt: str = "") -> Iterator[str]:
        """Cut a text into windows that each fit the model, and that overlap by an eighth.

        They begin and end between words where a word is not longer than a window. All that the tokenizer
        reads of the text is in one window at least.

        Args:
            text: Of any length; taken as it is where it fits.
            prompt: Room is left for it.

        Yields:
            The windows, without the prompt.
        """
        room = max(1, self.max_length - self._special - (self._count(prompt) if prompt else 0))
        start = 0
        while True:
            end, following = self._window(text, start, room)
            yield text[start:end]
            if following >= len(text):
                return
            start = following

    def _tokenize(self, texts: Sequence[str], prompt: str) -> list[TokenizedText]:
        prompted = [prompt + text for text in texts] if prompt else list(texts)
        lost: dict[int, int] = {}
        for position, text in enumerate(prompted):
            if len(text) > LONG_TEXT * self.max_length:
                prompted[position], unread = self._beginning(text)
                if unread:
                    lost[position] = unread
        if len(prompted) <= FEW_TEXTS:
            encodings = [self._cutting.encode(text) for text in prompted]
        else:
            encodings = self._cutting.encode_batch_fast(prompted)
        return [
            TokenizedText(array("i", encoding.ids), lost.get(position) or self._lost(encoding))
            for position, encoding in enumerate(encodings)
        ]

    def _beginning(self, text: str) -> tuple[str, int]:
        """As much of a long text as gives the tokens of the whole, and how many it at least loses, if any.

        A tokenizer reads words one by one, so what follows cannot change a word before it, but for the last
        two, which may be cut or looked ahead from. Where those before them fill the model, the rest need
        not be read.
        """
        room = self.max_length - self._special
        characters = LONG_TEXT * self.max_length
        longest = LONGEST_TEXT * self.max_length
        while characters < min(len(text), longest):
            beginning = text[:characters]
            tokens = _tokens_before_last_words(
                self._whole.encode(beginning, add_special_tokens=False).word_ids
            )
            if tokens >= room:
                return beginning, tokens - room + 1
            characters *= 8
        return text[:longest], int(len(text) > longest)

    def _window(self, text: str, start: int, room: int) -> tuple[int, int]:
        """Where the window that begins at ``start`` ends, and where the next begins."""
        characters = 8 * (room + 1)
        while True:
            encoding = self._whole.encode(text[start : start + characters], add_special_tokens=False)
            words, offsets = encoding.word_ids, encoding.offsets
            if _tokens_before_last_words(words) > room or start + characters >= len(text):
                break
            characters *= 2
        if len(words) <= room:
            return len(text), len(text)
        end = room
        while end and words[end] == words[end - 1]:
            end -= 1
        end = end or room
        begin = earliest = max(1, end - room // OVERLAP)
        while begin < end and words[begin] == words[begin - 1]:
            begin += 1
        if begin == end:
            begin = earliest
        # The space before a word is the word's for some tokenizers, so the next window begins there. A token
        # may end at no character of its own, so that progress has to be made sure of.
        return start + max(1, offsets[end - 1][1]), start + max(1, offsets[begin - 1][1])

    @cached_property
    def _whole(self) -> tokenizers.Tokenizer:
        """The same tokenizer, which cuts nothing."""
        whole = tokenizers.Tokenizer.from_str(self._cutting.to_str())
        whole.no_truncation()
        return whole

    def _count(self, text: str) -> int:
        return len(self._whole.encode(text, add_special_tokens=False).ids)

    def _lost(self, encoding: tokenizers.Encoding) -> int:
        # Most texts are not cut, and to ask for the rest copies it.
        if len(encoding) < self.max_length:
            return 0
        return sum(len(rest.ids) - self._special for rest in encoding.overflowing)


def _tokens_before_last_words(words: Sequence[int | None]) -> int:
    """Tokens of all words but the last two; 0 where the tokenizer knows no words."""
    if not words or words[-1] is None:
        return 0
    last = words[-1]
    return next((position for position, word in enumerate(words) if word is not None and word >= last - 1), 0)


def _some_at_a_time(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = characters = 0
    for position, text in enumerate(texts):
        characters += len(text) if isinstance(text, str) else 0
        if characters >= CHARACTERS_AT_A_TIME:
            yield texts[start : position + 1]
            start, characters = position + 1, 0
    if start < len(texts):
        yield texts[start:]


def _refuse(texts: Sequence[str], first: int) -> None:
    """Say which text the tokenizer cannot take."""
    for position, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise CognateError(f"text {position} is of type {type(text).__name__}; a text is a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise CognateError(
                f"text {position} has an unpaired surrogate, U+{ord(text[error.start]):04X}, at character "
                f"{error.start}, which is in no Unicode text; read the text again with its right encoding"
            ) from None
