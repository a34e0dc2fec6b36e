"""What claims about language models measure: gold reward and KL along training, and frontiers over all settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from telos.core.products import Generator
from telos.judge.claim import Measures, Trial
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import Purpose
from telos.lm.tokens import pad, tokenise_prompts


@functools.cache
def frozen_model(name: str) -> LanguageModel:
    """A bundled model, frozen, loaded once a process."""
    return load_model(name).frozen()


@dataclass(frozen=True)
class Scene:
    """A world of texts as its claims see it.

    Args:
        model: the reference, by name.
        prompts: (count, generator) -> prompts to measure on.
        gold: the measure; no arm trains on it unless the claim says so.
        new_tokens: longest completion.
        samples: completions that a measurement takes.
    """

    model: str
    prompts: Callable[[int, np.random.Generator], list[str]]
    gold: Purpose
    new_tokens: int
    samples: int

    @property
    def reference(self) -> LanguageModel:
        return frozen_model(self.model)

    @torch.no_grad()
    def measure(self, trial: Trial, policy: Generator) -> dict[str, float]:
        """Mean gold and KL to the reference (Monte Carlo, the same prompts and sampling stream for every arm).

        The reference reads the plain prompt, whatever text the policy itself puts around it.
        """
        rng = trial.rng.at("evaluation")
        prompts = self.prompts(trial.count(self.samples), rng.at("prompts").numpy())
        drawn = policy.generate(
            prompts, rng=rng.at("samples").torch(), max_new_tokens=self.new_tokens, batch_size=self.samples
        )
        rows = zip(drawn.tokens, drawn.boundaries, drawn.lengths, strict=True)
        written = [tokens[start:end].numpy() for tokens, start, end in rows]
        plain = pad(tokenise_prompts(self.reference, prompts, self.new_tokens), written)
        kl = (drawn.log_probs.sum(-1) - sequence_log_probs(self.reference, plain)).mean()
        return {"gold": float(np.asarray(self.gold(prompts, drawn.texts)).mean()), "kl": float(kl)}

    def tracked(self, trial: Trial, fit: Callable[[Any], Any]) -> Measures:
        """Calls fit(evaluate); the points of the curve from the reference on, and the last of them."""
        points = [{"step": 0.0, **self.measure(trial, LanguagePolicy(self.reference))}]

        def evaluate(step: int, product: Callable[[], Any]) -> Mapping[str, float]:
            points.append({"step": float(step), **self.measure(trial, product())})
            return {"gold": points[-1]["gold"], "kl": points[-1]["kl"]}

        fit(evaluate)
        return {"gold": points[-1]["gold"], "kl": points[-1]["kl"], "points": points}


def staircase(points: Sequence[Mapping[str, float]], band: tuple[float, float]) -> float:
    """Mean over KL budgets in the band of the highest gold reached within the budget.

    Points start with the reference, whose KL is 0. Beyond the largest KL reached the curve is flat: a method that does
    not go there gains nothing from a larger budget.
    """
    first, last = band
    budgets = [first + (last - first) * i / 28 for i in range(29)]
    best = [max(p["gold"] for p in points if p["kl"] <= budget) for budget in budgets]
    return sum(best) / len(best)


def frontiers(
    measures: Mapping[str, Measures], groups: Mapping[str, str], band: tuple[float, float]
) -> dict[str, dict[str, float]]:
    """For each group of arms (arm -> group) the frontier over all logged checkpoints of all its settings."""
    points: dict[str, list[dict[str, float]]] = {}
    for arm, measured in measures.items():
        points.setdefault(groups[arm], []).extend(measured["points"])
    return {
        group: {"frontier": staircase(found, band), "furthest": max(point["kl"] for point in found)}
        for group, found in points.items()
    }
