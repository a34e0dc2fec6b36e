"""Off-policy evaluation: what a policy would earn, estimated from a log of another one's actions.

| estimator     | from      | needs                                  | wrong where                             |
|---------------|-----------|----------------------------------------|-----------------------------------------|
| ips           | decisions | propensities                           | the log lacks what the target does      |
| snips         | decisions | propensities                           | as above; a bias of order 1/n           |
| direct        | decisions | nothing                                | the reward model is                     |
| doubly robust | decisions | propensities                           | both reward model and propensities are  |
| pdis          | episodes  | log_probs, a policy with probabilities | the log lacks what the target does      |
| snpdis        | episodes  | as above                               | as above; a bias of order 1/n           |
| fitted q      | episodes  | nothing                                | the value model is                      |

The target is the policy as it acts with its own chance (`greedy=True`: its most probable action). Episodes count with
the rewards up to their logged end; fitted q alone goes on after a truncation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.products import Policy
from telos.core.rng import Rng
from telos.data.environments import policy_device
from telos.data.records import Box, Discrete, LoggedBandit, Transitions
from telos.judge.evaluate import policy_space
from telos.judge.fitted_q import fitted_q
from telos.judge.reward_model import cross_fitted
from telos.judge.stats import Interval, bootstrap_mean, paired_t
from telos.ops import off_policy as ops

LEAST_SHARE, LEAST_SAMPLES = 0.05, 30
"""Effective sample sizes below these (relative, absolute) are warned of."""
NEVER_TAKEN = 0.01
"""Target mass on actions that the log never has, above which it is warned of."""
MEAN_WEIGHT = 0.05
"""Distance of the mean weight from 1 above which it is warned of, if the 95 % interval excludes 1."""
FAR_SHARE = 0.25
"""Share of the target's continuous actions farther from the log than 95 % of the logged ones, above which ..."""
DRAWS = 4
"""Actions drawn at each observation where the target is a density."""
CHUNK = 4096

MODEL_ONLY = "the interval is over {what}: it does not cover the error of the {model} model"


@dataclass(frozen=True)
class Estimate:
    """One estimator's value of the target policy.

    Args:
        interval: 95 %; None for a single decision or episode.
        ess: effective sample size (sum w)^2 / sum w^2 where there are weights.
        note: what the interval does not cover.
    """

    value: float
    interval: Interval | None
    ess: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        interval = (
            {} if self.interval is None else {"low": self.interval.low, "high": self.interval.high, "level": 0.95}
        )
        return {"estimate": self.value, **interval, "ess": self.ess, "note": self.note}


@dataclass(frozen=True)
class OffPolicy:
    """What the log says of the target policy.

    Args:
        unit: "decisions" or "episodes"; count: how many.
        logged: the mean reward of a decision, or the mean (discounted) return of an episode, as logged.
        estimates: by name, in the order of the module's table.
        skipped: name -> why that estimator was not run.
        warnings: where the log does not support the target; empty where it does.
        support: the numbers behind them: never_taken (target mass on actions that the log never has), mean_weight and
            max_weight (before clipping), clipped (share of weights), ess, far (continuous actions).
        discount, clip, greedy: as given.
    """

    unit: str
    count: int
    logged: Estimate
    estimates: dict[str, Estimate]
    skipped: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    support: dict[str, float] = field(default_factory=dict)
    discount: float | None = None
    clip: float | None = None
    greedy: bool = False

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {
            "warnings": list(self.warnings), "unit": self.unit, "count": self.count, "discount": self.discount,
            "clip": self.clip, "greedy": self.greedy, "logged": self.logged.to_json(),
            "estimates": {name: estimate.to_json() for name, estimate in self.estimates.items()},
            "skipped": self.skipped, "support": self.support,
        }  # fmt: skip


Goal = Sequence[float] | Tensor | Callable[[Tensor], Tensor]
"""A raw goal (G,) for all rows, or what makes goals (B, G) of observations (B, O)."""


