"""A batch through BERT or RoBERTa as one row of tokens, in which only attention sees texts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertModel, RobertaModel, XLMRobertaModel

GROUP = 8
"""Texts of like length whose attention is calculated together, padded to the longest of them. Of 128 quora
questions, groups of 32 have 37 % more tokens than there are, groups of 8 have 7 %."""


@dataclass(frozen=True)
class _Group:
    """Texts that are padded to one length.

    Attributes:
        features: What the tokenizer gave of them, each of shape (texts, tokens).
        bias: What is added to the scores of attention, minus infinity for padding: float32, shape
            (texts, 1, 1, tokens); None where there is no padding.
    """

    features: dict[str, Tensor]
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Texts, and tokens of each, padding included."""
        texts, tokens = self.features["input_ids"].shape
        return texts, tokens


def is_packable(model: nn.Module) -> bool:
    """Whether a model is one for ``embed_packed``: of these families, and run as written, layer by layer.

    Where several processes share a batch, what torch wraps the model in must see each pass, so it is not.
    """
    transformer = _transformer(model) if isinstance(model, SentenceTransformer) else None
    return (
        isinstance(transformer, BertModel | RobertaModel | XLMRobertaModel)
        and getattr(transformer.config, "position_embedding_type", "absolute") == "absolute"
        and not transformer.config.is_decoder
        and not transformer.is_gradient_checkpointing
        and transformer._compiled_call_impl is None
    )


def embed_packed(model: SentenceTransformer, features: Mapping[str, Tensor]) -> Tensor:
    """Embed a batch, all of its tokens in a row.

    What takes each token by itself, which is all but attention, then runs once a layer over all of them: its
    weights are read, converted and given a gradient once a batch, and there are few calls. Attention takes
    groups of texts of like lengths. The mathematics is that of the model's own ``forward``.

    Args:
        model: For which ``is_packable`` is true.
        features: input_ids, attention_mask, … each int64 of shape (texts, tokens).

    Returns:
        float32, shape (texts, dimension), in the order of the batch.
    """
    transformer = _transformer(model)
    lengths, order = torch.sort(features["attention_mask"].sum(dim=1), descending=True, stable=True)
    groups = [
        _group(features, rows, longest=int(some[0]), shortest=int(some[-1]))
        for rows, some in zip(torch.split(order, GROUP), torch.split(lengths.cpu(), GROUP), strict=True)
    ]
    sizes = [math.prod(group.shape) for group in groups]
    hidden = transformer.embeddings(
        input_ids=_in_a_row([group.features["input_ids"] for group in groups]),
        token_type_ids=_in_a_row([_token_types(group) for group in groups]),
        position_ids=_in_a_row([_positions(transformer, group) for group in groups]),
    )[0]
    for layer in transformer.encoder.layer:
        hidden = layer.attention.output(_attend(layer.attention.self, hidden, groups, sizes), hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    embeddings = []
    for group, tokens in zip(groups, hidden.split(sizes), strict=True):
        pooled = {**group.features, "token_embeddings": tokens.view(*group.shape, -1)}
        for module in list(model)[1:]:
            pooled = module(pooled)
        embeddings.append(pooled["sentence_embedding"].float())
    return torch.cat(embeddings)[torch.argsort(order)]


def _transformer(model: SentenceTransformer) -> Any:
    """The transformer itself, without what peft puts around it for low-rank weights."""
    transformer: Any = model[0].model if isinstance(model[0], Transformer) else None
    return transformer.get_base_model() if hasattr(transformer, "get_base_model") else transformer


def cut(features: Mapping[str, Tensor], rows: Tensor, longest: int) -> dict[str, Tensor]:
    """The features of some texts of a batch, without the padding that none of them needs.

    Args:
        features: Of the batch, each of shape (texts, tokens); others are left out.
        rows: Which texts.
        longest: Tokens of the longest of them.
    """
    return {
        name: value[rows, :longest]
        for name, value in features.items()
        if isinstance(value, Tensor) and value.dim() == 2
    }


def _group(features: Mapping[str, Tensor], rows: Tensor, *, longest: int, shortest: int) -> _Group:
    some = cut(features, rows, longest)
    if shortest == longest:
        return _Group(some, None)
    mask = some["attention_mask"][:, None, None, :]
    return _Group(some, torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, -math.inf))


def _in_a_row(values: list[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values]).unsqueeze(0)


def _token_types(group: _Group) -> Tensor:
    return group.features.get("token_type_ids", torch.zeros_like(group.features["input_ids"]))


def _positions(transformer: Any, group: _Group) -> Tensor:
    """Which position each token has: RoBERTa's count from after that of padding, which has one of its own."""
    mask = group.features["attention_mask"]
    if isinstance(transformer, BertModel):
        return torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    return mask.cumsum(dim=1) * mask + int(transformer.embeddings.padding_idx)


def _attend(attention: Any, hidden: Tensor, groups: list[_Group], sizes: list[int]) -> Tensor:
    """Self-attention within each text: (tokens, hidden) to (tokens, hidden); sizes are the groups' tokens."""
    projected = [
        project(hidden).split(sizes) for project in (attention.query, attention.key, attention.value)
    ]
    dropout = attention.dropout.p if attention.training else 0.0
    contexts = []
    for group, *parts in zip(groups, *projected, strict=True):
        texts, tokens = group.shape
        query, key, value = (
            part.view(texts, tokens, attention.num_attention_heads, -1).transpose(1, 2) for part in parts
        )
        context = scaled_dot_product_attention(query, key, value, attn_mask=group.bias, dropout_p=dropout)
        contexts.append(context.transpose(1, 2).reshape(texts * tokens, -1))
    return torch.cat(contexts)
