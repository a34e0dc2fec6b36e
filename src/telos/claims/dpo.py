"""DPO's claim: its frontier of gold reward against KL is above that of RL on a reward model fitted to the same pairs.

Worlds: TinySent (dossier; laptop) and stories (standard), with a bundled model each as the reference. The purpose is
known only through noisy preference labels; gold is used to label pairs and to measure, and by the best-of-n arms, which
it favours.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from telos.core.method import Method
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Preferences, Prompts
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.language import Scene, frontiers
from telos.judge.plots import plane
from telos.judge.verdict import Better
from telos.lm.model import STORIES, TINY
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.ops.divergences import best_of_n_kl
from telos.worlds import stories, tiny_sent

BAND = (3.0, 10.0)
NEW_TOKENS = 21
SCENE = Scene(TINY, tiny_sent.prompts, tiny_sent.gold, NEW_TOKENS, samples=512)


@dataclass(frozen=True)
class World:
    """A scene with the pairs that are made in it.

    Args:
        train: (count, generator) -> prompts of the pairs and of RL.
        sharpness: a pair is labelled right with probability sigmoid(sharpness * difference of gold).
        count: prompts, with 4 samples each; reward_steps: of the reward model's training.
        closed: whether completions are whole; else they are cut off at `new_tokens` and no end is learnt.
    """

    scene: Scene
    train: Callable[[int, np.random.Generator], list[str]]
    sharpness: float
    count: int
    reward_steps: int
    steps: int
    every: int
    band: tuple[float, float]
    closed: bool


WORLDS = {
    "laptop": World(SCENE, tiny_sent.prompts, 1.0, 1500, 200, 80, 10, BAND, True),
    "standard": World(
        Scene(STORIES, functools.partial(stories.prompts, held_out=True), stories.sentiment, stories.TOKENS, 192),
        stories.prompts, 5.0, 200, 60, 40, 8, (0.5, 4.0), False,
    ),
}  # fmt: skip


@functools.lru_cache(maxsize=2)
def pairs(seed: int, count: int, scale: str = "laptop") -> Preferences:
    """All pairs with different gold among 4 samples of each of `count` prompts, labelled by Bradley-Terry."""
    world, rng = WORLDS[scale], Rng(seed).at("pairs")
    scene, tokenizer = world.scene, world.scene.reference.tokenizer
    prompts = world.train(count, rng.at("prompts").numpy())
    policy = LanguagePolicy(scene.reference)
    drawn = policy.generate(prompts, n=4, rng=rng.at("samples").torch(), max_new_tokens=scene.new_tokens)
    golds = np.asarray(scene.gold(drawn.prompts, drawn.texts), dtype=np.float64)
    # With whatever stands between prompt and completion: a space, or nothing within a word.
    whole = tokenizer.batch_decode(
        [row[:end].tolist() for row, end in zip(drawn.tokens, drawn.lengths, strict=True)], skip_special_tokens=True
    )
    texts = [text[len(prompt) :] for text, prompt in zip(whole, drawn.prompts, strict=True)]
    found = [
        (i, j)
        for first in range(0, len(texts), 4)
        for i, j in itertools.combinations(range(first, first + 4), 2)
        # A text that goes on within the prompt's last word has no boundary between tokens.
        if golds[i] != golds[j] and not (texts[i][:1].isalnum() or texts[j][:1].isalnum())
    ]
    gaps = np.array([golds[i] - golds[j] for i, j in found])
    preferred = tiny_sent.label(world.sharpness * gaps, 0.0, rng.at("labels").numpy())
    ordered = [(i, j) if first else (j, i) for (i, j), first in zip(found, preferred, strict=True)]
    return Preferences(
        [prompts[i // 4] for i, _ in ordered], [texts[i] for i, _ in ordered], [texts[j] for _, j in ordered],
        closed=world.closed,
    )  # fmt: skip


@functools.lru_cache(maxsize=2)
def reward_model(seed: int, count: int, steps: int, scale: str = "laptop") -> RewardScorer:
    """A Bradley-Terry reward model on the same pairs, from the same body."""
    world = WORLDS[scale]
    method = use("reward_model", learning_rate=1e-3, batch_size=48)
    data = dataclasses.replace(pairs(seed, count, scale), closed=True)  # scores are read at the end token
    return method.fit(data, model=world.scene.model, steps=steps, seed=seed, device="cpu")


def on_pairs(trial: Trial, method: Method, scale: str = "laptop") -> Measures:
    """A method that learns from the pairs."""
    world = WORLDS[scale]
    data = pairs(trial.seed, trial.count(world.count), scale)

    def fit(evaluate: Any) -> None:
        trial.fit(
            method, data, steps=world.steps, evaluate=evaluate, evaluate_every=world.every, model=world.scene.model
        )

    return world.scene.tracked(trial, fit)


def on_reward_model(trial: Trial, method: Method, scale: str = "laptop") -> Measures:
    """RL on a reward model that was fitted to the pairs."""
    world = WORLDS[scale]
    count = trial.count(world.count)
    purpose = reward_model(trial.seed, count, trial.steps(world.reward_steps), scale)
    prompts = Prompts(world.train(count, trial.rng.at("rl-prompts").numpy()))

    def fit(evaluate: Any) -> None:
        trial.fit(
            method, prompts, steps=world.steps, evaluate=evaluate, evaluate_every=world.every,
            model=world.scene.model, purpose=purpose,
        )  # fmt: skip

    return world.scene.tracked(trial, fit)


def best_of(trial: Trial, n: int, scale: str = "laptop") -> Measures:
    """The best of n samples by gold itself; its KL is the known bound log n - (n - 1) / n."""
    scene = WORLDS[scale].scene
    policy = use("best_of_n", n=n).fit(model=scene.model, purpose=scene.gold, device="cpu")
    gold = scene.measure(trial, policy)["gold"]
    point = {"gold": gold, "kl": best_of_n_kl(n)}
    return {**point, "points": [{"step": 0.0, **scene.measure(trial, LanguagePolicy(scene.reference))}, point]}


def compared(measures: Mapping[str, Measures], scale: str = "laptop") -> dict[str, dict[str, float]]:
    """Each method's frontier over all its settings."""
    return frontiers(measures, {name: arm.group for name, arm in CLAIMS[scale].arms.items()}, WORLDS[scale].band)


