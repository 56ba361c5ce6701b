"""The examples in other languages run as they are, where their toolchain is at hand."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cognate import Encoder
from tests.e2e.conftest import serving
from tests.serving.servers import RECORDS, write_index

ROOT = Path(__file__).resolve().parents[2]
QUERY = RECORDS[3].text


@pytest.fixture(scope="module")
def target(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has an index of RECORDS."""
    index = write_index(tmp_path_factory.mktemp("examples") / "index", Encoder(tiny_bundle), RECORDS)
    with serving("--bundle", tiny_bundle, "--index", index) as (_, target):
        yield target


def need(*programs: str) -> None:
    """Skip where one of the programs is not there."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def node_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node example with its libraries."""
    need("node", "npm")
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(
        ROOT / "examples/node", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules")
    )
    installed = run(
        "npm", "install", "--no-audit", "--no-fund", "--fetch-retries=0", "--ignore-scripts", cwd=folder
    )
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install: {installed.stderr.strip().splitlines()[-1:]}")
    return folder


def test_the_node_example_prints_hits(node_example: Path, target: str) -> None:
    done = run("node", "search.js", QUERY, target, cwd=node_example, COGNATE_PROTO=str(ROOT / "proto"))
    assert done.stdout.splitlines()[0] == f"1.000  {QUERY}", done.stderr
    assert len(done.stdout.splitlines()) == 5


def test_the_node_example_tells_what_the_server_refuses(node_example: Path, target: str) -> None:
    done = run("node", "search.js", " ", target, cwd=node_example, COGNATE_PROTO=str(ROOT / "proto"))
    assert done.returncode == 1
    assert re.match(r"error: .*INVALID_ARGUMENT.*queries\[0\]", done.stderr)


def test_the_grpcurl_example_prints_hits(target: str) -> None:
    need("grpcurl", "python3")
    done = run(ROOT / "examples/grpcurl.sh", QUERY, target, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "cognate.v1.SearchService" in done.stdout
    assert f'"text": "{QUERY}"' in done.stdout


def test_the_go_example_generates_all_that_its_files_import() -> None:
    program = (ROOT / "examples/go/main.go").read_text()
    named = set(re.findall(r"cognate/v1/\w+\.proto", program))
    imports = re.compile(r'^import "(cognate/v1/\w+\.proto)";$', re.MULTILINE)
    needed = {name for file in named for name in imports.findall((ROOT / "proto" / file).read_text())}
    assert needed
    assert needed <= named


def test_the_go_example_prints_hits(target: str, tmp_path: Path) -> None:
    need("go")
    folder = tmp_path / "examples/go"
    shutil.copytree(ROOT / "examples/go", folder)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    tools = {"GOBIN": str(tmp_path / "bin"), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    # The commands are those that the program's first comment tells.
    told = re.findall(r"^//\t(.*)$", (folder / "main.go").read_text(), re.MULTILINE)
    script = "\n".join(told).replace("protoc -I", f"{sys.executable} -m grpc_tools.protoc -I")
    made = run("bash", "-euc", script, cwd=folder, **tools)
    if made.returncode != 0 and re.search(
        r"dial tcp|no such host|proxy|forbidden", made.stderr, re.IGNORECASE
    ):
        pytest.skip("the Go modules cannot be had here")
    assert made.returncode == 0, made.stderr
    done = run("go", "run", ".", QUERY, target, cwd=folder, **tools)
    assert done.stdout.splitlines()[0] == f"1.000  {QUERY}", done.stderr
