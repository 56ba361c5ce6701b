"""Which epoch was the best so far, and whether to stop waiting for a better one."""

from typing import Any

from trainer.options import TrainingOptions


class Monitor:
    """Follows one value, epoch by epoch.

    Attributes:
        best: The best value so far, or the baseline; None before there is one.
        best_epoch: The epoch it is of; None where none was better than the baseline.
        waited: Epochs since.
    """

    def __init__(self, settings: TrainingOptions) -> None:
        """Follow what the options say."""
        self._name = settings.monitor
        self._least = settings.monitor_mode == "min" or (
            settings.monitor_mode == "auto" and settings.monitor == "loss"
        )
        self._min_delta = settings.min_delta
        self._patience = settings.patience
        self.best: float | None = settings.baseline
        self.best_epoch: int | None = None
        self.waited = 0

    def update(self, epoch: int, values: dict[str, float]) -> bool:
        """Look at the values of an epoch, and tell whether it is the best so far."""
        value = values[self._name]
        gain = 0.0 if self.best is None else (self.best - value if self._least else value - self.best)
        if self.best is None or gain > self._min_delta:
            self.best, self.best_epoch, self.waited = value, epoch, 0
            return True
        self.waited += 1
        return False

    @property
    def gives_up(self) -> bool:
        """Whether no better epoch is waited for any more."""
        return self._patience is not None and self.waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, to be saved."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what was saved."""
        self.best, self.best_epoch, self.waited = state["best"], state["best_epoch"], state["waited"]
