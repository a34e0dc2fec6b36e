"""The cache of arms: what an arm measured on a seed, found again by content.

The key covers the function and its options, the seed and the budget, all code that the arm reaches, and the numerical
path; so baselines that claims share are computed once, and a killed check goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.core.files import read_json, write_json
from telos.judge.claim import Arm, Budget
from telos.judge.closure import closure_hash


def folder() -> Path:
    """`$TELOS_CACHE`, or ~/.cache/telos/arms."""
    named = os.environ.get("TELOS_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "telos" / "arms"


def arm_key(arm: Arm, seed: int, budget: Budget) -> str:
    """The content address of one run of `arm` (one thread, this version of torch, this kind of machine)."""
    described = arm.to_json()
    identity = {
        "run": described["run"], "options": described["options"], "seed": seed, "budget": budget,
        "code": closure_hash(arm.modules()),
        "path": {"torch": importlib.metadata.version("torch"), "threads": 1, "machine": platform.machine()},
    }  # fmt: skip
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=20).hexdigest()


def find(key: str) -> dict[str, Any] | None:
    """What was kept under `key`, or None (also for a file that is broken)."""
    file = _file(key)
    try:
        return read_json(file) if file.is_file() else None
    except TelosError:
        return None


def keep(key: str, value: dict[str, Any]) -> None:
    """Keeps `value` under `key`, whole or not at all."""
    write_json(_file(key), value)


def _file(key: str) -> Path:
    return folder() / key[:2] / f"{key}.json"
