"""SALSA's claim: at a binding KL coefficient a soup as reference lets RL earn more than its start as reference.

World: TinySent (dossier). Two small fine-tunings of the pre-trained model, on disjoint halves of 600 tilted sentences,
give theta_1 and theta_2; RL from theta_1 on the gold reward is anchored to theta_1, to their soup, or to one model that
was fine-tuned on all 600.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from telos.core.method import Method
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Demonstrations, Prompts
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.language import Scene, frontiers
from telos.judge.plots import plane
from telos.judge.verdict import Better
from telos.lm.log_probs import reference_log_probs, sequence_log_probs
from telos.lm.model import TINY, LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.soup import soup
from telos.lm.tokens import Sequences, tokenise
from telos.worlds import tiny_sent

SENTENCES, TILT = 600, 0.4
SFT_STEPS, SFT_RATE, SFT_BATCH = 60, 1e-3, 48
STEPS, EVERY, NEW_TOKENS = 120, 20, 21
SAMPLES = 2048
BAND = (3.0, 9.0)
SCENE = Scene(TINY, tiny_sent.prompts, tiny_sent.gold, NEW_TOKENS, samples=512)


def sentences(count: int, rng: Rng) -> Demonstrations:
    """Sentences of the tilted corpus."""
    prompts, texts = tiny_sent.sentences(count, rng.numpy(), positive_odds=TILT)
    return Demonstrations(prompts, [f" {text}" for text in texts])


@functools.lru_cache(maxsize=2)
def checkpoints(seed: int, count: int, steps: int) -> dict[str, LanguageModel]:
    """Fine-tuned on the first half, on the second half, and on all, with as many passes over the data."""
    data = sentences(count, Rng(seed).at("sft"))
    half = count // 2
    parts = {"one": (slice(0, half), steps), "two": (slice(half, count), steps), "all": (slice(0, count), 2 * steps)}
    method = use("sft", learning_rate=SFT_RATE, batch_size=SFT_BATCH)
    return {
        name: method.fit(data[rows], model=SCENE.reference, steps=taken, seed=2 * seed + number, device="cpu").model
        for number, (name, (rows, taken)) in enumerate(parts.items())
    }


def run(trial: Trial, method: Method, other: str, anchor: str) -> Measures:
    """RL on gold from theta_1, and what came of it.

    Args:
        method: SALSA.
        other: the checkpoint besides theta_1: "two" or "all".
        anchor: what the method's KL refers to: "one", "soup" or "all".
    """
    models = checkpoints(trial.seed, trial.count(SENTENCES), trial.steps(SFT_STEPS))
    anchors: dict[str, LanguageModel] = {**models, "soup": soup([models["one"], models["two"]])}
    prompts = Prompts(tiny_sent.prompts(4096, trial.rng.at("prompts").numpy()))
    trained: list[LanguagePolicy] = []

    def fit(evaluate: Any) -> None:
        policy = trial.fit(
            method, prompts, steps=STEPS, evaluate=evaluate, evaluate_every=EVERY, model=models["one"],
            reference=models[other], purpose=tiny_sent.gold,
        )  # fmt: skip
        trained.append(policy)

    tracked = SCENE.tracked(trial, fit)
    references = {"kl": SCENE.reference, "kl_start": models["one"], "kl_anchor": anchors[anchor]}
    return {
        **measure(trial, trained[0], references),
        "start": measure(trial, LanguagePolicy(models["one"]), {})["gold"],
        "nll": held_out(trial, anchors[anchor]),
        "points": tracked["points"],
    }


@torch.no_grad()
def measure(trial: Trial, policy: LanguagePolicy, references: Mapping[str, LanguageModel]) -> dict[str, float]:
    """Mean gold, and the KL to each reference on the same samples, whose streams are the same for every arm."""
    rng = trial.rng.at("final")
    prompts = tiny_sent.prompts(trial.count(SAMPLES), rng.at("prompts").numpy())
    drawn = policy.generate(prompts, rng=rng.at("samples").torch(), max_new_tokens=NEW_TOKENS, batch_size=512)
    sequences = Sequences(drawn.tokens, drawn.lengths, drawn.boundaries)
    own = drawn.log_probs.sum(-1)
    kls = {name: float((own - sequence_log_probs(model, sequences)).mean()) for name, model in references.items()}
    return {"gold": float(tiny_sent.gold(drawn.prompts, drawn.texts).mean()), **kls}


def held_out(trial: Trial, model: LanguageModel) -> float:
    """Nats a token on fresh sentences of the tilted corpus."""
    groups = tokenise(model, sentences(trial.count(500), trial.rng.at("held")))
    return -float(reference_log_probs(model, groups).sum()) / sum(len(group[0]) for group in groups.completions)


def matched(measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
    """Gold at equal KL to the pre-trained model, over both coefficients' checkpoints."""
    groups = {name: arm.group for name, arm in CLAIMS["laptop"].arms.items()}
    return {f"{group}_matched": found for group, found in frontiers(measures, groups, BAND).items()}


