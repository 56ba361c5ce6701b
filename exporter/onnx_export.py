"""Writes the bundle: the graph by optimum, in the precision asked for, and the parity gate."""

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import optimum.exporters.onnx
import tokenizers
import transformers
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from cognate.artifact import check_destination, publishing
from cognate.bundle import (
    GRAPH,
    TOKENIZER,
    Bundle,
    BundleManifest,
    Parity,
    Prompts,
    Quantization,
    fingerprint_of,
)
from cognate.encoder import Encoder
from cognate.errors import CognateError, ModelError
from cognate.evaluation import evaluate, read_queries_and_index
from cognate.providers import BF16_PROCESSOR
from cognate.records import Record, read_records
from exporter import half_precision, onnx_graph, parity, quantization
from exporter.processor_target import WEIGHTS, Precision, Target, choose_target
from exporter.source_model import load_model, max_length_of

TOKENIZER_CONFIG = "tokenizer_config.json"
WITHOUT = ("*.safetensors", "*.bin", "*.index.json", "README.md")
"""Files of a sentence-transformers folder that a bundle does without: its weights are in the graph."""

MAX_CALIBRATION_TEXTS = 256
CALIBRATION_LENGTH = 256
"""Tokens of the longest of the built-in texts."""


def export(
    source: str | Path,
    destination: str | Path,
    *,
    precision: Precision = "fp32",
    target: Target = "auto",
    calibrate: str | Path | None = None,
    queries: str | Path | None = None,
    index: str | Path | None = None,
    pooling: str | None = None,
    allow_loss: Collection[str] = (),
    force: bool = False,
) -> Bundle:
    """Export a model to ONNX as a bundle, and publish it only if its vectors are torch's.

    The graph holds transformer, pooling, dense layers and normalisation (which is added where the model
    has none, since every embedding here has unit length).

    Args:
        source: A checkpoint, a sentence-transformers folder, a model name or a Hugging Face id.
        destination: The bundle's folder.
        precision: Number format of the weights. "fp16" is for GPUs, and checked on the CPU where there is
            none; "bf16" is for GPUs and, by OpenVINO, processors that have it, and needs one or the other.
        target: The processor that the bundle is made for; "auto" is this one, in bf16 a GPU where there is
            one.
        calibrate: A record file, whose texts the ranges of a layer's input are taken from: int8 becomes
            static. Without one it is dynamic, each batch having its own.
        queries: A record file; with ``index`` the nine metrics are compared with torch's too.
        index: A record file, searched with the queries.
        pooling: "mean", "cls", "max", "lasttoken", "weightedmean" or "mean_sqrt_len_tokens", for a model that
            does not say how its token vectors are pooled.
        allow_loss: Figures that may be beyond their limits (``exporter.parity.LIMITS``): "min_cosine",
            "mean_cosine", "top_10_overlap", or a metric's name.
        force: Whether a bundle that is there is replaced.

    Returns:
        The published bundle.

    Raises:
        ModelError: The model cannot be found or exported, or a figure is beyond its limit and not allowed.
        ArtifactError: The destination exists or cannot be written.
        CognateError: Arguments do not go together, or a record file cannot be used.
    """
    made_for = choose_target(precision, target)
    parity.check_names(allow_loss)
    if calibrate is not None and precision != "int8":
        raise CognateError(
            f"{precision} needs no calibration; leave --calibrate out, or use --precision int8"
        )
    if (queries is None) != (index is None):
        raise CognateError("the metrics need both --queries and --index")
    destination = Path(destination)
    check_destination(destination, BundleManifest.KIND, force=force)
    records = None if queries is None or index is None else read_queries_and_index(queries, index)
    calibration = None if calibrate is None else _calibration_texts(calibrate)
    with _quiet():
        model, pooled = load_model(source, pooling)
        reference = _Reference(model)
        with publishing(destination, BundleManifest.KIND, force=force) as partial:
            _write_graph(model, partial)
            draft = _Draft(partial, _fields(model, source=str(source), pooling=pooled))
            chosen = None
            if precision != "fp32":
                chosen = _convert(draft, precision, made_for, calibration)
            measured = _measure(draft, reference, precision, made_for, records)
            lost = parity.losses(measured, precision)
            refused = [why for name, why in lost.items() if name not in allow_loss]
            if refused:
                names = " ".join(f"--allow-loss {name}" for name in lost if name not in allow_loss)
                raise ModelError(
                    f"{source} was not exported: {', '.join(refused)}; "
                    + (
                        "this model is not one that ONNX export handles"
                        if precision == "fp32"
                        else f"use a higher precision, or {names}"
                    )
                )
            draft.write(
                precision=precision,
                target=made_for,
                quantization=chosen,
                parity=measured.model_copy(update={"accepted": sorted(lost)}),
            )
    return Bundle.open(destination)


@dataclass(frozen=True)
class _Reference:
    """Torch's vectors; what ``cognate.evaluation`` takes."""

    model: SentenceTransformer

    def encode(
        self, texts: Sequence[str], input_type: Literal["query", "passage"] = "passage"
    ) -> NDArray[np.float32]:
        prompt = getattr(_prompts(self.model), input_type)
        vectors = self.model.encode(list(texts), prompt=prompt, show_progress_bar=False)
        return np.asarray(vectors, np.float32)


