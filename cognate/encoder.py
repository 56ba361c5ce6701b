"""Texts to embeddings, with onnxruntime and tokenizers: the one path of indexer, serving, evaluation."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from cognate import bert_layers, vector_formats
from cognate.batching import batches_by_length, padded_length
from cognate.bundle import Bundle, InputType
from cognate.devices import Device
from cognate.errors import CognateError
from cognate.processors import available_cores
from cognate.providers import OUTPUT
from cognate.sessions import Sessions
from cognate.tokenization import TextTokenizer, TokenizedText
from cognate.vector_formats import VectorFormat

__all__ = ["Device", "Encoder", "OnLong", "TokenizedText"]

OnLong = Literal["truncate", "error", "split"]

WINDOW = 4096
"""Texts that are tokenised and sorted by length together; bounds memory whatever the number of texts."""


class Encoder:
    """Encodes texts with a bundle. Safe to use from several threads.

    Every string is a text, if it is Unicode: an empty one, or one of which the tokenizer drops everything
    (white space, control characters), has the vector of the model's special tokens alone. NUL, combining
    characters and right-to-left text are what the bundle's tokenizer makes of them. An unpaired surrogate is
    refused. A text that is too long is cut, refused or split, as asked; of a cut text nothing is looked at
    beyond 4,096 characters for each token of max_length. A text's vector does not depend on the texts it is
    encoded with, but for rounding (1e-5).

    Attributes:
        bundle: The opened bundle.
        device: Where the model runs: "cpu", "cuda", …; never "auto".
        dimension: Components of an embedding.
        fingerprint: Of the bundle.
        max_length: Tokens that are read of a text.
        max_batch_tokens: Tokens of a batch, padding included.
        max_batch_texts: Texts of a batch.
        run_tokens: What a run of the model costs beside its tokens, counted in tokens.
        padding_cost: What a token of padding costs, counted in tokens.
        runs_at_once: Runs that, side by side, encode most texts a second.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        device: Device = "auto",
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        bulk: bool = False,
    ) -> None:
        """Open a bundle, check it and load its model.

        Args:
            bundle: Its folder, or one opened before.
            device: "auto" takes what the bundle is for, or a CUDA device, where onnxruntime can start one,
                else the CPU.
            threads: Cores to use on the CPU. None: those that this process may use, by its affinity and its
                cgroup's quota.
            max_batch_tokens: Tokens of a batch, padding included. None: what suits the device.
            bulk: For jobs that only encode many texts on the CPU: each run of the model has one thread, and
                there are as many runs at once as threads. Otherwise a run that is alone has all threads, so
                that one text is done sooner, and memory for that.

        Raises:
            ArtifactError: The bundle is missing, damaged, or its graph cannot be run.
            CognateError: There is no such device, or it cannot be started.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        threads = threads or available_cores()
        self._tokenizer = TextTokenizer(self.bundle)
        self._sessions = Sessions(self.bundle, device, threads, bulk=bulk)
        self._provider = self._sessions.provider
        self.device = self._provider.device
        self.dimension = manifest.dimension
        self.fingerprint = manifest.fingerprint
        self.max_length = manifest.max_length
        suitable = (bulk and self._provider.bulk_batch_tokens) or self._provider.max_batch_tokens
        self.max_batch_tokens = max_batch_tokens or suitable
        self.max_batch_texts = self._provider.max_batch_texts
        self.run_tokens = self._provider.run_tokens
        self.padding_cost = bert_layers.PADDING_COST if self._sessions.skips_padding else 1
        self.runs_at_once = threads if self._provider.own_cores else 1
        self._prompts = {"query": manifest.prompts.query, "passage": manifest.prompts.passage}
        self._pad_id = manifest.pad_id

    def tokenize(self, texts: Sequence[str], input_type: InputType = "passage") -> list[TokenizedText]:
        """Turn texts into token ids, with the prompt before each.

        Args:
            texts: Any number.
            input_type: Which prompt to use.

        Returns:
            One for each text, in order.

        Raises:
            CognateError: A text is no Unicode text, the texts are no list, or there is no such prompt.
        """
        _check_list(texts)
        self._check_input_type(input_type)
        return self._tokenizer.tokenize(texts, self._prompts[input_type])

    def padded_length(self, tokens: int) -> int:
        """The length that a batch is run with, no longer than max_length, which the model may end at.

        Args:
            tokens: Of its longest text.
        """
        padded = padded_length(
            max(1, tokens),
            multiple=self._provider.length_multiple,
            most_padding=self._provider.length_padding,
        )
        return max(tokens, min(self.max_length, padded))

    def forward(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Run the model once.

        Args:
            batch: The token ids of each text, at least one text.

        Returns:
            float32, shape (texts, dimension), unit length.
        """
        feeds = self._feeds(batch)
        with self._sessions.session() as session:
            (embeddings,) = session.run([OUTPUT], feeds)
        result: NDArray[np.float32] = embeddings
        return result

    def forward_on_device(self, batch: Sequence[Sequence[int]]) -> onnxruntime.OrtValue:
        """Run the model once, and leave the vectors where the device calculated them.

        Args:
            batch: The token ids of each text, at least one text.

        Returns:
            float32, shape (texts, dimension), unit length; ``data_ptr()`` is its address, on the GPU for
            cuda and tensorrt, for a search there.
        """
        feeds = self._feeds(batch)
        with self._sessions.session() as session:
            binding = session.io_binding()
            for name, values in feeds.items():
                binding.bind_cpu_input(name, values)
            binding.bind_output(OUTPUT, self._provider.memory)
            session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def warm_up(self) -> None:
        """Open and run all there is, so that the first call is as quick as those after it."""
        self._sessions.open_all()
        longest = [self._pad_id] * self.max_length
        texts = min(self.max_batch_texts, max(1, self.max_batch_tokens // self.max_length))
        self.forward([longest] * texts)
        self.forward([text.ids for text in self.tokenize(["warm up"])])

    def encode(
        self,
        texts: Sequence[str],
        input_type: InputType = "passage",
        *,
        on_long: OnLong = "truncate",
        dimension: int | None = None,
        vector_format: VectorFormat = "float32",
        on_progress: Callable[[int], None] | None = None,
        on_truncated: Callable[[int, int], None] | None = None,
    ) -> NDArray[Any]:
        """Encode texts.

        Args:
            texts: Any number.
            input_type: Which prompt to put before each.
            on_long: What becomes of a text of more than max_length tokens. "truncate": the rest is not read.
                "error": it is refused. "split": it is cut into windows that overlap by an eighth, and its
                vector is the mean of theirs, weighted by their tokens, at unit length.
            dimension: Keep the first so many components, at unit length (Matryoshka). None: all.
            vector_format: "float32", "float16", "int8" (components times 127) or "binary" (one bit each);
                see ``cognate.vector_formats.convert``.
            on_progress: Called with the number of texts done since the last call.
            on_truncated: Called with the position of each text that is cut, and the tokens it lost; of a text
                of more than 64 characters for each token of max_length, at least so many.

        Returns:
            Shape (texts, dimension), in the order of ``texts``, unit length; for "binary" uint8 of shape
            (texts, ceil(dimension / 8)).

        Raises:
            CognateError: A text is no Unicode text, or too long and not to be cut; the texts are no list;
                there is no such input_type, dimension or format.
        """
        _check_list(texts)
        blocks = self.encode_stream(
            texts,
            input_type,
            on_long=on_long,
            dimension=dimension,
            vector_format=vector_format,
            on_progress=on_progress,
            on_truncated=on_truncated,
        )
        if 0 < len(texts) <= WINDOW:
            (block,) = blocks
            return block
        none = np.empty((0, self.dimension), np.float32)
        embeddings = vector_formats.convert(
            vector_formats.cut(none, dimension or self.dimension), vector_format
        )
        embeddings = np.empty((len(texts), embeddings.shape[1]), embeddings.dtype)
        start = 0
        for block in blocks:
            embeddings[start : start + len(block)] = block
            start += len(block)
        return embeddings

    def encode_stream(
        self,
        texts: Iterable[str],
        input_type: InputType = "passage",
        *,
        on_long: OnLong = "truncate",
        dimension: int | None = None,
        vector_format: VectorFormat = "float32",
        on_progress: Callable[[int], None] | None = None,
        on_truncated: Callable[[int, int], None] | None = None,
    ) -> Iterator[NDArray[Any]]:
        """Encode texts as they come, in memory that does not grow with their number.

        Args:
            texts: Read as far as the next block needs; may never end.
            input_type: As for ``encode``, as is all that follows.
            on_long: See there.
            dimension: See there.
            vector_format: See there.
            on_progress: See there.
            on_truncated: See there.

        Returns:
            The embeddings in the order of the texts, 4,096 at a time, the last ones fewer.

        Raises:
            CognateError: As ``encode`` does, but for texts that are no list: they may be any iterable.
        """
        if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
            raise CognateError(f"texts is of type {type(texts).__name__}; give an iterable of strings")
        self._check_input_type(input_type)
        vector_formats.check(dimension, self.dimension, vector_format)
        if on_long not in get_args(OnLong):
            raise CognateError(
                f"there is no on_long {on_long!r}; choose one of {', '.join(get_args(OnLong))}"
            )
        prompt = self._prompts[input_type]

        def blocks() -> Iterator[NDArray[Any]]:
            first = 0
            remaining = iter(texts)
            while window := list(itertools.islice(remaining, WINDOW)):
                tokenized = self._tokenizer.tokenize(window, prompt, first=first)
                long = [position for position, text in enumerate(tokenized) if text.truncated]
                if long and on_long == "error":
                    raise CognateError(
                        f"text {first + long[0]} has {tokenized[long[0]].lost} tokens more than the "
                        f"{self.max_length} that the model reads; shorten it, or have it truncated or split"
                    )
                if long and on_long == "split":
                    vectors = self._encode_split(window, tokenized, prompt, on_progress)
                else:
                    vectors = self._encode([text.ids for text in tokenized], len(window), on_progress)
                    if on_truncated:
                        for position in long:
                            on_truncated(first + position, tokenized[position].lost)
                yield vector_formats.convert(
                    vector_formats.cut(vectors, dimension or self.dimension), vector_format
                )
                first += len(window)

        return blocks()

    def _check_input_type(self, input_type: str) -> None:
        if input_type not in self._prompts:
            raise CognateError(
                f"there is no input_type {input_type!r}; choose one of {', '.join(self._prompts)}"
            )

    def _encode(
        self, token_ids: Sequence[Sequence[int]], texts: int, on_progress: Callable[[int], None] | None
    ) -> NDArray[np.float32]:
        """Encode what is tokenised, batches of like lengths side by side.

        Args:
            token_ids: Of each text.
            texts: So many of the first ones count as progress.
            on_progress: As for ``encode``.
        """
        embeddings = np.empty((len(token_ids), self.dimension), np.float32)
        batches = batches_by_length(
            [self.padded_length(len(ids)) for ids in token_ids],
            max_batch_tokens=self.max_batch_tokens,
            max_batch_texts=self.max_batch_texts,
        )

        def run(positions: list[int]) -> int:
            embeddings[positions] = self.forward([token_ids[position] for position in positions])
            return sum(position < texts for position in positions)

        at_once = self.runs_at_once > 1 and len(batches) > 1
        for done in self._threads.map(run, batches) if at_once else map(run, batches):
            if on_progress and done:
                on_progress(done)
        return embeddings

    def _encode_split(
        self,
        texts: Sequence[str],
        tokenized: Sequence[TokenizedText],
        prompt: str,
        on_progress: Callable[[int], None] | None,
    ) -> NDArray[np.float32]:
        """Encode texts of which some are too long, those by the windows they are split into."""
        token_ids = [text.ids for text in tokenized]
        owners = list(range(len(texts)))
        for position, text in enumerate(tokenized):
            if text.truncated:
                first, *others = self._tokenizer.tokenize(
                    list(self._tokenizer.split(texts[position], prompt)), prompt
                )
                token_ids[position] = first.ids
                token_ids += [other.ids for other in others]
                owners += [position] * len(others)
        vectors = self._encode(token_ids, len(texts), on_progress)
        sums = (
            vectors[: len(texts)]
            * np.array([len(ids) for ids in token_ids[: len(texts)]], np.float32)[:, None]
        )
        for row in range(len(texts), len(vectors)):
            sums[owners[row]] += len(token_ids[row]) * vectors[row]
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        means: NDArray[np.float32] = sums / np.maximum(norms, np.finfo(np.float32).tiny)
        return means

    def _feeds(self, batch: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        shape = (len(batch), self.padded_length(max(map(len, batch))))
        input_ids = np.full(shape, self._pad_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self._sessions.inputs:
            feeds["token_type_ids"] = np.zeros(shape, np.int64)
        return feeds

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.runs_at_once, "encode")


def _check_list(texts: object) -> None:
    if isinstance(texts, str | bytes) or not hasattr(texts, "__len__"):
        raise CognateError(
            f"texts is of type {type(texts).__name__}; give a list, even of one (encode_stream takes any "
            "iterable)"
        )
