"""The bundle artifact: all that is needed to encode text, and nothing else."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import pydantic

from cognate.artifact import Manifest, sha256_file

GRAPH = "onnx/model.onnx"
TOKENIZER = "tokenizer.json"

InputType = Literal["query", "passage"]


class Prompts(pydantic.BaseModel):
    """What is put before a text, by what the text is for; often empty."""

    query: str = ""
    passage: str = ""


class Parity(pydantic.BaseModel):
    """How near the bundle's vectors are to torch's, over texts of all lengths.

    Attributes:
        texts: How many were compared.
        min_cosine: The smallest cosine between the two vectors of a text.
        mean_cosine: Their mean.
        max_abs_difference: The largest difference of a component.
        top_10_overlap: What share of the ten texts nearest to each text are the same ten, on average; texts
            that are as near as the tenth count as it. None where it was not measured, as for what follows.
        batch_dependence: The largest difference of a component between a text encoded alone and the same one
            among others: 0 but for rounding, save in dynamic int8.
        metric_differences: The bundle's nine metrics less torch's, by name, on the queries and the index that
            were given.
        device: Where the bundle ran: "cpu", "cuda".
        accepted: Which of the above were beyond their limits, and accepted by name.
    """

    texts: int
    min_cosine: float
    mean_cosine: float
    max_abs_difference: float
    top_10_overlap: float | None = None
    batch_dependence: float | None = None
    metric_differences: dict[str, float] | None = None
    device: str | None = None
    accepted: list[str] = []


class Quantization(pydantic.BaseModel):
    """How the weights of an int8 bundle were chosen.

    Attributes:
        mode: "dynamic": the range of a layer's input is that of the batch. "static": it was fixed at export.
        weight_type: "int8" or "uint8", with a scale for each output channel.
        calibration_texts: How many texts the ranges and the choices below come from.
        smoothed: Layers whose input channels share their range with the weights (SmoothQuant).
        split: Layers of which the few input channels with the largest values are multiplied in float32.
        float_layers: Layers that stay in float32, by their names in the graph.
        int8_embeddings: Whether the token embeddings are int8, with a scale for each token.
    """

    mode: Literal["dynamic", "static"]
    weight_type: Literal["int8", "uint8"]
    calibration_texts: int
    smoothed: int
    split: int
    float_layers: list[str]
    int8_embeddings: bool


class BundleManifest(Manifest):
    """A bundle's manifest.

    Attributes:
        model: What it was exported from, for people.
        dimension: Components of an embedding.
        max_length: Tokens that the model reads of a text, special tokens included.
        pooling: How token vectors become one: "mean", "cls", …
        precision: Number format of the weights: "fp32", "fp16", "bf16" or "int8".
        target: The processor it is made for: "avx2", "avx512_vnni" or "arm64" in int8, "cuda" in fp16,
            "cuda" or "avx512_bf16" in bf16; "any" in fp32.
        opset: ONNX operator set of the graph.
        prompts: What is put before queries and passages.
        pad_id: The id of the padding token.
        parity: How near its vectors are to torch's.
        quantization: How its weights were chosen, in int8; None otherwise, or where someone else did it.
        fingerprint: sha256 of whatever decides the vectors; see ``fingerprint_of``.
    """

    KIND: ClassVar[str] = "bundle"
    FORMAT_VERSION: ClassVar[int] = 1
    LIBRARIES: ClassVar[tuple[str, ...]] = (
        "torch",
        "transformers",
        "sentence-transformers",
        "optimum-onnx",
        "onnx",
        "onnxruntime",
        "tokenizers",
    )

    model: str
    dimension: int = pydantic.Field(ge=1)
    max_length: int = pydantic.Field(ge=1)
    pooling: str
    precision: str
    target: str = "any"
    opset: int
    prompts: Prompts
    pad_id: int = pydantic.Field(ge=0)
    parity: Parity
    quantization: Quantization | None = None
    fingerprint: str


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder, checked, and its manifest."""

    folder: Path
    manifest: BundleManifest

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a bundle and check every file of it.

        Raises:
            ArtifactError: It is missing, no bundle, damaged or too new.
        """
        return cls(Path(folder), BundleManifest.read(Path(folder)))

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's file."""
        return self.folder / TOKENIZER


def fingerprint_of(folder: Path, *, max_length: int, prompts: Prompts) -> str:
    """The sha256 of whatever decides a bundle's vectors, in hexadecimal.

    Covers the graph with its weights (all files of ``onnx/``), the tokenizer, max_length and the
    prompts; not the name, dates or versions, so that two exports of the same checkpoint agree.

    Args:
        folder: Holds ``onnx/`` and ``tokenizer.json``.
        max_length: In tokens.
        prompts: Of queries and passages.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted((folder / "onnx").rglob("*"))]
    parts: Iterable[str] = (
        *(
            f"{name}={sha256_file(folder / name)}"
            for name in [*names, TOKENIZER]
            if (folder / name).is_file()
        ),
        f"max_length={max_length}",
        f"query={prompts.query!r}",
        f"passage={prompts.passage!r}",
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
