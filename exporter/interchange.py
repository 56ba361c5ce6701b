"""``import_folder``: an ONNX embedding model that someone else exported, as a bundle. Needs no torch."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tokenizers
from numpy.typing import NDArray

from cognate.artifact import check_destination, publishing
from cognate.bundle import GRAPH, TOKENIZER, Bundle, BundleManifest, Parity, fingerprint_of
from cognate.encoder import Encoder
from cognate.errors import ModelError
from cognate.providers import why_not_run
from exporter import pooled_graph
from exporter.model_folder import ModelFolder, read_model_folder, read_object
from exporter.parity import MIN_COSINE, measure_parity
from exporter.pooled_graph import POOLED_OUTPUT
from exporter.verification import texts_up_to

IN_THE_GRAPH = "in the graph"
"""The pooling of a model that pools by itself and does not say how."""

CONFIGURATION = ("config.json", "special_tokens_map.json", "added_tokens.json")
"""Copied as they are, for the other libraries that open a bundle."""


def import_folder(
    source: str | Path,
    destination: str | Path,
    *,
    file: str | None = None,
    pooling: str | None = None,
    max_length: int | None = None,
    force: bool = False,
) -> Bundle:
    """Make a bundle of a folder in the sentence-transformers or the Optimum layout.

    The graph is given pooling, where it has none, and normalisation. The bundle is published only if its
    vectors are those that the folder's own graph gives in onnxruntime, pooled in numpy, text by text.
    sentence-transformers opens the bundle too, but for a model that pools by itself and does not say how, or
    that has layers after the pooling.

    Args:
        source: The folder.
        destination: The bundle's folder.
        file: Which graph, relative to ``source``; needed only where there are several.
        pooling: "mean", "cls", "max", "lasttoken" or "weightedmean", where the folder does not say.
        max_length: Tokens of a text; None takes the folder's own.
        force: Whether a bundle that is there is replaced.

    Returns:
        The published bundle.

    Raises:
        ModelError: The folder, its graph or its tokenizer cannot be used, or the vectors differ.
        ArtifactError: The destination exists or cannot be written.
    """
    destination = Path(destination)
    check_destination(destination, BundleManifest.KIND, force=force)
    folder = read_model_folder(Path(source), file=file, pooling=pooling, max_length=max_length)
    model = pooled_graph.read_graph(folder.graph)
    pools = pooled_graph.is_pooled(model)
    if folder.has_dense and not pools:
        raise ModelError(
            f"{source} has dense layers that are not in its graph; use cognate export on the PyTorch model"
        )
    if folder.pooling is None and not pools:
        raise ModelError(
            f"{source} does not say how its token vectors are pooled; give --pooling mean or cls"
        )
    tokenizer = _read_tokenizer(folder)
    opens_elsewhere = folder.pooling is not None and not folder.has_dense
    # Whoever shows its pooling and its token vectors is compared by them, whatever else its graph says.
    by_tokens = opens_elsewhere and pooled_graph.token_output(model) is not None
    with publishing(destination, BundleManifest.KIND, force=force) as partial:
        reference = _Reference(folder, tokenizer, pooled_graph.token_output(model) if by_tokens else None)
        weights = pooled_graph.external_files(model)
        pooled_graph.finish_graph(model, folder.pooling, keep_tokens=by_tokens)
        _write_files(folder, model, weights, partial)
        dimension = len(reference.vector("a"))
        _write_tokenizer(folder, tokenizer, partial)
        if by_tokens:
            _write_modules(folder, dimension, partial)
        manifest = _write_manifest(folder, model, tokenizer, reference, dimension, partial)
        if manifest.parity.min_cosine < MIN_COSINE:
            raise ModelError(
                f"{source} was not imported: the smallest cosine between its own vectors and the bundle's is "
                f"{manifest.parity.min_cosine:.6f}, below {MIN_COSINE}"
                + ("; its graph does not pool as its folder says, or pools padding too" if pools else "")
            )
    return Bundle.open(destination)


def _read_tokenizer(folder: ModelFolder) -> tokenizers.Tokenizer:
    path = folder.folder / TOKENIZER
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"{path} is no tokenizer: {error}") from None
    size = read_object(folder.folder / "config.json").get("vocab_size")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if isinstance(size, int) and largest >= size:
        raise ModelError(
            f"{path} has token ids up to {largest}, but the model has only {size} tokens; it belongs to "
            "another model"
        )
    if folder.lower_case:
        lower = [tokenizers.normalizers.Lowercase(), *filter(None, [tokenizer.normalizer])]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(lower)
    return tokenizer


class _Reference:
    """The folder's own graph in onnxruntime, text by text, and its pooling in numpy."""

    def __init__(self, folder: ModelFolder, tokenizer: tokenizers.Tokenizer, tokens: str | None) -> None:
        """Open the graph; ``tokens`` is its output to pool, None where its pooled one is taken."""
        self.path = folder.graph
        self.pooling = folder.pooling or ""
        self.output = tokens or POOLED_OUTPUT
        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(folder.max_length)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            self.session = onnxruntime.InferenceSession(
                str(folder.graph), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise ModelError(f"{self.path} cannot be run by onnxruntime: {why_not_run(error)}") from None

    def has_tokens(self, text: str) -> bool:
        return bool(self.tokenizer.encode(text).ids)

    def vector(self, text: str) -> NDArray[np.float32]:
        """The vector of one text, float32, shape (dimension,), unit length."""
        ids = self.tokenizer.encode(text).ids
        values = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}
        feeds = {
            each.name: np.array([values[each.name]], np.int32 if each.type == "tensor(int32)" else np.int64)
            for each in self.session.get_inputs()
        }
        try:
            (output,) = self.session.run([self.output], feeds)
        except Exception as error:  # as above
            raise ModelError(
                f"{self.path} failed on a text of {len(ids)} tokens; is {TOKENIZER} of another model, or "
                f"--max-length too large? ({_first_line(error)})"
            ) from None
        rows = 2 if self.output == POOLED_OUTPUT else 3
        if output.ndim != rows:
            raise ModelError(
                f"{self.path} gives {self.output} with {output.ndim} axes where {rows} are needed"
            )
        own = output[0].astype(np.float32)
        vector: NDArray[np.float32] = own if rows == 2 else pooled_graph.pool(own, self.pooling)
        if not np.isfinite(vector).all():
            raise ModelError(f"{self.path} gives numbers that are not finite; export the model again")
        length = max(float(np.linalg.norm(vector)), pooled_graph.TINY)
        return (vector / length).astype(np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0]


