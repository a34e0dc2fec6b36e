"""TSCAC: a policy for each sparse response first, then one for the main response that stays close to all of them.

Cai, Xue, Zhang, Zhou, Zhang, Zheng, Jiang, Gai, An: Two-Stage Constrained Actor-Critic for Short Video Recommendation,
WWW 2023, arXiv 2302.01680.

Each of m responses has a critic of its own, V_i, fitted to r_i + gamma_i V_i(s'); response 1 is the main one. With
A_i = r_i + gamma_i V_i(s') - V_i(s), the logging policy b, and rho_i = min(c, pi_i(a | s) / b(a | s)), held constant:

    stage 1, i = 2..m:  max E[rho_i A_i log pi_i(a | s)]                                                  (1)
    stage 2:            max E_pi[A_1] with KL(pi || pi_i) <= eps_i, whose solution is, with Lambda = sum lambda_i,
                        pi*(a | s) = prod_i pi_i(a | s)^(lambda_i / Lambda) exp(A_1 / Lambda) / Z(s)      (2)
                        projected on logged actions: min -E[w log pi(a | s)],
                        w = min(prod_i (pi_i / b)^(lambda_i / Lambda) exp(A_1 / Lambda), c_w)             (3)

Where b was not logged, a policy cloned from the data (stage 0) stands for it. In an environment (`OnPolicyTSCAC`) the
policy that learns takes the steps itself, so that b is this policy and rho_i = 1: stage 1 is A2C. Deterministic actors
are in telos.methods.decisions.tscac_variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.interaction import Interaction
from telos.core.method import Learner, Method, Metrics, Source, Spec, Stage, Stages, split
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Discrete, Record, Transitions
from telos.nets.critics import frozen_copy, polyak_
from telos.nets.policies import box
from telos.nets.response_policies import ResponsePolicy, together, untrained
from telos.ops.objectives import pareto_step, raised_multipliers
from telos.ops.off_policy import effective_sample_size, truncated_ratios
from telos.ops.values import td_target

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
    "method": "TSCAC",
    "title": "Two-Stage Constrained Actor-Critic for Short Video Recommendation",
    "arxiv": "2302.01680",
    "year": 2023,
    "url": "https://arxiv.org/abs/2302.01680",
    "purpose": ["reward"],
    "product": "Policy",
    "data": "logged sessions with several responses",
    "summary": "Learns a policy for each sparse response, then one for the main response that stays close to them all.",
    "claim": "In simulated sessions TSCAC gains likes and shares over a policy for watch time alone and loses at most "
    "1.5 % of that time.",
    "paper_claim": {
        "where": "offline table on KuaiRand; live experiment",
        "text": "Of all methods TSCAC has the longest watch time, and is the best in three of four further responses; "
        "one critic of a weighted sum gains watch time and loses interactions. Separate critics correlate slightly "
        "better with returns than a joint one.",
        "value": "against cloning: watch time +2.2 %, likes +18.8 %, comments +15.6 %, hates -18.8 %; live: watch time "
        "+0.38 %, shares +3.4 % (read second-hand)",
        "data": "KuaiRand: 480,385 logged steps, 150 items; the live experiment's traffic is not public",
        "model": "networks with one hidden layer of 32",
        "mechanism": "Sparse responses drown in a sum with a dense one; a policy of their own keeps what they teach as "
        "a place to stay near. A simulator with bait items, which are watched and not liked, has that conflict. Real "
        "users, many items and the live experiment's gains are not tested.",
    },
    "equations": [
        r"A_i=r_i+\gamma_i(1-d)V_i(s')-V_i(s)",
        r"\max_{\pi_i}\ \mathbb E\left[\min\left(c,\frac{\pi_i(a\mid s)}{\pi_b(a\mid s)}\right)A_i\log\pi_i(a\mid s)"
        r"\right],\quad i=2,\dots,m",
        r"\pi^*(a\mid s)=\frac1{Z(s)}\prod_{i=2}^m\pi_i(a\mid s)^{\lambda_i/\Lambda}e^{A_1/\Lambda},\quad"
        r"\Lambda=\sum_{i=2}^m\lambda_i",
        r"\mathcal L_\pi=-\mathbb E\left[\min\left(\prod_{i=2}^m\left(\frac{\pi_i(a\mid s)}{\pi_b(a\mid s)}\right)"
        r"^{\lambda_i/\Lambda}e^{A_1/\Lambda},w_{\max}\right)\log\pi(a\mid s)\right]",
        r"\mathcal L_\mu=-c_1\mathbb E\left[\rho\,Q_1(s,\mu(s))\right]+c_2\mathbb E\left[(\mu(s)-a)^2\right]"
        r"+c_3\sum_{i=2}^m\frac{\lambda_i}{\Lambda}\mathbb E\left[(\mu(s)-\mu_i(s))^2\right]",
        r"\hat r=\frac{\sum_t w_tr_t}{\sum_t w_t},\quad w_t=\min\left(c,\frac{\pi(a_t\mid s_t)}{\pi_b(a_t\mid s_t)}"
        r"\right)\quad\text{(NCIS)}",
    ],
    "deviations": [
        "One policy for each auxiliary response, as the paper says; the released code has a single one for the "
        "weighted sum of seven critics.",
        "Advantages are divided by their standard deviation over the batch, so that lambda has no unit; the paper's "
        "temperatures are for raw ones (scale_advantages=False).",
        "Auxiliary policies may also be fitted by weights exp(A_i / temperature) (auxiliary_update='weighted'), as in "
        "the claim: logged steps with negative advantages then pull less.",
        "A share of the uniform policy is mixed into auxiliary policies before stage 2.",
        "Gaussian policies for continuous actions go by the equations for probabilities, besides the deterministic "
        "actor of the code, whose constants are in half widths of the action range.",
        "Pareto weights are updated with centred products of gradients; the code's rule drifts to a single response.",
        "In an environment the probabilities that actions were drawn with stand for the logging policy's.",
    ],
    "traps": [
        "Compare at one Lambda: it is a temperature as well as the weight of the constraints.",
        "Where an auxiliary policy has no mass, the product has none: keep uniform_mix above 0.",
        "With few effective samples (metric effective_share) stage 2 imitates a handful of steps: raise the lambdas.",
        "The length of sessions is in every sum: report means of a step and of a session.",
        "README of the code sets kl_loss_coef, which it does not read; the value in use is kl_loss_coeff = 10.",
    ],
    "terms": [
        "constrained Markov decision process (CMDP)",
        "multi-objective",
        "RecSys",
        "recommender system",
        "Lagrangian",
        "user retention",
        "implicit feedback",
    ],
    "at_scale": "telos fit tscac --data sessions.parquet?auxiliary=like,comment,share --discount 0.99 --hidden 256 256 "
    "--learning-rate 1e-4 --critic-learning-rate 1e-3 --steps 500000 --device cuda",
    "usage": [
        "telos fit tscac --data sessions.csv?auxiliary=like,share --steps 50 --out runs/videos",
        "telos eval runs/videos --data sessions.csv?auxiliary=like,share",
        'log = telos.load("sessions.csv", auxiliary="like,share")  # session, action, reward; the rest is observed',
        "policy = telos.TSCAC(lambdas=(0.3, 0.1), discount=(0.95, 0.9, 0.9)).fit(log, steps=50)",
        "print(policy.probabilities(log.observations[0]), policy.values(log.observations[0]))",
        'print(policy.only("like").act(log.observations[:4]).action, policy.action_names)',
        'policy.save("my-policy")',
        "from telos.worlds import sessions",
        "learnt = telos.OnPolicyTSCAC(environments=4, steps_per_update=16).fit(env=sessions.environment, steps=2)",
        "print(learnt.probabilities(sessions.environment().reset(seed=0)[0]))",
    ],
}


@dataclass(frozen=True)
class Variant:
    """How the last stage learns.

    Args:
        critics: of the main response; one joint critic of the weighted sum of all; or one for each response.
        anchored: whether auxiliary policies are learnt first, and the main one is kept near them.
        pareto: whether responses' gradients are weighted anew at each update, in place of a weighted sum.
    """

    critics: Literal["main", "joint", "each"]
    anchored: bool = False
    pareto: bool = False


VARIANTS: dict[str, Variant] = {
    "tscac": Variant("main", anchored=True),
    "main_only": Variant("main"),
    "joint_critic": Variant("joint"),
    "rcpo_multi_critic": Variant("each"),
    "pareto": Variant("each", pareto=True),
}


@dataclass(frozen=True)
class TSCAC(Method):
    """Constrained actor-critic for logs with one dense response and several sparse ones; `steps` are those of stage 2.

    Data: transitions with `auxiliary` responses, for example tables of sessions: sessions.csv?auxiliary=like,share.
    """

    data = Transitions

    variant: Literal["tscac", "main_only", "joint_critic", "rcpo_multi_critic", "pareto"] = "tscac"
    """What the last stage does: the paper's (3), or for comparison (3) without auxiliary policies, with one critic of
    the weighted sum of responses (RCPO), with a critic for each, or a Pareto mix of gradients. Paper: tscac."""
    actor: Literal["stochastic", "deterministic"] = "stochastic"
    """Categorical or Gaussian policies by (1) to (3), or for continuous actions (4). Paper: both."""
    lambdas: float | tuple[float, ...] = 0.25
    """lambda_i > 0 of the auxiliary responses, one for all or one each. Paper: 1e-1 to 1e-5 with raw advantages; telos:
    0.25."""
    discount: float | tuple[float, ...] = 0.95
    """gamma_i in [0, 1], one for all responses or one each, the main one first. Paper: 0.95; Repository: 0.99."""
    coefficients: float | tuple[float, ...] = 1.0
    """Of auxiliary responses in the weighted sum of joint_critic and rcpo_multi_critic, >= 0. telos: 1."""
    bounds: tuple[float, ...] | None = None
    """C_i, least means of a step of the auxiliary responses, by which RCPO's coefficients are updated. telos: none."""
    multiplier_rate: float = 1e-2
    """Step of these updates, >= 0. telos: 0.01."""
    pareto_rate: float = 0.1
    """Step of the Pareto weights, > 0. telos: 0.1."""
    auxiliary_update: Literal["policy_gradient", "weighted"] = "policy_gradient"
    """(1), or cloning weighted by min(exp(A_i / auxiliary_temperature), weight_clip). Paper: policy_gradient."""
    auxiliary_temperature: float = 0.5
    """Of the weighted form, > 0. telos: 0.5."""
    scale_advantages: bool = True
    """Divide advantages by their standard deviation over the batch. telos: on; Paper: off."""
    weight_clip: float = 20.0
    """c_w, the most that a weight of (3) counts for, > 0. telos: 20."""
    ratio_clip: float = 5.0
    """c of the importance ratios in critics and (1), > 0. telos: 5."""
    uniform_mix: float = 0.02
    """Share of the uniform policy mixed into discrete auxiliary policies for (3), 0 to below 1. telos: 0.02."""
    behaviour_steps: int | None = None
    """Updates of stage 0; None for as many as stage 2. telos: None."""
    auxiliary_steps: int | None = None
    """Updates for each auxiliary response; None for as many as stage 2. Repository: 300,000 to 500,000."""
    warm_start: bool = True
    """Start all actors from the cloned policy; without it stage 0 is left out where log_probs are logged. telos: on."""
    value_coefficient: float = 1.0
    """c_1 of (4). Repository: 1."""
    clone_coefficient: float = 1e-3
    """c_2 of (4), also in stage 1. Repository: 0.001."""
    anchor_coefficient: float = 10.0
    """c_3 of (4). Repository: 10."""
    rho: Literal["near", "importance"] = "near"
    """rho of (4): the auxiliary actors' density at mu(s), or at a over that of mu(s), at most 1. Repository: near."""
    sigma: float = 0.1
    """Deviation of these densities, > 0. Repository: 0.1."""
    normalise: bool = True
    """Standardise observations with the data's mean and std + 0.001. telos: on."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of all networks; () for linear ones. Repository: 32."""
    tau: float = 0.01
    """Step of target networks towards the trained ones, 0 to 1. Repository: 0.001; telos: 0.01."""
    learning_rate: float = 1e-3
    """Of Adam, for actors. Repository: 1e-4; telos: 1e-3."""
    critic_learning_rate: float = 2e-3
    """Of Adam, for critics. Repository: 1e-3; telos: 2e-3."""
    critic_weight_decay: float = 0.0
    """L2 penalty of critics, >= 0. Repository: 0.01; telos: 0."""
    batch_size: int = 512
    """Steps an update. Repository: 512."""

    def prepare(self, spec: Spec) -> Spec:
        data = spec.data
        if self.actor == "deterministic" or not isinstance(getattr(data, "action_space", None), Discrete):
            box(data, "TSCAC")
        m = 1 if data.auxiliary is None else 1 + data.auxiliary.shape[1]
        if m == 1 and self.variant != "main_only":
            raise TelosError(
                f"{data.origin or 'the data'}: TSCAC needs auxiliary responses", got="rewards only",
                expected="columns of further responses: `auxiliary` of transitions, auxiliary_rewards in a .npz",
                fix="name them where the data are a table (sessions.csv?auxiliary=like,share), or variant main_only",
            )  # fmt: skip
        lambdas, discounts = each(self.lambdas, m - 1, "lambdas"), each(self.discount, m, "discount")
        bounds = each(0.0 if self.bounds is None else self.bounds, m - 1, "bounds")
        positive = (
            *lambdas, self.auxiliary_temperature, self.weight_clip, self.ratio_clip, self.sigma, self.pareto_rate,
        )  # fmt: skip
        unsigned = (*each(self.coefficients, m - 1, "coefficients"), *bounds, self.multiplier_rate)
        shares = all(0 <= x <= 1 for x in (*discounts, self.tau)) and 0 <= self.uniform_mix < 1
        if min(positive) <= 0 or min(unsigned) < 0 or not shares:
            raise TelosError(
                "TSCAC: an option is out of range",
                expected="lambdas, auxiliary_temperature, weight_clip, ratio_clip, sigma, pareto_rate > 0; "
                "coefficients, bounds, multiplier_rate >= 0; discount, tau 0 to 1; uniform_mix 0 to below 1",
                got=f"{positive}; {unsigned}; {discounts}, {self.tau}; {self.uniform_mix}",
            )
        if self.bounds is not None and (self.actor == "deterministic" or VARIANTS[self.variant].critics == "main"):
            raise TelosError("TSCAC: bounds are for stochastic actors and variants with coefficients", got=self.variant)
        return spec.replace(data=data.to(spec.device))

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        data, variant, first, cloned = spec.data, VARIANTS[self.variant], 0, None

        def stage(name: str, steps: int, rows: Record, task: Task | None) -> Stage:
            given = {"task": task, "cloned": cloned}
            learner = self.learner(spec.replace(data=rows, given=given), rng.at(name))
            return Stage(name, learner, self.source(spec.replace(data=rows)), steps, first)

        logged = data.log_probs
        if self.warm_start or (logged is None and self.actor == "stochastic"):
            steps = spec.steps if self.behaviour_steps is None else self.behaviour_steps
            cloned = yield stage("behaviour", steps, data, None)
            first += steps
        if logged is None:
            logged = torch.zeros_like(data.rewards)
            if self.actor == "stochastic":
                assert isinstance(cloned, ResponsePolicy)
                logged = over(data, cloned.log_likelihood)
        rows = Logged(data, logged, no_anchor(data, self.actor))
        names = data.auxiliary_names if variant.anchored else ()
        made: list[ResponsePolicy] = []
        for index, name in enumerate(names):
            steps = spec.steps if self.auxiliary_steps is None else self.auxiliary_steps
            finished = yield stage(f"auxiliary{index}", steps, rows, Task(name, index + 1))
            assert isinstance(finished, ResponsePolicy)
            made.append(finished)
            first += steps
        if made:
            rows = replace(rows, anchor=self.anchor(rows, made))
        main = yield stage("main", spec.steps, rows, Task("main", 0))
        assert isinstance(main, ResponsePolicy)
        return together([main, *made]) if made else main

    def anchor(self, rows: Logged, made: Sequence[ResponsePolicy]) -> Tensor:
        """What stage 2 stays near: log prod_i (pi_i / b)^(lambda_i / Lambda) of each row, or mu_i(s) (N, n, A)."""
        if self.actor == "deterministic":
            return torch.stack([over(rows.steps, policy.actions_at) for policy in made], 1)
        mix = self.uniform_mix if isinstance(rows.steps.action_space, Discrete) else 0.0
        found = [
            mixed_with_uniform(over(rows.steps, p.log_likelihood), mix, rows.steps.action_space.size) for p in made
        ]
        return log_anchor(torch.stack(found, -1), rows.log_probs, each(self.lambdas, len(made), "lambdas"))

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        task = spec.given.get("task")
        if task is None:
            return CloneLearner(self, spec.data, rng)
        from telos.methods.decisions.tscac_variants import DeterministicLearner  # which is built on this file

        kind = DeterministicLearner if self.actor == "deterministic" else StochasticLearner
        return kind(self, spec.data, task, spec.given.get("cloned"), rng)

    def source(self, spec: Spec) -> Source:
        return Uniform(spec.data, self.batch_size)


