"""The optimizer and the course of its learning rate, by name."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType

from cognate.errors import CognateError
from trainer.layers import by_depth
from trainer.options import TrainingOptions, check_values

UNFIT = {"LBFGS", "Muon", "Optimizer", "SparseAdam"}
"""Those that need a closure, matrices alone or sparse gradients."""


def check_optimization(settings: TrainingOptions) -> None:
    """Refuse names and options that do not exist, and values of a wrong type, before anything is loaded.

    Raises:
        CognateError: There is no such optimizer, or it or the scheduler has no such option, or not of this
            type.
    """
    kind = _optimizer_class(settings.optimizer)
    for options in (settings.optimizer_options, settings.loss_optimizer_options):
        _check_options(settings.optimizer, kind, options, without={"self", "params"})
    _check_options(
        settings.scheduler,
        TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(settings.scheduler)],
        settings.scheduler_options,
        without={"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"},
    )


def make_optimizer(
    settings: TrainingOptions, model: SentenceTransformer, of_loss: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the optimizer of a model's weights, those that are not frozen, and of a loss's.

    Raises:
        CognateError: As ``check_optimization``, or a value is wrong.
    """
    kind = _optimizer_class(settings.optimizer)
    options: dict[str, Any] = {"lr": settings.learning_rate}
    if "fused" in inspect.signature(kind).parameters and not {"foreach", "differentiable"} & set(
        settings.optimizer_options
    ):
        options["fused"] = True
    if settings.weight_decay is not None:
        options["weight_decay"] = settings.weight_decay
    options |= settings.optimizer_options
    groups = _groups(settings, model, options["lr"])
    if own := list(of_loss):
        if settings.loss_optimizer_options:
            groups.append({"params": own, **settings.loss_optimizer_options})
        else:
            groups[-1]["params"] += own
    elif settings.loss_optimizer_options:
        raise CognateError(f"{settings.loss} has no weights, so leave out loss_optimizer_options")
    try:
        return kind(groups, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CognateError(f"{settings.optimizer} cannot be made from these options: {error}") from error


def hold_within_epochs(
    scheduler: torch.optim.lr_scheduler.LambdaLR, *, warmup_steps: int, steps_of_an_epoch: int
) -> None:
    """Let the learning rate change between epochs only, once it is at its peak.

    Args:
        scheduler: Gives the rate of each step; changed in place.
        warmup_steps: The first steps, in which it climbs as it does.
        steps_of_an_epoch: Through which it has the value of the first.
    """

    def held(rate: Callable[[int], float]) -> Callable[[int], float]:
        def of(step: int) -> float:
            begun = step // steps_of_an_epoch * steps_of_an_epoch
            return rate(step if step < warmup_steps else max(begun, warmup_steps))

        return of

    scheduler.lr_lambdas = [held(rate) for rate in scheduler.lr_lambdas]


def _groups(settings: TrainingOptions, model: SentenceTransformer, rate: float) -> list[dict[str, Any]]:
    """The weights that are trained, those of one learning rate together, the deepest first."""
    if settings.layer_decay == 1:
        return [{"params": [parameter for parameter in model.parameters() if parameter.requires_grad]}]
    depths: dict[int, list[nn.Parameter]] = {}
    for depth, parameter in by_depth(model):
        if parameter.requires_grad:
            depths.setdefault(depth, []).append(parameter)
    top = max(depths)
    return [
        {"params": depths[depth], "lr": rate * settings.layer_decay ** (top - depth)}
        for depth in sorted(depths)
    ]


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    known = {
        key: value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and key not in UNFIT
    }
    found = next((value for key, value in known.items() if key.lower() == name.lower()), None)
    if found is None:
        raise CognateError(f"there is no optimizer {name!r}; those that exist are {', '.join(sorted(known))}")
    return found


def _check_options(name: str, made: Any, options: Mapping[str, object], without: set[str]) -> None:
    parameters = inspect.signature(made).parameters
    known = set(parameters) - without
    if unknown := sorted(set(options) - known):
        has = ", ".join(sorted(known)) or "none"
        raise CognateError(f"{name} has no option {', '.join(unknown)}; those it has are {has}")
    check_values(name, options, {key: value.default for key, value in parameters.items()})
