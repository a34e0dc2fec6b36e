"""Off-policy evaluation on problems whose values are known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, LoggedBandit, Transitions
from telos.judge.off_policy import first_rows, goal_in, layout, off_policy
from telos.judge.reward_model import cross_fitted, solve
from telos.nets.goal_policies import ReachingPolicy
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy, GaussianPolicy

# A bandit of 4 contexts (one-hot) and 3 actions with noisy rewards.
REWARDS = np.array([[1.0, 0.0, 0.5], [0.2, 0.9, 0.1], [0.3, 0.3, 2.0], [0.0, 1.0, 0.4]])
LOGGING = np.array([[0.6, 0.2, 0.2], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6]])
TARGET = np.array([[0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3], [0.4, 0.5, 0.1]])
VALUE = float((TARGET * REWARDS).sum(1).mean())


class Table(Policy):
    """Probabilities by context or state, one-hot observations."""

    def __init__(self, shares):
        super().__init__()
        self.shares = torch.as_tensor(np.asarray(shares), dtype=torch.float64)
        self.actions = self.shares.shape[1]

    def probabilities(self, obs, mask=None):
        shares = self.shares[obs.argmax(-1)]
        return shares if mask is None else shares * mask / (shares * mask).sum(-1, keepdim=True)

    def log_prob(self, obs, action, *, goal=None, mask=None):
        return self.probabilities(obs, mask).gather(-1, action[:, None])[:, 0].log()

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False):
        return Act(self.probabilities(obs, mask).argmax(-1))

    def config(self):
        return {}

    def probe(self):
        return {}


def bandit(n, seed, logging=LOGGING, noise=0.5, told=None):
    """A log of n decisions; `told` are the propensities that are written down."""
    rng = Rng(seed).at("bandit").numpy()
    x = rng.integers(4, size=n)
    actions = (rng.random((n, 1)) > logging[x].cumsum(1)).sum(1)
    rewards = REWARDS[x, actions] + noise * rng.standard_normal(n)
    return LoggedBandit.validated(
        contexts=np.eye(4)[x], actions=actions, rewards=rewards, n_actions=3,
        propensities=(logging if told is None else told)[x, actions],
    )  # fmt: skip


def test_intervals_cover_the_enumerated_value():
    names = ("ips", "snips", "doubly robust")
    inside, values = dict.fromkeys(names, 0), {name: [] for name in names}
    for seed in range(200):
        report = off_policy(Table(TARGET), bandit(400, seed), seed=seed)
        for name in names:
            interval = report.estimates[name].interval
            inside[name] += interval.low <= VALUE <= interval.high
            values[name].append(interval.estimate)
    for name in names:
        assert 180 <= inside[name] <= 198, (name, inside[name])
        error = np.std(values[name]) / math.sqrt(200)
        assert abs(np.mean(values[name]) - VALUE) < 3 * error, name
    # The model takes away variance; the direct method is not worse here, since the model is right.
    assert np.std(values["doubly robust"]) < np.std(values["snips"]) < np.std(values["ips"])


def test_doubly_robust_needs_one_of_the_two():
    log = bandit(20_000, 1000)
    right = off_policy(Table(TARGET), log).estimates
    assert all(abs(estimate.value - VALUE) < 0.04 for estimate in right.values())
    # Propensities that are wrong: the model saves it.
    false = off_policy(Table(TARGET), bandit(20_000, 1000, told=np.full((4, 3), 1 / 3))).estimates
    assert abs(false["ips"].value - VALUE) > 0.1 and abs(false["doubly robust"].value - VALUE) < 0.04

    # A model that is wrong, since rewards are not linear in the context's number: the propensities save it.
    class Numbered(Table):
        def probabilities(self, obs, mask=None):
            return self.shares[obs[:, 0].long()]

    shares = np.eye(3)[[1, 2, 1, 2]]
    value = float((shares * REWARDS).sum(1).mean())
    bent = off_policy(Numbered(shares), replace(log, contexts=log.contexts.argmax(1, keepdim=True).float())).estimates
    assert abs(bent["direct"].value - value) > 0.1 and abs(bent["doubly robust"].value - value) < 0.04


def test_the_logging_policy_earns_the_mean_reward():
    log = bandit(500, 1001)
    report = off_policy(Table(LOGGING), log)
    assert report.logged.value == pytest.approx(float(log.rewards.double().mean()))
    for name in ("ips", "snips"):
        assert report.estimates[name].value == pytest.approx(report.logged.value, abs=1e-6)
        assert report.estimates[name].ess == pytest.approx(500, abs=1e-3)
    assert report.warnings == () and report.support["never_taken"] == 0


def test_without_propensities_the_direct_method_is_left():
    report = off_policy(Table(TARGET), replace(bandit(2000, 1002), propensities=None))
    assert list(report.estimates) == ["direct"] and abs(report.estimates["direct"].value - VALUE) < 0.1
    assert set(report.skipped) == {"ips", "snips", "doubly robust"}
    assert "does not cover" in report.estimates["direct"].note


def test_a_deterministic_policy_over_actions_and_greedy():
    log = bandit(4000, 1003)
    policy = CategoricalPolicy(4, 3, ())
    policy.net.layers[-1].weight.data = torch.from_numpy(np.log(TARGET).T).float()
    best = float(REWARDS[np.arange(4), TARGET.argmax(1)].mean())
    for greedy, value in ((False, VALUE), (True, best)):
        report = off_policy(policy, log, greedy=greedy)
        assert all(abs(estimate.value - value) < 0.12 for estimate in report.estimates.values()), greedy
    # Without probabilities of its own a policy counts with the actions that it takes.

    class Certain(Policy):
        config, probe = Table.config, Table.probe

        def act(self, obs, **options):
            return Act(torch.from_numpy(TARGET).argmax(1)[obs.argmax(-1)])

    assert (
        off_policy(Certain(), log).to_json()["estimates"] == off_policy(policy, log, greedy=True).to_json()["estimates"]
    )


def test_masks_reach_the_policy():
    rng = Rng(1004).numpy()
    allowed = np.ones((1000, 3), bool)
    allowed[::2, 2] = False
    x = rng.integers(4, size=1000)
    shares = LOGGING[x] * allowed / (LOGGING[x] * allowed).sum(1, keepdims=True)
    actions = (rng.random((1000, 1)) > shares.cumsum(1)).sum(1)
    log = LoggedBandit.validated(
        contexts=np.eye(4)[x], actions=actions, rewards=REWARDS[x, actions], allowed=allowed,
        propensities=shares[np.arange(1000), actions],
    )  # fmt: skip
    report = off_policy(Table(LOGGING), log)
    assert report.estimates["ips"].value == pytest.approx(report.logged.value, abs=1e-5)


def test_clipping():
    log = bandit(3000, 1005)
    plain, clipped = (off_policy(Table(TARGET), log, clip=clip) for clip in (None, 1.5))
    weights = TARGET[log.contexts.argmax(1), log.actions] / LOGGING[log.contexts.argmax(1), log.actions]
    assert plain.support["max_weight"] == pytest.approx(weights.max()) == clipped.support["max_weight"]
    assert clipped.support["clipped"] == pytest.approx((weights > 1.5).mean()) and "clipped" not in plain.support
    expected = (np.minimum(weights, 1.5) * log.rewards.numpy()).mean()
    assert clipped.estimates["ips"].value == pytest.approx(expected, rel=1e-5)
    assert clipped.estimates["ips"].ess > plain.estimates["ips"].ess
    assert off_policy(Table(TARGET), log, clip=100).estimates == plain.estimates


def test_missing_support_is_warned_of():
    never = np.array([[0.5, 0.5, 0.0]] * 4)
    report = off_policy(Table(TARGET), bandit(2000, 1006, logging=never))
    assert report.support["never_taken"] == pytest.approx(TARGET[:, 2].mean(), abs=0.02)
    assert any("actions that the log never has" in warning for warning in report.warnings)
    assert any("mean weight is 0.7" in warning for warning in report.warnings)
    # Taken elsewhere, but not where the target takes it: seen in the mean weight alone.
    local = LOGGING.copy()
    local[2] = [0.6, 0.4, 0.0]
    found = off_policy(Table(np.array([[0, 0, 1.0]] * 4)), bandit(4000, 1007, logging=local))
    assert found.support["never_taken"] == 0
    assert found.support["mean_weight"] == pytest.approx(0.75, abs=0.1)
    assert any("never did there" in warning for warning in found.warnings)
    few = off_policy(Table(np.array([[0.0, 0.0, 1.0]] * 4)), bandit(60, 1008))
    assert any("effective sample size" in warning for warning in few.warnings)
    assert few.to_json()["warnings"] == list(few.warnings)


def test_the_training_log_is_recognised():
    log, policy = bandit(500, 1021), Table(LOGGING)
    policy.provenance = {"fingerprint": log.fingerprint()}
    assert "trained on this very log" in off_policy(policy, log).warnings[0]
    assert off_policy(policy, bandit(500, 1022)).warnings == ()


def test_nothing_in_common():
    log = bandit(200, 1009, logging=np.array([[1.0, 0.0, 0.0]] * 4))
    report = off_policy(Table(np.array([[0.0, 1.0, 0.0]] * 4)), log)
    assert report.estimates["ips"].value == 0 and "snips" in report.skipped
    assert report.support["never_taken"] == 1 and report.support["ess"] == 0


def test_errors_of_decisions():
    log = bandit(50, 1010)

    class Half(Table):
        def probabilities(self, obs, mask=None):
            return self.shares[obs.argmax(-1)] / 2

    with pytest.raises(TelosError, match="probabilities do not fit the log"):
        off_policy(Half(TARGET), log)
    with pytest.raises(TelosError, match=r"do not fit the policy(.|\n)*Discrete\(size=2\)(.|\n)*Discrete\(size=3\)"):
        off_policy(Table(TARGET[:, :2] / TARGET[:, :2].sum(1, keepdims=True)), log)
    with pytest.raises(TelosError, match="observations do not fit"):
        off_policy(CategoricalPolicy(5, 3, ()), log)
    with pytest.raises(TelosError, match="out of range"):
        off_policy(Table(TARGET), log, clip=0)
    with pytest.raises(TelosError, match="single decision"):
        off_policy(Table(TARGET), log[:1])
    with pytest.raises(TelosError, match="reads logged decisions"):
        off_policy(Table(TARGET), [1, 2])
    named = Table(TARGET)
    named.action_names = ("0", "2", "1")
    with pytest.raises(TelosError, match="action_names are not the policy's"):
        off_policy(named, log)


def test_the_reward_model_is_the_ridge_regression_that_it_says():
    rng = Rng(1011).numpy()
    n, size, count = 60, 3, 4
    u = np.concatenate([np.ones((n, 1)), rng.standard_normal((n, size - 1))], 1)
    actions, rewards = rng.integers(count - 1, size=n), rng.standard_normal(n)
    design = np.zeros((n, size * (1 + count)))
    design[:, :size] = u
    for row in range(n):
        design[row, size * (1 + actions[row]) : size * (2 + actions[row])] = u[row]
    penalty = np.eye(design.shape[1])
    penalty[0, 0] = 1e-9
    expected = np.linalg.solve(design.T @ design + penalty, design.T @ rewards).reshape(-1, size)
    grams = np.stack([u[actions == a].T @ u[actions == a] for a in range(count)])
    moments = np.stack([u[actions == a].T @ rewards[actions == a] for a in range(count)])
    common, deviations = solve(torch.from_numpy(grams), torch.from_numpy(moments))
    assert np.allclose(common, expected[0]) and np.allclose(deviations, expected[1:])
    assert not deviations[-1].any()  # an action without rows


def test_a_row_is_predicted_without_itself():
    rng = Rng(1012)
    contexts, actions = torch.randn(40, 2, generator=rng.torch()), torch.arange(40) % 3
    rewards = torch.randn(40, generator=rng.at("r").torch())
    before = cross_fitted(contexts, actions, rewards, 3, rng.numpy())
    rewards[7] += 100
    after = cross_fitted(contexts, actions, rewards, 3, rng.numpy())
    assert torch.allclose(before[7], after[7], atol=1e-9)
    assert ((before - after).abs().amax(1) > 1e-3).sum() == 32


# A chain: action 1 moves right from state 0 to 1 to 2, action 0 stays; state 2 pays and ends with probability 1/2.
CHAIN_TARGET = np.array([[0.2, 0.8], [0.3, 0.7], [0.5, 0.5]])
CHAIN_LOGGING = np.array([[0.5, 0.5], [0.4, 0.6], [0.6, 0.4]])
PAYS = np.array([[0.0, -0.1], [0.2, 0.0], [1.0, 2.0]])
GAMMA = 0.9


def chain_value(shares):
    """Exact values of the three states."""
    moves = np.zeros((3, 3))
    for state in (0, 1):
        moves[state, state], moves[state, state + 1] = shares[state]
    moves[2, 2] = 0.5
    return np.linalg.solve(np.eye(3) - GAMMA * moves, (shares * PAYS).sum(1))


def chain(episodes, seed, shares=CHAIN_LOGGING, limit=None):
    """Logged episodes from state 0, with log_probs; cut after `limit` steps."""
    rng = Rng(seed).at("chain").numpy()
    rows = []
    for _ in range(episodes):
        state, step = 0, 0
        while True:
            action = int(rng.random() < shares[state, 1])
            ended = state == 2 and rng.random() < 0.5
            following = min(2, state + action) if state < 2 else 2
            cut = limit is not None and step + 1 == limit and not ended
            rows.append((state, action, PAYS[state, action], following, ended, cut, math.log(shares[state, action])))
            state, step = following, step + 1
            if ended or cut:
                break
    states, actions, rewards, following, terminated, truncated, log_probs = map(np.array, zip(*rows, strict=True))
    return Transitions.validated(
        observations=np.eye(3)[states], actions=actions, rewards=rewards, next_observations=np.eye(3)[following],
        terminated=terminated, truncated=truncated, action_space=Discrete(2), log_probs=log_probs,
    )  # fmt: skip


def test_the_chain():
    value = chain_value(CHAIN_TARGET)[0]
    assert abs(value - chain_value(CHAIN_LOGGING)[0]) > 0.1
    report = off_policy(Table(CHAIN_TARGET), chain(2000, 1013), discount=GAMMA)
    assert list(report.estimates) == ["pdis", "snpdis", "fitted q"] and not report.skipped and not report.warnings
    assert report.count == 2000 and report.logged.value == pytest.approx(chain_value(CHAIN_LOGGING)[0], abs=0.05)
    for name in ("pdis", "snpdis"):
        estimate = report.estimates[name]
        assert estimate.interval.low <= value <= estimate.interval.high, name
        assert estimate.interval.high - estimate.interval.low < 0.3
        assert 30 < estimate.ess < 2000
    assert report.estimates["fitted q"].value == pytest.approx(value, abs=0.03)
    assert "does not cover" in report.estimates["fitted q"].note


def test_per_decision_is_unbiased_and_covers():
    value, inside, found = chain_value(CHAIN_TARGET)[0], 0, []
    from telos.ops import off_policy as ops

    for seed in range(200):
        log = chain(150, seed)
        place, alive = layout(first_rows(log), len(log))
        ratios = Table(CHAIN_TARGET).log_prob(log.observations, log.actions) - log.log_probs.double()
        weights = ops.cumulative_weights(ratios[place], alive)
        terms = ops.per_decision_self_normalised(weights, log.rewards.double()[place], alive, GAMMA).numpy()
        found.append(ops.per_decision(weights, log.rewards.double()[place], alive, GAMMA).mean().item())
        half = 1.976 * terms.std(ddof=1) / math.sqrt(150)
        inside += abs(terms.mean() - value) <= half
    assert 180 <= inside <= 198
    assert abs(np.mean(found) - value) < 3 * np.std(found) / math.sqrt(200)


def test_fitted_q_goes_on_after_a_truncation_and_stops_at_the_end():
    report = off_policy(Table(CHAIN_TARGET), chain(4000, 1014, limit=4), discount=GAMMA)
    value = chain_value(CHAIN_TARGET)[0]
    assert report.estimates["fitted q"].value == pytest.approx(value, abs=0.05)
    assert report.estimates["pdis"].value < value - 0.3  # with the rewards until the cut


def test_the_target_that_was_logged():
    log = chain(300, 1015)
    report = off_policy(Table(CHAIN_LOGGING), log, discount=GAMMA)
    for name in ("pdis", "snpdis"):
        assert report.estimates[name].value == pytest.approx(report.logged.value, abs=1e-5)
        assert report.estimates[name].ess == pytest.approx(300, abs=1e-2)


def test_without_log_probs_only_fitted_q():
    log = replace(chain(500, 1016), log_probs=None)
    report = off_policy(Table(CHAIN_TARGET), log, discount=GAMMA)
    assert list(report.estimates) == ["fitted q"] and "no log_probs" in report.skipped["pdis"]


def test_never_taken_actions_of_episodes():
    stays = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    with np.errstate(divide="ignore"):
        report = off_policy(Table(CHAIN_TARGET), chain(200, 1017, shares=np.maximum(stays, 1e-300)), discount=GAMMA)
    assert report.support["never_taken"] > 0.2
    assert any("never has" in warning for warning in report.warnings)


# A line: s' = 0.8 s + a + noise, r = -s^2 - a^2, for 400 steps of many short logged pieces.


def line(n, seed, gain, std=0.5):
    """Pieces of 5 steps from s ~ N(0, 1); actions are N(gain s, std^2)."""
    rng = Rng(seed).at("line").numpy()
    columns = {name: [] for name in ("observations", "actions", "rewards", "next_observations", "log_probs")}
    state = rng.standard_normal(n)
    for _ in range(5):
        noise = std * rng.standard_normal(n)
        action = gain * state + noise
        following = 0.8 * state + action + 0.1 * rng.standard_normal(n)
        density = -0.5 * (noise / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        for name, value in zip(columns, (state, action, -(state**2) - action**2, following, density), strict=True):
            columns[name].append(value)
        state = following
    flat = {name: np.stack(values, 1).reshape(-1) for name, values in columns.items()}
    ends = np.tile([False] * 4 + [True], n)
    return Transitions.validated(
        **flat, terminated=np.zeros(5 * n, bool), truncated=ends, action_space=Box((-20.0,), (20.0,))
    )


def quadratic_value(gain, std, discount):
    """E V(s) for s ~ N(0, 1) with V(s) = p s^2 + q under actions N(gain s, std^2)."""
    p = -(1 + gain**2) / (1 - discount * (0.8 + gain) ** 2)
    q = (-(std**2) + discount * p * (std**2 + 0.01)) / (1 - discount)
    return p + q


class Line(GaussianPolicy):
    """N(gain s, std^2), as a telos policy with a linear mean."""

    def __init__(self, gain, std):
        super().__init__(1, (-20.0,), (20.0,), ())
        self.gain, self.std = gain, std

    def forward(self, states):
        return self.gain * states / 20, torch.full((1,), math.log(self.std / 20))


def test_a_gaussian_policy_with_a_known_value():
    log = line(3000, 1018, gain=-0.3)
    policy = Line(-0.4, 0.35)
    report = off_policy(policy, log, discount=0.8)
    assert report.estimates["fitted q"].value == pytest.approx(quadratic_value(-0.4, 0.35, 0.8), rel=0.03)
    # Importance sampling sees five steps: the sum of discounted E r_t, with E s_t^2 known.
    second, short = 1.0, 0.0
    for step in range(5):
        short -= 0.8**step * ((1 + 0.16) * second + 0.35**2)
        second = 0.4**2 * second + 0.35**2 + 0.01
    assert report.logged.value < short - 0.7
    for name in ("pdis", "snpdis"):
        assert report.estimates[name].value == pytest.approx(short, abs=0.12), name  # three standard errors
    assert report.support["far"] < 0.2 and not report.warnings


def test_a_deterministic_policy_over_continuous_actions_has_fitted_q_only():
    log = line(400, 1019, gain=-0.3)
    policy = DeterministicPolicy(1, (-20.0,), (20.0,), ())
    policy.net.layers[-1].weight.data = torch.tensor([[-0.5 / 20]])
    report = off_policy(policy, log, discount=0.8)
    assert list(report.estimates) == ["fitted q"]
    assert report.skipped["pdis"] == "a DeterministicPolicy has no action probabilities"
    assert report.estimates["fitted q"].value == pytest.approx(quadratic_value(-0.5, 0, 0.8), rel=0.15)
    greedy = off_policy(Line(-0.5, 0.45), log, discount=0.8, greedy=True)
    assert "greedy" in greedy.skipped["pdis"]
    far = DeterministicPolicy(1, (-20.0,), (20.0,), ())
    far.net.layers[-1].bias.data = torch.tensor([10.0])
    found = off_policy(far, log, discount=0.8)
    assert found.support["far"] > 0.9 and any("extrapolates" in warning for warning in found.warnings)


def test_the_same_seed_gives_the_same_numbers():
    log = chain(50, 1020)
    one, two, other = (off_policy(Table(CHAIN_TARGET), log, seed=seed).to_json() for seed in (0, 0, 1))
    assert one == two != other


def asking(n, seed):
    """A log of n one-step decisions between two actions: the goal stands in the last column, and action 1 pays it."""
    rng = Rng(seed).at("asking").numpy()
    state, goal = rng.normal(size=n), rng.integers(2, size=n)
    actions = (rng.random(n) < 0.3).astype(int)
    return Transitions.validated(
        observations=np.stack([state, goal], 1), actions=actions, rewards=np.where(actions == 1, goal, 0.2),
        next_observations=np.zeros((n, 2)), terminated=np.ones(n, bool), truncated=np.zeros(n, bool),
        log_probs=np.log(np.where(actions == 1, 0.3, 0.7)), action_space=Discrete(2),
    )  # fmt: skip


def test_a_policy_on_its_way_to_goals_is_judged_by_the_goals_of_the_records():
    policy = ReachingPolicy(2, (0,), (1,), "categorical", 2, ())
    with torch.no_grad():
        layer = policy.actor.net.layers[-1]
        layer.weight[:] = torch.tensor([[0.0, 0.0], [0.0, 2.0]])  # pi(1 | s, g) = sigmoid(2 g - 1)
        layer.bias[:] = torch.tensor([0.0, -1.0])
    yes = 1 / (1 + math.exp(-1))
    value = (yes * 0.2 + yes + (1 - yes) * 0.2) / 2  # the goals 0 and 1, equally often
    log = asking(4000, 1000)
    report = off_policy(policy, log, goal=goal_in("1"))
    for name in ("pdis", "snpdis", "fitted q"):
        assert report.estimates[name].value == pytest.approx(value, abs=0.03), name
    assert not report.warnings
    # One goal for all: what is recorded for it is half of the records; the reward is that of each record's own goal.
    for_one = off_policy(policy, log, goal=[1.0]).estimates["pdis"].value
    assert for_one == pytest.approx(yes / 2 + (1 - yes) * 0.2, abs=0.03)
    greedy = off_policy(policy, log, goal=goal_in("1"), greedy=True)
    assert greedy.estimates["snpdis"].value == pytest.approx(0.6, abs=0.03)
    for wrong, match in (("desired_goal", "columns"), ("1,", "columns"), ("7", "no such column")):
        with pytest.raises(TelosError, match=match):
            off_policy(policy, log, goal=goal_in(wrong))


def test_continuous_actions_on_the_way_to_goals():
    policy = ReachingPolicy(2, (0,), (1,), "gaussian", [[-1.0], [1.0]], ())
    with torch.no_grad():
        policy.actor.net.layers[-1].weight[:] = torch.tensor([[0.0, 1.0]])
        policy.actor.log_std.fill_(-1.5)
    draws = Rng(1001).torch()
    goals = torch.rand(3000, generator=draws) - 0.5
    actions = 2 * torch.rand(3000, 1, generator=draws) - 1
    log = Transitions.validated(
        observations=torch.stack([torch.zeros(3000), goals], 1), actions=actions,
        rewards=-(actions[:, 0] - goals).square(), next_observations=torch.zeros(3000, 2),
        terminated=torch.ones(3000), truncated=torch.zeros(3000), log_probs=torch.full((3000,), -math.log(2)),
        action_space=Box((-1.0,), (1.0,)),
    )  # fmt: skip
    # The mean is tanh(g), so what is lost is the variance and the tanh's bend.
    value = -(math.exp(-3) + float((torch.tanh(goals) - goals).square().mean()))
    report = off_policy(policy, log, goal=goal_in("1"))
    assert report.estimates["snpdis"].value == pytest.approx(value, abs=0.01)
    assert report.estimates["fitted q"].value == pytest.approx(value, abs=0.01)
