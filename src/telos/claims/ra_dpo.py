"""RA-DPO's claim: what is delivered follows what is asked for, if the losers' halves are swapped as the paper says.

Laptop: bit strings whose score is the number of ones; a small network over (bits, goal) tilts the uniform policy, and
every number is exact. Standard: TinySent, the goal one of the model's spare words in front of the prompt.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from telos.core.method import Method
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.data.scored import ScoredTexts
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.language import Scene
from telos.judge.plots import plane
from telos.judge.verdict import Better, Holds, Threshold
from telos.lm.log_probs import reference_log_probs
from telos.lm.model import TINY
from telos.lm.tokens import tokenise
from telos.methods.preferences.ra_dpo import RADPO, GoalPolicy, relabelled, sigmoid_loss
from telos.worlds import bit_strings, tiny_sent
from telos.worlds.tiny_pairs import NEW_TOKENS, ordered_pairs

BITS, PAIRS, STEPS, RATE, WIDTH, TOP = 10, 1000, 300, 3e-3, 32, 10
ASKED = (1, 3, 5, 7, 9)
SCENE = Scene(TINY, tiny_sent.prompts, tiny_sent.gold, NEW_TOKENS, samples=512)
PROMPTS, LM_STEPS, ASKED_OF_TEXTS = 1500, 400, (1, 3, 5, 7, 10)
TEMPLATE = "<spare{score}> {prompt}"


def network(generator: torch.Generator) -> nn.Sequential:
    """Bits and goal -> tilt, two hidden layers of tanh; 0 for all strings at first."""
    made = nn.Sequential(nn.Linear(BITS + 1, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.zero_()
            if name in ("0.weight", "2.weight"):
                parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
    return made


def on_strings(trial: Trial, method: RADPO, conditioned: bool = True) -> Measures:
    """The method's relabelling and loss on exact log-probs; without conditioning the goal is the top throughout."""
    texts = bit_strings.strings(BITS).float()
    scores = texts.sum(-1).clamp(min=1)
    reference = bit_strings.by_ones(texts, centre=BITS / 2, slope=0.0)
    pairs = bit_strings.draw(reference, 2 * PAIRS, trial.rng.at("pairs").torch()).view(PAIRS, 2)
    rows = relabelled(scores[pairs][..., None].double().numpy(), method.relabel, trial.rng.at("half").numpy())
    group, goal, better, worse = torch.tensor(rows).T
    texts_of = torch.stack([pairs[group, better], pairs[group, worse]], -1)
    asked = scores[pairs[group, goal]].long() - 1 if conditioned else torch.zeros_like(group)
    goals = torch.arange(1, TOP + 1) if conditioned else torch.tensor([TOP])
    centred = (goals[:, None, None] - 5.5).expand(-1, len(texts), 1) / 4.5
    inputs = torch.cat([(2 * texts - 1).expand(len(goals), -1, -1), centred], -1)
    net = network(trial.rng.at("network").torch())

    def log_policy() -> Tensor:
        return bit_strings.tilted(reference, net(inputs)[..., 0])

    def loss() -> Tensor:
        ratios = log_policy() - reference
        return sigmoid_loss(ratios[asked[:, None], texts_of], method).mean()

    bit_strings.minimise(loss, list(net.parameters()), trial.steps(STEPS), RATE)
    achieved = (log_policy().detach().exp() * scores).sum(-1).tolist()
    if not conditioned:
        achieved = achieved * TOP
    return {"gold": achieved[TOP - 1], **curve({g: achieved[g - 1] for g in ASKED}), "points": points(achieved)}


def points(achieved: list[float]) -> list[dict[str, float]]:
    """Requested against achieved, for the picture."""
    return [{"requested": g + 1.0, "achieved": value} for g, value in enumerate(achieved)]


def curve(achieved: dict[int, float]) -> dict[str, float]:
    """How what is achieved follows what is asked for: least-squares slope, mean distance, strictly increasing."""
    asked, got = np.array(list(achieved), dtype=float), np.array(list(achieved.values()))
    return {
        "slope": float(np.polyfit(asked, got, 1)[0]),
        "distance": float(np.abs(asked - got).mean()),
        "increasing": float((np.diff(got) > 0).all()),
    }


