"""The loop, its folder, and going on with it. What holds for every method is in tests/contract."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import Killed

import telos
from telos.core.errors import HealthError, TelosError
from telos.core.method import Learner, Method, Metrics, Spec, Stage
from telos.core.products import Product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.formats import save_npz
from telos.data.records import Transitions
from telos.nets.policies import DeterministicPolicy
from telos.worlds.lineworld import dataset

DATA = dataset(60)
BC = use("bc", hidden=(8,), batch_size=8)


def weights(product: Product) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in product.parameters()])


def fit(**arguments: Any) -> Product:
    return BC.fit(**{"source": DATA, "steps": 20, "device": "cpu", **arguments})


def kill_at(kill: int) -> Any:
    """An `evaluate` that kills the run at a step."""

    def evaluate(step: int, product: Any) -> dict[str, float]:
        if step == kill:
            raise Killed
        return {}

    return evaluate


def killed(method: Method, source: Any, kill: int, **arguments: Any) -> None:
    with pytest.raises(Killed):
        method.fit(source, **{"device": "cpu", **arguments}, evaluate=kill_at(kill), evaluate_every=1)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_what_a_finished_run_leaves(tmp_path: Path):
    out = tmp_path / "new" / "run"
    product = fit(out=out, seed=4, steps=25)
    assert {p.name for p in out.iterdir()} == {"run.json", "metrics.jsonl", "product"}
    header = json.loads((out / "run.json").read_text())
    assert header["method"] == "bc" and header["seed"] == 4 and header["steps"] == 25 and header["micro"] == 1
    assert header["options"] == BC.options() and header["options"]["hidden"] == [8]
    assert header["data"] is None and header["fingerprint"] == DATA.fingerprint()
    assert header["path"]["threads"] == torch.get_num_threads() and header["version"] == telos.__version__
    assert [row["step"] for row in rows(out)] == [10, 20, 25] and {row["stage"] for row in rows(out)} == {"main"}
    assert product.provenance == {**header, "notes": {}} and not product.training
    assert torch.equal(weights(telos.load_product(out)), weights(product))


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fit()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(TelosError, match="not empty"):
        fit(out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    fit(out=tmp_path / "empty")
    with pytest.raises(TelosError, match="telos resume"):
        fit(out=tmp_path / "empty")


def test_evaluate_is_called_now_and_then_and_at_the_end(tmp_path: Path):
    seen: list[int] = []

    def evaluate(step: int, product: Any) -> dict[str, float]:
        seen.append(step)
        assert isinstance(product(), DeterministicPolicy)
        return {"score": float(step)}

    fit(out=tmp_path / "run", steps=17, evaluate=evaluate, evaluate_every=7)
    assert seen == [7, 14, 17]
    assert [(row["step"], row.get("score")) for row in rows(tmp_path / "run")] == [
        (7, 7.0), (10, None), (14, 14.0), (17, 17.0),
    ]  # fmt: skip


def test_only_the_newest_checkpoint_is_kept(tmp_path: Path):
    killed(BC, DATA, 11, steps=20, out=tmp_path / "run", checkpoint_every=5)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["main-000000010"]


def test_resume_from_the_header_alone(tmp_path: Path):
    path, out = save_npz(DATA, tmp_path / "data.npz"), tmp_path / "run"
    whole = BC.fit(str(path), steps=20, seed=2, device="cpu", micro=2)
    killed(BC, str(path), 14, steps=20, seed=2, out=out, checkpoint_every=6, micro=2)
    # A kill may come in the middle of a line.
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "main", "st')
    assert torch.equal(weights(telos.resume(out)), weights(whole))
    assert [row["step"] for row in rows(out)] == [*range(1, 13), 20]
    # A finished run gives its product again.
    assert torch.equal(weights(telos.resume(out)), weights(whole))


def test_resume_without_a_checkpoint_starts_again(tmp_path: Path):
    killed(BC, DATA, 4, steps=20, out=tmp_path / "run", checkpoint_every=6)
    assert torch.equal(weights(fit(out=tmp_path / "run", resume=True)), weights(fit()))


def test_resume_refuses_another_run(tmp_path: Path):
    out = tmp_path / "run"
    killed(BC, DATA, 8, steps=20, out=out, checkpoint_every=6)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for change in ({"seed": 1}, {"steps": 21}, {"micro": 2}, {"source": dataset(61)}):
        with pytest.raises(TelosError, match=r"seed|steps|micro|fingerprint"):
            fit(out=out, resume=True, **change)
    with pytest.raises(TelosError, match="options"):
        use("bc", hidden=(9,), batch_size=8).fit(DATA, steps=20, device="cpu", out=out, resume=True)
    with pytest.raises(TelosError, match="method"):
        use("td3", hidden=(8,), batch_size=8).fit(DATA, steps=20, device="cpu", out=out, resume=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_resume_needs_what_was_in_memory_and_a_run(tmp_path: Path):
    killed(BC, DATA, 8, steps=20, out=tmp_path / "run", checkpoint_every=6)
    with pytest.raises(TelosError, match="made in memory"):
        telos.resume(tmp_path / "run")
    with pytest.raises(TelosError, match="not a run"):
        telos.resume(tmp_path)
    with pytest.raises(TelosError, match=r"run\.json"):
        fit(out=tmp_path / "nowhere", resume=True)
    with pytest.raises(TelosError, match="nothing to resume"):
        fit(resume=True)


def test_data_that_changed_under_a_run_are_noticed(tmp_path: Path):
    path, out = save_npz(DATA, tmp_path / "data.npz"), tmp_path / "run"
    killed(BC, str(path), 8, steps=20, out=out, checkpoint_every=6)
    save_npz(dataset(60, Rng(5)), path)
    with pytest.raises(TelosError, match="fingerprint"):
        telos.resume(out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"micro": 0}, "micro=0"),
        ({"device": "nonsense"}, "nonsense"),
        ({"device": "cuda:77"}, "cuda:77"),
        ({"source": None}, "Transitions"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, arguments: dict[str, Any], says: str):
    with pytest.raises(TelosError, match=says):
        fit(out=tmp_path / "run", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_more_parts_than_rows(tmp_path: Path):
    whole, parts = fit(steps=3), fit(steps=3, micro=50)
    assert torch.allclose(weights(whole), weights(parts), atol=1e-5)


@dataclass(frozen=True)
class TwoStages(Method):
    """A toy: a policy, then another that starts where the first ended; the second may fail on its way."""

    data = Transitions
    fails: str = ""

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        return Toy(DeterministicPolicy(1, (-1.0,), (1.0,), (4,), rng=rng.torch()), self.fails)

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, 4)

    def stages(self, spec: Spec, rng: Rng) -> Generator[Stage, Product, Product]:
        first = yield Stage("first", self.learner(spec, rng.at("first")), self.source(spec), 6)
        assert isinstance(first, DeterministicPolicy)
        second = Toy(first, self.fails)
        return (yield Stage("second", second, self.source(spec), spec.steps))


class Toy(Learner):
    updated = 0

    def __init__(self, policy: DeterministicPolicy, fails: str):
        self.policy, self.fails, self.count = policy, fails, 0

    def update(self, batch: Any, rng: Rng, micro: int = 1) -> Metrics:
        Toy.updated += 1
        self.count += 1
        with torch.no_grad():
            for parameter in self.policy.parameters():
                parameter += 0.01 * self.count * torch.randn(parameter.shape, generator=rng.torch())
                if self.fails == "with nan":
                    parameter.fill_(torch.nan)
        if self.fails:
            raise ValueError("the learner's own")
        return {"count": float(self.count)}

    def product(self) -> DeterministicPolicy:
        return self.policy


def test_stages_resume_one_by_one(tmp_path: Path):
    out = tmp_path / "run"
    arguments: dict[str, Any] = {"steps": 9, "device": "cpu"}
    whole = TwoStages().fit(DATA, **arguments)
    assert Toy.updated == 15
    calls = 0

    def evaluate(step: int, product: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 6 + 5:
            raise Killed
        return {}

    with pytest.raises(Killed):
        TwoStages().fit(DATA, **arguments, out=out, checkpoint_every=4, evaluate=evaluate, evaluate_every=1)
    assert [p.name for p in (out / "stages").iterdir()] == ["first"]
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["second-000000004"]
    Toy.updated = 0
    resumed = TwoStages().fit(DATA, **arguments, out=out, resume=True, evaluate=kill_at(0), evaluate_every=1)
    assert Toy.updated == 5 and torch.equal(weights(resumed), weights(whole))
    assert [(row["stage"], row["step"]) for row in rows(out)] == [
        *(("first", i) for i in range(1, 7)), *(("second", i) for i in range(1, 10)),
    ]  # fmt: skip


def test_an_error_of_a_learner_is_its_own_unless_nan_is_behind_it():
    with pytest.raises(ValueError, match="the learner's own"):
        TwoStages(fails="always").fit(DATA, steps=3, device="cpu")
    with pytest.raises(HealthError, match=r"policy\.net.* holds nan"):
        TwoStages(fails="with nan").fit(DATA, steps=3, device="cpu")


def test_resume_says_when_the_numerical_path_has_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    killed(BC, DATA, 10, steps=20, out=tmp_path / "run", checkpoint_every=5)
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    header["path"]["torch"] = "0.1"
    (tmp_path / "run" / "run.json").write_text(json.dumps(header))
    fit(out=tmp_path / "run", resume=True)
    assert "torch changed since" in capsys.readouterr().err