@dataclass(frozen=True)
class _Draft:
    """A bundle that is being written. An encoder needs a manifest, so it is written more than once."""

    folder: Path
    fields: dict[str, object]

    @property
    def max_length(self) -> int:
        return int(str(self.fields["max_length"]))

    def write(
        self, *, precision: str, target: str, parity: Parity, quantization: Quantization | None
    ) -> BundleManifest:
        prompts = self.fields["prompts"]
        if not isinstance(prompts, Prompts):
            raise TypeError(prompts)
        return BundleManifest.write(
            self.folder,
            precision=precision,
            target=target,
            parity=parity,
            quantization=quantization,
            opset=onnx_graph.opset(self.folder / GRAPH),
            fingerprint=fingerprint_of(self.folder, max_length=self.max_length, prompts=prompts),
            **self.fields,
        )

    def bundle(self, precision: str, target: str = "any") -> Bundle:
        """As it is now, not yet measured."""
        unmeasured = Parity(texts=0, min_cosine=0, mean_cosine=0, max_abs_difference=0)
        return Bundle(
            self.folder, self.write(precision=precision, target=target, parity=unmeasured, quantization=None)
        )


def _fields(model: SentenceTransformer, *, source: str, pooling: str) -> dict[str, object]:
    """The manifest's fields that do not depend on the precision."""
    return {
        "model": source if len(Path(source).parts) < 3 else Path(source).name,
        "dimension": model.get_embedding_dimension(),
        "max_length": max_length_of(model),
        "pooling": pooling,
        "prompts": _prompts(model),
        "pad_id": model.tokenizer.pad_token_id or 0,
    }


def _prompts(model: SentenceTransformer) -> Prompts:
    return Prompts(
        query=model.prompts.get("query") or "",
        passage=model.prompts.get("passage") or model.prompts.get("document") or "",
    )


def _calibration_texts(path: str | Path) -> list[str]:
    """Texts of a record file, evenly from it all."""
    texts = [record.text for record in read_records(path)]
    if not texts:
        raise CognateError(f"{path} has no records to calibrate with; give texts like those to be encoded")
    return texts[:: -(-len(texts) // MAX_CALIBRATION_TEXTS)]


def _convert(
    draft: _Draft, precision: Precision, target: str, calibration: Sequence[str] | None
) -> Quantization | None:
    """Put the graph into another precision."""
    graph = draft.folder / GRAPH
    model = onnx_graph.load_whole(graph)
    chosen = None
    if precision == "int8":
        texts = calibration or [
            *parity.sample_questions(),
            *parity.parity_texts(min(draft.max_length, CALIBRATION_LENGTH))[-24:],
        ]
        # An empty text or one of a single sign has activations like no other's.
        tokenized = Encoder(draft.bundle("fp32"), device="cpu").tokenize([*texts, *parity.ODD_TEXTS])
        model, chosen = quantization.quantize(
            model,
            [list(text.ids) for text in tokenized],
            WEIGHTS[target],
            static=calibration is not None,
        )
    elif precision == "fp16":
        model = half_precision.to_fp16(model)
    elif target == BF16_PROCESSOR:
        model = half_precision.bf16_matrices(model)
    else:
        model = half_precision.to_bf16(model)
    onnx_graph.save_whole(model, graph)
    return chosen


def _measure(
    draft: _Draft,
    reference: _Reference,
    precision: Precision,
    target: str,
    records: tuple[list[Record], list[Record]] | None,
) -> Parity:
    """Compare the bundle's vectors with torch's."""
    bundle = draft.bundle(precision, target)
    device: Literal["auto", "cpu"] = "auto" if precision in ("fp16", "bf16") else "cpu"
    encoder = Encoder(bundle, device=device)
    texts = parity.parity_texts(draft.max_length)
    ours = encoder.encode(texts)
    one_by_one = Encoder(bundle, device=device, max_batch_tokens=1).encode(texts)
    differences = None
    if records is not None:
        found, wanted = evaluate(encoder, *records).metrics, evaluate(reference, *records).metrics
        differences = {name: found[name] - wanted[name] for name in wanted}
    return parity.measure_parity(reference.encode(texts), ours).model_copy(
        update={
            "batch_dependence": float(np.abs(one_by_one - ours).max()),
            "metric_differences": differences,
            "device": encoder.device,
        }
    )


def _write_graph(model: SentenceTransformer, folder: Path) -> None:
    """Write onnx/model.onnx and the files that go with it."""
    with tempfile.TemporaryDirectory(prefix="cognate-export-") as temporary:
        saved, exported = Path(temporary, "model"), Path(temporary, "onnx")
        model.save(str(saved), create_model_card=False)
        try:
            optimum.exporters.onnx.main_export(
                str(saved),
                str(exported),
                task="feature-extraction",
                library_name="sentence_transformers",
                do_validation=False,
            )
        except (ValueError, KeyError, RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            why = str(error).strip().split("\n", 1)[0]
            raise ModelError(f"the model cannot be exported to ONNX: {why}") from error
        shutil.copytree(saved, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*WITHOUT))
        (folder / GRAPH).parent.mkdir()
        for path in exported.glob("*.onnx*"):
            shutil.move(path, folder / GRAPH if path.name == "model.onnx" else folder / "onnx" / path.name)
    graph = onnx.load(folder / GRAPH, load_external_data=False)
    onnx_graph.rename_output(graph, "token_embeddings", "last_hidden_state")
    onnx.save(graph, folder / GRAPH)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(max_length_of(model))
    tokenizer.no_padding()
    tokenizer.save(str(folder / TOKENIZER))
    # FastEmbed cuts at the smaller of these two, which a model may have said for its training alone.
    config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    config |= {"model_max_length": max_length_of(model), "max_length": max_length_of(model)}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Keeps the libraries' advice about their own internals off the user's terminal."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        for name in ("optimum", "torch.onnx", "sentence_transformers"):
            logging.getLogger(name).setLevel(logging.ERROR)