@functools.lru_cache(maxsize=2)
def scored(seed: int, count: int) -> tuple[ScoredTexts, Preferences]:
    """All pairs with different gold among 4 samples a prompt, with scores round(gold + 5) cut to 0..10; the same as
    pairs ranked by gold."""
    asked, texts, golds = ordered_pairs(SCENE.reference, count, Rng(seed).at("pairs"))
    grades = np.clip(np.round(np.array(golds) + 5), 0, TOP).tolist()
    data = ScoredTexts(asked, texts, [(higher, lower) for higher, lower in grades])
    return data, Preferences(asked, [a for a, _ in texts], [b for _, b in texts])


def on_texts(trial: Trial, method: Method, steps: int) -> Measures:
    """Trains on the pairs; gold when asked for the top, for each goal, and what good losers lose."""
    data, pairs = scored(trial.seed, trial.count(PROMPTS))
    goals = isinstance(method, RADPO)
    policy = trial.fit(method, data if goals else pairs, steps=steps, model=TINY)
    measured = SCENE.measure(trial, policy)
    losers = [i for i, (_, score) in enumerate(data.scores) if isinstance(score, float) and score >= 8] or [0]
    ask = [policy.prompt(data.prompts[i], data.scores[i][1]) if goals else data.prompts[i] for i in losers]
    texts = Preferences(ask, [data.completions[i][1] for i in losers], [" word0"] * len(losers))
    groups = tokenise(SCENE.reference, texts)
    change = (reference_log_probs(policy.model, groups) - reference_log_probs(SCENE.reference, groups))[:, 0]
    result: Measures = {**measured, "losers": float(change.mean())}
    if isinstance(policy, GoalPolicy):
        achieved = {goal: asked_for(trial, policy, goal) for goal in ASKED_OF_TEXTS}
        result |= curve(achieved)
        result["points"] = [{"requested": float(g), "achieved": v} for g, v in achieved.items()]
    return result


def asked_for(trial: Trial, policy: GoalPolicy, goal: int) -> float:
    """Mean gold of 256 samples when asked for `goal`, in the unit of the goals."""
    rng = trial.rng.at("asked", goal)
    prompts = tiny_sent.prompts(trial.count(256), rng.at("prompts").numpy())
    drawn = policy.generate(prompts, goal=goal, rng=rng.at("samples").torch(), max_new_tokens=SCENE.new_tokens)
    return float(tiny_sent.gold(drawn.prompts, drawn.texts).mean()) + 5


def draw(result: dict[str, Any], path: Path) -> None:
    """Achieved against requested scores."""
    plane(result, path, x="requested", y="achieved", band=None)


def strings_arms() -> dict[str, Arm]:
    """The same pairs, network and steps for all."""
    found = {
        name: Arm(on_strings, {"method": use("ra_dpo", beta=0.1, relabel=relabel)}, label=label, group=name)
        for name, relabel, label in (
            ("ra", "both", "RA-DPO"),
            ("ra_half", "half", "RA-DPO, half"),
            ("no_swap", "no_swap", "not swapped"),
        )
    }
    plain = {"method": use("ra_dpo", beta=0.1, relabel="winner"), "conditioned": False}
    return found | {"dpo": Arm(on_strings, plain, label="DPO", group="dpo")}


def texts_arms() -> dict[str, Arm]:
    """As many passes over the original pairs: relabelling doubles the data and the steps."""
    shared: dict[str, Any] = {
        "beta": 0.3, "learning_rate": 3e-4, "warmup_steps": 0, "batch_size": 32, "max_grad_norm": 1.0
    }  # fmt: skip
    found: dict[str, Arm] = {}
    for name, relabel, label in (("ra", "both", "RA-DPO"), ("no_swap", "no_swap", "not swapped")):
        method = use("ra_dpo", template=TEMPLATE, relabel=relabel, **shared)
        found[name] = Arm(on_texts, {"method": method, "steps": 2 * LM_STEPS}, label=label, group=name)
    plain = {"method": use("dpo", **shared), "steps": LM_STEPS}
    return found | {"dpo": Arm(on_texts, plain, label="DPO", group="dpo")}


