"""P3O's claim: rewards that carry an offset of the prompt leave it as it is and cost PPO; without them it keeps up.

Two worlds: TinySent (laptop) and stories with lexicon sentiment (standard). The purpose is gold itself, plus an offset
delta that is drawn anew for every prompt of every round and shared by that prompt's completions: what a Bradley-Terry
reward model leaves undetermined. Gold without the offset is what is measured, on prompts of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from telos.core.method import Method
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.language import Scene, frontiers
from telos.judge.plots import PALETTE, figure, heading
from telos.judge.stats import paired_t
from telos.judge.verdict import Better, Holds, Threshold
from telos.lm.model import STORIES, TINY
from telos.worlds import stories, tiny_sent

GRID = 64
"""Offsets are multiples of 1/64, so that gold plus offset is exact in float32 and the offset cancels exactly."""


@dataclass(frozen=True)
class World:
    """A scene with the training prompts and the size of its offsets.

    Args:
        deviation: of gold over the reference's samples; offsets have three times that.
        band: of KL, nats, over which frontiers are scored.
        slack: how much lower a frontier may be and still "keep up", in units of gold.
    """

    scene: Scene
    train: Callable[[int, np.random.Generator], list[str]]
    deviation: float
    band: tuple[float, float]
    slack: float
    rounds: int
    every: int


WORLDS = {
    "laptop": World(
        Scene(TINY, tiny_sent.prompts, tiny_sent.gold, 21, samples=512),
        tiny_sent.prompts,
        deviation=2.5,
        band=(2.0, 10.0),
        slack=0.5,
        rounds=50,
        every=5,
    ),
    "standard": World(
        Scene(STORIES, functools.partial(stories.prompts, held_out=True), stories.sentiment, stories.TOKENS, 192),
        stories.prompts,
        deviation=0.4,
        band=(0.5, 4.0),
        slack=0.03,
        rounds=15,
        every=3,
    ),
}
UNDER_OFFSETS = ("ppo", "p3o_joint", "p3o_separate")
"""Measured with offsets, too."""
LAPTOP_ONLY = ("p3o_separate", "rloo")


class Shifted:
    """Gold plus an offset a prompt, new in every round; completions of one prompt stand side by side."""

    cache = False

    def __init__(self, gold: Callable[..., Any], scale: float, samples_per_prompt: int, rng: Rng):
        self.gold, self.scale, self.n, self.rng, self.round = gold, scale, samples_per_prompt, rng, 0

    def __call__(self, prompts: Sequence[str], completions: Sequence[str]) -> Any:
        gold = np.round(np.asarray(self.gold(prompts, completions)) * GRID) / GRID
        offsets = self.rng.at(self.round).numpy().normal(size=len(prompts) // self.n) * self.scale
        self.round += 1
        return gold + np.repeat(np.round(offsets * GRID) / GRID, self.n)


def online(trial: Trial, scale: str, method: Method, samples: int, shifted: bool) -> Measures:
    """Trains on gold, with or without offsets; gold and KL on fresh samples along the way."""
    world = WORLDS[scale]
    data = Prompts(world.train(4096, trial.rng.at("prompts").numpy()))
    size = 3 * world.deviation if shifted else 0.0
    purpose = Shifted(world.scene.gold, size, samples, trial.rng.at("offsets"))

    def fit(evaluate: Any) -> None:
        trial.fit(
            method, data, steps=world.rounds, evaluate=evaluate, evaluate_every=world.every, model=world.scene.model,
            purpose=purpose,
        )  # fmt: skip

    return world.scene.tracked(trial, fit)


def arms(scale: str, beta: float, rates: Mapping[str, float], dpo_beta: float) -> dict[str, Arm]:
    """64 completions a round, in minibatches of 32, for all, and the same rounds; RLOO takes one step a round.

    Args:
        beta: of the methods that maximise reward less beta KL. rates: step sizes by method.
    """
    tokens = WORLDS[scale].scene.new_tokens
    pairs = {"prompts_per_batch": 32, "max_new_tokens": tokens}
    ppo = use(
        "ppo", beta=beta, learning_rate=rates["ppo"], critic_learning_rate=1e-3, prompts_per_batch=64,
        minibatch_size=32, epochs=2, max_new_tokens=tokens,
    )  # fmt: skip
    p3o = {"beta": beta, "learning_rate": rates["p3o"], "minibatch_prompts": 16, "epochs": 2, **pairs}
    rloo = use("rloo", beta=beta, learning_rate=rates["rloo"], samples_per_prompt=2, **pairs)
    dpo = use(
        "online_dpo", beta=dpo_beta, learning_rate=rates["online_dpo"], minibatch_prompts=16, epochs=2, **pairs
    )  # fmt: skip
    found: dict[str, Arm] = {}
    for name, label, method, samples in (
        ("ppo", "PPO", ppo, 1),
        ("p3o_joint", "P3O joint (V2)", use("p3o", clipping="joint", **p3o), 2),
        ("p3o_separate", "P3O separate (V1)", use("p3o", clipping="separate", **p3o), 2),
        ("rloo", "RLOO", rloo, 2),
        ("online_dpo", "online DPO", dpo, 2),
    ):
        if scale == "standard" and name in LAPTOP_ONLY:
            continue
        for shifted in (False, True) if name in UNDER_OFFSETS else (False,):
            options = {"scale": scale, "method": method, "samples": samples, "shifted": shifted}
            suffix, words = ("_shifted", ", offsets") if shifted else ("", "")
            found[name + suffix] = Arm(online, options, label=label + words, group=name + suffix)
    return found


def mean_gain(points: Sequence[Mapping[str, float]]) -> float:
    """Gold above the reference's, averaged over the checkpoints: the area under the learning curve."""
    return sum(point["gold"] - points[0]["gold"] for point in points[1:]) / max(len(points) - 1, 1)


