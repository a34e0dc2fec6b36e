"""CoPG's claim: on pairs of two poor policies it finds the optimum, and what it is compared with does not.

Laptop: the paper's bandit of three arms; the loss functions of the method's file are minimised by Adam on minibatches.
Standard: TinySent with gold itself as the reward, against DPO and IPO on the same pairs, ranked by gold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from telos.core.method import Method
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.data.scored import ScoredTexts
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.language import Scene
from telos.judge.plots import plane
from telos.judge.verdict import Better, Threshold
from telos.lm.model import TINY
from telos.methods.preferences.copg import copg_loss, differences, off_policy_loss, ordered
from telos.worlds import arms as bandit
from telos.worlds import tiny_sent
from telos.worlds.tiny_pairs import NEW_TOKENS, ordered_pairs

REWARDS = torch.tensor([2.5, 2.0, 1.0])
BEHAVIOURS = torch.tensor([[0.1, 0.2, 0.7], [0.05, 0.05, 0.9]])
REFERENCE = torch.full((3,), -math.log(3))
BETA, PAIRS, BATCH, EPOCHS, RATE = 0.5, 10_000, 512, 400, 1e-3
SCENE = Scene(TINY, tiny_sent.prompts, tiny_sent.gold, NEW_TOKENS, samples=512)
PROMPTS, LM_STEPS = 1500, 300

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(log-ratios, rewards, labels, log-policy) -> (B,) losses."""

LOSSES: dict[str, Loss] = {
    "copg": lambda ratios, rewards, labels, policy: copg_loss(ratios, differences(rewards), BETA),
    "ipo": lambda ratios, rewards, labels, policy: copg_loss(ratios, ordered(labels), BETA),
    "pg_value": lambda ratios, rewards, labels, policy: off_policy_loss(
        ratios, rewards, BETA, (policy.detach().exp() * REWARDS).sum()
    ),
    "pg_none": lambda ratios, rewards, labels, policy: off_policy_loss(ratios, rewards, BETA, 0.0),
}


def on_arms(trial: Trial, loss: str) -> Measures:
    """Minimises one loss over a softmax of three arms; the regret against the regularised optimum is exact."""
    stream = trial.rng.at("pairs").torch()
    count = PAIRS if trial.budget == "full" else BATCH
    arms = torch.stack([torch.multinomial(p, count, replacement=True, generator=stream) for p in BEHAVIOURS], 1)
    rewards = REWARDS[arms]
    first = torch.bernoulli((rewards[:, 0] - rewards[:, 1]).sigmoid(), generator=stream)
    labels = torch.stack([first, 1 - first], 1)  # one draw of each pair: which of the two is preferred
    logits = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=RATE)
    points = [{"epoch": 0.0, "regret": regret(logits)}]
    epochs = trial.steps(EPOCHS)
    for epoch in range(1, epochs + 1):
        order = torch.randperm(count, generator=trial.rng.at("order", epoch).torch())
        for index in order.split(BATCH):
            policy = logits.log_softmax(-1)
            ratios = (policy - REFERENCE)[arms[index]]
            optimizer.zero_grad()
            LOSSES[loss](ratios, rewards[index], labels[index], policy).mean().backward()
            optimizer.step()
        if epoch % 20 == 0 or epoch == epochs:
            points.append({"epoch": float(epoch), "regret": regret(logits)})
    return {"regret": points[-1]["regret"], "points": points}


def regret(logits: Tensor) -> float:
    """J(pi*) - J(pi), exact."""
    policy = logits.detach().double().log_softmax(-1)
    return float(bandit.regret(policy, REWARDS.double(), REFERENCE.double(), BETA))


@functools.lru_cache(maxsize=2)
def scored(seed: int, count: int) -> ScoredTexts:
    """All pairs with different gold among 4 samples of the model for each of `count` prompts, the higher first."""
    return ScoredTexts(*ordered_pairs(SCENE.reference, count, Rng(seed).at("pairs")))


def on_texts(trial: Trial, method: Method) -> Measures:
    """Trains on the scored pairs, or on their order alone."""
    data = scored(trial.seed, trial.count(PROMPTS))
    pairs = Preferences(data.prompts, [a for a, _ in data.completions], [b for _, b in data.completions])
    given = data if type(method).data is ScoredTexts else pairs
    policy = trial.fit(method, given, steps=LM_STEPS, model=TINY)
    return SCENE.measure(trial, policy)


