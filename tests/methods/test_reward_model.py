"""The Bradley-Terry reward model: its loss by hand, and a toy set that it must order."""

import json
import math

import pytest
import torch

from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.lm.model import TINY
from telos.methods.reward_models.reward_model import RewardModel, bradley_terry_loss
from telos.worlds import tiny_sent


def test_loss_by_hand():
    scores = torch.tensor([[1.0, -0.5], [0.2, 0.9]])
    plain = math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(0.7))
    total, count = bradley_terry_loss(scores, 0.0)
    assert total.item() == pytest.approx(plain, abs=1e-6) and count == 2
    total, _ = bradley_terry_loss(scores, 0.1)
    assert total.item() == pytest.approx(plain + 0.1 * (0.5**2 + 1.1**2), abs=1e-6)
    shifted, _ = bradley_terry_loss(scores + torch.tensor([[3.0], [-2.0]]), 0.0)
    assert shifted.item() == pytest.approx(plain, abs=1e-6)


def test_it_orders_a_separable_set_and_comes_back_from_disk(tmp_path):
    rng = Rng(1000)
    prompts, first = tiny_sent.sentences(160, rng.at("a").numpy(), positive_odds=1.5)
    _, second = tiny_sent.sentences(160, rng.at("b").numpy(), positive_odds=-1.5)
    rows = [
        (p, a, b)
        for p, a, b in zip(prompts, first, second, strict=True)
        if tiny_sent.gold([p], [a])[0] > tiny_sent.gold([p], [b])[0]
    ]
    data = Preferences([r[0] for r in rows], [" " + r[1] for r in rows], [" " + r[2] for r in rows])
    train, held = data[: len(rows) - 40], data[len(rows) - 40 :]
    seen = []
    method = RewardModel(learning_rate=2e-3, batch_size=32)
    scorer = method.fit(
        train, model=TINY, steps=30, device="cpu", evaluate=lambda step, product: seen.append(step) or {},
        evaluate_every=15, out=tmp_path / "run",
    )  # fmt: skip
    chosen, rejected = (scorer.score(held.prompts, texts) for texts in (held.chosen, held.rejected))
    assert (chosen > rejected).float().mean() > 0.9 and seen == [15, 30]
    loaded = load_product(tmp_path / "run")
    assert torch.allclose(loaded.score(held.prompts, held.chosen), chosen, atol=1e-6)
    assert torch.equal(scorer(held.prompts, held.chosen), chosen)  # as a purpose


def test_the_first_loss_is_log_two(tmp_path):
    data = Preferences(["topic1"] * 3, [" good1", " good3 good4", " word1"], [" bad1", " bad2", " bad3"])
    RewardModel().fit(data, model=TINY, steps=1, device="cpu", out=tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6) and row["accuracy"] == 0.5