def draw(result: dict[str, Any], path: Path) -> None:
    """Gold against the KL to the pre-trained model along training."""
    plane(result, path, x="kl", y="gold", band=BAND)


def arms() -> dict[str, Arm]:
    """The same RL, start, prompts, streams and steps; only the reference differs."""
    found: dict[str, Arm] = {}
    kinds: tuple[tuple[str, str, Callable[..., Any], str, str], ...] = (
        ("soup", "soup", functools.partial(use, "salsa"), "two", "soup"),
        ("start", "theta_1 (plain RL)", functools.partial(use, "salsa", anchor="start"), "two", "one"),
        ("all", "one SFT on all", functools.partial(use, "salsa", alpha=0.0), "all", "all"),
    )
    for beta in (1.0, 0.3):
        rl = use("rloo", beta=beta, learning_rate=2e-4, max_new_tokens=NEW_TOKENS)
        for name, label, salsa, other, anchor in kinds:
            if name == "all" and beta < 1:
                continue
            options = {"method": salsa(rl=rl), "other": other, "anchor": anchor}
            found[f"{name}_{beta:g}"] = Arm(run, options, label=f"{label}, beta {beta:g}", group=name)
    return found


CLAIMS = {
    "laptop": Claim(
        statement="At KL coefficient 1, RL from theta_1 with the soup of two fine-tuned models as reference earns more "
        "gold reward than with theta_1, at a larger KL from theta_1, and more than with one model fine-tuned on all "
        "the data.",
        source="abstract: better than PPO, at a larger deviation",
        world="TinySent: 0.1 M-parameter model, two fine-tunings on 300 sentences each",
        parts=(
            Better("soup_1", "start_1", "gold"),
            Better("soup_1", "start_1", "kl_start"),
            Better("soup_1", "all_1", "gold"),
        ),
        arms=arms(),
        seeds=(0, 1, 2, 3, 4),
        refuted_if="The gain at beta 1 is not positive, or one model fine-tuned on all 600 sentences is as good a "
        "reference.",
        metrics={
            "gold": "gold reward after 120 updates, mean of 2048 samples",
            "kl_start": "KL to theta_1 on the same samples, nats",
            "kl_anchor": "KL to the arm's own reference, nats",
            "kl": "KL to the pre-trained model, nats",
            "frontier": "gold at matched KL to the pre-trained model: mean over budgets of 3 to 9 nats of the best "
            "within the budget, over all checkpoints of both coefficients",
            "nll": "nats a token of the arm's reference on fresh sentences of the corpus that it was fine-tuned on",
            "start": "gold reward of theta_1",
        },
        minutes=5,
        derive=matched,
        plot=draw,
        notes=(
            "RLOO (16 prompts x 4 samples, AdamW 2e-4) stands for PPO, for cost; the method's default is PPO.",
            "The purpose is gold itself: no reward model stands between. Plain RL is SALSA with anchor=start, which "
            "has the same random streams.",
            "Fine-tuning takes 60 steps (the one on all sentences 120, as many passes), not the dossier's 200: with "
            "200 our model overfits to 3.85 nats a token, with 60 it has the 3.02 that the dossier's prototype had.",
            "At beta 0.3 the dossier expects no difference; it is measured and not judged, as is gold at equal KL to "
            "the pre-trained model: the paper does not tell a better anchor from a weaker pull.",
            "Developed on seeds 1000 to 1002, on which the model fine-tuned on all sentences was as good a reference.",
        ),
    ),
}