@dataclass(frozen=True)
class OnPolicyTSCAC(Method):
    """TSCAC in an environment that tells the responses to each step; `steps` are those of stage 2.

    Given: env, a registered name or a function that makes environments: the main response is their reward, the others
    are numbers in the info of each step. Each stage begins anew, with a policy of its own.
    """

    takes: ClassVar[tuple[str, ...]] = ("env",)

    auxiliary: tuple[str, ...] = ("like", "share")
    """The auxiliary responses, as they are called in the info. telos: those of the simulator."""
    tscac: TSCAC = TSCAC(warm_start=False, normalise=False)
    """All that is as for logged data, without batch_size and the cloned policy; normalise and deterministic actors need
    such data. telos: without both."""
    environments: int = 16
    """Copies of the environment that are stepped together, >= 1. telos: 16."""
    steps_per_update: int = 32
    """Steps of every copy before each update, all of which it is made from, >= 1. telos: 32."""

    def prepare(self, spec: Spec) -> Spec:
        spec.need("env", "the environment to learn in")
        if self.tscac.normalise or self.tscac.actor == "deterministic":
            raise TelosError(
                "TSCAC: in an environment nothing is recorded beforehand", got=f"normalise={self.tscac.normalise}, "
                f"actor={self.tscac.actor}", expected="normalise=False and actor='stochastic'",
            )  # fmt: skip
        self.tscac.prepare(spec.replace(data=self.experience(spec, spec.rng).memory))
        return spec

    def experience(self, spec: Spec, rng: Rng) -> Interaction:
        """The newest steps of all copies."""
        count = self.environments * self.steps_per_update
        return Interaction(
            spec.given["env"], rng.at("environment"), batch_size=count, capacity=count, warmup=1, device=spec.device,
            environments=self.environments, steps=self.steps_per_update, auxiliary=self.auxiliary, log_probs=True,
        )  # fmt: skip

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        made: list[ResponsePolicy] = []
        anchored, steps, first = VARIANTS[self.tscac.variant].anchored, self.tscac.auxiliary_steps, 0
        for response, name in [*(enumerate(self.auxiliary, 1) if anchored else ()), (0, "main")]:
            given = {"task": Task(name, response), "made": tuple(made)}
            own = spec.replace(data=self.experience(spec, rng.at(name)), given=given)
            called = f"auxiliary{response - 1}" if response else "main"
            count = spec.steps if not response or steps is None else steps
            finished = yield Stage(called, self.learner(own, rng.at(name)), self.source(own), count, first)
            assert isinstance(finished, ResponsePolicy)
            made.append(finished)
            first += count
        return together([made[-1], *made[:-1]]) if made[1:] else made[-1]

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        memory = spec.data.memory
        return self.tscac.learner(spec.replace(data=Logged(memory, memory.log_probs, memory.rewards)), rng)

    def source(self, spec: Spec) -> Source:
        return Rollouts(self.tscac, spec.data, spec.given["made"])


