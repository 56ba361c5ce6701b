"""Every command: help with an example, results on standard output, one line for what went wrong."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

import cognate.cli
from cognate.metrics import METRICS

COMMANDS = [
    ("demo",),
    ("train",),
    ("runs",),
    ("export",),
    ("data", "synthesize"),
    ("models",),
    ("evaluate",),
    ("serve",),
    ("top",),
    ("keys", "new"),
    ("health",),
    ("encode",),
    ("search",),
    ("data", "pairs"),
    ("data", "check"),
    ("index", "build"),
    ("index", "info"),
    ("index", "list"),
    ("index", "load"),
    ("index", "rollback"),
    ("index", "unload"),
    ("index", "merge"),
    ("index", "verify"),
    ("index", "export"),
    ("index", "delete"),
    ("index", "upsert"),
    ("index", "update"),
    ("index", "compact"),
    ("import",),
    ("bundle", "info"),
    ("bundle", "verify"),
    ("bundle", "diff"),
    ("bundle", "push"),
    ("bundle", "pull"),
]
GOOD = '{"text": "how do i open the door", "label": "door"}\n{"text": "open door", "label": "door"}\n'


def walk(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if not children:
        return [path]
    return [found for name, child in children.items() for found in walk(child, (*path, name))]


def test_no_command_is_missing_from_these_tests() -> None:
    assert sorted(walk(typer.main.get_command(cognate.cli.app))) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: tuple[str, ...], cognate: Callable) -> None:
    finished = cognate(*command, "--help")
    assert finished.code == 0
    # The help is wrapped to the terminal.
    assert f"Example: cognate {' '.join(command)}" in " ".join(finished.out.split())


def test_wrong_usage_is_exit_code_2(cognate: Callable) -> None:
    for arguments in (
        ("nonsense",),
        ("train",),
        ("evaluate", "minilm", "--k", "none"),
        ("search", "x", "--top-k", "0"),
        ("search",),
        ("search", "x", "--like", "7"),
    ):
        finished = cognate(*arguments)
        assert finished.code == 2
        assert finished.out == ""


def test_version(cognate: Callable) -> None:
    assert re.fullmatch(r"cognate \d+\.\d+\.\d+\n", cognate("--version").out)


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Record files that cannot be trained on, with a part of what should be said of each."""
    contents = {
        "empty.jsonl": (b"", "has no records"),
        "no_label.jsonl": (b'{"text": "a"}\n', "no_label.jsonl:1: there is no label"),
        "one_label.jsonl": (GOOD.encode(), "at least two such labels"),
        "number.jsonl": (
            b'{"text": 1, "label": "x"}\n',
            "number.jsonl:1: text must be a string, not a number",
        ),
        "utf8.jsonl": (GOOD.encode() + b'{"text": "\xff", "label": "x"}\n', "utf8.jsonl:3: invalid UTF-8"),
        "column.csv": (b"question,label\na,b\n", "column.csv:1: the header has no column named text"),
        "text.jsonl": (b"not json\n", "text.jsonl:1: invalid JSON"),
        "format.doc": (b"x", "no ending that says its format"),
        "cut.jsonl.gz": (gzip.compress(GOOD.encode() * 2000)[:-20], "cannot be decompressed"),
    }
    files = {}
    for name, (content, message) in contents.items():
        (folder / name).write_bytes(content)
        files[name] = (folder / name, message)
    files["folder"] = (folder, "is a folder; give a file")
    files["missing"] = (folder / "missing.jsonl", "does not exist")
    return files


def test_training_data_that_will_not_do_is_one_line(
    tmp_path: Path, tiny_model: Path, cognate: Callable
) -> None:
    (tmp_path / "data").mkdir()
    for path, message in bad_files(tmp_path / "data").values():
        finished = cognate("train", path, "--model", tiny_model, "--out", tmp_path / "checkpoint")
        assert message in finished.check_one_line_error()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_records_that_will_not_do_are_one_line_for_index_build(
    tmp_path: Path, tiny_bundle: Path, cognate: Callable
) -> None:
    (tmp_path / "data").mkdir()
    files = bad_files(tmp_path / "data")
    files["folder"] = (tmp_path / "data", "is a folder without")
    for name, (path, message) in files.items():
        if "label" not in name:
            finished = cognate("index", "build", path, "--bundle", tiny_bundle, "--out", tmp_path / "index")
            assert message in finished.check_one_line_error()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    groups = [
        [f"{verb} the {thing}", f"how do i {verb} {thing}"] for verb in ("open", "reset") for thing in "abc"
    ]
    lines = [
        json.dumps({"text": text, "label": str(label)})
        for label, texts in enumerate(groups)
        for text in texts
    ]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "records.jsonl"


