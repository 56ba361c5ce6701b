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
    """

    texts: int
    min_cosine: float
    mean_cosine: float
    max_abs_difference: float


class BundleManifest(Manifest):
    """A bundle's manifest.

    Attributes:
        model: What it was exported from, for people.
        dimension: Components of an embedding.
        max_length: Tokens that the model reads of a text, special tokens included.
        pooling: How token vectors become one: "mean", "cls", …
        precision: Number format of the weights: "fp32".
        opset: ONNX operator set of the graph.
        prompts: What is put before queries and passages.
        pad_id: The id of the padding token.
        parity: How near its vectors are to torch's.
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
    opset: int
    prompts: Prompts
    pad_id: int = pydantic.Field(ge=0)
    parity: Parity
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
