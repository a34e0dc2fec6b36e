"""DPO through `fit` and through its learner, on the bundled model; a real data set where it is there."""

import json
import math
from pathlib import Path

import pytest
import torch

import telos
from telos.core.errors import HealthError, TelosError
from telos.core.rng import Rng
from telos.data.records import Preferences, Rankings
from telos.lm.log_probs import reference_log_probs, sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.tokens import tokenise
from telos.methods.preferences.dpo import DPO, LOSSES, DPOLearner, DPORanking, ranking_loss
from telos.worlds import tiny_sent

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def pairs():
    rng = Rng(1000)
    prompts, first = tiny_sent.sentences(64, rng.at("a").numpy())
    _, second = tiny_sent.sentences(64, rng.at("b").numpy())
    return Preferences(prompts, [" " + text for text in first], [" " + text for text in second])


def curve(method, data, steps, tmp_path, **given):
    """The metrics of every step, as fit writes them."""
    product = method.fit(
        data, steps=steps, evaluate=lambda step, product: {}, evaluate_every=1, out=tmp_path / "run", device="cpu",
        **{"model": TINY, **given},
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    return rows, product


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({}, math.log(2)),
        ({"loss": "cdpo", "label_smoothing": 0.2}, math.log(2)),
        ({"loss": "ipo", "beta": 0.2}, 1 / (4 * 0.2**2)),
        ({"loss": "ipo", "beta": 2.0, "average_log_probs": True}, 1 / (4 * 2.0**2)),
    ],
)
def test_first_step_starts_from_the_reference_and_learns(pairs, tmp_path, options, loss):
    method = DPO(**{"beta": 0.1, "learning_rate": 1e-3, "warmup_steps": 0, "batch_size": 64, **options})
    rows, _ = curve(method, pairs, 4, tmp_path)
    assert rows[0]["loss"] == pytest.approx(loss, rel=1e-4)
    assert rows[0]["accuracy"] == pytest.approx(0.5, abs=0.1)  # ties, up to rounding
    assert abs(rows[0]["margin"]) < 1e-5 and abs(rows[0]["chosen_log_ratio"]) < 1e-4
    assert rows[3]["loss"] < rows[0]["loss"] and rows[3]["accuracy"] > 0.8 and rows[3]["margin"] > 1e-3


def batch_of(pairs, model, size=16, average=False):
    groups = tokenise(model, pairs[:size])
    return groups.with_reference(reference_log_probs(model, groups, average=average)).batch(range(size))


def test_ties_count_as_half(pairs):
    model = load_model(TINY)
    batch = batch_of(pairs, model)
    with torch.no_grad():
        exact = sequence_log_probs(model, batch.sequences)
    metrics = DPOLearner(DPO(warmup_steps=0), model, LOSSES["sigmoid"]).update(
        batch.__class__(batch.sequences, exact), Rng(0)
    )
    assert metrics["accuracy"].item() == 0.5 and metrics["loss"].item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("micro", [1, 3, 16, 50])
