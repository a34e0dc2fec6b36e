"""All preference methods on one plane of gold reward against KL: the comparison that no paper gives.

World: TinySent, as in DPO's claim. All that anybody learns from are the same noisy pairs: some methods read them, the
others ask the one reward model that was fitted to them. Not a paper's claim but a family's: its page is the family's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from telos.claims.dpo import BAND, NEW_TOKENS, SCENE, pairs, reward_model
from telos.core.method import Method
from telos.core.products import Scorer
from telos.core.registry import use
from telos.data.records import Demonstrations, Preferences, Prompts
from telos.data.scored import ScoredTexts
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.language import frontiers, staircase
from telos.judge.plots import MARKERS, PALETTE, figure, heading
from telos.judge.verdict import Better
from telos.lm.model import TINY, LanguageModel
from telos.worlds import tiny_sent

PROMPTS, REWARD_STEPS, STEPS, EVERY = 1500, 200, 80, 16
SFT_STEPS = 40
BUDGETS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
"""Nats at which the frontiers are drawn."""
GOALS, TEMPLATE = 10, "<spare{score}> {prompt}"


def run(trial: Trial, method: Method, learns_from: str) -> Measures:
    """Trains a method on what it learns from, and measures it along the way."""
    data, given = SUPPLIES[learns_from](trial)
    fit = functools.partial(trial.fit, method, data, steps=STEPS, evaluate_every=EVERY, **{"model": TINY, **given})
    return SCENE.tracked(trial, lambda evaluate: fit(evaluate=evaluate))


def noisy_pairs(trial: Trial) -> Preferences:
    """The pairs of DPO's claim: 4 samples of each of 1,500 prompts, all pairs, labelled by Bradley-Terry."""
    return pairs(trial.seed, trial.count(PROMPTS))


def scorer(trial: Trial) -> Scorer:
    """A reward model on the pairs."""
    return reward_model(trial.seed, trial.count(PROMPTS), trial.steps(REWARD_STEPS))


def from_pairs(trial: Trial) -> tuple[Any, dict[str, Any]]:
    """The pairs as they are."""
    return noisy_pairs(trial), {}


def from_scores(trial: Trial) -> tuple[Any, dict[str, Any]]:
    """The pairs' texts with the reward model's scores."""
    data = noisy_pairs(trial)
    return ScoredTexts(data.prompts, texts_of(data), scores_of(trial)), {}


def from_goals(trial: Trial) -> tuple[Any, dict[str, Any]]:
    """The same scores as whole numbers of 0 to 10: mean 5, two a standard deviation."""
    data, scores = noisy_pairs(trial), np.array(scores_of(trial))
    grades = np.clip(np.round(5 + 2 * (scores - scores.mean()) / scores.std()), 0, GOALS).astype(int)
    return ScoredTexts(data.prompts, texts_of(data), grades.tolist()), {}


def from_purpose(trial: Trial) -> tuple[Any, dict[str, Any]]:
    """Prompts, and the reward model as the purpose."""
    return rl_prompts(trial), {"purpose": scorer(trial)}


def from_ensemble(trial: Trial) -> tuple[Any, dict[str, Any]]:
    """The worst of three reward models as the purpose."""
    return rl_prompts(trial), {"purpose": ensemble(trial.seed, trial.count(PROMPTS), trial.steps(REWARD_STEPS))}


def from_soup(trial: Trial) -> tuple[Any, dict[str, Any]]:
    """The reward model as the purpose, and two models fine-tuned on the chosen texts of half of the pairs each."""
    first, second = fine_tuned(trial.seed, trial.count(PROMPTS), trial.steps(SFT_STEPS))
    return rl_prompts(trial), {"purpose": scorer(trial), "model": first, "reference": second}


SUPPLIES: dict[str, Callable[[Trial], tuple[Any, dict[str, Any]]]] = {
    "pairs": from_pairs, "scores": from_scores, "goals": from_goals, "purpose": from_purpose,
    "ensemble": from_ensemble, "soup": from_soup,
}  # fmt: skip


def rl_prompts(trial: Trial) -> Prompts:
    """As many prompts as the pairs were made of, drawn anew."""
    return Prompts(tiny_sent.prompts(trial.count(PROMPTS), trial.rng.at("rl-prompts").numpy()))


def texts_of(data: Preferences) -> list[tuple[Any, Any]]:
    """The chosen and the rejected text of each pair."""
    return list(zip(data.chosen, data.rejected, strict=True))


def scores_of(trial: Trial) -> list[tuple[float, float]]:
    """The reward model's scores of the chosen and the rejected text of each pair."""
    data, model = noisy_pairs(trial), scorer(trial)
    chosen, rejected = (model.score(list(data.prompts), list(texts)) for texts in (data.chosen, data.rejected))
    return [(float(a), float(b)) for a, b in zip(chosen, rejected, strict=True)]


