"""The documents are true: their commands run, in their order, and the generated page is up to date."""

import ast
import asyncio
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cognate import Client
from tests.conftest import SAMPLE
from tests.e2e.conftest import serving
from tests.e2e.test_demo import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "docs/tune.md",
    "docs/index.md",
    "docs/serve.md",
    "docs/secure.md",
    "docs/operate.md",
    "docs/milvus.md",
]

TRAINED = 320
"""Records to train on, all of a label's among them."""


def commands(document: str) -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_of_a_document_runs_in_its_order(document: str, tmp_path: Path) -> None:
    for name in ("queries", "index"):
        shutil.copy(SAMPLE / f"{name}.jsonl", tmp_path)
    # A part of it: what is tested is that the commands run, not how well they train.
    with (SAMPLE / "train.jsonl").open() as lines:
        (tmp_path / "train.jsonl").write_text("".join(itertools.islice(lines, TRAINED)))
    (tmp_path / "pairs.tsv").write_text(
        "question1\tquestion2\tis_duplicate\na\tb\t1\nc\td\t1\ne\tf\t1\na\tc\t0\ng\th\t1\n"
    )
    target = f"localhost:{free_port()}"
    metrics_port = str(free_port())
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Another server may have the port of the documents.
        "COGNATE_PORT": target.rpartition(":")[2],
        "COGNATE_TARGET": target,
    }
    assert commands(document)
    server = None
    try:
        for command in commands(document):
            command = command.replace("9464", metrics_port)
            if command.startswith("cognate serve") and "--print-config" not in command:
                if server:
                    server.terminate()
                    assert server.wait(timeout=60) == 0
                server = subprocess.Popen(command.split(), cwd=tmp_path, env=environment)
                with Client(target) as client:
                    client.wait_until_ready()
                continue
            finished = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert finished.returncode == 0, f"{command}\n{finished.stderr}"
            assert finished.stdout
        if document == "README.md":
            (program,) = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)
            program = program.replace("localhost:50051", target) + "print(vectors.shape)"
            finished = subprocess.run(
                [sys.executable, "-c", program], capture_output=True, text=True, check=False
            )
            assert finished.stdout.splitlines()[-1] == "(1, 384)", finished.stderr
    finally:
        if server:
            server.terminate()
            assert server.wait(timeout=60) == 0


def programs(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", ["docs/clients.md", "docs/encode.md"])
def test_every_program_of_a_document_runs(
    document: str, minilm_bundle: Path, sample_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bundle").symlink_to(minilm_bundle)
    indexes = ("--index", sample_index, "--index", f"faq={sample_index}")
    with serving("--bundle", minilm_bundle, *indexes) as (_, target):
        # What a program of a page names, the next ones know.
        names: dict[str, Any] = {"lines": ["open the door", "reset the password"], "key": "secret"}
        for program in programs(document):
            source = program.replace("localhost:50051", target)
            code = compile(source, document, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            running = eval(code, names)
            if inspect.iscoroutine(running):
                asyncio.run(running)
            if retriever := names.pop("retriever", None):
                retrieve = getattr(retriever, "invoke", None) or retriever.retrieve
                assert len(retrieve("how do I restart it?")) == 3
    assert names["vectors"].shape == (1, 384)


def test_the_page_of_the_command_line_is_what_help_prints() -> None:
    page = ROOT / "docs/command-line.md"
    program = (
        "import sys; sys.path.insert(0, 'docs'); import generate; print(generate.command_line(), end='')"
    )
    made = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == page.read_text(), "run python docs/generate.py"


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