def test_gradient_of_the_learner_is_that_of_the_paper(pairs, micro):
    """-beta mean[ sigma(-beta h) (grad log pi(y_w) - grad log pi(y_l)) ], also when the batch is taken in parts."""
    beta, model, reference = 0.3, load_model(TINY), load_model(TINY)
    with torch.no_grad():
        noise = Rng(3).torch()
        for parameter in model.trainable():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    batch = batch_of(pairs, reference)
    log_probs = sequence_log_probs(model, batch.sequences)
    ratios = (log_probs - batch.reference).detach()
    weight = torch.sigmoid(-beta * (ratios[:, 0] - ratios[:, 1]))
    assert weight.std() > 0.05
    objective = -beta * (weight * (log_probs[:, 0] - log_probs[:, 1])).mean()
    expected = torch.autograd.grad(objective, model.trainable())
    norm = torch.stack([g.norm() for g in expected]).norm()

    seen = []
    learner = DPOLearner(DPO(beta=beta, warmup_steps=0, learning_rate=1e-9), model, LOSSES["sigmoid"])
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in model.trainable()))
    metrics = learner.update(batch, Rng(0), micro)
    clip = min(1.0, 10.0 / norm.item())
    error = torch.stack([(a - clip * b).norm() for a, b in zip(seen, expected, strict=True)]).norm()
    assert error < 1e-4 * norm and metrics["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["margin"].item() == pytest.approx(beta * (ratios[:, 0] - ratios[:, 1]).mean().item(), rel=1e-3)


def test_swapping_the_pair_costs_beta_h_and_another_reference_moves_the_loss(pairs, tmp_path):
    other = load_model(TINY)
    with torch.no_grad():
        for parameter in other.trainable():
            parameter.mul_(1.1)
    method = DPO(beta=0.1, batch_size=64, learning_rate=1e-6)
    one, _ = curve(method, pairs, 1, tmp_path / "1", reference=other)
    swapped = Preferences(pairs.prompts, pairs.rejected, pairs.chosen)
    two, _ = curve(method, swapped, 1, tmp_path / "2", reference=other)
    assert one[0]["margin"] == pytest.approx(-two[0]["margin"], rel=1e-3) and abs(one[0]["margin"]) > 1e-3
    assert two[0]["loss"] - one[0]["loss"] == pytest.approx(one[0]["margin"], abs=1e-4)  # mean of beta h
    assert one[0]["accuracy"] == pytest.approx(1 - two[0]["accuracy"], abs=1e-6)


def test_reference_free_is_a_uniform_reference(pairs, tmp_path):
    rows, _ = curve(DPO(beta=0.1, batch_size=64, reference_free=True), pairs, 1, tmp_path)
    groups = tokenise(load_model(TINY), pairs)
    values = reference_log_probs(load_model(TINY), groups)
    h = values[:, 0] - values[:, 1]
    assert rows[0]["margin"] == pytest.approx(0.1 * h.mean().item(), rel=1e-4)
    assert rows[0]["loss"] == pytest.approx((1 + (-0.1 * h).exp()).log().mean().item(), rel=1e-4)
    assert rows[0]["accuracy"] == pytest.approx((h > 0).float().mean().item(), abs=1e-6)


def test_averages_rescale_the_margin_by_the_length(pairs, tmp_path):
    other = load_model(TINY)
    with torch.no_grad():
        for parameter in other.trainable():
            parameter.mul_(1.1)
    method = DPO(loss="ipo", beta=1.0, batch_size=64, average_log_probs=True)
    rows, _ = curve(method, pairs, 1, tmp_path, reference=other)
    groups = tokenise(other, pairs)
    counts = torch.tensor([[len(c) for c in group] for group in groups.completions])
    now, then = (reference_log_probs(m, groups) / counts for m in (load_model(TINY), other))
    h = (now - then)[:, 0] - (now - then)[:, 1]
    assert rows[0]["loss"] == pytest.approx((h - 0.5).square().mean().item(), rel=1e-4)


def test_ranking_of_two_is_dpo_and_of_three_starts_at_log_six(pairs, tmp_path):
    ratios = torch.tensor([[0.3, -2.0], [-7.0, 4.0]])
    expected = LOSSES["sigmoid"](ratios, DPO(beta=0.2))
    assert torch.allclose(ranking_loss(ratios, DPORanking(beta=0.2)), expected)
    best = [" good0 good1 good2", " good3 good1 good2", " good0 good4 good2", " good5 good6 good2"]
    data = Rankings(["topic1"] * 4, [(text, " word0 word1 word2", " bad0 bad1 bad2") for text in best])
    method = DPORanking(beta=0.1, learning_rate=1e-3, warmup_steps=0, batch_size=4)
    rows, _ = curve(method, data, 10, tmp_path)
    assert rows[0]["loss"] == pytest.approx(math.log(6), abs=1e-5)
    assert rows[-1]["loss"] < 0.8 * math.log(6) and rows[-1]["accuracy"] == 1


def test_options_out_of_range_are_errors(pairs):
    for bad in (
        {"beta": 0.0}, {"beta": -1.0}, {"beta": float("nan")}, {"label_smoothing": 0.1},
        {"loss": "cdpo", "label_smoothing": 0.5}, {"loss": "hinge"},
    ):  # fmt: skip
        with pytest.raises(TelosError):
            DPO(**bad)
    with pytest.raises(TelosError):
        DPORanking(beta=0.0)


def test_a_policy_that_becomes_nan_stops(pairs):
    broken = load_model(TINY)
    with torch.no_grad():
        broken.network.lm_head.weight[5] = float("nan")
    with pytest.raises(HealthError, match="became nan"):
        DPO().fit(pairs, model=broken, steps=10, device="cpu")


def test_lora_trains_adapters_only(pairs, tmp_path):
    pytest.importorskip("peft")
    method = DPO(learning_rate=1e-2, warmup_steps=0, batch_size=64)
    rows, policy = curve(method, pairs, 5, tmp_path, lora=4)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) and rows[-1]["loss"] < rows[0]["loss"] - 1e-3
    base = load_model(TINY).network.state_dict()
    inside = policy.network.get_base_model().state_dict()
    for name, value in base.items():
        found = inside.get(name, inside.get(name.replace(".weight", ".base_layer.weight")))
        assert torch.equal(found, value)


@pytest.mark.skipif(
    not ((SHARED / "stories260k").is_dir() and (SHARED / "hh_rlhf_harmless").is_dir()),
    reason="the stories260k model or the HH harmless pairs are not here",
)
def test_real_dialogues(tmp_path):
    data = telos.load(SHARED / "hh_rlhf_harmless" / "test.jsonl.gz")
    assert isinstance(data, Preferences) and len(data) == 2312 and set(data.prompts) == {None}
    model = load_model(SHARED / "stories260k")
    few = data[:200]
    groups = tokenise(model, few, max_length=256)
    report = groups.report
    assert report.records == 200 and report.used == len(groups)
    assert report.used + report.refused + report.degenerate == 200
    assert report.used > 100 and report.prompts_truncated > 10 and report.refused > 0
    assert groups.lengths.max() <= 256
    for prompt, completions in zip(groups.prompts, groups.completions, strict=True):
        assert all(c[-1] == model.eos_id and (c[:-1] != model.eos_id).all() for c in completions)
        assert completions[0][0] != completions[1][0] and len(prompt) >= 1
    rows, policy = curve(DPO(batch_size=8, max_length=256), few[:40], 3, tmp_path, model=str(SHARED / "stories260k"))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    assert "40 records:" in policy.provenance["notes"]["data"] and "refused" in policy.provenance["notes"]["data"]