def off_policy(
    policy: Policy, log: LoggedBandit | Transitions, *, goal: Goal | None = None, discount: float = 0.99,
    clip: float | None = None, greedy: bool = False, seed: int = 0,
) -> OffPolicy:  # fmt: skip
    """Estimates what `policy` earns: the mean reward of a decision, or the discounted return of an episode.

    Args:
        goal: what a policy that acts on goals is asked for; see `Goal`, and `goal_in` for goals that were observed.
        discount: of trajectories, in (0, 1]; decisions have none.
        clip: the most that an importance weight counts for (of trajectories a cumulative one); lowers the variance and
            biases towards the reward of what is not clipped. None for no limit.
        greedy: evaluate the policy's most probable action in place of its probabilities.
        seed: of folds, features, drawn actions and the bootstrap.

    Raises:
        TelosError: another record or product, options out of range, a policy for other observations or actions.
    """
    if not isinstance(policy, Policy):
        raise TelosError(f"a {type(policy).__name__} does not act", expected="a Policy")
    if not isinstance(log, LoggedBandit | Transitions):
        raise TelosError(
            "off-policy evaluation reads logged decisions or transitions", expected="LoggedBandit or Transitions",
            got=type(log).__name__,
        )  # fmt: skip
    if not 0 < discount <= 1 or (clip is not None and not clip > 0):
        raise TelosError(
            "off-policy evaluation: an option is out of range", expected="0 < discount <= 1, clip > 0",
            got=f"discount={discount}, clip={clip}",
        )  # fmt: skip
    ours = getattr(policy, "n_actions", None)
    ours = Discrete(ours) if isinstance(ours, int) else policy_space(policy)
    theirs = Discrete(log.n_actions) if isinstance(log, LoggedBandit) else log.action_space
    if ours is not None and (type(ours), ours.size) != (type(theirs), theirs.size):
        raise TelosError(
            "the log's actions do not fit the policy", expected=str(ours), got=str(theirs),
            fix="evaluate on a log of the actions that the policy was trained for",
        )  # fmt: skip
    target = Target(policy, greedy, goal)
    rng = Rng(seed).at("off-policy")
    training = policy.training
    policy.eval()
    try:
        with torch.no_grad():
            if isinstance(log, LoggedBandit):
                report = decisions(target, log, clip, rng)
            else:
                report = trajectories(target, log, discount, clip, rng)
    finally:
        policy.train(training)
    if policy.provenance.get("fingerprint") != log.fingerprint():
        return report
    same = "the policy was trained on this very log: the estimates are too high, evaluate on data that it has not seen"
    return replace(report, warnings=(same, *report.warnings))


def goal_in(columns: str) -> Callable[[Tensor], Tensor]:
    """Goals that stand in columns of the observations, as "2,3" names them.

    Raises:
        TelosError: no column numbers; later, columns that the observations lack.
    """
    numbers = [int(word) for word in columns.split(",") if word.strip().isdecimal()]
    if len(numbers) != columns.count(",") + 1:
        raise TelosError(
            "goals of records are columns of their observations", expected="column numbers, as 2,3", got=columns
        )

    def goals(observations: Tensor) -> Tensor:
        if max(numbers) >= observations.shape[1]:
            size = observations.shape[1]
            raise TelosError("goals: no such column", expected=f"column numbers 0 to {size - 1}", got=columns)
        return observations[:, numbers]

    return goals


