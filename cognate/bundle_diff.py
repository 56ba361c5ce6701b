"""What differs between two bundles: settings, files, graph, tokenizer, and the vectors of a sample.

Reading the graphs takes the package ``onnx``, which the extra ``train`` installs.
"""

import collections
import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from cognate.bundle import Bundle
from cognate.encoder import Encoder
from cognate.errors import ArtifactError
from cognate.exact import exact_top_k
from cognate.records import read_records

TOP_K = 10

ABOUT_THE_FILE = {"artifact", "format_version", "created_at", "versions", "files", "fingerprint"}
"""Fields of a manifest that are no settings of the model."""

Value = TypeVar("Value")
Pair = tuple[Value | None, Value | None]
"""What the first and what the second bundle has; None where one has nothing of the name."""


@dataclass(frozen=True)
class GraphDiff:
    """What differs between two graphs, each part empty where nothing does.

    Attributes:
        opset: ONNX's operator set of both; None where they agree.
        nodes: How many nodes there are of an operator.
        initializers: Number format and shape of a weight, as ``float32 (384, 384)``.
        changed_weights: Weights of the same name, format and shape with other numbers, of those that are in
            the graph's file.
    """

    opset: tuple[int, int] | None
    nodes: dict[str, Pair[int]]
    initializers: dict[str, Pair[str]]
    changed_weights: list[str]


@dataclass(frozen=True)
class VectorDiff:
    """How the vectors of the sample data differ.

    Attributes:
        texts: How many were encoded.
        min_cosine: The smallest cosine between the two vectors of a text; None where the dimensions differ.
        mean_cosine: Their mean.
        top_10_overlap: Of the ten nearest passages of a query, the share that both find, on average.
    """

    texts: int
    min_cosine: float | None
    mean_cosine: float | None
    top_10_overlap: float


@dataclass(frozen=True)
class BundleDiff:
    """What differs between two bundles.

    Attributes:
        same_vectors: Whether the fingerprints agree, so that their vectors are the same.
        settings: Fields of the manifests that differ.
        files: Size in bytes of the files that differ.
        graph: The graphs.
        tokenizer: Sections of tokenizer.json that differ, with the number of entries where it is the
            vocabulary.
        vectors: Of the sample data.
    """

    same_vectors: bool
    settings: dict[str, Pair[object]]
    files: dict[str, Pair[int]]
    graph: GraphDiff
    tokenizer: dict[str, Pair[object]]
    vectors: VectorDiff


def diff_bundles(first: Bundle, second: Bundle) -> BundleDiff:
    """Compare two bundles.

    Args:
        first: An opened bundle.
        second: Another.

    Returns:
        What differs.

    Raises:
        ArtifactError: The graph or the tokenizer of one cannot be read or run.
    """
    settings = [bundle.manifest.model_dump(mode="json", exclude=ABOUT_THE_FILE) for bundle in (first, second)]
    # By content and size, and shown by size.
    digests = [
        {name: (digest.sha256, digest.size) for name, digest in bundle.manifest.files.items()}
        for bundle in (first, second)
    ]
    return BundleDiff(
        same_vectors=first.manifest.fingerprint == second.manifest.fingerprint,
        settings=_differing(*settings),
        files={
            name: (left[1] if left else None, right[1] if right else None)
            for name, (left, right) in _differing(*digests).items()
        },
        graph=_diff_graphs(_read_graph(first), _read_graph(second)),
        tokenizer=_diff_tokenizers(_read_tokenizer(first), _read_tokenizer(second)),
        vectors=_diff_vectors(first, second),
    )


def _differing(first: Mapping[str, Value], second: Mapping[str, Value]) -> dict[str, Pair[Value]]:
    """The entries that are not the same in both, by name."""
    return {
        name: (first.get(name), second.get(name))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    }


def _read_graph(bundle: Bundle) -> onnx.ModelProto:
    try:
        return onnx.load(bundle.graph, load_external_data=False)
    except DecodeError:
        raise ArtifactError(f"{bundle.graph} is no ONNX graph; export it again") from None


def _diff_graphs(first: onnx.ModelProto, second: onnx.ModelProto) -> GraphDiff:
    opsets = (_opset(first), _opset(second))
    counts = [collections.Counter(node.op_type for node in model.graph.node) for model in (first, second)]
    weights = [{tensor.name: tensor for tensor in model.graph.initializer} for model in (first, second)]
    kinds = [{name: _kind(tensor) for name, tensor in each.items()} for each in weights]
    return GraphDiff(
        opset=opsets if opsets[0] != opsets[1] else None,
        nodes=_differing(*counts),
        initializers=_differing(*kinds),
        changed_weights=[
            name
            for name in sorted(weights[0].keys() & weights[1].keys())
            if kinds[0][name] == kinds[1][name] and weights[0][name] != weights[1][name]
        ],
    )


def _opset(model: onnx.ModelProto) -> int:
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def _kind(tensor: onnx.TensorProto) -> str:
    number = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    number = {"float": "float32", "double": "float64"}.get(number, number)
    return f"{number} ({', '.join(map(str, tensor.dims))})"


def _read_tokenizer(bundle: Bundle) -> dict[str, object]:
    try:
        content = json.loads(bundle.tokenizer.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ArtifactError(f"{bundle.tokenizer} is no tokenizer; export the bundle again")
    return content


def _diff_tokenizers(first: Mapping[str, object], second: Mapping[str, object]) -> dict[str, Pair[object]]:
    differing = _differing(first, second)
    found: dict[str, Pair[object]] = {
        # The vocabulary and its merges are too long to be shown.
        name: (_summary(left), _summary(right)) if name in ("model", "added_tokens") else (left, right)
        for name, (left, right) in differing.items()
    }
    return found


def _summary(section: object) -> str:
    if isinstance(section, list):
        return f"{len(section)} tokens"
    if not isinstance(section, dict):
        return "none"
    vocabulary = section.get("vocab")
    size = len(vocabulary) if isinstance(vocabulary, dict | list) else 0
    return f"{section.get('type')}, {size} tokens"


def _diff_vectors(first: Bundle, second: Bundle) -> VectorDiff:
    queries, passages = (_sample(name) for name in ("queries.jsonl", "index.jsonl"))
    vectors, nearest = [], []
    for bundle in (first, second):
        encoder = Encoder(bundle, device="cpu")
        asked, searched = encoder.encode(queries, "query"), encoder.encode(passages)
        vectors.append(np.concatenate([asked, searched]).astype(np.float64))
        nearest.append(exact_top_k(asked, searched, TOP_K)[1])
    cosines = (vectors[0] * vectors[1]).sum(axis=1) if vectors[0].shape == vectors[1].shape else None
    shared = [len(set(left) & set(right)) for left, right in zip(*nearest, strict=True)]
    return VectorDiff(
        texts=len(queries) + len(passages),
        min_cosine=None if cosines is None else float(cosines.min()),
        mean_cosine=None if cosines is None else float(cosines.mean()),
        top_10_overlap=float(np.mean(shared) / TOP_K),
    )


def _sample(name: str) -> list[str]:
    with importlib.resources.as_file(importlib.resources.files("cognate") / "sample" / name) as path:
        return [record.text for record in read_records(path)]