@dataclass(frozen=True)
class Logged(Record):
    """Steps with the logging policy's log-probs (N,) and what stage 2 stays near, see `TSCAC.anchor`."""

    steps: Transitions
    log_probs: Tensor
    anchor: Tensor


@dataclass(frozen=True)
class Task:
    """A policy to learn: its name, and the response that it serves (0 the main one, by the variant's rule)."""

    name: str
    response: int


class Rollouts(Source):
    """The steps that the policy which learns has just taken: a log whose b is this policy.

    While copies wait for a checkpoint, fewer are taken, and steps of the updates before fill up the batch.
    """

    def __init__(self, method: TSCAC, experience: Interaction, made: Sequence[ResponsePolicy]):
        self.method, self.experience, self.made = method, experience, made
        self.state, self.load_state, self.rests = experience.state, experience.load_state, experience.rests

    def next(self, behaviour: Callable[[], Any], rng: Rng) -> Logged:
        self.experience.next(behaviour, rng)
        steps = self.experience.experience()
        assert steps.log_probs is not None
        rows = Logged(steps, steps.log_probs, no_anchor(steps, self.method.actor))
        return replace(rows, anchor=self.method.anchor(rows, self.made)) if self.made else rows


def each(values: float | tuple[float, ...], count: int, name: str) -> tuple[float, ...]:
    """One number for each of `count` responses (at least one)."""
    if isinstance(values, int | float):
        return (float(values),) * max(count, 1)
    if len(values) != max(count, 1):
        raise TelosError(f"TSCAC: option {name} has {len(values)} numbers", expected=f"one, or {count} for the data")
    return tuple(values)


