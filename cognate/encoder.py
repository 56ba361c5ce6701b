"""Texts to embeddings, with onnxruntime and tokenizers: the one path of indexer, serving, evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnxruntime
import tokenizers
from numpy.typing import NDArray

from cognate.batching import batches_by_length
from cognate.bundle import Bundle, InputType
from cognate.errors import ArtifactError, CognateError
from cognate.processors import available_cores

Device = Literal["auto", "cpu", "cuda"]

MAX_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens of a batch, padding included, by device."""

MAX_BATCH_TEXTS = {"cpu": 64, "cuda": 1024}
"""Texts of a batch, by device."""

WINDOW = 4096
"""Texts that are tokenised and sorted by length together; bounds memory whatever the number of texts."""

OUTPUT = "sentence_embedding"


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as the model reads it.

    Attributes:
        ids: Token ids, special tokens and prompt included, at most max_length.
        truncated: Whether the text had more.
    """

    ids: Sequence[int]
    truncated: bool


class Encoder:
    """Encodes texts with a bundle. Safe to use from several threads.

    Attributes:
        bundle: The opened bundle.
        device: "cpu" or "cuda": where the model runs.
        dimension: Components of an embedding.
        fingerprint: Of the bundle.
        max_length: Tokens that are read of a text.
        max_batch_tokens: Tokens of a batch, padding included.
        max_batch_texts: Texts of a batch.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        device: Device = "auto",
        threads: int | None = None,
        max_batch_tokens: int | None = None,
        spin: bool = True,
    ) -> None:
        """Open a bundle, check it and load its model.

        Args:
            bundle: Its folder, or one opened before.
            device: "auto" takes a CUDA device where onnxruntime has one, else the CPU.
            threads: For one inference on the CPU. None: as many as there are cores to use.
            max_batch_tokens: Tokens of a batch, padding included. None: what suits the device.
            spin: Whether idle threads of the model wait by spinning: a little quicker for a process that
                does nothing else, and in the way of one that does.

        Raises:
            ArtifactError: The bundle is missing, damaged, or its graph cannot be run.
            CognateError: There is no such device.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        manifest = self.bundle.manifest
        self.device = _choose_device(device)
        self.dimension = manifest.dimension
        self.fingerprint = manifest.fingerprint
        self.max_length = manifest.max_length
        self.max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[self.device]
        self.max_batch_texts = MAX_BATCH_TEXTS[self.device]
        self._prompts = {"query": manifest.prompts.query, "passage": manifest.prompts.passage}
        self._pad_id = manifest.pad_id
        self._tokenizer = _load_tokenizer(self.bundle)
        self._session = _load_session(self.bundle, self.device, threads or available_cores(), spin)
        self._inputs = {value.name for value in self._session.get_inputs()}

    def tokenize(self, texts: Sequence[str], input_type: InputType = "passage") -> list[TokenizedText]:
        """Turn texts into token ids, with the prompt before each.

        Args:
            texts: Any number.
            input_type: Which prompt to use.

        Returns:
            One for each text, in order.
        """
        prompt = self._prompts[input_type]
        encodings = self._tokenizer.encode_batch_fast(
            [prompt + text for text in texts] if prompt else list(texts)
        )
        return [TokenizedText(encoding.ids, bool(encoding.overflowing)) for encoding in encodings]

    def forward(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Run the model once.

        Args:
            batch: The token ids of each text, at least one text.

        Returns:
            float32, shape (texts, dimension), unit length.
        """
        shape = (len(batch), max(1, *map(len, batch)))
        input_ids = np.full(shape, self._pad_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        feeds = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self._inputs:
            feeds["token_type_ids"] = np.zeros(shape, np.int64)
        (embeddings,) = self._session.run([OUTPUT], feeds)
        result: NDArray[np.float32] = embeddings
        return result

    def encode(
        self,
        texts: Sequence[str],
        input_type: InputType = "passage",
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Encode texts.

        A text longer than max_length is cut there. The vector of a text does not depend on the texts
        that it is encoded with, but for rounding (1e-5).

        Args:
            texts: Any number. An empty one is encoded as the model's special tokens alone.
            input_type: Which prompt to put before each.
            on_progress: Called with the number of texts done since the last call.

        Returns:
            float32, shape (texts, dimension), unit length, in the order of ``texts``.
        """
        embeddings = np.empty((len(texts), self.dimension), np.float32)
        for start in range(0, len(texts), WINDOW):
            window = self.tokenize(texts[start : start + WINDOW], input_type)
            for positions in batches_by_length(
                [len(text.ids) for text in window],
                max_batch_tokens=self.max_batch_tokens,
                max_batch_texts=self.max_batch_texts,
            ):
                vectors = self.forward([window[position].ids for position in positions])
                embeddings[[start + position for position in positions]] = vectors
                if on_progress:
                    on_progress(len(positions))
        return embeddings


def _choose_device(device: Device) -> str:
    if device not in get_args(Device):
        raise CognateError(f"there is no device {device!r}; choose one of {', '.join(get_args(Device))}")
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "cuda" and not has_cuda:
        raise CognateError(
            "device cuda was asked for, but this onnxruntime has no CUDA; install cognate[serve-gpu] in an "
            "environment of its own, or use --device cpu"
        )
    return "cuda" if has_cuda and device != "cpu" else "cpu"


def _load_tokenizer(bundle: Bundle) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(bundle.tokenizer))
    except Exception as error:  # tokenizers raises bare Exception
        raise ArtifactError(f"{bundle.tokenizer} is no tokenizer: {error}; export the bundle again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(bundle.manifest.max_length)
    return tokenizer


def _load_session(bundle: Bundle, device: str, threads: int, spin: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Batches differ in shape, so a pattern of one is no use to the next and its memory is never given back.
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    try:
        session = onnxruntime.InferenceSession(str(bundle.graph), options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        why = str(error).splitlines()[0]
        raise ArtifactError(f"{bundle.graph} cannot be run by onnxruntime: {why}; export it again") from None
    if session.get_providers()[0] != providers[0]:
        raise CognateError(
            "device cuda was asked for, but onnxruntime could not start CUDA; check the driver and the CUDA "
            "libraries, or use --device cpu"
        )
    if OUTPUT not in {value.name for value in session.get_outputs()}:
        raise ArtifactError(f"{bundle.graph} has no output named {OUTPUT}; export it again")
    return session
