"""DeAL's claims: a look-ahead finds what sampling the same number of tokens does not.

Laptop: the keywords world (a model that follows its prompt only sometimes must use three words), and two rewards that
pull apart. Standard: a small model of children's stories, rewarded for sentiment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from telos.core.method import Method
from telos.core.products import Completions
from telos.core.registry import use
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.plots import PALETTE, figure, heading
from telos.judge.verdict import Better, Threshold
from telos.lm.log_probs import token_log_probs
from telos.lm.tokens import Sequences
from telos.worlds import keywords, stories

SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of politeness; brevity has the rest."""


class Counted:
    """A purpose that counts the tokens of what it scores."""

    cache = False

    def __init__(self, purpose: Any):
        self.purpose, self.tokens = purpose, 0

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Any]) -> Any:
        self.tokens += sum(map(len, completion_ids))
        return self.purpose(prompts, completions)


def answers(
    trial: Trial, method: Method, model: str, purpose: Any, prompts: list[str], room: int, **options: Any
) -> tuple[Completions, dict[str, float]]:
    """One answer a prompt, its negative log-likelihood a token under the model, and the tokens that it took."""
    counted = Counted(purpose)
    samples = isinstance(method, type(use("best_of_n")))
    product = trial.fit(method, steps=0, model=model, purpose=counted if samples else purpose)
    drawn = product.generate(prompts, rng=trial.rng.at("sampling").torch(), max_new_tokens=room, **options)
    tokens = counted.tokens if samples else product.cost.lm_tokens
    sequences = Sequences(drawn.tokens, drawn.lengths, drawn.boundaries)
    with torch.no_grad():
        log_probs = token_log_probs(product.policy.model, sequences)
    nll = -float(log_probs.sum() / sequences.mask.sum())
    return drawn, {"nll": nll, "tokens": tokens / len(prompts)}


def cover(trial: Trial, method: Method) -> Measures:
    """Task A: sentences with three words that the model was never asked for together."""
    prompts = keywords.prompts(trial.count(200), trial.rng.at("prompts").numpy())
    model = keywords.model_folder(trial.seed)
    drawn, measured = answers(trial, method, model, keywords.coverage, prompts, keywords.TOKENS)
    hard, soft = keywords.all_words(prompts, drawn.texts), keywords.coverage(prompts, drawn.texts)
    return {"hard": float(hard.mean()), "soft": float(soft.mean()), **measured}


def as_many(trial: Trial, method: Method) -> Measures:
    """Task A by best-of-n, with the least n that takes as many tokens as `method` takes on this seed."""
    budget = cover(trial, method)["tokens"]
    samples = cover(trial, use("best_of_n", n=4))["tokens"] / 4
    n = math.ceil(budget / samples)
    return {**cover(trial, use("best_of_n", n=n)), "n": n}


def trade(trial: Trial, method: Method, polite: float) -> Measures:
    """Task B: the same model and half of the prompts; politeness and brevity with weights that sum to 1."""
    prompts = keywords.prompts(trial.count(100), trial.rng.at("prompts").numpy())
    purpose = [keywords.politeness, keywords.brevity]
    drawn, measured = answers(
        trial, method, keywords.model_folder(trial.seed), purpose, prompts, keywords.TOKENS,
        weights=(polite, 1 - polite),
    )  # fmt: skip
    short, kind = keywords.brevity(prompts, drawn.texts), keywords.politeness(prompts, drawn.texts)
    return {"polite": float(kind.mean()), "short": float(short.mean()), **measured}


def cheer(trial: Trial, method: Method, temperature: float | None = None) -> Measures:
    """Continuations of the beginnings of stories, rewarded for sentiment."""
    prompts = stories.prompts(trial.count(50), trial.rng.at("prompts").numpy())
    options = {} if temperature is None else {"temperature": temperature}
    drawn, measured = answers(trial, method, stories.MODEL, stories.sentiment, prompts, stories.TOKENS, **options)
    return {"gold": float(stories.sentiment(prompts, drawn.texts).mean()), **measured}


