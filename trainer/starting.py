"""Runs in a process of their own, which goes on when the one that started it ends."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from cognate.artifact import check_destination
from cognate.checkpoint import CheckpointManifest
from cognate.errors import CognateError
from cognate.records import STDIN
from cognate.runs import CONFIG, LOG, RunFolder, check_new_run, create_run, get_run
from trainer.data import TrainingData, read_data
from trainer.job import Job, digests, make_job
from trainer.loggers import check_loggers
from trainer.options import TrainingOptions


def start(
    model: str,
    train_data: str | Path | Sequence[str | Path],
    *,
    run: str,
    runs_dir: str | Path | None = None,
    out: str | Path | None = None,
    queries: str | Path | None = None,
    index: str | Path | None = None,
    force: bool = False,
    processes: int = 1,
    **options: Any,
) -> RunFolder:
    """Start a run in a process of its own, and return at once.

    Args:
        model: As ``fit``; so are the others.
        train_data: As ``fit``.
        run: The run's name.
        runs_dir: Where runs live: by default what COGNATE_RUNS says, else ``runs``.
        out: The checkpoint's folder; by default ``checkpoint`` in the run's.
        queries: As ``fit``.
        index: As ``fit``.
        force: Whether a run, or checkpoint, that is there is replaced.
        processes: How many share every batch, on a GPU each where there are some.
        options: Fields of ``TrainingOptions``.

    Returns:
        The run.

    Raises:
        CognateError: The data, the options or the name will not do.
        pydantic.ValidationError: An option is unknown or out of range.
    """
    settings = TrainingOptions(**options)
    check_loggers(settings.loggers, in_run=True)
    if processes > 1 and settings.batch_size == "auto":
        raise CognateError("batch_size=auto is found by one process; give a number to train with several")
    job = make_job(model, train_data, queries=queries, index=index, out=out, force=force, options=settings)
    folder, _ = new_run(job, run, runs_dir)
    start_process(folder, processes)
    return folder


def restart(
    name: str, runs_dir: str | Path | None = None, expected: Job | None = None, *, processes: int = 1
) -> RunFolder:
    """Go on with a run in a process of its own, and return at once.

    Raises:
        CognateError: There is no such run, it is running or finished, or is not what is ``expected``.
    """
    folder = get_run(name, runs_dir)
    resumable_job(folder, expected)
    start_process(folder, processes)
    return folder


def new_run(job: Job, name: str, runs_dir: str | Path | None) -> tuple[RunFolder, TrainingData]:
    """Make a run's folder for a job that can be done.

    Raises:
        CognateError: The name or the data will not do.
    """
    check_new_run(name, runs_dir, force=job.force)
    if STDIN in job.files:
        raise CognateError(
            "a run may have to read its data again, so standard input will not do; give a file"
        )
    if job.out is not None:
        check_destination(Path(job.out), CheckpointManifest.KIND, force=job.force)
    data = read_data(job)
    return create_run(name, job.model_dump(mode="json"), runs_dir, force=job.force), data


def written_job(folder: RunFolder) -> Job:
    """What a run was asked to do, as it was written down.

    Raises:
        CognateError: It cannot be read.
    """
    try:
        return Job.model_validate(folder.config())
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CognateError(f"{folder.folder / CONFIG} cannot be used: {where}: {first['msg']}") from None


def expected_job(folder: RunFolder, options: Mapping[str, Any], **sources: Any) -> Job:
    """What a run would do if it had been given these options and sources besides those that it has.

    Raises:
        CognateError: What it was asked to do cannot be read.
        pydantic.ValidationError: An option is unknown or out of range.
    """
    job = written_job(folder)
    given = {"model": job.model, "train_data": job.train_data, "queries": job.queries, "index": job.index}
    return make_job(
        **{**given, "out": job.out, **sources},
        options=TrainingOptions(**{**job.options.model_dump(), **options}),
    )


def resumable_job(folder: RunFolder, expected: Job | None) -> Job:
    """What a run was asked to do, where it can go on with that.

    Raises:
        CognateError: It is running or finished, its data or settings changed, or it is not what is
            ``expected``.
    """
    status = folder.status()
    if status.state == "running":
        raise CognateError(f"run {folder.name} is running, in process {status.pid}")
    if status.state == "finished":
        raise CognateError(f"run {folder.name} is finished; its checkpoint is {folder.checkpoint}")
    job = written_job(folder)
    now = job.model_copy(update={"sha256": digests(job)})
    if changed := [*(job.differences(expected) if expected else []), *job.differences(now)]:
        raise CognateError(
            f"run {folder.name} cannot go on, for what it was asked for has changed: "
            f"{'; '.join(dict.fromkeys(changed))}; put it back, or start another run"
        )
    return job


def start_process(folder: RunFolder, processes: int = 1) -> None:
    """Run what a run's folder says in a new process, or several, whose output goes to the run's log."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    launcher = several if processes > 1 else []
    with (folder.folder / LOG).open("ab") as log:

        def start() -> int:
            return subprocess.Popen(
                [sys.executable, *launcher, "-m", "trainer", str(folder.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            ).pid

        folder.start(start)
