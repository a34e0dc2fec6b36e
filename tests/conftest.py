"""Shared by all tests: quiet, offline, one thread; shapes of every function in telos.ops are checked at each call."""

from __future__ import annotations

import os
import tempfile

os.environ["TELOS_PROGRESS"] = "0"
os.environ["TELOS_CACHE"] = tempfile.mkdtemp(prefix="telos-tests-")
os.environ["TELOS_NUMERICS"] = "plain"  # fast paths are tested where they are asked for
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
            node = str(getattr(report, "nodeid", ""))
            if "contract/test_contract.py" in node and "[" in node and getattr(report, "when", "") == "call":
                for word in node.split("[")[1].rstrip("]").split("-"):
                    seconds[word] = seconds.get(word, 0.0) + report.duration
    if seconds:
        terminalreporter.section("reading budget")
        for line in budget_lines(seconds):
            terminalreporter.write_line(line)