def trade_off(measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
    """Over the sweep of weights: the least rise of a reward when its weight grows by a step; below 0 it falls."""
    rows = [measures[f"trade_{weight:g}"] for weight in SWEEP]
    polite, short = (np.array([row[name] for row in rows]) for name in ("polite", "short"))
    return {"trade_off": {"least_rise": float(min(np.diff(polite).min(), -np.diff(short).max()))}}


def draw(result: dict[str, Any], path: Path) -> None:
    """Coverage against the tokens that it took, and the trade-off of the two rewards."""
    with figure(path, width=10.0, height=4.4, columns=2) as (drawn, axes):
        scatter(axes[0, 0], result, "tokens", "hard")
        ax = axes[0, 1]
        names = [f"trade_{weight:g}" for weight in SWEEP]
        runs = [[run["measures"] for run in result["arms"][name]["runs"]] for name in names]
        for seed in range(len(runs[0])):
            ax.plot([r[seed]["short"] for r in runs], [r[seed]["polite"] for r in runs], color=PALETTE[0], alpha=0.15)
        means = [[float(np.mean([m[key] for m in r])) for r in runs] for key in ("short", "polite")]
        ax.plot(*means, "o-", color=PALETTE[0])
        for weight, x, y in zip(SWEEP, *means, strict=True):
            ax.annotate(f"{weight:g}", (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
        ax.set_xlabel(result["claim"]["metrics"]["short"])
        ax.set_ylabel(result["claim"]["metrics"]["polite"])
        ax.set_title("Weight of politeness against brevity")
        heading(drawn, result, 10.0)


def draw_stories(result: dict[str, Any], path: Path) -> None:
    """Gold reward against the tokens that it took, and against the likelihood of the texts."""
    with figure(path, width=10.0, height=4.4, columns=2) as (drawn, axes):
        scatter(axes[0, 0], result, "tokens", "gold")
        scatter(axes[0, 1], result, "nll", "gold", legend=False)
        heading(drawn, result, 10.0)


def scatter(ax: Any, result: dict[str, Any], x: str, y: str, legend: bool = True) -> None:
    """The arms that have y: a marker each at the means over seeds with the 95 % interval of y; groups are joined."""
    arms = {name: result["arms"][name] for name in result["order"]}
    arms = {name: arm for name, arm in arms.items() if x in arm["summary"] and y in arm["summary"]}
    groups: dict[str, list[str]] = {}
    for name, arm in arms.items():
        groups.setdefault(arm["group"] or name, []).append(name)
    for number, (group, names) in enumerate(groups.items()):
        found = [arms[name]["summary"] for name in names]
        label = arms[names[0]]["label"] if len(names) == 1 else group
        high = [s[y]["interval"]["high"] - s[y]["mean"] if s[y]["interval"] else 0.0 for s in found]
        ax.errorbar(
            [s[x]["mean"] for s in found], [s[y]["mean"] for s in found], yerr=high, fmt="o--",
            color=PALETTE[number % len(PALETTE)], ms=5, lw=0.8, label=label,
        )  # fmt: skip
        for name in names if len(names) > 1 else []:
            s = arms[name]["summary"]
            note = arms[name]["label"].rpartition(" ")[2].rpartition("=")[2]
            ax.annotate(note, (s[x]["mean"], s[y]["mean"]), xytext=(5, -3), textcoords="offset points", fontsize=7)
    if x == "tokens":
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        marks = [mark for mark in (10, 30, 100, 300, 1000) if low <= mark <= high]
        ax.set_xticks(marks, [str(mark) for mark in marks])
        ax.minorticks_off()
    ax.set_xlabel(result["claim"]["metrics"][x])
    ax.set_ylabel(result["claim"]["metrics"][y])
    if legend:
        ax.legend(fontsize=7, loc="lower right")


def task_arms() -> dict[str, Arm]:
    """Tasks A and B; the options of DeAL are the dossier's."""
    arms = {
        "greedy": Arm(cover, {"method": use("beam", width=1)}, label="greedy"),
        "sampling": Arm(cover, {"method": use("best_of_n", n=1)}, label="sampling"),
        "beam": Arm(cover, {"method": use("beam", width=5)}, label="beam of 5, reranked"),
        "best_of_n": Arm(
            as_many, {"method": use("deal", k=5, lookahead=6, weight=10.0)}, label="best of n, as many tokens"
        ),
        "best_of_35": Arm(cover, {"method": use("best_of_n", n=35)}, label="best of 35"),
    }
    for ahead in (0, 2, 6):
        for weight in (1.0, 3.0, 10.0):
            method = use("deal", k=5, lookahead=ahead, weight=weight)
            label = f"DeAL l={ahead} lambda={weight:g}"
            arms[f"deal_l{ahead}_{weight:g}"] = Arm(
                cover, {"method": method}, label=label, group=f"DeAL l={ahead}, lambda"
            )
    method = use("deal", k=5, lookahead=6, weight=10.0)
    for weight in SWEEP:
        label = f"DeAL politeness {weight:g}"
        arms[f"trade_{weight:g}"] = Arm(trade, {"method": method, "polite": weight}, label=label, group="trade-off")
    return arms


def story_arms() -> dict[str, Arm]:
    """Sentiment of stories."""
    arms = {
        "greedy": Arm(cheer, {"method": use("beam", width=1)}, label="greedy"),
        "beam": Arm(cheer, {"method": use("beam", width=4)}, label="beam of 4, reranked"),
        "sampling": Arm(cheer, {"method": use("best_of_n", n=1)}, label="sampling"),
    }
    for temperature in (1.0, 0.7):
        options = {"method": use("best_of_n", n=36), "temperature": temperature}
        label = f"best of 36 T={temperature:g}"
        arms[f"best_of_36_{temperature:g}"] = Arm(cheer, options, label=label, group="best of 36, T")
    for ahead, weight in ((0, 10.0), (4, 10.0), (8, 10.0)):
        method = use("deal", k=5, lookahead=ahead, weight=weight)
        label = f"DeAL l={ahead} lambda={weight:g}"
        arms[f"deal_l{ahead}_{weight:g}"] = Arm(cheer, {"method": method}, label=label, group=f"DeAL l={ahead}, lambda")
    return arms


METRICS = {
    "nll": "negative log-likelihood of the answers under the model, nats a token",
    "tokens": "tokens that the model evaluated for each prompt",
}
CLAIMS = {
    "laptop": Claim(
        statement="At no more tokens of a frozen model, DeAL with 6 tokens of look-ahead uses all three required words "
        "more often than best-of-n and than DeAL without look-ahead, at least 0.15 more often than greedy decoding; "
        "and the weights of two rewards that pull apart trade one for the other.",
        source="CommonGen keyword coverage and the table of reward weights (read second-hand)",
        world="Keywords: 3 models of 59 k parameters, 200 held-out word triples a seed",
        parts=(
            Better("deal_l6_10", "greedy", "hard", margin=0.15),
            Better("deal_l6_10", "best_of_n", "hard"),
            Better("deal_l6_10", "deal_l0_10", "hard"),
            Better("deal_l0_10", "greedy", "hard"),
            Better("trade_1", "trade_0", "polite"),
            Better("trade_0", "trade_1", "short"),
            Threshold("trade_off", "least_rise", at_least=-0.02),
        ),
        arms=task_arms(),
        seeds=tuple(range(10)),
        refuted_if="DeAL with look-ahead does not beat best-of-n at equal tokens on hard coverage, or look-ahead does "
        "not beat none.",
        metrics={
            "hard": "share of answers with all three words",
            "n": "samples of best-of-n",
            "soft": "share of the words that the answers have",
            "polite": "polite words less rude words, for every four words",
            "short": "share of answers that end within 7 words",
            "least_rise": "least rise of a reward (polite, short) in the steps of the sweep that raise its weight",
            **METRICS,
        },
        minutes=6,
        derive=trade_off,
        plot=draw,
        notes=(
            "The world is ours, after the dossier: a sentence follows its prompt in 40 % of the corpus where the "
            "dossier says 60 %. The share was set by greedy decoding alone, which then covers 0.5 to 0.6, as the "
            "dossier expects; with 60 % it covered 0.8, and the best of 35 samples 0.98.",
            "Nouns, verbs and places are two tokens each, so a word earns its reward after its last piece, as in real "
            "vocabularies. In a first version of the world, with one token a word, the reward of a word was visible "
            "at once and DeAL without look-ahead did as well as with it (0.888 and 0.893 on two seeds).",
            "Best-of-n has the least n with which it takes as many tokens as DeAL with k = 5, l = 6 on the same seed, "
            "21 to 25. A fixed n of 25, tried first, took up to a quarter more tokens than DeAL on one of the models "
            "and was level with it on three seeds (0.878 and 0.890). The dossier's formula k (l + 1) = 35 ignores that "
            "answers end before the look-ahead does; with 35 samples, over half as many tokens again, best-of-n covers "
            "as much as DeAL (0.91 each).",
            "Developed on seeds 1000 to 1004.",
            "Seeds pair prompts and one of three models. Lambda 10 is judged for every look-ahead; 1 and 3 are drawn. "
            "Best-of-n and DeAL are given the same reward, the soft coverage; hard coverage is what is judged.",
            "Changed after a first look at task B on one prompt set: adjectives are frequent or rare (rank^-1.5), so "
            "that k = 5 candidates reach the frequent ones, and politeness counts for every four words, so that it has "
            "the scale of brevity.",
        ),
    ),
    "standard": Claim(
        statement="On a small model of children's stories, DeAL with 8 tokens of look-ahead earns more sentiment than "
        "best-of-n at no fewer tokens, at either temperature, and than DeAL without look-ahead.",
        source="the paper's comparison with reranking (harmlessness), on another reward",
        world="telos:stories260k, 50 beginnings a seed, 32 tokens; VADER's compound score",
        parts=(
            Better("deal_l8_10", "best_of_36_1", "gold"),
            Better("deal_l8_10", "best_of_36_0.7", "gold"),
            Better("deal_l8_10", "deal_l0_10", "gold"),
        ),
        arms=story_arms(),
        seeds=(0, 1, 2, 3, 4),
        refuted_if="Best-of-n at equal tokens earns as much, or look-ahead does not help.",
        metrics={"gold": "VADER's compound score of the continuation, -1 to 1", **METRICS},
        minutes=12,
        plot=draw_stories,
        notes=(
            "Samples of the model itself (400 on a seed from 1000 up): mean 0.24, standard deviation 0.40, deciles "
            "0.1 / 0.5 / 0.9 at -0.30 / 0.25 / 0.76, a quarter exactly 0; none ends within 32 tokens.",
            "All arms are given the gold reward itself, as the paper's keyword task is: what is compared is the "
            "search, at the same number of tokens. That lexicon can be pleased without a good story; the likelihood "
            "beside it says what it costs.",
            "Lambda is 10. Developed on seeds 1000 and 1001.",
        ),
    ),
}
