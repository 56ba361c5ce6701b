"""The model that is exported: loaded, and refused where a graph cannot hold what it does."""

from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from sentence_transformers.util import is_sentence_transformer_model

from cognate import models
from cognate.errors import ModelError

POOLINGS = ("mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens")


def load_model(source: str | Path, pooling: str | None = None) -> tuple[SentenceTransformer, str]:
    """Load a model for the export, in float32, with a normalisation at its end.

    Args:
        source: A checkpoint, a sentence-transformers folder, a model name or a Hugging Face id.
        pooling: One of ``POOLINGS``, for a model that does not say how its token vectors are pooled, and for
            no other.

    Returns:
        The model, and its pooling's name, several joined with "+".

    Raises:
        ModelError: It cannot be found, loaded or exported, or its pooling is not known.
    """
    if pooling is not None and pooling not in POOLINGS:
        raise ModelError(f"there is no pooling {pooling!r}; choose one of {', '.join(POOLINGS)}")

    def loader(name: str, local: bool) -> SentenceTransformer | None:
        says = is_sentence_transformer_model(name, local_files_only=local)
        if says and pooling is not None:
            raise ValueError("it says itself how its token vectors are pooled; leave --pooling out")
        model: SentenceTransformer = SentenceTransformer(
            name,
            device="cpu",
            trust_remote_code=False,
            local_files_only=local,
            model_kwargs={"use_safetensors": True},
        )
        if not says and pooling is None:
            return None
        if pooling is not None:
            transformer = model[0]
            if not isinstance(transformer, Transformer):
                raise ValueError("it does not begin with a transformer")
            pooled = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)
            model = SentenceTransformer(modules=[transformer, pooled], device="cpu")
        return model

    model = models.load(str(source), loader)
    if model is None:
        raise ModelError(
            f"{source} does not say how its token vectors are pooled; give --pooling mean or cls, or train it"
        )
    name = _check_modules(model, source)
    _check_vocabulary(model, source)
    model.float().eval()
    return model, name


def max_length_of(model: SentenceTransformer) -> int:
    """Tokens that the model reads of a text, special tokens included."""
    if model.max_seq_length:
        return int(model.max_seq_length)
    return int(getattr(model[0].auto_model.config, "max_position_embeddings", 512))  # type: ignore[union-attr]


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


def _check_vocabulary(model: SentenceTransformer, source: str | Path) -> None:
    size = model[0].auto_model.get_input_embeddings().num_embeddings  # type: ignore[union-attr, operator]
    if not getattr(model.tokenizer, "is_fast", False):
        raise ModelError(f"{source} has no fast tokenizer (tokenizer.json), which a bundle needs")
    largest = max(model.tokenizer.get_vocab().values(), default=0)
    if largest >= size:
        raise ModelError(
            f"{source} has a tokenizer with ids up to {largest}, but the model has only {size} tokens; the "
            "tokenizer belongs to another model"
        )
