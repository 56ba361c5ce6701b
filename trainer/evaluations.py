"""Evaluations on disk, so that a resumed run and its report have those from before."""

import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cognate.errors import CognateError
from cognate.evaluation import Evaluation
from cognate.metrics import METRICS
from trainer.similarities import Similarities

ARRAYS = ("query_rows", "rows", "scores")


def save_evaluation(evaluation: Evaluation, similarities: Similarities, path: Path) -> None:
    """Write an evaluation, with what it found for each query, to a safetensors file."""
    arrays = {name: getattr(evaluation, name) for name in ARRAYS} | evaluation.per_query
    arrays |= asdict(similarities)
    save_file(arrays, path, metadata={"evaluation": json.dumps(evaluation.as_json())})


def load_evaluation(path: Path) -> Evaluation:
    """Read what ``save_evaluation`` wrote.

    Raises:
        CognateError: It is not there, or damaged.
    """
    try:
        return _loaded(path)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CognateError(
            f"{path} cannot be read, and so there is no evaluation to tell of: {error}"
        ) from None


def _loaded(path: Path) -> Evaluation:
    with safe_open(path, framework="numpy") as file:
        told = json.loads(file.metadata()["evaluation"])
        arrays = {name: file.get_tensor(name) for name in (*ARRAYS, *METRICS)}
    return Evaluation(
        k=told["k"],
        queries=told["queries"],
        records=told["records"],
        skipped=told["skipped_queries"],
        metrics=told["metrics"],
        per_query={name: arrays[name] for name in METRICS},
        **{name: arrays[name] for name in ARRAYS},
    )


def load_similarities(path: Path) -> Similarities | None:
    """Read the similarities that ``save_evaluation`` wrote beside an evaluation; None if it did not yet."""
    with safe_open(path, framework="numpy") as file:
        if "positives" not in file.keys():  # noqa: SIM118 - No dict.
            return None
        return Similarities(file.get_tensor("positives"), file.get_tensor("negatives"))