@functools.lru_cache(maxsize=2)
def ensemble(seed: int, count: int, steps: int) -> Scorer:
    """The minimum of three reward models on the pairs, each trained as the single one."""
    member = use("reward_model", learning_rate=1e-3, batch_size=48)
    method = use("rm_ensembles", member=member, members=3, objective="wco")
    return method.fit(pairs(seed, count), model=TINY, steps=3 * steps, seed=seed, device="cpu")


@functools.lru_cache(maxsize=2)
def fine_tuned(seed: int, count: int, steps: int) -> tuple[LanguageModel, LanguageModel]:
    """Two models, fine-tuned on the chosen texts of half of the pairs each."""
    data = pairs(seed, count)
    texts = Demonstrations(data.prompts, data.chosen)
    method, half = use("sft", learning_rate=3e-4, batch_size=48), len(data) // 2
    first, second = (
        method.fit(texts[rows], model=TINY, steps=steps, seed=2 * seed + number, device="cpu").model
        for number, rows in enumerate((slice(0, half), slice(half, len(data))))
    )
    return first, second


OFFLINE: dict[str, Any] = {"learning_rate": 3e-4, "warmup_steps": 0, "batch_size": 48}
ROUNDS: dict[str, Any] = {**OFFLINE, "rounds": 3, "prompts_per_round": 500, "samples_per_prompt": 4}
ONLINE: dict[str, Any] = {"learning_rate": 2e-4, "max_new_tokens": NEW_TOKENS}


def settings() -> dict[str, tuple[str, str, list[tuple[str, Method]]]]:
    """Group -> its name, what it learns from, and its three settings."""
    found: dict[str, tuple[str, str, list[tuple[str, Method]]]] = {}

    def add(group: str, name: str, learns_from: str, slug: str, option: str, values: tuple[float, ...], **fixed: Any):
        methods = [(f"{option}={value:g}", use(slug, **{**fixed, option: value})) for value in values]
        found[group] = (name, learns_from, methods)

    add("dpo", "DPO", "pairs", "dpo", "beta", (0.05, 0.1, 0.3), **OFFLINE)
    add("ipo", "IPO", "pairs", "dpo", "beta", (0.03, 0.1, 0.3), loss="ipo", **OFFLINE)
    add("rpo", "RPO", "pairs", "rpo", "eta", (0.005, 0.02, 0.1), beta=0.1, **OFFLINE)
    add("rso", "RSO", "purpose", "rso", "gamma", (0.05, 0.1, 0.3), candidates=16, num_samples=4, beta=1.0,
        temperature=1.0, top_k=0, max_new_tokens=NEW_TOKENS, **OFFLINE)  # fmt: skip
    add("ra_dpo", "RA-DPO", "goals", "ra_dpo", "learning_rate", (3e-4, 1e-3, 3e-3), template=TEMPLATE, decimals=0,
        beta=0.1, **OFFLINE)  # fmt: skip
    add("copg", "CoPG", "scores", "copg", "beta", (0.1, 0.3, 1.0), **OFFLINE)
    add("dno", "DNO", "purpose", "dno", "eta", (0.1, 0.3, 1.0), pairs="every", temperature=1.0, top_p=1.0,
        max_new_tokens=NEW_TOKENS, **ROUNDS)  # fmt: skip
    add("inpo", "INPO", "purpose", "inpo", "eta", (0.05, 0.1, 0.2), tau=0.02, max_new_tokens=NEW_TOKENS, **ROUNDS)
    add("nash_md", "Nash-MD", "purpose", "nash_md", "learning_rate", (5e-4, 1e-3, 2e-3), tau=0.02,
        max_new_tokens=NEW_TOKENS)  # fmt: skip
    add("f_dpg", "f-DPG", "purpose", "f_dpg", "beta", (0.05, 0.1, 0.3), **ONLINE)
    add("online_dpo", "online DPO", "purpose", "online_dpo", "beta", (0.05, 0.1, 0.3), **ONLINE)
    add("rloo", "RLOO", "purpose", "rloo", "beta", (0.02, 0.05, 0.1), **ONLINE)
    add("wco", "RLOO, worst of 3", "ensemble", "rloo", "beta", (0.02, 0.05, 0.1), **ONLINE)
    betas = (0.02, 0.05, 0.1)
    soups = [(f"beta={beta:g}", use("salsa", rl=use("rloo", beta=beta, **ONLINE))) for beta in betas]
    found["salsa"] = ("SALSA", "soup", soups)
    add("sft", "fine-tuning on the chosen", "pairs", "sft", "learning_rate", (1e-4, 3e-4, 1e-3), batch_size=48)
    return found


def arms() -> dict[str, Arm]:
    """Three settings of each method: as many updates, checkpoints and tuning effort."""
    return {
        f"{group}_{number}": Arm(
            run, {"method": method, "learns_from": learns_from}, label=f"{name} {setting}", group=group
        )
        for group, (name, learns_from, methods) in settings().items()
        for number, (setting, method) in enumerate(methods)
    }