def no_anchor(data: Transitions, actor: str) -> Tensor:
    """What leaves (3) and (4) without their auxiliary policies."""
    return data.actions[:, None][:, :0] if actor == "deterministic" else torch.zeros_like(data.rewards)


def over(data: Transitions, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """function(observations, actions) of all rows, in pieces and without gradients."""
    with torch.no_grad():
        pieces = zip(data.observations.split(65536), data.actions.split(65536))
        return torch.cat([function(observations, actions) for observations, actions in pieces])


def mixed_with_uniform(log_probs: Float[Tensor, " N"], share: float, actions: int) -> Float[Tensor, " N"]:
    """log((1 - share) pi + share / actions)."""
    if share == 0:
        return log_probs
    floor = torch.full_like(log_probs, math.log(share / actions))
    return torch.logaddexp(log_probs + math.log(1 - share), floor)


def log_anchor(
    log_auxiliary: Float[Tensor, "N n"], log_behaviour: Float[Tensor, " N"], lambdas: Sequence[float]
) -> Float[Tensor, " N"]:
    """log prod_i (pi_i / b)^(lambda_i / Lambda)."""
    shares = torch.tensor(list(lambdas), device=log_behaviour.device) / sum(lambdas)
    return log_auxiliary @ shares - log_behaviour


def projection_weights(
    anchor: Float[Tensor, " B"], advantages: Float[Tensor, " B"], temperature: float, clip: float
) -> Float[Tensor, " B"]:
    """(3): min(exp(anchor + A / Lambda), clip), which cannot overflow."""
    return (anchor + advantages / temperature).clamp(max=math.log(clip)).exp()


def responses(steps: Transitions) -> Float[Tensor, "m B"]:
    """The main response and the auxiliary ones."""
    main = steps.rewards[None]
    return main if steps.auxiliary is None else torch.cat([main, steps.auxiliary.T])


def shape(method: TSCAC) -> tuple[bool, tuple[int, ...], bool]:
    """What all of a run's policies have in common."""
    return method.actor == "deterministic", method.hidden, method.normalise


class CloneLearner(Learner):
    """Stage 0: the likelihood of the logged actions, or for deterministic actors the squared distance to them."""

    def __init__(self, method: TSCAC, data: Transitions, rng: Rng):
        self.policy = untrained(data, ("behaviour",), (), *shape(method), rng)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate, fused=True)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        total = torch.zeros(())
        self.optimiser.zero_grad()
        for part in split(batch, micro):
            loss = self.policy.cloning(part.observations, part.actions).sum() / len(batch)
            loss.backward()
            total = total + loss.detach()
        self.optimiser.step()
        return {"loss": total}

    def product(self) -> ResponsePolicy:
        return self.policy