def draw(result: dict[str, Any], path: Path, scale: str = "laptop") -> None:
    """The plane of gold reward against KL."""
    plane(result, path, x="kl", y="gold", band=WORLDS[scale].band)


def arms() -> dict[str, Arm]:
    """Three settings for DPO and for RL; the same steps, checkpoints and tuning effort."""
    found: dict[str, Arm] = {}
    for beta in (0.05, 0.1, 0.3):
        method = use("dpo", beta=beta, learning_rate=3e-4, warmup_steps=0, batch_size=48)
        found[f"dpo_{beta}"] = Arm(on_pairs, {"method": method}, label=f"DPO beta={beta}", group="dpo")
    for beta in (0.02, 0.05, 0.1):
        method = use("rloo", beta=beta, learning_rate=2e-4, max_new_tokens=NEW_TOKENS)
        found[f"rloo_{beta}"] = Arm(on_reward_model, {"method": method}, label=f"RM + RLOO beta={beta}", group="rloo")
    for rate in (3e-4, 1e-3):
        method = use("sft", learning_rate=rate, batch_size=48)
        found[f"sft_{rate}"] = Arm(on_pairs, {"method": method}, label=f"Preferred-FT lr={rate}", group="sft")
    for n in (4, 16):
        found[f"best_of_{n}"] = Arm(best_of, {"n": n}, label=f"best of {n} (gold)", group=f"best_of_{n}")
    return found


def standard_arms() -> dict[str, Arm]:
    """The same on stories, with one setting each."""
    dpo = use("dpo", beta=0.1, learning_rate=1e-4, warmup_steps=0, batch_size=48)
    rloo = use("rloo", beta=0.05, learning_rate=1e-4, max_new_tokens=stories.TOKENS)
    sft = use("sft", learning_rate=1e-4, batch_size=48)
    here: dict[str, Any] = {"scale": "standard"}
    return {
        "dpo": Arm(on_pairs, {"method": dpo, **here}, label="DPO", group="dpo"),
        "rloo": Arm(on_reward_model, {"method": rloo, **here}, label="RM + RLOO", group="rloo"),
        "sft": Arm(on_pairs, {"method": sft, **here}, label="Preferred-FT", group="sft"),
        "best_of_4": Arm(best_of, {"n": 4, **here}, label="best of 4 (gold)", group="best_of_4"),
    }


