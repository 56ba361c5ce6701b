"""Where the loss and the metrics go besides the run's folder: the integrations of transformers, by name."""

import importlib.util
from collections.abc import Iterable, Sequence

from cognate.errors import CognateError


def check_loggers(names: Iterable[str], *, in_run: bool) -> None:
    """Refuse a logger that cannot write.

    Args:
        names: Of loggers: "tensorboard", "mlflow", "wandb".
        in_run: Whether there is a run, in whose folder one may write.

    Raises:
        CognateError: Its library is not installed, or it has no place to write.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise CognateError(f"the logger {name} needs a library that is not installed: pip install {name}")
        if name == "tensorboard" and not in_run:
            raise CognateError("the logger tensorboard writes in a run's folder; give --run, a name")


def culprit(error: BaseException, names: Sequence[str]) -> str | None:
    """The logger whose library raised an error; None where none did."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return next((name for name in names if name in modules), None)


def end_failed(names: Sequence[str]) -> None:
    """End what loggers have begun, where training ended early: else the next run would go on with it."""
    if "mlflow" in names:
        import mlflow

        mlflow.end_run("FAILED")
    if "wandb" in names:
        import wandb

        wandb.finish(exit_code=1)
