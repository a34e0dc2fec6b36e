"""RSO's claim: its world, its routine's pairs, and that fitting many worlds at once is fitting each alone."""

import dataclasses

import pytest
import torch

from telos.claims.rso import BETA, CLAIMS, Bandits, accepted_pairs, fitted, old_pairs
from telos.core.registry import use
from telos.core.rng import Rng
from telos.judge.claim import Trial
from telos.worlds import bit_strings, tiny_sent

WORLD = Bandits.of(Rng(1000), 3, 2.0)


def test_rewards_are_quadratic_and_centred_and_the_old_policy_shuns_their_linear_part():
    assert (WORLD.reward @ WORLD.log_sft.exp()).abs().max() < 1e-12
    texts = WORLD.texts.long()
    at = {tuple(row): i for i, row in enumerate(texts.tolist())}
    # Third differences of a quadratic vanish.
    corners = torch.tensor([[*c, 0, 0, 0, 0, 1] for c in bit_strings.strings(3).long().tolist()])
    signs = (-1.0) ** corners[:, :3].sum(-1).double()
    assert (WORLD.reward[:, [at[tuple(c)] for c in corners.tolist()]] @ signs).abs().max() < 1e-12
    assert (WORLD.judge - WORLD.reward).std().item() == pytest.approx(2.0, rel=0.1)
    assert torch.allclose(WORLD.log_old.exp().sum(-1), torch.ones(3).double())
    # log of old over sft is linear: -w / 2; r's gain from a single bit is w_i + Q_ii.
    tilt = WORLD.log_old - WORLD.log_sft
    assert (tilt[:, 255] + 7 * tilt[:, 0] - sum(tilt[:, 2**i] for i in range(8))).abs().max() < 1e-12


def test_the_routine_pairs_distinct_strings_and_tilts_by_the_reward():
    scores = WORLD.reward[0]
    means = []
    for beta in (1e9, 0.5, 0.0):
        found = accepted_pairs(WORLD.log_sft, scores, use("rso", beta=beta), 400, Rng(1).torch())
        assert found.shape == (400, 2) and (found[:, 0] != found[:, 1]).all()
        means.append(float(scores[found].mean()))
        # Four pairs of a prompt hold eight different strings.
        assert all(len(set(prompt.flatten().tolist())) == 8 for prompt in found.view(-1, 4, 2))
    assert means[0] < 0.3 and means[0] + 0.5 < means[1] < means[2]


def test_fitting_many_worlds_at_once_is_fitting_each_alone():
    trial, method = Trial(1000, "quick"), use("rso", loss="hinge_norm", gamma=BETA)
    drawn = torch.stack([bit_strings.noisy_pairs(WORLD.log_sft, scores, 200, Rng(2).torch()) for scores in WORLD.judge])
    together = fitted(trial, WORLD, drawn, method)
    alone = [
        fitted(trial, dataclasses.replace(WORLD, reward=WORLD.reward[i : i + 1]), drawn[i : i + 1], method)
        for i in range(3)
    ]
    for name, value in together.items():
        assert value == pytest.approx(sum(one[name] for one in alone) / 3, abs=1e-9)
    assert together["objective_hinge_norm"] == pytest.approx(
        together["gold_hinge_norm"] - 0.5 * together["kl_hinge_norm"]
    )


def test_old_pairs_are_of_one_topic_and_the_better_stands_first():
    data = old_pairs(1000, 100)
    assert len(data) == 100
    golds = [tiny_sent.gold(data.prompts, list(texts)) for texts in (data.chosen, data.rejected)]
    assert (golds[0] > golds[1]).all() and golds[1].mean() < tiny_sent.mean_gold() - 1


def test_every_arm_of_texts_is_the_method_on_as_many_pairs():
    methods = [arm.options["method"] for arm in CLAIMS["standard"].arms.values()]
    assert len({dataclasses.replace(m, pairs="auto") for m in methods}) == 1
    assert len({m.pairs for m in methods}) == 3