METRICS = {
    "frontier": "mean over KL budgets of 3 to 10 nats of the best gold reached within the budget, over all "
    "logged checkpoints of all settings; flat beyond the furthest",
    "furthest": "largest KL that any checkpoint of the method has, nats",
    "gold": "gold reward, mean of 512 samples",
    "kl": "KL to the reference on the same samples, nats",
}

CLAIMS = {
    "laptop": Claim(
        statement="Fitted to the same noisy pairs, DPO reaches more gold reward at equal KL (3 to 10 nats) than RL on "
        "a learned reward model, than best-of-4 and than fine-tuning on the chosen texts.",
        source="Figure 2, left",
        world="TinySent: 20k generated sentences, 0.1 M-parameter model, 8k noisy pairs",
        parts=(
            Better("dpo", "rloo", "frontier"),
            Better("dpo", "sft", "frontier", margin=1.0),
            Better("dpo", "best_of_4", "frontier"),
        ),
        arms=arms(),
        seeds=(0, 1, 2, 3, 4),
        refuted_if="DPO's frontier lies below that of RL on the learned reward model, or does not exceed best-of-4.",
        metrics=METRICS,
        minutes=6,
        derive=compared,
        plot=draw,
        notes=(
            "The paper compares with PPO; here RLOO stands for RL on a learned reward model (dossier: PPO or RLOO).",
            "The paper says that DPO's frontier dominates, so the margin is 0; the dossier expects 'at least equal'.",
            "Of the dossier's beta of 0.05 to 1, 1 is left out: it stays below 3 nats, outside the band. RLOO's "
            "coefficients are 0.02 to 0.1: with 1 it stays below 1.3 nats, with 0.3 it ends at 3 to 4, where the "
            "smaller ones have points, too.",
            "DPO and RLOO have 3 settings of 80 updates with 8 checkpoints each, Preferred-FT 2. Learning rates are "
            "the dossier's prototype's (DPO 3e-4, RLOO 2e-4), the reward model has the pre-training's 1e-3. "
            "RLOO also samples 5,120 fresh completions, which DPO does not.",
            "The best over checkpoints is taken from the samples that score it: the same small bias for DPO and RLOO.",
            "Best-of-n selects by gold itself, which no learner sees: it favours that baseline.",
            "The world was tuned in a prototype (dossier). Developed on seeds 1000 and 1001; after a review and "
            "before any measured seed, checkpoints went from every 25 steps to every 10.",
            "The paper's comparison with RL on the true reward is not made: the dossier expects an online run with "
            "gold to do better here.",
        ),
    ),
    "standard": Claim(
        statement="On stories with noisy labels of sentiment, DPO reaches more gold reward at equal KL (0.5 to 4 nats) "
        "than RL on a learned reward model, than best-of-4 and than fine-tuning on the chosen texts.",
        source="Figure 2, left",
        world="TinyStories: 264 k-parameter Llama, VADER sentiment of 32 tokens, 1k noisy pairs",
        parts=(
            Better("dpo", "rloo", "frontier"),
            Better("dpo", "sft", "frontier"),
            Better("dpo", "best_of_4", "frontier"),
        ),
        arms=standard_arms(),
        seeds=(0, 1, 2, 3, 4),
        refuted_if="DPO's frontier lies below that of RL on the learned reward model, or does not exceed best-of-4.",
        metrics={
            **METRICS,
            "frontier": "mean over KL budgets of 0.5 to 4 nats of the best gold reached within the budget, over all "
            "logged checkpoints of all settings; flat beyond the furthest",
            "gold": "VADER's compound score, mean of 192 samples on openings that no arm trains on",
        },
        minutes=6,
        derive=functools.partial(compared, scale="standard"),
        plot=functools.partial(draw, scale="standard"),
        notes=(
            "VADER's compound score on the model's own samples: mean 0.23, deviation 0.39, a quarter exactly 0; pairs "
            "with equal scores are left out, the others labelled right with probability sigmoid(5 difference).",
            "As at laptop scale RLOO on a learned reward model stands for PPO. 40 updates, a checkpoint every 8.",
            "Step sizes: 1e-4 for all; with the laptop's 3e-4 DPO and fine-tuning leave the band within 10 updates "
            "(DPO's frontier on seed 1000: 0.37 against 0.55), with 3e-5 they stay at its lower end. Band and settings "
            "were fixed with seed 1000 in view, on which best-of-4 was above DPO.",
            "Completions are cut off at 32 tokens; those that go on within the prompt's last word are left out.",
            "Best-of-n selects by gold itself, which no learner sees: it favours that baseline.",
        ),
    ),
}
