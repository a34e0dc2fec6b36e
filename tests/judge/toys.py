"""Tiny claims as modules of their own, for the tests of the claims engine; their arms load no torch."""

import importlib
import sys
from pathlib import Path

import pytest

TOY = '''
"""A toy."""
import os, random, time
from telos.judge.claim import Arm, Claim, Trial
from telos.judge.verdict import Better, Holds

def noisy(trial: Trial, gain: float, wait: float = 0.0, fails_on: int = -1):
    """An arm."""
    if trial.seed == fails_on and trial.budget != "digest":
        raise ValueError("the arm broke here")
    if os.environ.get("TOY_PIDS"):
        open(os.path.join(os.environ["TOY_PIDS"], str(os.getpid())), "w").close()
    time.sleep(wait)
    rng = random.Random(trial.seed)
    points = [{"step": i, "kl": float(i), "gold": gain * i + rng.gauss(0, 0.1)} for i in range(1, 4)]
    return {"gold": points[-1]["gold"] + trial.count(0), "exact": True, "points": points}

ARMS = {
    "new": Arm(noisy, {"gain": 2.0}, label="new", group="ours"),
    "old": Arm(noisy, {"gain": 1.0}, label="old", group="theirs"),
}
METRICS = {"gold": "a score", "exact": "1 where it holds"}

CLAIMS = {"laptop": Claim(
    statement="The new one scores higher.", source="Table 1", world="a toy",
    parts=(Better("new", "old", "gold", 1.0), Holds("exact", "new")),
    arms=ARMS, seeds=(0, 1, 2, 3, 4), refuted_if="the old one scores higher", metrics=METRICS, minutes=0.1,
)}
'''


def write_toy(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str = TOY, name: str = "toy") -> str:
    """Writes the module `toys.<name>` below `folder`, puts it on the path as new, and returns its dotted name."""
    package = folder / "toys"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / f"{name}.py").write_text(text)
    # A changed source of equal size within one second would be taken for its old bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("TELOS_CACHE", str(folder / "cache"))
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    for module in [module for module in sys.modules if module.split(".")[0] == "toys"]:
        monkeypatch.delitem(sys.modules, module)
    importlib.invalidate_caches()
    return f"toys.{name}"