def test_train_export_index_evaluate_one_after_the_other(
    tmp_path: Path, records: Path, tiny_model: Path, cognate: Callable
) -> None:
    checkpoint, bundle, index = (tmp_path / name for name in ("checkpoint", "bundle", "index"))
    trained = cognate(
        "train",
        records,
        "--queries",
        records,
        "--index",
        records,
        "--model",
        tiny_model,
        "--out",
        checkpoint,
        "--epochs",
        1,
        "--batch-size",
        8,
        "--json",
    )
    assert trained.code == 0, trained.err
    assert [evaluation["epoch"] for evaluation in json.loads(trained.out)["evaluations"]] == [0, 1]
    exported = cognate("export", checkpoint, "--out", bundle, "--json")
    assert json.loads(exported.out)["parity"]["min_cosine"] >= 0.9999
    built = cognate("index", "build", records, "--bundle", bundle, "--out", index, "--json")
    assert json.loads(built.out)["count"] == 12
    assert json.loads(cognate("index", "info", index, "--json").out)["count"] == 12
    assert "nothing to try" in cognate("index", "info", index, "--tradeoff").err
    options = ("--kind", "hnsw", "--storage", "int8", "--recall", 0.5)
    built = cognate("index", "build", records, "--bundle", bundle, "--out", index, "--force", *options)
    assert "12 records, hnsw" in built.out
    table = cognate("index", "info", index, "--tradeoff").out
    assert "recall@10" in table
    assert "ef_search 16 rerank 2" in table
    assert "recall@10; F fast, B balanced" in table
    options = ("--factory", "nonsense", "--force")
    refused = cognate("index", "build", records, "--bundle", bundle, "--out", index, *options)
    assert (refused.code, refused.out) == (1, "")
    assert "from the factory string 'nonsense'" in refused.err

    compared = cognate(
        "evaluate",
        checkpoint,
        "--compare",
        bundle,
        "--queries",
        records,
        "--index",
        records,
        "--k",
        3,
        "--json",
    )
    document = json.loads(compared.out)
    assert (document["k"], document["queries"], document["records"]) == (3, 12, 12)
    assert document["metrics"] == pytest.approx(document["compare"]["metrics"], abs=1e-4)
    table = cognate("evaluate", bundle, "--queries", records, "--index", records)
    assert table.code == 0
    assert all(name in table.out for name in METRICS)


def test_an_output_that_exists_is_kept_without_force(
    tmp_path: Path, records: Path, tiny_model: Path, tiny_bundle: Path, cognate: Callable
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("mine")
    for command in (
        ("train", records, "--model", tiny_model),
        ("export", tiny_model),
        ("index", "build", records, "--bundle", tiny_bundle),
    ):
        for force in ((), ("--force",)):
            finished = cognate(*command, "--out", tmp_path / "taken", *force)
            assert "exists" in finished.check_one_line_error()
    assert (tmp_path / "taken/mine").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_one_line(
    tmp_path: Path, records: Path, tiny_model: Path, tiny_bundle: Path, cognate: Callable
) -> None:
    (tmp_path / "file").write_text("")
    for command in (
        ("train", records, "--model", tiny_model),
        ("export", tiny_model),
        ("index", "build", records, "--bundle", tiny_bundle),
    ):
        finished = cognate(*command, "--out", tmp_path / "file/below")
        assert "cannot be written" in finished.check_one_line_error()


def test_an_unknown_model_is_one_line(tmp_path: Path, records: Path, cognate: Callable) -> None:
    for command in (
        ("train", records, "--model", "no-such-model", "--out", tmp_path / "out"),
        ("export", "no-such-model", "--out", tmp_path / "out"),
        ("evaluate", "no-such-model", "--queries", records, "--index", records),
    ):
        line = cognate(*command).check_one_line_error()
        assert "no-such-model" in line
        assert "minilm" in line
        assert "network" in line


def test_a_bundle_with_a_byte_changed_is_one_line(
    tmp_path: Path, records: Path, tiny_bundle: Path, cognate: Callable
) -> None:
    import shutil

    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    graph = tmp_path / "bundle/onnx/model.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    finished = cognate("evaluate", tmp_path / "bundle", "--queries", records, "--index", records)
    assert "model.onnx was altered" in finished.check_one_line_error()


def test_skipped_lines_are_told_in_a_file(tmp_path: Path, tiny_bundle: Path, cognate: Callable) -> None:
    (tmp_path / "records.jsonl").write_text(GOOD + "nonsense\n")
    finished = cognate(
        "index",
        "build",
        tmp_path / "records.jsonl",
        "--bundle",
        tiny_bundle,
        "--out",
        tmp_path / "index",
        "--on-error",
        "skip",
    )
    assert finished.code == 0
    assert "1 bad lines were skipped" in finished.err
    assert "records.jsonl:3: invalid JSON" in (tmp_path / "index.rejects.txt").read_text()


def test_skipped_pairs_are_told_beside_a_data_set_in_a_new_folder(tmp_path: Path, cognate: Callable) -> None:
    lines = ["question1\tquestion2\tis_duplicate", *(f"open {n}\thow to open {n}\t1" for n in range(5))]
    (tmp_path / "pairs.tsv").write_text("\n".join([*lines, "only one"]) + "\n")
    out = tmp_path / "new/dir/data"
    made = cognate("data", "pairs", tmp_path / "pairs.tsv", "--out", out, "--on-error", "skip")
    assert made.code == 0, made
    assert "pairs.tsv:7: " in (tmp_path / "new/dir/data.rejects.txt").read_text()
    assert (out / "train.jsonl").is_file()


def test_options_of_loss_and_miner_that_will_not_do_are_one_line(
    tmp_path: Path, records: Path, tiny_model: Path, cognate: Callable
) -> None:
    command = ("train", records, "--model", tiny_model, "--out", tmp_path / "checkpoint")
    for arguments, message in (
        (("--loss", "Nothing"), "there is no loss 'Nothing'"),
        (("--miner", "Nothing"), "there is no miner 'Nothing'"),
        (("--loss-option", "margin"), "write NAME=VALUE"),
        (("--loss-option", "size=3"), "has no option size"),
        (("--batch-size", "6"), "at least twice records_per_label"),
        (("--learning-rate", "-1"), "learning_rate"),
    ):
        assert message in cognate(*command, *arguments).check_one_line_error()


def test_no_server_is_one_line(cognate: Callable) -> None:
    for command in (("search", "x"), ("encode", "x"), ("health",)):
        finished = cognate(*command, "--target", "localhost:1", "--timeout", "2")
        assert "localhost:1" in finished.check_one_line_error()