def compared(scale: str, measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
    """Frontiers, the share of the gain that offsets leave, and whether a curve moved at all."""
    found = frontiers(measures, {name: name for name in measures}, WORLDS[scale].band)
    for name in [name for name in UNDER_OFFSETS if name in measures]:
        plain, shifted = measures[name], measures[f"{name}_shifted"]
        found[name]["retained"] = mean_gain(shifted["points"]) / max(mean_gain(plain["points"]), 1e-3)
        found[name]["unmoved"] = float(plain["points"] == shifted["points"])
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Gold over the rounds with and without offsets, and gold against KL without them; means with 95 % intervals."""
    plain = [name for name in result["order"] if not name.endswith("_shifted")]
    colour = {name: PALETTE[i] for i, name in enumerate(plain)}
    with figure(path, width=10.0, height=4.6, columns=2) as (drawn, axes):
        for ax, x in ((axes[0, 0], "step"), (axes[0, 1], "kl")):
            for name in result["order"] if x == "step" else plain:
                base = name.removesuffix("_shifted")
                if x == "step" and base not in UNDER_OFFSETS:
                    continue
                runs = result["arms"][name]["runs"]
                at, gold = (np.array([[p[key] for p in run["points"]] for run in runs]) for key in (x, "gold"))
                bars = [(i.high - i.low) / 2 for i in map(paired_t, gold.T)] if len(runs) > 1 else None
                ax.errorbar(
                    at.mean(0), gold.mean(0), yerr=bars, color=colour[base], label=result["arms"][name]["label"],
                    ls="-" if name == base else "--", marker="o", ms=3 if name == base else 6, lw=1.3,
                    mfc=None if name == base else "none", elinewidth=0.7,
                )  # fmt: skip
            ax.set_xlabel("rounds" if x == "step" else "KL to the reference, nats")
            ax.set_ylabel("gold reward, without offsets")
            ax.legend(fontsize=7.5, loc="lower right")
        axes[0, 0].set_title("with offsets (dashed) and without")
        axes[0, 1].set_title("without offsets")
        heading(drawn, result, 10.0)


def claim(scale: str, beta: float, rates: Mapping[str, float], dpo_beta: float, **words: Any) -> Claim:
    """The claim at one scale."""

    def derive(measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
        return compared(scale, measures)

    return Claim(
        source="KL-reward frontiers on TL;DR and HH; reward equivalence, section 4",
        parts=(
            Holds("unmoved", "p3o_joint"),
            *([Holds("unmoved", "p3o_separate")] if scale == "laptop" else []),
            Threshold("ppo", "retained", at_most=0.8),
            Better("p3o_joint", "ppo", "frontier", margin=-WORLDS[scale].slack),
            Better("p3o_joint", "online_dpo", "frontier", margin=-WORLDS[scale].slack),
        ),
        arms=arms(scale, beta, rates, dpo_beta),
        seeds=tuple(range(5)),
        refuted_if="P3O's curve moves when offsets are switched on (same seed), or PPO keeps its gain under them.",
        derive=derive,
        plot=draw,
        **words,
    )


METRICS = {
    "gold": "gold reward of the last state, without offsets",
    "kl": "KL to the reference on the same samples, nats",
    "frontier": "mean over KL budgets in the band of the highest gold reached within the budget, over all checkpoints",
    "furthest": "largest KL of any checkpoint, nats",
    "retained": "gain over the reference (mean of all checkpoints) under offsets / without them, same seed",
    "unmoved": "1 if gold and KL at every checkpoint are the same numbers with and without offsets",
}
NOTES = (
    "Offsets are drawn anew for every prompt of every round (the worlds have few prompts), shared by its completions, "
    "normal with three times gold's deviation, on a grid of 1/64 so that float32 holds gold plus offset exactly.",
    "PPO gets as many completions (64 prompts x 1 against 32 x 2), minibatches of 32 and passes; it whitens advantages "
    "and has a critic of its own (step 1e-3).",
    "Step sizes are each method's best of 1e-4 and 3e-4 on seed 1000 by the frontier (laptop: and of 1e-3); online "
    "DPO's beta is its best of 0.1, 0.3, 1 and 3 (standard: of 0.1, 1 and 3).",
    "The paper's frontiers dominate; at this size the dossier expects P3O 'no worse', so a slack is allowed.",
    "'retained' averages the whole learning curve: under offsets PPO learns later, and at the end it has caught up "
    "with part of it (seed 1000: 0.80 of the last state's gain).",
)

CLAIMS = {
    "laptop": claim(
        "laptop",
        beta=0.5,
        rates={"ppo": 1e-4, "p3o": 1e-4, "rloo": 3e-4, "online_dpo": 1e-4},
        dpo_beta=0.3,
        statement="Offsets of the reward that depend on the prompt alone leave P3O's run as it is, to the bit, and "
        "cost PPO a fifth of its gain or more; without them P3O's frontier is no lower than PPO's and online DPO's "
        "(by 0.5).",
        world="TinySent: 0.1 M-parameter model, gold reward, offsets of 3 deviations",
        metrics=METRICS,
        minutes=6,
        notes=(*NOTES, "Developed on seed 1000."),
    ),
    "standard": claim(
        "standard",
        beta=0.03,
        rates={"ppo": 1e-4, "p3o": 1e-4, "rloo": 1e-4, "online_dpo": 1e-4},
        dpo_beta=1.0,
        statement="The same on stories with lexicon sentiment: offsets leave P3O's run as it is and cost PPO a fifth "
        "of its gain or more; without them P3O's frontier is no lower than PPO's and online DPO's (by 0.03).",
        world="TinyStories: 264 k-parameter Llama, VADER sentiment of 32 tokens",
        metrics=METRICS,
        minutes=8,
        notes=(
            *NOTES,
            "VADER's compound score on the model's own samples: mean 0.23, deviation 0.39, a quarter exactly 0. "
            "Measured on openings that no arm trains on.",
        ),
    ),
}
