"""The numerical path: chosen once, kept, recorded, resumed with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from core_toys import Killed, transitions

import telos
from telos.core import numerics
from telos.core.errors import TelosError
from telos.core.numerics import PLAIN, Numerics, current, preset, using
from telos.data.formats import save_npz


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path / "cache"))
    preset.cache_clear()
    yield
    preset.cache_clear()


def fixed(monkeypatch: pytest.MonkeyPatch, chosen: str) -> list[int]:
    """Measurements find this; how many were made."""
    made: list[int] = []
    found = {"chosen": chosen, "milliseconds": {}, "error": 0.0}
    monkeypatch.setattr("telos.ops.linear.measured", lambda: made.append(1) or found)
    return made


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    made = fixed(monkeypatch, "fused")
    assert preset("auto") == Numerics("fused", "fused", "packed", "highest", "auto")
    preset.cache_clear()  # as another process
    fixed(monkeypatch, "plain")
    assert preset("auto").linear == "fused" and made == [1]
    (file,) = (tmp_path / "cache" / "numerics").iterdir()
    assert json.loads(file.read_text())["identity"][0] == str(torch.__version__)


def test_the_first_of_two_measurements_counts(monkeypatch: pytest.MonkeyPatch):
    """Two processes that measure at once must go the same way: the one who writes second reads."""
    found = {"chosen": "fused", "milliseconds": {}, "error": 0.0}

    def measured() -> dict:
        fixed(monkeypatch, "plain")
        assert numerics._fastest_linear() == "plain"  # another process, quicker
        return found

    monkeypatch.setattr("telos.ops.linear.measured", measured)
    assert numerics._fastest_linear() == "plain"


def test_a_folder_that_cannot_be_written_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path / "file"))
    fixed(monkeypatch, "fused")
    assert preset("auto").linear == "fused"


def test_the_environment_names_the_process_s_path(monkeypatch: pytest.MonkeyPatch):
    fixed(monkeypatch, "fused")
    assert current() == PLAIN  # the tests' own
    monkeypatch.setenv("TELOS_NUMERICS", "medium")
    assert current() == Numerics("fused", "fused", "packed", "medium", "auto")
    monkeypatch.setenv("TELOS_NUMERICS", "fast")
    with pytest.raises(TelosError, match="no such numerical path"):
        current()


def test_precision_holds_inside_only():
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(KeyError), using(Numerics(precision="medium")):
        assert torch.get_float32_matmul_precision() == "medium"
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest" and current() == PLAIN


def test_a_run_records_its_path_and_is_resumed_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fixed(monkeypatch, "fused")
    file, method = str(save_npz(transitions(), tmp_path / "data.npz")), telos.IQL(hidden=(24, 24), batch_size=16)
    seen: list[Numerics] = []

    def evaluate(step: int, product) -> dict[str, float]:
        seen.append(current())
        if step == 8 and len(seen) == 8:
            raise Killed
        return {}

    given = {"steps": 12, "evaluate": evaluate, "evaluate_every": 1}
    with pytest.raises(Killed):
        method.fit(file, out=tmp_path / "run", checkpoint_every=5, numerics="auto", **given)
    path = json.loads((tmp_path / "run" / "run.json").read_text())["path"]
    assert (path["linear"], path["decoder"], path["precision"]) == ("fused", "fused", "highest")
    resumed = telos.resume(tmp_path / "run", evaluate=evaluate, evaluate_every=1)
    assert set(seen) == {Numerics("fused", "fused", "packed", "highest")} and current() == PLAIN
    whole, plain = method.fit(file, steps=12, numerics="auto"), method.fit(file, steps=12)
    for one, other, own in zip(resumed.parameters(), whole.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
        assert (one - own).abs().max() < 1e-5  # fast and plain are the same run


def test_claims_are_measured_the_plain_way(monkeypatch: pytest.MonkeyPatch):
    from telos.judge import claim

    seen: list[Numerics] = []
    arm = claim.Arm(lambda trial: seen.append(current()) or {"score": 1.0})
    loaded = SimpleNamespace(arms={"only": arm}, parts=(), derive=None)
    monkeypatch.setattr(claim, "load_claim", lambda slug, scale: loaded)
    with using(Numerics("fused", "fused", "packed", "medium")):
        assert claim.run_arm("x", "laptop", "only", 0, "quick")["measures"] == {"score": 1.0}
    assert seen == [PLAIN]
