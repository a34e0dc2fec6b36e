"""Several seeds in one process: the same as one after another, in every respect but time."""

from __future__ import annotations

import dataclasses
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import Killed, transitions

import telos
from telos.core import together
from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.core.together import run_together, tensors_of, with_tensors
from telos.data.formats import save_npz
from telos.data.records import Transitions

SMALL = {"hidden": (16, 16), "batch_size": 10}


def data() -> Transitions:
    return transitions(200, 10, Rng(5).torch())


def worst(a: torch.nn.Module, b: torch.nn.Module) -> float:
    one, other = a.state_dict(), b.state_dict()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs each batched step served, as they are made."""
    seen: list[int] = []
    plain = together.Stacked.descend

    def descend(self: together.Stacked, requests):
        seen.append(len(requests))
        return plain(self, requests)

    monkeypatch.setattr(together.Stacked, "descend", descend)
    return seen


@pytest.mark.parametrize("micro", [1, 2])
def test_each_seed_is_as_if_alone(micro: int, batched: list[int]):
    method = telos.TD3BC(**SMALL)
    several = method.fit(data(), steps=20, seed=3, seeds=3, micro=micro)
    assert batched == [3] * 30  # 20 steps of the critics, 10 of the policy
    for seed, product in enumerate(several, 3):
        assert worst(product, method.fit(data(), steps=20, seed=seed, micro=micro)) < 1e-5
    assert worst(several[0], several[1]) > 1e-3


def test_metrics_are_each_run_s_own(tmp_path: Path):
    telos.BC(**SMALL).fit(data(), steps=10, seeds=2, out=tmp_path / "several")
    for seed in (0, 1):
        telos.BC(**SMALL).fit(data(), steps=10, seed=seed, out=tmp_path / f"alone-{seed}")
        files = (tmp_path / "several" / f"seed-{seed}", tmp_path / f"alone-{seed}")
        own, alone = (json.loads((file / "metrics.jsonl").read_text().splitlines()[-1]) for file in files)
        for name in ("loss", "grad_norm"):
            assert own[name] == pytest.approx(alone[name], rel=1e-4)


def test_the_precision_holds_until_all_have_ended():
    seen: list[str] = []

    def evaluate(step: int, product: Any) -> dict[str, float]:
        seen.append(torch.get_float32_matmul_precision())
        return {}

    telos.BC(**SMALL).fit(data(), steps=3, seeds=3, numerics="medium", evaluate=evaluate, evaluate_every=1)
    assert seen == ["medium"] * 9 and torch.get_float32_matmul_precision() == "highest"


def test_on_a_cpu_large_steps_are_made_one_after_another(batched: list[int]):
    records = data()
    large = telos.BC(hidden=(400, 400), batch_size=100)  # 100 x 162,802 products
    several = large.fit(records, steps=3, seeds=2)
    assert batched == []
    assert worst(several[1], large.fit(records, steps=3, seed=1)) < 1e-6
    telos.BC(hidden=(40, 40), batch_size=100).fit(records, steps=3, seeds=2)
    assert batched == [2] * 3


def test_turns_are_taken_where_they_pay():
    small, large = telos.BC(**SMALL), telos.BC()
    assert together.pays(small, torch.device("cpu")) and not together.pays(large, torch.device("cpu"))
    assert together.pays(large, torch.device("cuda"))
    assert not together.pays(telos.DPO(), torch.device("cpu"))
    torch.set_num_threads(2)
    try:
        assert not together.pays(small, torch.device("cpu"))
    finally:
        torch.set_num_threads(1)


def test_killed_and_resumed_is_the_uninterrupted_run(tmp_path: Path, batched: list[int]):
    file = str(save_npz(data(), tmp_path / "data.npz"))
    method, out = telos.IQL(**SMALL), tmp_path / "runs"

    def evaluate(step: int, product) -> dict[str, float]:
        if step == 15:
            raise Killed
        return {}

    with pytest.raises(Killed):
        method.fit(file, steps=20, seeds=2, out=out, checkpoint_every=6, evaluate=evaluate, evaluate_every=1)
    assert not list(out.rglob("product"))
    before = len(batched)
    resumed = telos.resume(out)
    assert len(batched) - before == 8  # from the checkpoint at step 12, both in one again
    whole = method.fit(file, steps=20, seeds=2)
    for one, other in zip(whole, resumed, strict=True):
        assert worst(one, other) == 0.0
    assert worst(telos.load_product(out / "seed-1"), whole[1]) == 0.0


def test_what_goes_apart_is_computed_apart(batched: list[int]):
    """Of two runs of 4 and 9 steps, four are shared."""
    records, method = data(), telos.BC(**SMALL)
    works = [partial(method.fit, records, steps=4), partial(method.fit, records, steps=9, seed=1)]
    both = run_together(works)
    assert batched == [2] * 4
    assert worst(both[0], method.fit(records, steps=4)) < 1e-5
    assert worst(both[1], method.fit(records, steps=9, seed=1)) < 1e-5


def test_an_error_of_one_ends_all_and_is_told(tmp_path: Path):
    broken = dataclasses.replace(data(), rewards=torch.full((200,), torch.nan))
    with pytest.raises(TelosError, match="critic_loss became nan"):
        telos.TD3(**SMALL).fit(broken, steps=20, seeds=3, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").rglob("product"))
    alive = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    assert alive == []


def test_seeds_that_were_trained_otherwise_are_not_resumed_together(tmp_path: Path):
    file = str(save_npz(data(), tmp_path / "data.npz"))
    for seed, width in ((0, 16), (1, 20)):
        telos.BC(hidden=(width,), batch_size=10).fit(file, steps=1, seed=seed, out=tmp_path / "runs" / f"seed-{seed}")
    with pytest.raises(TelosError, match="are not runs of one method with the same options"):
        telos.resume(tmp_path / "runs")


@pytest.mark.parametrize("seeds", [0, -1])
def test_seeds_must_be_positive(seeds: int):
    with pytest.raises(TelosError, match="seeds must be positive"):
        telos.BC(**SMALL).fit(data(), steps=1, seeds=seeds)


def test_tensors_are_taken_out_and_put_back():
    part = (data()[:5], None, torch.ones(2), ["text", (torch.zeros(3),)])
    taken = list(tensors_of(part))
    assert [len(tensor) for tensor in taken] == [5] * 6 + [2, 3]
    again = with_tensors(part, iter([tensor + 1 if tensor.is_floating_point() else tensor for tensor in taken]))
    assert torch.equal(again[0].rewards, part[0].rewards + 1) and again[0].action_space == part[0].action_space
    assert again[1] is None and again[2].tolist() == [2, 2] and again[3][1][0].tolist() == [1, 1, 1]
