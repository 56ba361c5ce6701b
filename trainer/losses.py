"""A pytorch-metric-learning loss and miner over a batch, as sentence-transformers' trainer calls them."""

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import torch
from pytorch_metric_learning import distances, losses, miners
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses as tuple_losses
from torch import Tensor, nn

from cognate.errors import CognateError
from trainer.gathering import gathered
from trainer.kinds import Kind
from trainer.options import Option, TrainingOptions, check_values
from trainer.packing import cut, embed_packed, is_packable

MICRO_BATCH = 32
"""Texts that go through the model together. Sorted by length, they need little padding."""


_RANKING = (
    "MultipleNegativesRankingLoss",
    "CachedMultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
)
TUPLE_LOSSES: dict[Kind, tuple[str, ...]] = {
    "pairs": _RANKING,
    "scored pairs": ("CoSENTLoss", "AnglELoss", "CosineSimilarityLoss"),
    "triplets": (*_RANKING[:2], "TripletLoss"),
}
"""The losses of sentence-transformers that fit each kind of data without labels."""

UNFIT = {
    # They wrap other losses.
    "CrossBatchMemory",
    "GenericPairLoss",
    "MultipleLosses",
    "SelfSupervisedLoss",
    # They take no labels.
    "EmbeddingsAlreadyPackagedAsTriplets",
    "ManifoldLoss",
    "VICRegLoss",
    # It holds on to the graph of the batch before, so that the second step fails.
    "DynamicSoftMarginLoss",
}
"""What pytorch-metric-learning has besides, which a batch of embeddings and labels cannot train with."""

OWN_DISTANCE = {
    "AngularLoss",
    "AngularMiner",
    "DistanceWeightedMiner",
    "FastAPLoss",
    # Its formula is of distances. It takes a similarity for one, and so drives equal labels apart.
    "RankedListLoss",
    "SignalToNoiseRatioContrastiveLoss",
}
"""Losses and miners that cosine similarity is not for; theirs is a distance of normalised embeddings."""

FOR_SIMILARITY = {"ContrastiveLoss": {"pos_margin": 1.0, "neg_margin": 0.0}}
"""Defaults of theirs where the class has those for a distance, with which similarities teach nothing."""

NO_FLAG = {
    "args",
    "kwargs",
    "self",
    "distance",
    # Objects, pairs and what the class itself gives to its parent.
    "allowed_neg_range",
    "allowed_pos_range",
    "collect_stats",
    "embedding_regularizer",
    "mat_based_loss",
    "reducer",
    "weight_init_func",
    "weight_regularizer",
}
"""Arguments of theirs that are no options."""


def _classes(library: ModuleType) -> dict[str, type[nn.Module]]:
    return {
        name: value
        for name, value in sorted(vars(library).items())
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and not name.startswith("Base")
        and name not in UNFIT
    }


METRIC_LOSSES = _classes(losses)
MINERS = _classes(miners)


class NotFiniteError(CognateError):
    """A loss, or its gradients, that is infinite or no number."""


