"""The scripts of bench/ import each other as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch) -> Path:
    """bench/, from which its scripts can be imported."""
    monkeypatch.syspath_prepend(str(BENCH))
    return BENCH