class Target:
    """The policy that is evaluated: as it draws its actions, or greedy; on its way to a goal, if it has one."""

    def __init__(self, policy: Policy, greedy: bool, goal: Goal | None = None):
        self.policy, self.greedy, self.device = policy, greedy, policy_device(policy)
        self.goal = goal

    def asked(self, seen: Tensor) -> dict[str, Any]:
        """What the policy is told besides observations."""
        if self.goal is None:
            return {}
        return {"goal": self.goal(seen) if callable(self.goal) else self.goal}

    def probabilities(self, observations: Tensor, actions: int, mask: Tensor | None = None) -> Tensor:
        """(N, K) float64 of discrete actions; 0 and 1 where the policy has no probabilities, or is greedy.

        Raises:
            TelosError: the policy has another number of actions.
        """
        parts = []
        for rows in torch.arange(len(observations)).split(CHUNK):
            seen = observations[rows].to(self.device)
            allowed = None if mask is None else mask[rows].to(self.device)
            parts.append(self.chunk(seen, actions, allowed).double().cpu())
        found = torch.cat(parts)
        if found.shape != (len(observations), actions) or not torch.allclose(
            found.sum(1), torch.ones(len(found), dtype=torch.float64), atol=1e-3
        ):
            sums = found.sum(-1)
            raise TelosError(
                "the policy's probabilities do not fit the log",
                expected=f"shape ({len(observations)}, {actions}), rows that sum to 1",
                got=f"shape {tuple(found.shape)}, sums {float(sums.min()):.3g} to {float(sums.max()):.3g}",
                fix="evaluate on a log of the actions that the policy was trained for",
            )  # fmt: skip
        return found

    def chunk(self, seen: Tensor, actions: int, allowed: Tensor | None) -> Tensor:
        """(B, K) of a batch."""
        if not self.greedy:
            method = getattr(self.policy, "probabilities", None)
            if method is not None and self.goal is None:
                return method(seen, allowed)
            asked = {"mask": allowed, **self.asked(seen)}
            try:
                every = torch.arange(actions, device=self.device).expand(len(seen), -1).unbind(1)
                return torch.stack([self.policy.log_prob(seen, action, **asked).exp() for action in every], 1)
            except TelosError:
                pass  # a deterministic policy
        chosen = self.policy.act(seen, mask=allowed, **self.asked(seen)).action.long()
        if int(chosen.max()) >= actions:
            raise TelosError(f"the policy takes action {int(chosen.max())}", expected=f"one of the log's {actions}")
        return torch.nn.functional.one_hot(chosen, actions)

    def log_prob(self, data: Transitions) -> Tensor:
        """(N,) float64 of the logged actions.

        Raises:
            TelosError: a deterministic policy over continuous actions.
        """
        if isinstance(data.action_space, Discrete):
            shares = self.probabilities(data.observations, data.action_space.size)
            return shares.gather(1, data.actions[:, None])[:, 0].log()
        if self.greedy:
            raise TelosError("a greedy policy over continuous actions has no action probabilities")
        rows = zip(data.observations.to(self.device).split(CHUNK), data.actions.to(self.device).split(CHUNK))
        return torch.cat([self.policy.log_prob(o, a, **self.asked(o)).double().cpu() for o, a in rows])

    def choices(self, space: Box | Discrete) -> Callable[[Tensor, Rng], tuple[Tensor, Tensor]]:
        """For fitted q: the target's actions at observations, and their probabilities."""

        def discrete(observations: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
            assert isinstance(space, Discrete)
            shares = self.probabilities(observations, space.size)
            return torch.arange(space.size).expand(len(observations), -1), shares

        def continuous(observations: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
            drawn, seen = [], observations.to(self.device)
            for i in range(DRAWS):
                generator = rng.at(i).torch(self.device)
                act = self.policy.act(seen, rng=generator, explore=not self.greedy, **self.asked(seen))
                drawn.append(act.action.float().cpu().reshape(len(observations), -1))
                if act.log_prob is None or self.greedy:
                    break
            return torch.stack(drawn, 1), torch.full((len(observations), len(drawn)), 1 / len(drawn)).double()

        return discrete if isinstance(space, Discrete) else continuous


def decisions(target: Target, log: LoggedBandit, clip: float | None, rng: Rng) -> OffPolicy:
    """The estimators for logged decisions."""
    for name in ("action_names", "context_names"):
        theirs, ours = getattr(log, name), tuple(getattr(target.policy, name, ()))
        if ours and theirs and ours != tuple(theirs):
            raise TelosError(
                f"the log's {name} are not the policy's", expected=", ".join(ours), got=", ".join(theirs),
                fix="name and order the columns as in the log that the policy was trained on",
            )  # fmt: skip
    rewards = log.rewards.double().cpu()
    actions = log.actions.cpu()
    shares = target.probabilities(log.contexts, log.n_actions, log.allowed)
    if len(log) < 2:
        raise TelosError(f"{log.origin or 'the log'} has a single decision", expected="two or more")
    model = cross_fitted(log.contexts.cpu(), actions, rewards, log.n_actions, rng.at("folds").numpy())
    expected = ops.direct(shares, model)
    support = {"never_taken": float(shares[:, ~seen_actions(actions, log.n_actions)].sum(1).mean())}
    by_model = Estimate(*mean(expected), note=MODEL_ONLY.format(what="contexts", model="reward"))
    logged = Estimate(*mean(rewards))
    if log.propensities is None:
        why = "the log has no propensities"
        return OffPolicy(
            "decisions", len(log), logged, {"direct": by_model}, dict.fromkeys(("ips", "snips", "doubly robust"), why),
            warn(support, len(log), "decisions"), support, greedy=target.greedy, clip=clip,
        )  # fmt: skip
    weights = shares.gather(1, actions[:, None])[:, 0] / log.propensities.double().cpu()
    used, support = limited(weights, clip, support)
    size = support["ess"] = float(ops.effective_sample_size(used))
    taken = model.gather(1, actions[:, None])[:, 0]
    terms = {
        "ips": ops.inverse_propensity(used, rewards),
        "snips": ops.self_normalised(used, rewards),
        "direct": expected,
        "doubly robust": ops.doubly_robust(used, rewards, taken, expected),
    }
    skipped = {}
    if size == 0:
        del terms["snips"]
        skipped["snips"] = "the target never takes a logged action"
    estimates = {name: Estimate(*mean(values), ess=size) for name, values in terms.items()}
    estimates["direct"] = by_model
    warnings = warn(support, len(log), "decisions", weights)
    return OffPolicy(
        "decisions", len(log), logged, estimates, skipped, warnings, support, greedy=target.greedy, clip=clip
    )


def trajectories(target: Target, log: Transitions, discount: float, clip: float | None, rng: Rng) -> OffPolicy:
    """The estimators for episodes."""
    log = log.to("cpu")
    first = first_rows(log)
    place, alive = layout(first, len(log))
    rewards = torch.where(alive, log.rewards.double()[place], 0.0)
    returns = (ops.discounts(rewards, discount) * rewards).sum(1)
    estimates: dict[str, Estimate] = {}
    skipped: dict[str, str] = {}
    support: dict[str, float] = {}
    ratios = None
    try:
        if log.log_probs is None:
            raise TelosError("the log has no log_probs of its actions")
        ratios = target.log_prob(log) - log.log_probs.double()
    except TelosError as error:
        skipped = dict.fromkeys(("pdis", "snpdis"), error.what)
    if isinstance(log.action_space, Discrete):
        shares = target.probabilities(log.observations, log.action_space.size)
        unseen = ~seen_actions(log.actions, log.action_space.size)
        support["never_taken"] = float(shares[:, unseen].sum(1).mean())
    else:
        support["far"] = far_share(target, log, rng)
    if ratios is not None:
        used, support = limited(ops.cumulative_weights(ratios[place], alive), clip, support, alive)
        if used.isfinite().all():
            size = support["ess"] = float(ops.effective_sample_size(used[:, -1]))
            for name, function in (("pdis", ops.per_decision), ("snpdis", ops.per_decision_self_normalised)):
                estimates[name] = Estimate(*mean(function(used, rewards, alive, discount)), ess=size)
        else:
            support["ess"] = 1.0
            skipped = dict.fromkeys(("pdis", "snpdis"), "the weights overflow: see --clip")
    try:
        found = fitted_q(log, target.choices(log.action_space), first, discount, rng.at("fitted q"))
        note = MODEL_ONLY.format(what="first observations", model="value")
        interval = bootstrap_mean(found.values.numpy(), rng.at("bootstrap").numpy()) if len(first) > 1 else None
        estimates["fitted q"] = Estimate(
            float(found.values.mean()), interval, note=f"{note}; models differ by {found.spread:.2g}"
        )
    except TelosError as error:
        skipped["fitted q"] = f"{error.what}; {error.fix}"
    return OffPolicy(
        "episodes", len(first), Estimate(*mean(returns)), estimates, skipped,
        warn(support, len(first), "episodes", None if ratios is None else ratios.exp()), support,
        discount=discount, clip=clip, greedy=target.greedy,
    )  # fmt: skip


def first_rows(log: Transitions) -> Tensor:
    """(E,) the rows at which episodes begin."""
    ends = log.terminated | log.truncated
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1].nonzero()[:, 0] + 1])


