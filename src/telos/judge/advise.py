"""Which methods suit a data set: what was measured, what follows from it by whom, and what nobody can know from it.

Advice is a table of rules. A rule names methods and has a condition on what was measured; the reason is a sentence
with the numbers, and says whose finding it rests on: a paper's, or our own verdict on its claim. No rule has seen
the user's task: `telos compare` measures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from telos.core.errors import TelosError
from telos.core.registry import entries
from telos.data.measures import Measures, measure
from telos.data.pair_measures import PairMeasures, measure_pairs
from telos.data.records import Discrete, LoggedBandit, Preferences, Transitions
from telos.judge.results import read_results

GOOD, POOR = 0.8, 0.4
"""Trajectory quality above which imitation is hard to beat, and below which it is not worth much: the range over which
behaviour cloning's score rises with TQ in arXiv 2111.04714 (correlation 0.97 there)."""
BIASED, NOISY, CYCLIC = 0.55, 0.1, 0.05
"""Shares that count as a taste for length, as noise of labels and as cycles. Ours."""


@dataclass(frozen=True)
class Suggestion:
    """A method with the reason for or against it.

    Args:
        slug: of the method; options: what to set, as `--loss cdpo`.
        verdict: ours on its claim at laptop scale; None for a baseline.
    """

    slug: str
    reason: str
    options: str = ""
    verdict: str | None = None


@dataclass(frozen=True)
class Advice:
    """What was measured of a data set and what follows.

    Args:
        kind: the record's class name.
        measured: name -> number or text, in the order of interest.
        suited: methods, the first to try first; unsuited: methods that lack what they need here.
        unknown: what the data cannot tell.
    """

    kind: str
    measured: dict[str, Any]
    suited: tuple[Suggestion, ...]
    unsuited: tuple[Suggestion, ...]
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Rule:
    """Methods, and a function that gives the reason where they suit, or None."""

    slugs: Sequence[str]
    reason: Callable[[Any], str | None]
    options: str = ""


def advise(data: Transitions | LoggedBandit | Preferences) -> Advice:
    """Measures a data set and says which methods suit it.

    Raises:
        TelosError: another record.
    """
    maker = ADVISERS.get(type(data))
    if maker is None:
        raise TelosError(
            f"there is no advice on {type(data).__name__}", expected=" or ".join(kind.__name__ for kind in ADVISERS),
            fix="`telos papers` lists methods with the data that they learn from",
        )  # fmt: skip
    return maker(data)


def apply(rules: Sequence[Rule], facts: Any) -> tuple[Suggestion, ...]:
    """The suggestions of the rules that hold, each method once with its first reason, in the order of the rules."""
    found: dict[str, Suggestion] = {}
    for rule in rules:
        reason = rule.reason(facts)
        for slug in rule.slugs if reason is not None else ():
            if slug in entries() and slug not in found:
                found[slug] = Suggestion(slug, str(reason), rule.options, verdict(slug))
    return tuple(found.values())


def verdict(slug: str) -> str | None:
    """Our laptop verdict on a paper's claim; None for a baseline or a paper that was not measured."""
    result = recorded().get((slug, "laptop"))
    return None if result is None else "stale" if result.get("stale") else result["verdict"]


@functools.cache
def recorded() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """The recorded results, read once."""
    return read_results()


@dataclass(frozen=True)
class Facts:
    """Of transitions: the measures, and what methods ask for besides.

    Args:
        quality: TQ, between the worst and the best episode where nothing else is known.
        rewarded: whether rewards differ; discrete: whether actions are; logged: whether their probabilities are.
        chance: of rows that repeat an earlier (state, action): the share whose reward or next state is another one;
            None where nothing repeats.
        auxiliary: further responses a step.
    """

    measures: Measures
    quality: float
    rewarded: bool
    discrete: bool
    logged: bool
    chance: float | None
    auxiliary: int


def on_transitions(data: Transitions) -> Advice:
    """Advice on trajectories."""
    found = measure(data, counter="exact" if len(data) <= 2_000_000 else "hashed")
    auxiliary = getattr(data, "auxiliary", None)
    rewards = data.rewards.cpu()
    facts = Facts(
        measures=found, quality=1.0 if found.tq is None else found.tq, rewarded=bool((rewards != rewards[0]).any()),
        discrete=isinstance(data.action_space, Discrete), logged=data.log_probs is not None, chance=chance(data),
        auxiliary=0 if auxiliary is None else auxiliary.shape[1],
    )  # fmt: skip
    measured: dict[str, Any] = {
        "transitions": found.transitions, "episodes": found.episodes, "actions": "discrete" if facts.discrete else
        "continuous", "return, mean": found.returns.mean, "return, best": found.returns.most,
        "quality of the mean episode, between worst and best": found.tq,
        "unique (state, action) pairs": found.share, "other outcomes of repeated pairs": facts.chance,
        "action probabilities": "logged" if facts.logged else "not logged",
    }  # fmt: skip
    unknown = [
        "Quality is measured between the worst and the best recorded episode: how far the best one is from what is "
        "possible does not show here (telos data measure --random --expert).",
        "Coverage is a count, not a comparison: without a data set of the same environment for reference SACo, which "
        "says whether Q-learning without constraints can work, is not known (telos data measure --reference).",
        "Whether states hold all that matters; whether the environment will stay as it was recorded.",
    ]
    return Advice(
        "Transitions", {k: v for k, v in measured.items() if v is not None}, apply(SUITED, facts),
        apply(UNSUITED, facts), tuple(unknown),
    )  # fmt: skip


