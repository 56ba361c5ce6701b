"""What a folder with an ONNX embedding model says of it, in the layouts that others write."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cognate.artifact import kind_of, with_article
from cognate.bundle import TOKENIZER, Prompts
from cognate.errors import ModelError
from exporter.pooled_graph import POOLINGS

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_LENGTH = 1_000_000
"""Transformers writes a number far above this where it knows no limit."""

MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


@dataclass(frozen=True)
class ModelFolder:
    """A model that someone else exported.

    Attributes:
        folder: Holds the tokenizer and the configuration.
        graph: The ONNX file.
        pooling: One of ``exporter.pooled_graph.POOLINGS``; None where nobody says, or layers come after it.
        has_dense: Whether layers come after the pooling.
        max_length: Tokens of a text, special tokens included.
        prompts: Of queries and passages.
        lower_case: Whether texts are lower-cased before they are tokenised.
    """

    folder: Path
    graph: Path
    pooling: str | None
    has_dense: bool
    max_length: int
    prompts: Prompts
    lower_case: bool


def read_model_folder(
    source: Path, *, file: str | None = None, pooling: str | None = None, max_length: int | None = None
) -> ModelFolder:
    """Read the sentence-transformers layout (modules.json) or Optimum's (config.json beside the graph).

    Args:
        source: The folder.
        file: Which graph, relative to it; needed only where there are several.
        pooling: One of ``POOLINGS``, where the folder does not say.
        max_length: In tokens; None takes the folder's own.

    Returns:
        What the folder and the arguments say.

    Raises:
        ModelError: It is no such folder, or something is unsaid or contradictory.
    """
    if not source.is_dir():
        raise ModelError(f"{source} is not a folder; give the folder of an ONNX model")
    if kind := kind_of(source):
        raise ModelError(f"{source} is {with_article(kind)} of cognate's; import takes what others exported")
    graph = _find_graph(source, file)
    modules = _read_modules(source)
    base = _inside(source, modules[0][1]) if modules else source
    if not (base / TOKENIZER).is_file():
        raise ModelError(
            f"{source} has no {TOKENIZER}; save the tokenizer in the fast format: "
            "AutoTokenizer.from_pretrained(…).save_pretrained(…)"
        )
    said = _read_pooling(source, modules)
    if pooling and said and pooling != said:
        raise ModelError(f"{source} says that its pooling is {said}, not {pooling}; leave --pooling out")
    transformer = read_object(base / "sentence_bert_config.json")
    prompts = read_object(source / "config_sentence_transformers.json").get("prompts")
    prompts = prompts if isinstance(prompts, dict) else {}
    return ModelFolder(
        folder=base,
        graph=graph,
        pooling=pooling or said,
        has_dense=any(kind == "Dense" for kind, _ in modules),
        max_length=_max_length(source, base, transformer, max_length),
        prompts=Prompts(
            query=str(prompts.get("query") or ""),
            passage=str(prompts.get("passage") or prompts.get("document") or ""),
        ),
        lower_case=transformer.get("do_lower_case") is True,
    )


def read_object(path: Path) -> dict[str, object]:
    """Read a JSON object; an absent file is an empty one.

    Raises:
        ModelError: The file is something else.
    """
    value = _read_json(path, {})
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object; copy the model again")
    return value


def _read_json(path: Path, absent: object) -> object:
    if not path.is_file():
        return absent
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path} has more than {MAX_JSON_BYTES} bytes; it is no configuration of a model")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not JSON; copy the model again") from None


def _inside(source: Path, name: str) -> Path:
    path = source / name
    if not path.resolve().is_relative_to(source.resolve()):
        raise ModelError(f"{source} names {name!r}, outside its folder; do not use it")
    return path


def _find_graph(source: Path, file: str | None) -> Path:
    if file is not None:
        graph = _inside(source, file)
        if not graph.is_file():
            raise ModelError(f"{graph} does not exist; --file is relative to the folder")
        return graph
    graphs = sorted(path for path in source.rglob("*.onnx") if path.is_file())
    if not graphs:
        raise ModelError(f"{source} has no ONNX graph; for a PyTorch model there is cognate export")
    if len(graphs) > 1:
        names = [path.relative_to(source).as_posix() for path in graphs]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ModelError(f"{source} has several graphs; choose one with --file: {', '.join(names[:8])}{more}")
    return graphs[0]


def _read_modules(source: Path) -> list[tuple[str, str]]:
    """The kind and the subfolder of each of sentence-transformers' modules; none in Optimum's layout."""
    path = source / "modules.json"
    listed = _read_json(path, [])
    if not isinstance(listed, list):
        raise ModelError(f"{path} is not a list of modules; copy the model again")
    modules = []
    for module in listed:
        if not isinstance(module, dict):
            raise ModelError(f"{path} is not a list of modules; copy the model again")
        kind = str(module.get("type")).rsplit(".", 1)[-1]
        if kind not in MODULES:
            raise ModelError(f"{source} has a module {kind}, which a bundle cannot hold")
        modules.append((kind, str(module.get("path", ""))))
    if modules and modules[0][0] != "Transformer":
        raise ModelError(
            f"{source} does not begin with a transformer, so it is no model that can be imported"
        )
    return modules


def _read_pooling(source: Path, modules: Sequence[tuple[str, str]]) -> str | None:
    folders = [path for kind, path in modules if kind == "Pooling"]
    if not folders:
        return None
    if len(folders) > 1:
        raise ModelError(f"{source} has {len(folders)} pooling modules where one is needed")
    path = _inside(source, folders[0]) / "config.json"
    config = read_object(path)
    modes = config.get("pooling_mode")
    if modes is None:
        names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
        names |= {"mean_sqrt_len_tokens": "mean", "weightedmean_tokens": "weightedmean"}
        names["lasttoken"] = "lasttoken"
        modes = [name for key, name in names.items() if config.get(f"pooling_mode_{key}") is True]
    modes = [modes] if isinstance(modes, str) else modes
    # Dividing by the root of the length instead of the length makes no difference at unit length.
    modes = ["mean" if mode == "mean_sqrt_len_tokens" else mode for mode in modes or ()]  # type: ignore[attr-defined]
    if not modes:
        return None
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise ModelError(
            f"{path} asks for the pooling {'+'.join(map(str, modes))}; those that can be imported are "
            f"{', '.join(POOLINGS)}"
        )
    if config.get("include_prompt") is False:
        raise ModelError(f"{source} leaves its prompts out of the pooling, which a bundle cannot do")
    return str(modes[0])


def _max_length(source: Path, base: Path, transformer: dict[str, object], asked: int | None) -> int:
    tokenizer = read_object(base / "tokenizer_config.json")
    if tokenizer.get("truncation_side") == "left":
        raise ModelError(f"{source} cuts long texts at their beginning, which a bundle cannot do")
    positions = read_object(base / "config.json").get("max_position_embeddings")
    known = [
        value
        for value in (transformer.get("max_seq_length"), tokenizer.get("model_max_length"))
        if isinstance(value, int) and 0 < value <= MAX_LENGTH
    ]
    if asked is None and not known:
        raise ModelError(f"{source} does not say how many tokens a text may have; give --max-length")
    length = asked or known[0]
    if isinstance(positions, int) and 0 < positions < length:
        if asked is None:
            return positions
        raise ModelError(
            f"--max-length {asked} is more than the {positions} tokens that the model in {source} has "
            "positions for"
        )
    return length
