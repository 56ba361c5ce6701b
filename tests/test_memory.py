"""The memory that a process may use is its control group's where that is less than the machine's."""

from pathlib import Path

import pytest

from cognate.memory import usable_memory


@pytest.mark.parametrize(
    "files",
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_control_groups_limit_counts_where_there_is_one(files: tuple[str, str], tmp_path: Path) -> None:
    machine = usable_memory(tmp_path)
    assert machine > 2**20
    for name, value in zip(files, ("1000000", "400000"), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value + "\n")
    assert usable_memory(tmp_path) == 1_000_000
    (tmp_path / files[0]).write_text("max\n")
    assert usable_memory(tmp_path) == machine
