"""How many cores a container may use."""

import os
from pathlib import Path

import pytest

from cognate.processors import available_cores


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 16),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("1000 100000", 1),
        ("50000 50000", 1),
        ("6400000 100000", 16),
        ("", 16),
        ("nonsense\n", 16),
        ("many cores", 16),
        ("0 0", 16),
    ],
)
def test_a_quota_of_cgroup_2_is_rounded_up(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [("-1", "100000", 16), ("350000", "100000", 4), ("100000", "100000", 1), ("x", "100000", 16)],
)
def test_a_quota_of_cgroup_1_is_rounded_up(tmp_path: Path, quota: str, period: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text(f"{period}\n")
    assert available_cores(tmp_path) == cores


def test_without_a_cgroup_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == 16
    assert available_cores(tmp_path / "missing") == 16


def test_where_there_is_no_affinity_the_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_cores(tmp_path) == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1