class ResponseLearner(Learner):
    """Stages 1 and 2: one actor, and the critics of the responses that it serves, with target copies."""

    def __init__(self, method: TSCAC, data: Logged, task: Task, cloned: ResponsePolicy | None, rng: Rng):
        self.method, self.task, self.variant = method, task, VARIANTS[method.variant]
        m = 1 if data.steps.auxiliary is None else 1 + data.steps.auxiliary.shape[1]
        self.kind = "one" if task.response or self.variant.critics == "main" else self.variant.critics
        count = m if self.kind == "each" else 1
        names = ("main", *data.steps.auxiliary_names) if self.kind == "each" else (task.name,)
        self.policy = untrained(data.steps, (task.name,), names, *shape(method), rng)
        if cloned is not None and method.warm_start:
            self.policy.actors.load_state_dict(cloned.actors.state_dict())
        self.target = frozen_copy(self.policy)
        discounts = each(method.discount, m, "discount")
        self.discounts = discounts if self.kind == "each" else (discounts[task.response],)
        self.lambdas = each(method.lambdas, m - 1, "lambdas")
        # The coefficients of all responses, which RCPO updates, and the weights of critics' gradients (Pareto).
        multipliers = (1.0, *each(method.coefficients, m - 1, "coefficients"))[:m]
        self.multipliers = torch.tensor(multipliers, device=data.log_probs.device)
        self.pareto = torch.full((count,), 1 / count, device=data.log_probs.device)
        self.trained = list(self.policy.actors.parameters())
        self.optimiser = torch.optim.Adam(self.trained, method.learning_rate, fused=True)
        self.critic_optimiser = torch.optim.Adam(
            self.policy.critic.parameters(), method.critic_learning_rate, weight_decay=method.critic_weight_decay,
            fused=True,
        )  # fmt: skip

    def signals(self, steps: Transitions) -> Float[Tensor, "k B"]:
        """What each critic is fitted to."""
        found = responses(steps)
        if self.kind == "one":
            return found[self.task.response][None]
        return (self.multipliers @ found)[None] if self.kind == "joint" else found

    def combined(self, values: Float[Tensor, "k B"]) -> Float[Tensor, " B"]:
        """The critics' values or advantages as one."""
        return self.multipliers @ values if self.kind == "each" else values[0]

    def targets(self, steps: Transitions, next_values: Float[Tensor, "k B"]) -> Float[Tensor, "k B"]:
        """r_i + gamma_i V_i(s')."""
        rows = zip(self.signals(steps), next_values, self.discounts)
        return torch.stack([td_target(reward, steps.terminated, value, gamma) for reward, value, gamma in rows])

    def step(self, optimiser: torch.optim.Optimizer, losses: Iterable[Tensor]) -> Tensor:
        """One step on the sum of the parts' losses, which is returned; each is already divided by the batch's rows."""
        optimiser.zero_grad()
        total = torch.zeros_like(self.pareto[0])
        for loss in losses:
            loss.backward()
            total += loss.detach()
        optimiser.step()
        return total

    def improve_actor(self, losses: Iterable[Float[Tensor, " J"]]) -> Tensor:
        """One step on J losses of each part: on one, or with a Pareto mix of the gradients of several."""
        if not self.variant.pareto:
            return self.step(self.optimiser, (loss.sum() for loss in losses))
        totals = torch.zeros_like(self.pareto)
        gradients = torch.zeros(len(self.pareto), sum(p.numel() for p in self.trained), device=self.pareto.device)
        for part in losses:
            totals += part.detach()
            for index, loss in enumerate(part):
                found = torch.autograd.grad(loss, self.trained, retain_graph=True)
                gradients[index] += torch.cat([gradient.flatten() for gradient in found])
        self.pareto.copy_(pareto_step(self.pareto, gradients, self.method.pareto_rate))
        mixed = (self.pareto @ gradients).split([p.numel() for p in self.trained])
        for parameter, gradient in zip(self.trained, mixed):
            parameter.grad = gradient.view_as(parameter).clone()
        self.optimiser.step()
        return totals @ self.pareto

    def product(self) -> ResponsePolicy:
        return self.policy