def layout(first: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """(E, T) the row of each step of each episode, and which of them are steps; others point to a row of the log."""
    lengths = torch.diff(first, append=torch.tensor([rows]))
    steps = torch.arange(int(lengths.max()))
    return (first[:, None] + steps).clamp(max=rows - 1), steps < lengths[:, None]


def seen_actions(actions: Tensor, count: int) -> Tensor:
    """(K,) bool: which actions the log has."""
    return torch.bincount(actions, minlength=count) > 0


def limited(
    weights: Tensor, clip: float | None, support: dict[str, float], alive: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """The weights, at most `clip`, and their largest and the share that was clipped."""
    of_steps = weights if alive is None else weights[alive]
    support = {**support, "max_weight": float(of_steps.max())}
    if clip is None:
        return weights, support
    return weights.clamp(max=clip), {**support, "clipped": float((of_steps > clip).double().mean())}


def far_share(target: Target, log: Transitions, rng: Rng) -> float:
    """The share of the target's actions that lie farther from every logged (observation, action) than 95 % of the
    logged ones do from each other; about 0.05 for the policy that was logged. Up to 500 rows against 5000 others."""
    order = torch.from_numpy(rng.at("near").numpy().permutation(len(log)))
    asked, others = order[:500], order[500:5500] if len(log) > 1000 else order
    chosen, _ = target.choices(log.action_space)(log.observations[asked], rng.at("near"))
    pairs = torch.cat([log.observations, log.actions], 1)
    scale = pairs.std(0, correction=0).clamp(min=1e-9)

    def nearest(rows: Tensor) -> Tensor:
        distance = torch.cdist(rows / scale, pairs[others] / scale)
        # The same row is no neighbour.
        return distance.masked_fill(asked[:, None] == others, torch.inf).amin(1)

    usual = nearest(pairs[asked]).quantile(0.95)
    distance = nearest(torch.cat([log.observations[asked], chosen[:, 0]], 1))
    return float((distance > usual).double().mean())


def mean(terms: Tensor) -> tuple[float, Interval | None]:
    """The mean of an estimator's terms, with Student's t interval for two or more."""
    values = terms.double().numpy()
    return float(values.mean()), paired_t(values) if len(values) > 1 else None


def warn(support: dict[str, float], count: int, unit: str, ratios: Tensor | None = None) -> tuple[str, ...]:
    """Where the log does not support the target, in words; adds the mean weight to `support`.

    Args:
        ratios: target over logged probability of single actions, whose mean is 1 where the log supports the target.
    """
    found = []
    if support.get("never_taken", 0.0) > NEVER_TAKEN:
        found.append(
            f"{support['never_taken']:.1%} of what the target does are actions that the log never has: nothing is "
            "known of their rewards"
        )
    if support.get("far", 0.0) > FAR_SHARE:
        found.append(
            f"{support['far']:.0%} of the target's actions lie farther from the log than 95 % of the logged ones do "
            "from each other: fitted q extrapolates there"
        )
    if ratios is not None:
        interval = paired_t(ratios.clamp(max=1e12).numpy())
        support["mean_weight"] = interval.estimate
        if abs(interval.estimate - 1) > MEAN_WEIGHT and not interval.low <= 1 <= interval.high:
            found.append(
                f"the mean weight is {interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}] where it should "
                "be 1: the target does what the logging policy never did there, or the logged probabilities are wrong"
            )
    size = support.get("ess", math.inf)
    if size < max(LEAST_SAMPLES, LEAST_SHARE * count):
        found.append(
            f"the effective sample size is {size:.1f} of {count} {unit}: a few of them decide the estimates "
            f"(largest weight {support['max_weight']:.3g}), and their intervals are too narrow"
        )
    return tuple(found)
