"""The hyper-parameters of a training run, checked before anything is loaded."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from cognate.errors import CognateError
from cognate.metrics import METRICS

Option = bool | int | float | str

LARGEST_BATCH = 65536


def _as_one(value: Any, check: pydantic.ValidatorFunctionWrapHandler) -> Any:
    # pydantic has a message for each of the types, the first of which is of a boolean.
    try:
        return check(value)
    except pydantic.ValidationError:
        raise ValueError(f"{value!r} is no number, no text and neither true nor false") from None


_Value = Annotated[Option, pydantic.WrapValidator(_as_one)]
_OptimizerValue = Annotated[Option | list[float] | None, pydantic.WrapValidator(_as_one)]

WITHOUT_MINER = ("InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss")
"""Losses of pytorch-metric-learning that look at a whole batch, never at what a miner found in it."""


class TrainingOptions(pydantic.BaseModel):
    """What decides a run, besides the model and the data.

    Attributes:
        loss: Class name of a pytorch-metric-learning loss.
        loss_options: Its arguments. Another loss than the default one has none unless they are given.
        miner: Class name of a pytorch-metric-learning miner, or "none". Some losses take none, and have none.
        miner_options: Its arguments; as those of the loss.
        epochs: Times that every record is seen.
        batch_size: Records of a batch, at most; batch_size / records_per_label labels share one. "auto": the
            most that fit the memory, found by trying.
        records_per_label: Records of one label in a batch, at most.
        sampler: How labelled records are shared out over batches: "class", by labels, so that each record has
            another of its label beside it; "random"; "auto": by labels.
        learning_rate: At its peak.
        optimizer: Class name of a torch.optim optimizer, in capitals or not.
        optimizer_options: Its arguments.
        weight_decay: Of every weight. None: the optimizer's own.
        loss_optimizer_options: The optimizer's arguments for the weights of a loss that has some, such as lr.
        layer_decay: Each layer's learning rate is that of the one above it times this; 1: all are alike.
        scheduler: How the learning rate goes on after the warm-up: "linear" to 0, "cosine",
            "cosine_with_restarts", "polynomial", "constant" (which has no warm-up), "constant_with_warmup".
        scheduler_options: Its arguments, such as num_cycles or power.
        scheduler_step: Whether the learning rate changes after each "batch", or, the warm-up aside, between
            "epoch"s only.
        warmup_ratio: The share of the steps in which the learning rate climbs to its peak.
        warmup_steps: Those steps themselves. None: by the ratio.
        gradient_accumulation: Batches whose gradients make one step. Each is mined by itself.
        max_gradient_norm: A larger gradient is scaled down to it; 0: none is.
        monitor: What early stopping and the best checkpoint look at after each epoch: one of the nine
            metrics, or "loss", the mean of the epoch's.
        monitor_mode: Whether it is better at its "max" or its "min". "auto": the loss at its min.
        patience: Epochs without a better value after which training stops. None: it never does.
        min_delta: By how much a value must be better to be so.
        baseline: The value that the first one must better. None: any value does.
        keep_best: Whether the checkpoint has the weights of the best epoch, not those of the last.
        val_split: The share of the labels that is left out of training, and searched in itself to evaluate,
            where there are no queries and index.
        freeze: What is not trained: "none", "embeddings", a number n (the embeddings and the first n layers)
            or "encoder" (all but the head that output_dim adds).
        pooling: How token embeddings become one: "mean", "cls", "max", …. None: as the model does.
        output_dim: Components of an embedding, by a layer that is added after pooling. None: the model's own.
        prompts: What is put before a text, by "query" and "passage"; None: what the model says.
        matryoshka: Numbers of components, of each of which the first ones alone are trained to be an
            embedding; the loss is the mean over them. Source: Kusupati et al., "Matryoshka representation
            learning", 2022.
        memory: Embeddings of batches before that are mined as well, the newest; 0: none. Source: Wang et
            al., "Cross-batch memory for embedding learning", 2020.
        mine_negatives: Whether, after each epoch, the labels that the model takes for one another are found
            in an index of all records, and share the batches of the next.
        negative_margin: By which share of the positives' cosine a record of another label must be less
            similar for that; what is nearer is left alone, since it may mean the same.
        average_last: The share of the steps, the last ones, over which the weights are averaged; the mean is
            what is evaluated and kept. 0: the weights of the last step. Source: Izmailov et al., "Averaging
            weights leads to wider optima and better generalization", 2018.
        lora: Rank of low-rank weights that are trained in place of the linear layers', and merged into them
            at the end; 0: all weights are trained. Source: Hu et al., "LoRA", 2021.
        lora_alpha: By how much they count, over their rank. None: twice the rank.
        precision: "fp32", or "bf16" for the model's arithmetic (weights and loss stay float32): faster on a
            processor or GPU that has it. "fp16": the same on CUDA, for GPUs without bf16.
        gradient_checkpointing: Whether what each layer gave is computed again for the gradients, not kept:
            less memory, a third more time.
        compile: Whether torch.compile makes the model quicker; it needs a C++ compiler, or Triton on CUDA.
        num_workers: Processes that tokenize batches ahead; 0: the one that trains does.
        max_length: Tokens that are read of a text in training. None: as many as the model reads.
        pretrained_weight: The share of the weights before training in the final ones, at most 1. A little
            keeps what the model knew and the training data does not show; 0 keeps none. Source: Wortsman
            et al., "Robust fine-tuning of zero-shot models", 2022.
        seed: Decides the batches and the dropout.
        k: Hits that the evaluations look at.
        checkpoint_epochs: A run's training state is saved after every so many epochs, and after the last.
        checkpoint_steps: And after every so many steps. None: not.
        checkpoints_kept: How many training states of a run are kept, the newest.
        loggers: Where the loss and the metrics go as well: "tensorboard", "mlflow", "wandb".
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    loss: str = "TripletMarginLoss"
    loss_options: dict[str, _Value] = {"margin": 0.2}
    miner: str = "TripletMarginMiner"
    miner_options: dict[str, _Value] = {"margin": 0.2, "type_of_triplets": "semihard"}
    epochs: int = pydantic.Field(3, ge=1, le=1000)
    batch_size: int | Literal["auto"] = 128
    records_per_label: int = pydantic.Field(4, ge=2, le=1024)
    sampler: Literal["auto", "class", "random"] = "auto"
    learning_rate: float = pydantic.Field(2e-5, gt=0, le=1)
    optimizer: str = "adamw"
    optimizer_options: dict[str, _OptimizerValue] = {}
    weight_decay: float | None = pydantic.Field(None, ge=0)
    loss_optimizer_options: dict[str, _OptimizerValue] = {}
    layer_decay: float = pydantic.Field(1.0, gt=0, le=1)
    scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "linear"
    scheduler_options: dict[str, _Value] = {}
    scheduler_step: Literal["batch", "epoch"] = "batch"
    warmup_ratio: float = pydantic.Field(0.1, ge=0, le=1)
    warmup_steps: int | None = pydantic.Field(None, ge=0)
    gradient_accumulation: int = pydantic.Field(1, ge=1)
    max_gradient_norm: float = pydantic.Field(1.0, ge=0)
    monitor: str = "average_precision"
    monitor_mode: Literal["auto", "max", "min"] = "auto"
    patience: int | None = pydantic.Field(None, ge=1)
    min_delta: float = pydantic.Field(0.0, ge=0)
    baseline: float | None = None
    keep_best: bool = False
    val_split: float = pydantic.Field(0.0, ge=0, lt=1)
    freeze: Literal["none", "embeddings", "encoder"] | pydantic.NonNegativeInt = "none"
    pooling: Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] | None = None
    output_dim: int | None = pydantic.Field(None, ge=1, le=65536)
    prompts: dict[Literal["query", "passage"], str] | None = None
    matryoshka: list[pydantic.PositiveInt] = []
    memory: int = pydantic.Field(0, ge=0)
    mine_negatives: bool = False
    negative_margin: float = pydantic.Field(0.05, ge=0, lt=1)
    average_last: float = pydantic.Field(0.0, ge=0, le=1)
    lora: int = pydantic.Field(0, ge=0)
    lora_alpha: int | None = pydantic.Field(None, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    compile: bool = False
    num_workers: int = pydantic.Field(0, ge=0, le=64)
    max_length: int | None = pydantic.Field(None, ge=4, le=1_000_000)
    pretrained_weight: float = pydantic.Field(0.0, ge=0, le=1)
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    k: int = pydantic.Field(20, ge=1, le=10_000)
    checkpoint_epochs: int = pydantic.Field(1, ge=1)
    checkpoint_steps: int | None = pydantic.Field(None, ge=1)
    checkpoints_kept: int = pydantic.Field(2, ge=1)
    loggers: list[Literal["tensorboard", "mlflow", "wandb"]] = []

    @pydantic.model_validator(mode="before")
    @classmethod
    def _exist(cls, given: object) -> object:
        # pydantic's own refusal lists none.
        if isinstance(given, dict) and (unknown := [name for name in given if name not in cls.model_fields]):
            raise ValueError(
                f"there is no option {', '.join(map(str, unknown))}; "
                f"those that exist are {', '.join(cls.model_fields)}"
            )
        return given

    @pydantic.model_validator(mode="before")
    @classmethod
    def _defaults_of_the_loss(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        if given.get("loss") in WITHOUT_MINER:
            given = {"miner": "none", **given}
        # The default options are those of the default loss and miner; another need not have them.
        for name in ("loss", "miner"):
            if name in given and given[name] != cls.model_fields[name].default:
                given = {f"{name}_options": {}, **given}
        return given

    @pydantic.field_validator("batch_size", mode="before")
    @classmethod
    def _size_or_auto(cls, given: object) -> object:
        # One message for both of what it may be.
        number = isinstance(given, int) or (isinstance(given, str) and given.isdecimal())
        if given != "auto" and not (number and 4 <= int(str(given)) <= LARGEST_BATCH):
            raise ValueError(f"give a number from 4 to {LARGEST_BATCH}, or auto, not {given!r}")
        return given

    @pydantic.model_validator(mode="after")
    def _two_labels_fit(self) -> "TrainingOptions":
        if self.batch_size != "auto" and self.labels_per_batch < 2:
            raise ValueError(
                "batch_size must be at least twice records_per_label, so that two labels share one"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _go_together(self) -> "TrainingOptions":
        if self.monitor != "loss" and self.monitor not in METRICS:
            raise ValueError(f"there is no {self.monitor!r} to monitor; there are loss, {', '.join(METRICS)}")
        if self.loss in WITHOUT_MINER and self.miner != "none":
            raise ValueError(f"{self.loss} takes no miner; give miner=none, or leave miner out")
        if self.freeze == "encoder" and self.output_dim is None:
            raise ValueError("freeze=encoder leaves only a head to train; give output_dim, to have one")
        if self.memory and self.batch_size == "auto":
            raise ValueError("memory must hold a batch, so give batch_size a number")
        if self.memory and self.memory < self.rows_per_batch:
            raise ValueError(f"memory must hold a batch, {self.batch_size} embeddings, at least")
        if self.memory and self.matryoshka:
            raise ValueError("memory and matryoshka do not go together")
        if self.mine_negatives and self.sampler == "random":
            raise ValueError("mine_negatives brings labels into one batch, so leave out sampler=random")
        if self.lora and self.freeze != "none":
            raise ValueError("lora trains none of the encoder's own weights, so leave out freeze")
        return self

    @property
    def monitored(self) -> bool:
        """Whether anything is done with what is monitored."""
        return self.keep_best or self.patience is not None

    @property
    def labels_per_batch(self) -> int:
        """Labels of a batch."""
        return self.rows_per_batch // self.records_per_label

    @property
    def rows_per_batch(self) -> int:
        """``batch_size``, once it is a number."""
        assert self.batch_size != "auto"  # noqa: S101 - Found before training.
        return self.batch_size


def check_values(owner: str, options: Mapping[str, object], defaults: Mapping[str, object]) -> None:
    """Refuse what is not of the type of its default, where that is a number, true or false, or a tuple.

    Args:
        owner: What the options are of, by its name.
        options: Those given.
        defaults: By the name of the option.

    Raises:
        CognateError: A value is of another type.
    """
    for name, value in options.items():
        default = defaults.get(name)
        if isinstance(default, bool):
            fits, what = isinstance(value, bool), "true or false"
        elif isinstance(default, int | float):
            fits, what = isinstance(value, int | float) and not isinstance(value, bool), "a number"
        elif isinstance(default, tuple):
            fits = isinstance(value, list) and len(value) == len(default)
            what = f"a list of {len(default)} numbers"
        else:
            continue
        if not fits:
            raise CognateError(f"{owner}'s option {name} must be {what}, not {value!r}")