METRICS = {
    "requested": "score asked for",
    "achieved": "mean score of what is delivered",
    "slope": "least-squares slope of achieved on requested scores, over 5 requests",
    "distance": "mean distance of achieved and requested scores, over 5 requests",
    "increasing": "1 if each higher request of the 5 is answered by a higher mean score",
}

CLAIMS = {
    "laptop": Claim(
        statement="On bit strings the achieved score rises with each requested one (1, 3, 5, 7, 9), by 0.8 or more a "
        "point and at least 0.2 more steeply than if responses are left unswapped; the top request gives at least 1 "
        "more gold than DPO on the same pairs.",
        source="main table, ablations",
        world="10-bit strings, score = ones, 1,000 pairs of uniform strings",
        parts=(
            Holds("increasing", "ra"),
            Threshold("ra", "slope", at_least=0.8),
            Better("ra", "no_swap", "slope", margin=0.2),
            Better("ra", "dpo", "gold", margin=1.0),
        ),
        arms=strings_arms(),
        seeds=tuple(range(10)),
        refuted_if="Achieved scores do not rise with the requested ones, or DPO beats the top request.",
        metrics={**METRICS, "gold": "exact mean score when asked for 10 (DPO: without a request)"},
        minutes=1,
        plot=draw,
        notes=(
            "Here requests are followed in part without the swap, too: a goal of 9 only comes with pairs whose winner "
            "has 9. The slope tells the two apart, a gain at the top request does not (dossier).",
            "A network of two layers of 32 over bits and goal; 300 steps of Adam 3e-3 on all pairs, beta 0.1. DPO: "
            "the same network, always with the goal 10. Scores are the number of ones, at least 1.",
            "Developed on seeds 1000 to 1002; width, steps and pairs are ours, the dossier's are not recorded.",
        ),
    ),
    "standard": Claim(
        statement="On TinySent the achieved score follows the requested one (0.8 or more a point over 1, 3, 5, 7, 10), "
        "at least 0.5 more steeply than if responses are left unswapped; the top request gives no less gold than DPO "
        "(by 0.5), and losers with scores of 8 and more keep at least 1 nat more.",
        source="main table, ablations",
        world="TinySent: 0.1 M-parameter model, 8k pairs with scores from gold",
        parts=(
            Threshold("ra", "slope", at_least=0.8),
            Better("ra", "no_swap", "slope", margin=0.5),
            Better("ra", "dpo", "gold", margin=-0.5),
            Better("ra", "dpo", "losers", margin=1.0),
        ),
        arms=texts_arms(),
        seeds=tuple(range(5)),
        refuted_if="Achieved scores do not follow the requested ones, or DPO beats the top request on all seeds.",
        metrics={
            **METRICS,
            "gold": "gold reward when asked for the top score, mean of 512 samples",
            "kl": "KL to the reference on the same samples, nats",
            "losers": "change of the log-prob of rejected texts with scores of 8 and more against the reference, nats, "
            "each asked for by its own score (DPO: without a request)",
        },
        minutes=6,
        plot=draw,
        notes=(
            "The goal is a word that the model has never seen, one of the spare ones of its vocabulary, before the "
            "prompt; under it the reference's gold is what it is without (-1.0 against -1.1).",
            "The score is round(gold + 5) cut to 0..10; beta 0.3, 400 updates for DPO and 800 for 2N pairs.",
            "Gold itself gives the scores and ranks the pairs: all arms learn from it.",
            "The scale ends at gold 5, so a policy that delivers exactly the top score earns 5, and DPO may earn more: "
            "on seeds 1000 and 1001 it did (7.0 and 6.6 against 4.8 and 4.2). The dossier's prototype overshot the top "
            "request instead (7.2 and 7.9). The part stays as the dossier states it.",
        ),
    ),
}
