"""The hyper-parameters of a training run, checked before anything is loaded."""

from typing import Literal

import pydantic

Option = bool | int | float | str


class TrainingOptions(pydantic.BaseModel):
    """What decides a run, besides the model and the data.

    Attributes:
        loss: Class name of a pytorch-metric-learning loss.
        loss_options: Its arguments.
        miner: Class name of a pytorch-metric-learning miner, or "none".
        miner_options: Its arguments.
        epochs: Times that every record is seen.
        batch_size: Records of a batch, at most; batch_size / records_per_label labels share one.
        records_per_label: Records of one label in a batch, at most.
        learning_rate: At its peak.
        optimizer: "adamw" or "adam".
        warmup_ratio: The share of the steps in which the learning rate climbs to its peak; it then falls
            linearly to 0.
        precision: "fp32", or "bf16" for the model's arithmetic (weights and loss stay float32): faster on a
            processor or GPU that has it.
        max_length: Tokens that are read of a text in training. None: as many as the model reads.
        pretrained_weight: The share of the weights before training in the final ones, at most 1. A little
            keeps what the model knew and the training data does not show; 0 keeps none. Source: Wortsman
            et al., "Robust fine-tuning of zero-shot models", 2022.
        seed: Decides the batches and the dropout.
        k: Hits that the evaluations look at.
        checkpoint_epochs: A run's training state is saved after every so many epochs, and after the last.
        checkpoint_steps: And after every so many steps. None: not.
        checkpoints_kept: How many training states of a run are kept, the newest.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    loss: str = "TripletMarginLoss"
    loss_options: dict[str, Option] = {"margin": 0.2}
    miner: str = "TripletMarginMiner"
    miner_options: dict[str, Option] = {"margin": 0.2, "type_of_triplets": "semihard"}
    epochs: int = pydantic.Field(3, ge=1, le=1000)
    batch_size: int = pydantic.Field(128, ge=4, le=65536)
    records_per_label: int = pydantic.Field(4, ge=2, le=1024)
    learning_rate: float = pydantic.Field(2e-5, gt=0, le=1)
    optimizer: Literal["adamw", "adam"] = "adamw"
    warmup_ratio: float = pydantic.Field(0.1, ge=0, le=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    max_length: int | None = pydantic.Field(None, ge=4, le=1_000_000)
    pretrained_weight: float = pydantic.Field(0.0, ge=0, le=1)
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    k: int = pydantic.Field(20, ge=1, le=10_000)
    checkpoint_epochs: int = pydantic.Field(1, ge=1)
    checkpoint_steps: int | None = pydantic.Field(None, ge=1)
    checkpoints_kept: int = pydantic.Field(2, ge=1)

    @pydantic.model_validator(mode="after")
    def _two_labels_fit(self) -> "TrainingOptions":
        if self.labels_per_batch < 2:
            raise ValueError(
                "batch_size must be at least twice records_per_label, so that two labels share one"
            )
        return self

    @property
    def labels_per_batch(self) -> int:
        """Labels of a batch."""
        return self.batch_size // self.records_per_label