def best(measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
    """Each method at the seed's best of its three beta, by gold: the same favour for all."""
    found: dict[str, list[float]] = {}
    for name, measured in measures.items():
        found.setdefault(name.rpartition("_")[0], []).append(measured["gold"])
    return {f"{name}_best": {"gold": max(golds)} for name, golds in found.items()}


def draw_regret(result: dict[str, Any], path: Path) -> None:
    """Regret over epochs."""
    plane(result, path, x="epoch", y="regret", band=None)


def draw_gold(result: dict[str, Any], path: Path) -> None:
    """Gold against KL."""
    plane(result, path, x="kl", y="gold", band=None)


def texts_arms() -> dict[str, Arm]:
    """Three beta for each method; steps, rate and clip are the same."""
    shared: dict[str, Any] = {"learning_rate": 3e-4, "warmup_steps": 0, "batch_size": 32, "max_grad_norm": 1.0}
    found: dict[str, Arm] = {}
    for beta in (0.1, 0.3, 1.0):
        method = use("copg", beta=beta, **shared)
        found[f"copg_{beta}"] = Arm(on_texts, {"method": method}, label=f"CoPG beta={beta}", group="copg")
    for beta in (0.1, 0.3, 1.0):
        method = use("dpo", beta=beta, **shared)
        found[f"dpo_{beta}"] = Arm(on_texts, {"method": method}, label=f"DPO beta={beta}", group="dpo")
    for beta in (0.03, 0.1, 0.3):
        method = use("dpo", beta=beta, loss="ipo", **shared)
        found[f"ipo_{beta}"] = Arm(on_texts, {"method": method}, label=f"IPO beta={beta}", group="ipo")
    return found


LABELS = {"copg": "CoPG", "ipo": "IPO", "pg_value": "PG, value baseline", "pg_none": "PG, no baseline"}

CLAIMS = {
    "laptop": Claim(
        statement="On a three-armed bandit with off-policy pairs CoPG's regret goes to zero (at most 0.002), while the "
        "policy gradient with a value baseline (at least 0.005) and IPO (at least 0.05) keep a bias, and without a "
        "baseline the policy gradient ends worse than the initial policy (0.292).",
        source="the bandit's figure",
        world="three arms, rewards 2.5, 2 and 1, beta 0.5, 10,000 pairs of two poor policies",
        parts=(
            Threshold("copg", "regret", at_most=0.002),
            Threshold("pg_value", "regret", at_least=0.005),
            Threshold("ipo", "regret", at_least=0.05),
            Threshold("pg_none", "regret", at_least=0.292),
        ),
        arms={name: Arm(on_arms, {"loss": name}, label=label, group=name) for name, label in LABELS.items()},
        seeds=tuple(range(10)),
        refuted_if="CoPG's regret after 400 epochs is above 0.002, or that of the value baseline below 0.005.",
        metrics={"regret": "exact regret of the last policy against the optimum", "epoch": "epochs"},
        minutes=2,
        plot=draw_regret,
        notes=(
            "The paper's own bandit; 400 epochs in place of 100, after which CoPG is still converging (0.013).",
            "The value baseline is the policy's mean reward without the KL term, as the paper prints it; with the KL "
            "term that gradient's fixed point would be the optimum, too.",
            "IPO sees one Bradley-Terry draw of each pair, the others the rewards.",
            "Initial policy and reference are uniform. Developed on seeds 1000 to 1002.",
        ),
    ),
    "standard": Claim(
        statement="On scored pairs of texts CoPG at its best beta earns more gold reward than DPO and IPO at theirs on "
        "the same pairs, ranked by the scores.",
        source="the figures on TL;DR",
        world="TinySent: 0.1 M-parameter model, 8k pairs scored by gold",
        parts=(Better("copg_best", "dpo_best", "gold"), Better("copg_best", "ipo_best", "gold")),
        arms=texts_arms(),
        seeds=tuple(range(5)),
        refuted_if="DPO's or IPO's best beta earns as much as CoPG's.",
        metrics={
            "gold": "gold reward, mean of 512 samples after 300 updates",
            "kl": "KL to the reference on the same samples, nats",
        },
        minutes=8,
        derive=best,
        plot=draw_gold,
        notes=(
            "Gold itself is the reward here: all arms are trained on it, DPO and IPO on its order.",
            "Three beta a method from the dossier's prototype; the best is taken for each seed by the gold that is "
            "reported: the same small favour for all three. Rate 3e-4, clip 1, 32 pairs an update for all.",
        ),
    ),
}