def chance(data: Transitions) -> float | None:
    """See `Facts`; rows are compared bit by bit, the first 200,000 of them."""
    rows = slice(0, 200_000)
    actions = data.actions[rows].cpu().float().reshape(len(data.actions[rows]), -1)
    before = torch.cat([data.observations[rows].cpu(), actions], 1).numpy()
    after = torch.cat([data.next_observations[rows].cpu(), data.rewards[rows, None].cpu()], 1).numpy()
    seen: dict[bytes, bytes] = {}
    repeats = others = 0
    for pair, outcome in zip(map(bytes, before), map(bytes, after), strict=True):
        if pair in seen:
            repeats += 1
            others += seen[pair] != outcome
        seen.setdefault(pair, outcome)
    return others / repeats if repeats >= 50 else None


def mixed(facts: Facts) -> bool:
    """Rewards, and episodes between poor and good."""
    return facts.rewarded and facts.quality < GOOD


SUITED: list[Rule] = [
    Rule(("tscac",), lambda f: f"{f.auxiliary} further responses are recorded with the reward: it learns a policy for "
         "each and keeps the main one near them" if f.auxiliary else None),
    Rule(("stitching", "gcbc", "smore", "hilp"), lambda f: None if f.rewarded else "rewards are all the same: nothing "
         "says what is wanted, so goals must (whole states that were reached serve as examples)"),
    Rule(("beso",), lambda f: None if f.rewarded or f.discrete else "play without rewards, continuous actions: "
         "denoising keeps several ways to a goal apart"),
    Rule(("bc",), lambda f: f"the mean episode is at {f.quality:.0%} of the range between worst and best: cloning "
         "follows that quality (r = 0.97 over 150 data sets, arXiv 2111.04714), and little is left to gain"
         if f.rewarded and f.quality >= GOOD else None),
    Rule(("doc",), lambda f: f"of repeated (state, action) pairs {f.chance:.0%} came out otherwise: returns mix luck "
         "and skill, which it tells apart" if f.rewarded and f.chance is not None and f.chance > 0.05 else None),
    Rule(("a2pr", "prdc"), lambda f: f"continuous actions, and episodes of mixed quality (mean at {f.quality:.0%} of "
         "the range): a value guides, a pull to better or nearer recorded actions keeps it honest"
         if mixed(f) and not f.discrete else None),
    Rule(("iql",), lambda f: "continuous actions with rewards: values of recorded actions only, the safest of the "
         "value methods" if f.rewarded and not f.discrete else None),
    Rule(("bcq", "cql", "crr"), lambda f: f"discrete actions, and episodes of mixed quality (mean at {f.quality:.0%}): "
         "constrained Q-learning needs either quality or coverage (r = 0.26 to 0.37 with TQ, 0.38 to 0.69 with SACo, "
         "arXiv 2111.04714)" if mixed(f) and f.discrete else None),
    Rule(("dqn",), lambda f: "discrete actions of which each was taken, and poor episodes: without a constraint "
         "Q-learning needs coverage (r = 0.60 with SACo, arXiv 2111.04714); try it where actions were near random"
         if mixed(f) and f.discrete and min(f.measures.action_shares or (0,)) > 0.5 / len(f.measures.action_shares or
         (0,)) and f.quality < POOR else None),
    Rule(("dual_rl",), lambda f: "continuous actions with rewards: implicit maximisers that stay tame where the "
         "Gumbel loss explodes; with a few expert episodes of the same task, ReCOIL needs no rewards"
         if f.rewarded and not f.discrete else None),
    Rule(("td3_bc",), lambda f: "the baseline to beat with continuous actions"
         if f.rewarded and not f.discrete else None),
    Rule(("bc",), lambda f: "the baseline to beat: what imitation alone earns"),
]  # fmt: skip
UNSUITED: list[Rule] = [
    Rule(("iql", "td3_bc", "a2pr", "prdc"), lambda f: "rewards are all the same" if not f.rewarded else
         "actions are discrete" if f.discrete else None),
    Rule(("dqn", "bcq"), lambda f: "actions are continuous" if not f.discrete else
         "rewards are all the same" if not f.rewarded else None),
    Rule(("doc",), lambda f: "repeated (state, action) pairs came out alike: returns hold no luck to tell apart"
         if f.chance is not None and f.chance < 0.01 else None),
    Rule(("dqn",), lambda f: f"the mean episode is at {f.quality:.0%}: near-expert data cover few actions, and "
         "Q-learning without a constraint failed on them (0.12 to 0.73 of the expert, arXiv 2111.04714)"
         if f.rewarded and f.discrete and f.quality >= GOOD else None),
]  # fmt: skip


