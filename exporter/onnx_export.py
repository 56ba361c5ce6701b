"""Writes the bundle: the graph by optimum, the files that go with it, and the parity gate."""

import json
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import optimum.exporters.onnx
import tokenizers
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from cognate import models
from cognate.artifact import check_destination, publishing
from cognate.bundle import GRAPH, TOKENIZER, Bundle, BundleManifest, Parity, Prompts, fingerprint_of
from cognate.encoder import Encoder
from cognate.errors import ModelError
from exporter.parity import MIN_COSINE, measure_parity, parity_texts

TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
"""Files of a sentence-transformers folder that a bundle does without: its weights are in the graph."""


def export(source: str | Path, destination: str | Path, *, force: bool = False) -> Bundle:
    """Export a model to ONNX as a bundle, and publish it only if its vectors are torch's.

    The graph holds transformer, pooling, dense layers and normalisation (which is added where the model
    has none, since every embedding here has unit length).

    Args:
        source: A checkpoint, a sentence-transformers folder, a model name or a Hugging Face id.
        destination: The bundle's folder.
        force: Whether a bundle that is there is replaced.

    Returns:
        The published bundle.

    Raises:
        ModelError: The model cannot be found or exported, or the bundle's vectors differ from torch's by
            more than a cosine of 0.9999.
        ArtifactError: The destination exists or cannot be written.
    """
    destination = Path(destination)
    check_destination(destination, BundleManifest.KIND, force=force)
    with _quiet():
        model = models.load(
            str(source),
            lambda name, local: SentenceTransformer(
                name,
                device="cpu",
                trust_remote_code=False,
                local_files_only=local,
                model_kwargs={"use_safetensors": True},
            ),
        )
        pooling = _check_modules(model, source)
        model.float().eval()
        with publishing(destination, BundleManifest.KIND, force=force) as partial:
            _write_graph(model, partial)
            manifest = _write_manifest(model, partial, source=str(source), pooling=pooling)
            if manifest.parity.min_cosine < MIN_COSINE:
                raise ModelError(
                    f"{source} was not exported: the smallest cosine between torch's vectors and the "
                    f"bundle's is {manifest.parity.min_cosine:.6f}, below {MIN_COSINE}; this model "
                    "is not one that ONNX export handles"
                )
    return Bundle.open(destination)


def _check_modules(model: SentenceTransformer, source: str | Path) -> str:
    """Refuse what the graph cannot hold, add a missing normalisation, and give the pooling's name."""
    modules = list(model)
    for module in modules:
        if not isinstance(module, Transformer | Pooling | Dense | Normalize):
            raise ModelError(
                f"{source} has a module {type(module).__name__}, which cannot be exported to ONNX"
            )
    if not modules or not isinstance(modules[0], Transformer):
        raise ModelError(f"{source} does not begin with a transformer, so it cannot be exported to ONNX")
    poolings = [module for module in modules if isinstance(module, Pooling)]
    if len(poolings) != 1:
        raise ModelError(f"{source} has {len(poolings)} pooling modules where one is needed")
    if not poolings[0].include_prompt and any(model.prompts.values()):
        raise ModelError(f"{source} leaves its prompts out of the pooling, which a bundle cannot do")
    if not isinstance(modules[-1], Normalize):
        model.append(Normalize())
    mode = poolings[0].pooling_mode
    return mode if isinstance(mode, str) else "+".join(mode)


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
        except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
            why = str(error).strip().split("\n", 1)[0]
            raise ModelError(f"the model cannot be exported to ONNX: {why}") from error
        shutil.copytree(
            saved, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*WEIGHTS, "README.md")
        )
        (folder / GRAPH).parent.mkdir()
        for path in exported.glob("*.onnx*"):
            shutil.move(path, folder / GRAPH if path.name == "model.onnx" else folder / "onnx" / path.name)
    graph = onnx.load(folder / GRAPH, load_external_data=False)
    _rename_output(graph, "token_embeddings", "last_hidden_state")
    onnx.save(graph, folder / GRAPH)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.enable_truncation(_max_length(model))
    tokenizer.no_padding()
    tokenizer.save(str(folder / TOKENIZER))
    # FastEmbed cuts at the smaller of these two, which a model may have said for its training alone.
    config = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    config |= {"model_max_length": _max_length(model), "max_length": _max_length(model)}
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _rename_output(graph: onnx.ModelProto, old: str, new: str) -> None:
    """Give an output the name that sentence-transformers' ONNX loader looks for."""
    for output in graph.graph.output:
        if output.name == old:
            output.name = new
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]


def _write_manifest(model: SentenceTransformer, folder: Path, *, source: str, pooling: str) -> BundleManifest:
    prompts = Prompts(
        query=model.prompts.get("query") or "",
        passage=model.prompts.get("passage") or model.prompts.get("document") or "",
    )
    fields: dict[str, object] = {
        "model": source if len(Path(source).parts) < 3 else Path(source).name,
        "dimension": model.get_embedding_dimension(),
        "max_length": _max_length(model),
        "pooling": pooling,
        "precision": "fp32",
        "opset": _opset(folder / GRAPH),
        "prompts": prompts,
        "pad_id": model.tokenizer.pad_token_id or 0,
        "fingerprint": fingerprint_of(folder, max_length=_max_length(model), prompts=prompts),
    }
    # The parity needs a bundle to encode with, and the bundle a manifest: so it is written twice.
    unmeasured = Parity(texts=0, min_cosine=0, mean_cosine=0, max_abs_difference=0)
    draft = BundleManifest.write(folder, parity=unmeasured, **fields)
    texts = parity_texts(draft.max_length)
    ours = Encoder(Bundle(folder, draft), device="cpu").encode(texts)
    theirs = model.encode(texts, prompt=prompts.passage, show_progress_bar=False)
    return BundleManifest.write(folder, parity=measure_parity(np.asarray(theirs), ours), **fields)


def _max_length(model: SentenceTransformer) -> int:
    if model.max_seq_length:
        return int(model.max_seq_length)
    return int(getattr(model[0].auto_model.config, "max_position_embeddings", 512))  # type: ignore[union-attr]


def _opset(graph: Path) -> int:
    imports = onnx.load(graph, load_external_data=False).opset_import
    return int(next(opset.version for opset in imports if opset.domain in ("", "ai.onnx")))


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Keeps the libraries' advice about their own internals off the user's terminal."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        for name in ("optimum", "torch.onnx", "sentence_transformers"):
            logging.getLogger(name).setLevel(logging.ERROR)