class StochasticLearner(ResponseLearner):
    """(1), (3), and the variants of (3)."""

    def update(self, batch: Logged, rng: Rng, micro: int = 1) -> Metrics:
        m, rows, parts = self.method, len(batch), split(batch, micro)
        with torch.no_grad():
            seen = [self.seen(part) for part in parts]
            ratios, targets, advantages = (torch.cat(pieces, -1) for pieces in zip(*seen))
            weights = self.weights(advantages, ratios, torch.cat([part.anchor for part in parts]))
        sizes = [len(part) for part in parts]
        errors = (
            (ratio * (target - self.policy.state_values(part.steps.observations)).square()).sum() / rows
            for part, ratio, target in zip(parts, ratios.split(sizes), targets.split(sizes, -1))
        )
        critic_loss = self.step(self.critic_optimiser, errors)
        losses = (
            -(weight * self.policy.log_likelihood(part.steps.observations, part.steps.actions)).sum(-1) / rows
            for part, weight in zip(parts, weights.split(sizes, -1))
        )
        actor_loss = self.improve_actor(losses)
        polyak_(self.target.critic, self.policy.critic, m.tau)
        if m.bounds is not None and not self.task.response:
            means = responses(batch.steps) @ ratios / ratios.sum()
            self.multipliers.copy_(raised_multipliers(self.multipliers, m.bounds, means, m.multiplier_rate))
        return {
            "loss": actor_loss,
            "critic_loss": critic_loss,
            "effective_share": effective_sample_size(weights[0].abs()) / rows,
            "ratio": ratios.mean(),
        }

    def seen(self, part: Logged) -> tuple[Tensor, Tensor, Tensor]:
        """Of a part: ratios (B,), targets (k, B) and advantages (k, B)."""
        steps, policy = part.steps, self.policy
        log_policy = policy.log_likelihood(steps.observations, steps.actions)
        ratios = truncated_ratios(log_policy, part.log_probs, self.method.ratio_clip)
        targets = self.targets(steps, self.target.state_values(steps.next_observations))
        return ratios, targets, targets - policy.state_values(steps.observations)

    def weights(
        self, advantages: Float[Tensor, "k B"], ratios: Float[Tensor, " B"], anchor: Float[Tensor, " B"]
    ) -> Float[Tensor, "J B"]:
        """What multiplies log pi of the whole batch's actions: by (3), by (1), or for each response by (1)."""
        m, auxiliary = self.method, self.task.response > 0
        if not self.variant.pareto:
            advantages = self.combined(advantages)[None]
        if m.scale_advantages:
            advantages = advantages / advantages.std(-1, keepdim=True, correction=0).clamp(min=1e-8)
        if self.variant.pareto or (auxiliary and m.auxiliary_update == "policy_gradient"):
            return ratios * advantages
        temperature = m.auxiliary_temperature if auxiliary else sum(self.lambdas)
        return projection_weights(anchor, advantages[0], temperature, m.weight_clip)[None]