def _write_files(folder: ModelFolder, model: onnx.ModelProto, weights: Sequence[str], partial: Path) -> None:
    graph = partial / GRAPH
    graph.parent.mkdir(parents=True)
    onnx.save(model, graph)
    for location in weights:
        (graph.parent / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.graph.parent / location, graph.parent / location)
    for name in CONFIGURATION:
        if (folder.folder / name).is_file():
            read_object(folder.folder / name)
            shutil.copyfile(folder.folder / name, partial / name)


def _write_tokenizer(folder: ModelFolder, tokenizer: tokenizers.Tokenizer, partial: Path) -> None:
    written = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    written.enable_truncation(folder.max_length)
    written.no_padding()
    written.save(str(partial / TOKENIZER))
    pad = tokenizer.id_to_token(_pad_id(folder, tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
    config |= read_object(folder.folder / "tokenizer_config.json")
    # Transformers takes the length from the one, FastEmbed the smaller of both.
    config |= {"model_max_length": folder.max_length, "max_length": folder.max_length}
    _write_json(partial / "tokenizer_config.json", config)


def _write_modules(folder: ModelFolder, dimension: int, partial: Path) -> None:
    """Say in sentence-transformers' way what the graph does, in names that its older versions read too."""
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds.items())
    ]
    _write_json(partial / "modules.json", modules)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    modes |= {"weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken"}
    pooling: dict[str, object] = {"word_embedding_dimension": dimension}
    pooling |= {f"pooling_mode_{key}": folder.pooling == mode for mode, key in modes.items()}
    (partial / "1_Pooling").mkdir()
    _write_json(partial / "1_Pooling/config.json", pooling)
    _write_json(
        partial / "sentence_bert_config.json",
        {"max_seq_length": folder.max_length, "do_lower_case": folder.lower_case},
    )
    named = {"query": folder.prompts.query, "document": folder.prompts.passage}
    prompts = {name: prompt for name, prompt in named.items() if prompt}
    _write_json(partial / "config_sentence_transformers.json", {"prompts": prompts})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_manifest(
    folder: ModelFolder,
    model: onnx.ModelProto,
    tokenizer: tokenizers.Tokenizer,
    reference: _Reference,
    dimension: int,
    partial: Path,
) -> BundleManifest:
    fields: dict[str, object] = {
        "model": _model_name(folder),
        "dimension": dimension,
        "max_length": folder.max_length,
        "pooling": folder.pooling or IN_THE_GRAPH,
        "precision": pooled_graph.precision(model),
        "opset": pooled_graph.opset(model),
        "prompts": folder.prompts,
        "pad_id": _pad_id(folder, tokenizer),
        "fingerprint": fingerprint_of(partial, max_length=folder.max_length, prompts=folder.prompts),
    }
    # The parity needs a bundle to encode with, and the bundle a manifest: so it is written twice. Texts are
    # encoded in batches, so that a graph that lets padding into its vectors does not pass; but one by one
    # in int8, where the numbers of all texts of a batch are rounded together.
    prompt = folder.prompts.passage
    texts = [text for text in texts_up_to(folder.max_length) if reference.has_tokens(prompt + text)]
    theirs = np.stack([reference.vector(prompt + text) for text in texts])
    unmeasured = Parity(texts=0, min_cosine=0, mean_cosine=0, max_abs_difference=0)
    draft = BundleManifest.write(partial, parity=unmeasured, **fields)
    one_by_one = 1 if draft.precision == "int8" else None
    ours = Encoder(Bundle(partial, draft), device="cpu", max_batch_tokens=one_by_one).encode(texts)
    return BundleManifest.write(partial, parity=measure_parity(theirs, ours), **fields)


def _model_name(folder: ModelFolder) -> str:
    name = read_object(folder.folder / "config.json").get("_name_or_path")
    if isinstance(name, str) and name.strip("./") and len(Path(name).parts) < 3:
        return name
    return folder.folder.resolve().name


def _pad_id(folder: ModelFolder, tokenizer: tokenizers.Tokenizer) -> int:
    """The id of the padding token: the tokenizer's, else the configuration's, else 0, which is masked too."""
    padding = tokenizer.padding
    config = read_object(folder.folder / "config.json").get("pad_token_id")
    value = padding["pad_id"] if padding else config
    return value if isinstance(value, int) and value >= 0 else 0