def on_decisions(data: LoggedBandit) -> Advice:
    """Advice on logged decisions."""
    taken = np.bincount(data.actions.cpu().numpy(), minlength=data.n_actions)
    propensities = data.propensities
    measured: dict[str, Any] = {
        "decisions": len(data), "actions": data.n_actions, "actions never taken": int((taken == 0).sum()),
        "commonest action": float(taken.max() / taken.sum()), "mean reward": float(data.rewards.mean()),
        "propensities": "not logged" if propensities is None else f"{float(propensities.min()):.3g} at the least",
    }  # fmt: skip
    unknown = [
        "What actions that were never taken would have earned.",
        "Whether rewards of tomorrow are those of the log: hold out the last part (telos compare does).",
    ]
    if propensities is None:
        unknown.append("What another policy would earn, without a model: log the probability of each action taken.")
    return Advice("LoggedBandit", measured, apply(DECISIONS, data), (), tuple(unknown))


DECISIONS: list[Rule] = [
    Rule(("squarecb_adyen",), lambda data: "logged decisions of a contextual bandit: fits a reward model and explores "
         "in proportion to what it might lose"),
]  # fmt: skip


def on_pairs(data: Preferences) -> Advice:
    """Advice on preference pairs."""
    found = measure_pairs(data)
    measured: dict[str, Any] = {
        "pairs": found.pairs, "prompts": found.prompts, "pairs of the commonest prompt": found.largest,
        "equal texts": found.same, "chosen is longer": str(found.longer),
        "mean characters": f"{found.chosen_length:.0f} chosen, {found.rejected_length:.0f} rejected",
        "two judgements of one comparison differ": str(found.disagreement) if found.repeated else None,
        "so labels are wrong with probability": found.noise, "cycles among triads": str(found.cycles)
        if found.cycles.count else None, "told by words alone, held out": str(found.words) if found.words.count
        else None,
    }  # fmt: skip
    unknown = [
        "Whether the chosen texts are good, or only better than the rejected ones.",
        "In which order texts were shown: the records do not keep it, so a taste for the first one does not show.",
        "Whether your model writes texts like these: pairs of other models' texts teach less about its own "
        "(judge samples of the trained one).",
    ]
    if not found.repeated:
        unknown.append("How noisy the labels are: no comparison was judged twice.")
    if not found.cycles.count:
        unknown.append("Whether preferences run in cycles: no three texts of a prompt were all compared.")
    return Advice(
        "Preferences", {k: v for k, v in measured.items() if v is not None}, apply(PAIRS, found),
        apply(AGAINST_PAIRS, found), tuple(unknown),
    )  # fmt: skip


def cyclic(found: PairMeasures) -> bool:
    """More cycles than CYCLIC, and than wrong labels make of an order: p (1 - p) of the triads.

    p is the noise that repeats show; without repeats the errors of the words' model are its upper bound.
    """
    most = found.noise if found.noise is not None else min(0.5, 1 - found.words.low)
    return found.cycles.count > 0 and found.cycles.low > max(CYCLIC, most * (1 - most))


PAIRS: list[Rule] = [
    Rule(("inpo", "dno", "nash_md"), lambda p: f"preferences run in cycles ({p.cycles} triads): no reward orders these "
         "texts, a game's equilibrium still exists; they need a judge of pairs" if cyclic(p) else None),
    Rule(("dpo",), lambda p: f"labels are wrong with probability {p.noise:.2f} by repeated judgements: say so in the "
         f"loss (label_smoothing {p.noise:.2f})" if p.noise is not None and NOISY <= p.noise < 0.45 else None,
         "--loss cdpo --label-smoothing P"),
    Rule(("rm_ensembles",), lambda p: "labels are noisy: the minimum of several reward models is fooled less than one"
         if p.noise is not None and p.noise >= NOISY else None),
    Rule(("dpo",), lambda p: f"the chosen text is the longer one in {p.longer}: a sum over tokens learns length; "
         "compare a mean over tokens" if p.longer.low > BIASED or p.longer.high < 1 - BIASED else None,
         "--average-log-probs"),
    Rule(("dpo",), lambda p: "the baseline to beat on pairs: one stage, no sampling"),
    Rule(("rpo",), lambda p: "pairs cover part of what a model may write: it also imitates the chosen texts"),
    Rule(("rso",), lambda p: "with a reward model fitted to the pairs it trains on pairs of the model's own texts"),
    Rule(("reward_model",), lambda p: "a judge for best-of-n, RL (ppo, rloo, p3o) or the methods that ask for one"),
]  # fmt: skip
AGAINST_PAIRS: list[Rule] = [
    Rule(("reward_model",), lambda p: f"preferences run in cycles ({p.cycles} triads): one score a text cannot say so"
         if cyclic(p) else None),
]  # fmt: skip

ADVISERS: dict[type, Callable[[Any], Advice]] = {
    Transitions: on_transitions,
    LoggedBandit: on_decisions,
    Preferences: on_pairs,
}