class MetricLoss(nn.Module):
    """Embeds a batch, mines it, and gives its loss; of several processes, the batches together.

    The batch goes through the model packed (``trainer.packing``) or, where the model is not one for that, in
    micro-batches of texts of like lengths, whose embeddings are joined before the miner and the loss see
    them: the mathematics is that of one batch, with less padding.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        loss: nn.Module,
        miner: nn.Module | None,
        *,
        bf16: bool = False,
        dimensions: Sequence[int] = (),
        memory: int = 0,
    ) -> None:
        """Take a model, a pytorch-metric-learning loss and, or not, a miner.

        Args:
            model: What embeds.
            loss: Over embeddings.
            miner: Of what the loss looks at.
            bf16: Whether the model, and only it, computes in bf16.
            dimensions: Numbers of first components that the loss is the mean over; none: all components.
            memory: Embeddings of batches before that are mined as well.

        Raises:
            CognateError: This loss takes no memory, or no dimensions.
        """
        super().__init__()
        self.bf16 = bf16
        self.mined = 0
        if miner is not None:
            miner.register_forward_hook(self._count)
        if dimensions and any(True for _ in loss.parameters()):
            raise CognateError(f"{type(loss).__name__} has weights of one size, so leave out matryoshka")
        self.dimensions = dimensions
        if memory:
            supported = losses.CrossBatchMemory.supported_losses()
            if type(loss).__name__ not in supported:
                raise CognateError(
                    f"{type(loss).__name__} takes no memory; those that do are {', '.join(supported)}"
                )
            size = model.get_embedding_dimension() or 0
            # It mines by itself, over the memory.
            loss = losses.CrossBatchMemory(loss, size, memory_size=memory, miner=miner)
            miner = None
        self.model = model
        self.loss = loss
        self.miner = miner

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            features: One element: input_ids, attention_mask, … each int64 of shape (texts, tokens).
            labels: int64, shape (texts,).

        Returns:
            A scalar.

        Raises:
            NotFiniteError: It is not finite.
        """
        embeddings, labels = gathered(self.embed(features[0]), labels)
        sizes = self.dimensions or [embeddings.shape[1]]
        # fp16 is on around all of this; the loss needs more.
        with torch.autocast(embeddings.device.type, enabled=False):
            loss = torch.stack([self._loss(embeddings[:, :size], labels) for size in sizes]).mean()
        if not torch.isfinite(loss):
            raise NotFiniteError("the loss is not finite")
        return loss

    def _loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        mined = None if self.miner is None else self.miner(embeddings, labels)
        loss: Tensor = self.loss(embeddings, labels, mined)
        return loss

    def _count(self, miner: nn.Module, given: object, mined: tuple[Tensor, ...]) -> None:
        self.mined += max(len(part) for part in mined)

    def get_extra_state(self) -> dict[str, Any]:
        """The place in the memory, which pytorch-metric-learning leaves out of the weights."""
        memory = self.loss
        return (
            {"queue_idx": memory.queue_idx, "has_been_filled": memory.has_been_filled}
            if isinstance(memory, losses.CrossBatchMemory)
            else {}
        )

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take that place up again."""
        for name, value in state.items():
            setattr(self.loss, name, value)

    def embed(self, features: Mapping[str, Tensor]) -> Tensor:
        """Embed a batch: float, shape (texts, dimension), in the order of the batch."""
        if is_packable(self.model):
            with _in_bf16(features["attention_mask"].device, self.bf16):
                return embed_packed(self.model, features)
        lengths = features["attention_mask"].sum(dim=1)
        order = torch.argsort(lengths, descending=True, stable=True)
        embeddings = []
        for rows in torch.split(order, MICRO_BATCH):
            micro = cut(features, rows, int(lengths[rows[0]]))
            with _in_bf16(lengths.device, self.bf16):
                embeddings.append(self.model(micro)["sentence_embedding"].float())
        return torch.cat(embeddings)[torch.argsort(order)]


def _in_bf16(device: torch.device, wanted: bool) -> contextlib.AbstractContextManager[object]:
    # Not autocast(enabled=False), which would switch off what is on around it.
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


class TupleLoss(nn.Module):
    """A sentence-transformers loss over pairs, with or without a score, or triplets."""

    mined = 0

    def __init__(self, loss: nn.Module, *, bf16: bool = False) -> None:
        """Take the loss, which has the model; bf16 is the model's alone."""
        super().__init__()
        self.loss = loss
        self.bf16 = bf16

    @property
    def model(self) -> SentenceTransformer:
        """The model."""
        return cast(SentenceTransformer, self.loss.model)

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor | None) -> Tensor:
        """The loss of a batch.

        Args:
            features: One element for each text of a row: input_ids, attention_mask, …, shape (rows, tokens).
            labels: The scores, float, shape (rows,); None where there are none.

        Returns:
            A scalar.

        Raises:
            NotFiniteError: It is not finite.
        """
        with _in_bf16(features[0]["attention_mask"].device, self.bf16):
            loss: Tensor = self.loss(features, labels)
        if not torch.isfinite(loss):
            raise NotFiniteError("the loss is not finite")
        return loss


def check_losses(settings: TrainingOptions, kind: Kind) -> None:
    """Refuse a loss, a miner or options of theirs that do not exist, before anything is loaded.

    Raises:
        CognateError: There is no such loss or miner for this kind of data, or it has no such option.
    """
    if kind != "records":
        _tuple_class(settings.loss, settings.loss_options, kind)
        return
    _class(METRIC_LOSSES, "loss", settings.loss, settings.loss_options)
    if settings.miner != "none":
        _class(MINERS, "miner", settings.miner, settings.miner_options)


def make_tuple_loss(
    name: str,
    options: Mapping[str, Option],
    kind: Kind,
    model: SentenceTransformer,
    dimensions: Sequence[int] = (),
) -> nn.Module:
    """Make a sentence-transformers loss for data without labels.

    Args:
        name: Its class name.
        options: Its arguments.
        kind: Of the data.
        model: What embeds.
        dimensions: Numbers of first components that it is summed over as well; none: all components.

    Raises:
        CognateError: It does not fit the data, or does not take these options.
    """
    cls = _tuple_class(name, options, kind)
    try:
        loss: nn.Module = cls(model, **options)
    except (TypeError, ValueError) as error:
        raise CognateError(f"{name} cannot be made from these options: {error}") from error
    return tuple_losses.MatryoshkaLoss(model, loss, list(dimensions)) if dimensions else loss