def compared(measures: Mapping[str, Measures]) -> dict[str, dict[str, float]]:
    """Each method's frontier over all checkpoints of its settings: in the band, and at each of the budgets."""
    groups = {name: arm.group for name, arm in CLAIMS["standard"].arms.items()}
    found = frontiers(measures, groups, BAND)
    for name, measured_of in measures.items():
        for budget in BUDGETS:
            key, reached = f"within_{budget}", staircase(measured_of["points"], (budget, budget))
            found[groups[name]][key] = max(reached, found[groups[name]].get(key, reached))
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """The frontiers with intervals over seeds, and what each method scores, best first."""
    arms = {name: arm for name, arm in result["arms"].items() if "frontier" in arm["summary"]}
    order = sorted(arms, key=lambda name: -arms[name]["summary"]["frontier"]["mean"])
    names = {group: name for group, (name, _, _) in settings().items()}
    with figure(path, width=10.0, height=5.6, columns=2) as (drawn, axes):
        plane, scores = axes[0]
        plane.axvspan(*BAND, color="#F2F2F2", lw=0, zorder=0)
        for place, name in enumerate(order):
            colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
            style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "mec": "white", "mew": 0.6}
            summary = arms[name]["summary"]
            means = [summary[f"within_{budget}"]["mean"] for budget in BUDGETS]
            ends = [summary[f"within_{budget}"]["interval"] for budget in BUDGETS]
            shifted = np.array(BUDGETS) + 0.03 * (place - len(order) / 2)  # intervals side by side
            dashed = "--" if place >= len(PALETTE) else "-"
            plane.plot(shifted, means, ls=dashed, lw=1.2, **style)
            low, high = ([end and end[side] for end in ends] for side in ("low", "high"))
            if all(ends):
                plane.vlines(shifted, low, high, color=colour, lw=0.8, alpha=0.5)
            whole = summary["frontier"]
            if whole["interval"]:
                scores.plot([whole["interval"]["low"], whole["interval"]["high"]], [place, place], color=colour, lw=2)
            scores.plot(whole["mean"], place, ls="", **{**style, "ms": 7})
        plane.set_xlabel("KL to the reference, nats")
        plane.set_ylabel("best gold reward within this KL")
        scores.set_yticks(range(len(order)), [names[name] for name in order])
        scores.set_ylim(len(order) - 0.5, -0.5)
        scores.grid(axis="y", visible=False)
        scores.set_xlabel(f"mean over budgets of {BAND[0]:g} to {BAND[1]:g} nats (shaded)")
        heading(drawn, result, 10.0)


CLAIMS = {
    "standard": Claim(
        statement="From the same noisy pairs and in as many updates, every preference method reaches more gold reward "
        "at equal KL (3 to 10 nats) than fine-tuning on the chosen texts, by at least 1.",
        source="a comparison of ours: no paper has it",
        world="TinySent: 0.1 M-parameter model, 8k noisy pairs",
        parts=tuple(Better(group, "sft", "frontier", margin=1.0) for group in settings() if group != "sft"),
        arms=arms(),
        seeds=(0, 1, 2, 3, 4),
        refuted_if="A method's frontier lies less than 1 above that of fine-tuning on the chosen texts.",
        metrics={
            "frontier": "mean over KL budgets of 3 to 10 nats of the best gold reached within the budget, over all "
            "logged checkpoints of all settings; flat beyond the furthest",
            "furthest": "largest KL that any checkpoint of the method has, nats",
            "gold": "gold reward, mean of 512 samples",
            "kl": "KL to the reference on the plain prompt, on the same samples, nats",
            **{f"within_{budget}": f"best gold reached within {budget} nats" for budget in BUDGETS},
        },
        minutes=60,
        derive=compared,
        plot=draw,
        notes=(
            "One data set: 1,500 prompts with 4 samples of the reference each, all pairs, labelled by Bradley-Terry on "
            "gold. DPO, IPO, RPO and fine-tuning read the pairs; CoPG and RA-DPO the pairs' texts with the scores of a "
            "reward model fitted to the pairs; the others write their own texts, which that reward model scores.",
            "One budget: 80 updates of 48 pairs (or 64 to 96 texts), a checkpoint every 16, three settings each of the "
            "coefficient that holds the policy at the reference or, where on development seeds that did not move it "
            "(RA-DPO, Nash-MD, fine-tuning), of the step size. Texts that a method writes itself are not counted.",
            "Other step sizes are DPO's claim's: 3e-4 on fixed or gathered pairs, 2e-4 on fresh samples.",
            "RSO accepts 4 of 16 candidates of 1,500 prompts (paper: 8 of 64), at temperature 1 as all others.",
            "SALSA starts from a model fine-tuned on half of the chosen texts: 40 further updates, and a KL at once.",
            "RA-DPO is asked for the top score; its KL is that of what it writes against the reference on the plain "
            "prompt.",
            "The best over checkpoints is taken from the samples that score it: the same small bias for all.",
            "The order of the methods is that of this world, with a good reward model and texts of 15 words; what is "
            "judged is only that each is above fine-tuning. Developed on seed 1000.",
        ),
    ),
}
