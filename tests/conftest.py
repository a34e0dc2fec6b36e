"""Shared by all tests: quiet, offline, one thread; shapes of every function in telos.ops are checked at each call."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["TELOS_PROGRESS"] = "0"
os.environ["TELOS_CACHE"] = tempfile.mkdtemp(prefix="telos-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from reading_budget import budget_lines
from shapes import check_package

torch.set_num_threads(1)
check_package("telos.ops")


@pytest.fixture(scope="session", autouse=True)
def _leave_no_cache():
    yield
    import shutil

    shutil.rmtree(os.environ["TELOS_CACHE"], ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """After the contract suite: what reading each method takes, and the time that its tests took."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if "contract/test_contract.py" in str(getattr(report, "nodeid", "")) and "[" in report.nodeid:
                case = report.nodeid.split("[")[1].rstrip("]").split("-")[0]
                seconds[case] = seconds.get(case, 0.0) + getattr(report, "duration", 0.0)
    if seconds:
        terminalreporter.section("reading budget")
        for line in budget_lines(seconds):
            terminalreporter.write_line(line)