def _tuple_class(name: str, options: Mapping[str, Option], kind: Kind) -> Callable[..., nn.Module]:
    fit = TUPLE_LOSSES[kind]
    if name not in fit:
        raise CognateError(f"there is no loss {name!r} for {kind}; those that exist are {', '.join(fit)}")
    cls: Callable[..., nn.Module] = getattr(tuple_losses, name)
    wanted = {
        key: value.default
        for key, value in inspect.signature(cls).parameters.items()
        if isinstance(value.default, bool | int | float | str)
        and key not in ("gather_across_devices", "show_progress_bar")
    }
    if unknown := sorted(set(options) - set(wanted)):
        raise CognateError(
            f"{name} has no option {', '.join(unknown)}; those it has are {', '.join(sorted(wanted))}"
        )
    check_values(name, options, wanted)
    return cls


def make_loss(name: str, options: Mapping[str, Option], *, labels: int, dimension: int) -> nn.Module:
    """Make a pytorch-metric-learning loss, over cosine similarity where it is for that.

    Args:
        name: Its class name, one of ``METRIC_LOSSES``.
        options: Its arguments.
        labels: How many labels the data has, for losses that learn a vector for each.
        dimension: Components of an embedding, for the same.

    Raises:
        CognateError: There is no such loss, or it does not take these options.
    """
    known = {"num_classes": labels, "embedding_size": dimension, "descriptors_dim": dimension}
    return _make(METRIC_LOSSES, "loss", name, options, known)


def make_miner(name: str, options: Mapping[str, Option]) -> nn.Module | None:
    """Make a pytorch-metric-learning miner, over cosine similarity where it is for that.

    Args:
        name: Its class name, one of ``MINERS``, or "none".
        options: Its arguments.

    Raises:
        CognateError: There is no such miner, or it does not take these options.
    """
    if name == "none":
        return None
    return _make(MINERS, "miner", name, options, {})


def _make(
    classes: Mapping[str, type[nn.Module]],
    kind: str,
    name: str,
    options: Mapping[str, Option],
    known: Mapping[str, int],
) -> nn.Module:
    cls = _class(classes, kind, name, options)
    wanted = _arguments(cls)
    given: dict[str, Any] = {key: value for key, value in known.items() if key in wanted}
    given |= FOR_SIMILARITY.get(name, {})
    if name not in OWN_DISTANCE:
        given["distance"] = distances.CosineSimilarity()
    try:
        return cls(**given | dict(options))
    except (TypeError, ValueError, AssertionError) as error:
        raise CognateError(
            f"{name} cannot be made from these options: {error or 'a value is wrong'}"
        ) from error


def _class(
    classes: Mapping[str, type[nn.Module]], kind: str, name: str, options: Mapping[str, Option]
) -> type[nn.Module]:
    if name not in classes:
        raise CognateError(f"there is no {kind} {name!r}; those that exist are {', '.join(classes)}")
    wanted = _arguments(classes[name])
    unknown = sorted(set(options) - set(wanted))
    if unknown:
        raise CognateError(
            f"{name} has no option {', '.join(unknown)}; those it has are {', '.join(sorted(wanted))}"
        )
    check_values(name, options, wanted)
    # pytorch-metric-learning takes any other text for "all", or fails at the first batch.
    triplets = options.get("type_of_triplets", "all")
    if triplets not in ("all", "hard", "semihard", "easy"):
        raise CognateError(
            f"{name}'s option type_of_triplets must be all, hard, semihard or easy, not {triplets!r}"
        )
    if isinstance(number := options.get("triplets_per_anchor"), str) and number != "all":
        raise CognateError(f"{name}'s option triplets_per_anchor must be a number, or all, not {number!r}")
    return classes[name]


def _arguments(cls: type) -> dict[str, object]:
    """The defaults of a class's constructor arguments, its parents' included, those that a flag can give.

    0 where there is none: all of those are numbers.
    """
    defaults: dict[str, object] = {}
    for parent in cls.__mro__:
        if parent is nn.Module:
            break
        if "__init__" in vars(parent):
            for name, parameter in inspect.signature(parent).parameters.items():
                missing = parameter.default in (None, parameter.empty)
                defaults.setdefault(name, 0 if missing else parameter.default)
    return {name: default for name, default in defaults.items() if name not in NO_FLAG}
