"""Where the loss and the metrics go besides the run's folder: the integrations of transformers, by name."""

import contextlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence

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


@contextlib.contextmanager
def logged(names: Sequence[str]) -> Iterator[None]:
    """End what loggers begin during training, so that it is written and the next run does not go on with it.

    What was begun before, by whoever calls, stays theirs.

    Args:
        names: Of loggers.

    Raises:
        CognateError: A logger's library failed; it is named.
    """
    begun = [name for name in names if not _is_active(name)]
    try:
        yield
    except BaseException as error:
        _end(begun, failed=True)
        if name := _culprit(error, names):
            raise CognateError(f"the logger {name} failed, and training ended: {error}") from error
        raise
    _end(begun, failed=False)


def _is_active(name: str) -> bool:
    if name == "mlflow":
        import mlflow

        return mlflow.active_run() is not None
    if name == "wandb":
        import wandb

        return wandb.run is not None
    return False


def _end(names: Sequence[str], *, failed: bool) -> None:
    if "mlflow" in names:
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")
    if "wandb" in names:
        import wandb

        wandb.finish(exit_code=int(failed))


def _culprit(error: BaseException, names: Sequence[str]) -> str | None:
    """The logger whose library raised an error; None where none did."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return next((name for name in names if name in modules), None)
