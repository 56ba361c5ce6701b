"""``cognate index build --engine ray``: what it says, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexer.batch_job import work_folder_of
from tests.indexer.test_batch_job import write
from tests.indexer.test_resume import digests, records


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray-address", "PORT"), "no Ray cluster answers at 127.0.0.1:.*: Connection refused; start one"),
        (("--ray-address", "ray://head"), "'ray://head' is no address of a Ray cluster; give auto, or"),
        (("--device", "cpu", "--worker-gpus", "0.5"), "workers that encode on the CPU need no GPU"),
    ],
)
def test_what_cannot_be_is_one_line(
    cognate: Callable[..., Any],
    tiny_bundle: Path,
    tmp_path: Path,
    closed_port: str,
    options: tuple[str, ...],
    message: str,
) -> None:
    source = write(tmp_path / "records.jsonl", records(10))
    given = [closed_port if option == "PORT" else option for option in options]
    refused = cognate(
        "index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "i", "--engine", "ray", *given
    )
    assert re.search(message, refused.check_one_line_error())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["records.jsonl"]


def test_options_of_the_cluster_without_the_engine_are_refused(
    cognate: Callable[..., Any], tiny_bundle: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "records.jsonl", records(10))
    refused = cognate(
        "index", "build", source, "--bundle", tiny_bundle, "--out", tmp_path / "i", "--workers", 2
    )
    assert "are for --engine ray" in refused.check_one_line_error()


def test_an_interrupted_job_leaves_no_process_and_goes_on(tiny_bundle: Path, tmp_path: Path) -> None:
    # Chunks of the real size, of which the third is not full.
    source = write(tmp_path / "records.jsonl", [{"text": f"how do i open {n}"} for n in range(10_000)])
    command = [sys.executable, "-m", "cognate", "index", "build", source, "--bundle", tiny_bundle]
    command += ["--engine", "ray", "--workers", "1", "--json", "--out"]

    def stop_after_a_chunk() -> None:
        for line in job.stderr or ():
            if "records, " in line:
                return

    program = (
        "import sys, cognate.cli.terminal as terminal; terminal.LINE_EVERY_S = 0; "
        "from cognate.cli import main; main()"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", program, *command[3:], tmp_path / "index"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    stop_after_a_chunk()
    children = subprocess.run(
        ["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    job.send_signal(signal.SIGTERM)
    out, err = job.communicate()
    assert (job.returncode, out) == (128 + signal.SIGTERM, ""), err
    assert "interrupted: nothing was left half-written" in err
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "index").exists()
    done = subprocess.run([*command, tmp_path / "index"], capture_output=True, text=True, check=True)
    described = json.loads(done.stdout)
    assert described["count"] == 10_000
    assert not work_folder_of(tmp_path / "index").exists()
    subprocess.run(
        [*command[:8], "--out", tmp_path / "one"],
        env={**os.environ},
        check=True,
        capture_output=True,
    )
    assert digests(tmp_path / "index") == digests(tmp_path / "one")
