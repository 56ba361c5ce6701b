"""Making a model what the options ask for, before it is trained, and plain again after."""

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

from cognate.errors import CognateError
from trainer.layers import by_depth
from trainer.options import TrainingOptions


def shape(model: SentenceTransformer, settings: TrainingOptions) -> None:
    """Change pooling, add a head, set prompts, freeze weights and add low-rank ones, in place.

    Raises:
        CognateError: The model cannot be changed so.
    """
    if settings.pooling is not None:
        _pool(model, settings.pooling)
    if settings.lora:
        _add_low_rank(model, settings.lora, settings.lora_alpha or 2 * settings.lora)
    if settings.output_dim is not None:
        _add_head(model, settings.output_dim)
    if settings.prompts is not None:
        for side, prompt in settings.prompts.items():
            model.prompts[side] = prompt
    _freeze(model, settings.freeze)
    dimension = model.get_embedding_dimension() or 0
    if too_many := [size for size in settings.matryoshka if size > dimension]:
        raise CognateError(
            f"matryoshka asks for {too_many[0]} components, but an embedding has only {dimension}"
        )


def merge_low_rank(model: SentenceTransformer) -> None:
    """Merge low-rank weights into those that they stand beside, in place."""
    for module in model:
        if isinstance(module, Transformer) and hasattr(module.model, "merge_and_unload"):
            module.model = module.model.merge_and_unload()


def _pool(model: SentenceTransformer, mode: Any) -> None:
    for name, module in model.named_children():
        if isinstance(module, Pooling):
            dimension = module.embedding_dimension
            setattr(model, name, Pooling(dimension, mode, include_prompt=module.include_prompt))
            return
    raise CognateError("this model has no pooling layer, so pooling cannot be set")


def _add_head(model: SentenceTransformer, dimension: int) -> None:
    """Add a linear layer before the last normalisation, or at the end where there is none."""
    head = Dense(
        model.get_embedding_dimension() or 0, dimension, bias=False, activation_function=nn.Identity()
    ).to(model.device)
    # Near to an isometry, so that cosines begin about where they were.
    nn.init.orthogonal_(head.linear.weight)
    modules = list(model)
    last = modules.pop() if isinstance(modules[-1], Normalize) else None
    for number, module in enumerate([*modules, head, *([last] if last else [])]):
        model._modules[str(number)] = module


def _add_low_rank(model: SentenceTransformer, rank: int, alpha: int) -> None:
    # Imported here: it costs a second, and few runs need it.
    from peft import LoraConfig, get_peft_model

    for module in model:
        if isinstance(module, Transformer):
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", bias="none")
            module.model = get_peft_model(module.model, config)
            return
    raise CognateError("this model is no transformer, so lora cannot be used")


def _freeze(model: SentenceTransformer, what: str | int) -> None:
    if what == "none":
        return
    encoder = {id(parameter) for parameter in model[0].parameters()}
    for depth, parameter in by_depth(model):
        below = 0 if isinstance(what, str) else what
        if id(parameter) in encoder if what == "encoder" else depth < below:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise CognateError(f"freeze={what} leaves nothing to train")
