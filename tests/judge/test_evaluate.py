"""Evaluation against environments whose returns are known in closed form."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.core.rng import Rng
from telos.data.records import Box, Discrete
from telos.judge.evaluate import evaluate
from telos.judge.stats import paired_t


class Clock(gym.Env):
    """Ends after L steps, L in 1..9 drawn at reset; each step pays the action; it succeeds if L is even.

    So a policy that always acts with a earns exactly a * L in L steps. The observation is (t, L).
    """

    metadata = {"render_modes": []}

    def __init__(self, report: str = "success", when: str = "end"):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        self.report, self.when, self.t, self.length = report, when, 0, 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(1, 10))
        return self.look(), {}

    def step(self, action):
        self.t += 1
        ended = self.t == self.length
        info = {}
        if self.report and self.when == "end" and ended:
            info[self.report] = self.length % 2 == 0
        if self.report and self.when == "start":
            info[self.report] = self.t == 1
        return self.look(), float(action[0]), ended, False, info

    def look(self):
        return np.array([self.t, self.length], dtype=np.float32)


class Endless(Clock):
    def step(self, action):
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


class Broken(Clock):
    def step(self, action):
        observation, _, ended, truncated, info = super().step(action)
        return observation, float("nan"), ended, truncated, info


class Tests(Policy):
    """What the policies below share."""

    def config(self):
        return {}

    def probe(self):
        return {}


class Constant(Tests):
    def __init__(self, value: float = 0.5):
        super().__init__()
        self.value = value

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        assert obs.dtype == torch.float32
        assert not self.training
        return Act(torch.full((len(obs), 1), self.value))


class Left(Tests):
    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        return Act(torch.zeros(len(obs), dtype=torch.int64))


class Noise(Tests):
    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        return Act(torch.rand(len(obs), 1, generator=rng) if explore else torch.zeros(len(obs), 1))


class Counter(Tests):
    """Has a state: the number of steps of its episode. Acts with 1 while that equals the observed time, else 0."""

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        counts = torch.zeros(len(obs)) if state is None else state["steps"][0]
        return Act((counts == obs[:, 0]).float()[:, None], {"steps": (counts + 1,)})


def lengths_by_seed(seed: int, episodes: int) -> list[int]:
    """The L of each episode, from the environment itself and the documented seeds."""
    env = Clock()
    rng = Rng(seed).at("evaluate")
    return [int(env.reset(seed=rng.at("episode", k).integer() % 2**31)[0][1]) for k in range(episodes)]


@pytest.mark.parametrize("vector", [1, 3, 8, None])
@pytest.mark.parametrize("episodes", [1, 7, 20])
def test_returns_and_lengths_in_closed_form(episodes, vector):
    result = evaluate(Constant(), Clock, episodes=episodes, seed=5, vector=vector)
    expected = np.array(lengths_by_seed(5, episodes))
    assert result.lengths.tolist() == expected.tolist()
    assert result.returns.tolist() == (0.5 * expected).tolist()
    assert result.successes is not None
    assert result.successes.tolist() == (expected % 2 == 0).tolist()
    assert result.mean == pytest.approx(0.5 * expected.mean())


def test_short_episodes_are_not_over_represented():
    """Lengths are uniform on 1..9, mean 5; taking whichever episode ends first would give far less."""
    result = evaluate(Constant(), Clock, episodes=2000, vector=100)
    standard_error = np.sqrt(80 / 12 / 2000)
    assert abs(result.lengths.mean() - 5) < 4 * standard_error


def test_interval_json_and_text():
    result = evaluate(Constant(), Clock, episodes=6)
    assert result.interval == paired_t(result.returns)
    assert evaluate(Constant(), Clock, episodes=1).interval is None
    saved = json.loads(json.dumps(result.to_json()))
    assert saved["returns"] == result.returns.tolist()
    assert saved["interval"]["low"] == result.interval.low
    assert saved["episodes"] == 6
    assert "over 6 episodes" in str(result)


def test_same_seed_same_result():
    one, two, other = (evaluate(Noise(), Clock, episodes=9, seed=s, explore=True) for s in (0, 0, 1))
    assert one.returns.tolist() == two.returns.tolist()
    assert one.returns.tolist() != other.returns.tolist()
    assert evaluate(Noise(), Clock, episodes=9).returns.tolist() == [0.0] * 9


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_environments_in_every_reset_mode(mode):
    """They draw later episodes from the seed of the first, as plain environments do when reset without a seed."""

    def vector():
        return SyncVectorEnv([Clock] * 3, autoreset_mode=mode)

    result = evaluate(Constant(), vector, episodes=8, seed=2)
    env, rng = Clock(), Rng(2).at("evaluate")
    expected = np.zeros(8, int)
    for part in range(3):
        for k in range(part, 8, 3):
            first = mode is AutoresetMode.DISABLED or k == part
            seed = rng.at("episode", k).integer() % 2**31 if first else None
            expected[k] = env.reset(seed=seed)[0][1]
    assert result.lengths.tolist() == expected.tolist()
    assert result.returns.tolist() == (0.5 * expected).tolist()
    assert result.successes is not None
    assert result.successes.tolist() == (expected % 2 == 0).tolist()


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_states_start_anew_with_each_episode(mode):
    env = Clock if mode is None else lambda: SyncVectorEnv([Clock] * 3, autoreset_mode=mode)
    result = evaluate(Counter(), env, episodes=10, vector=3)
    assert result.returns.tolist() == result.lengths.tolist()


def test_processes_give_the_same():
    plain = evaluate(Constant(), Clock, episodes=5, seed=1, vector=2)
    apart = evaluate(Constant(), Clock, episodes=5, seed=1, vector=2, processes=True)
    assert plain.returns.tolist() == apart.returns.tolist()


def test_time_limits_end_episodes():
    result = evaluate(Constant(0.0), "Pendulum-v1", episodes=3)
    assert result.lengths.tolist() == [200] * 3
    assert (result.returns < 0).all()
    assert result.successes is None
    result = evaluate(Constant(), lambda: gym.wrappers.TimeLimit(Endless(), 4), episodes=5, vector=2)
    assert result.returns.tolist() == [2.0] * 5


def test_discrete_actions():
    """Pushing to the left at all times drops the pole after 8 to 10 steps, each worth 1."""
    result = evaluate(Left(), "CartPole-v1", episodes=12)
    assert result.returns.tolist() == result.lengths.tolist()
    assert set(result.lengths.tolist()) <= {8, 9, 10, 11}


def test_discrete_actions_that_start_elsewhere():
    class Shifted(Clock):
        def __init__(self):
            super().__init__()
            self.action_space = gym.spaces.Discrete(2, start=5)

        def step(self, action):
            assert action == 5
            return super().step([action])

    result = evaluate(Left(), Shifted, episodes=4)
    assert result.returns.tolist() == (5.0 * result.lengths).tolist()


def test_dict_observations_and_shaped_actions():
    class Square(Clock):
        def __init__(self):
            super().__init__()
            box = self.observation_space
            self.observation_space = gym.spaces.Dict({"b": gym.spaces.Discrete(3), "a": box})
            self.action_space = gym.spaces.Box(-1, 1, (2, 2), np.float64)

        def look(self):
            return {"a": super().look(), "b": 1}

        def step(self, action):
            assert action.shape == (2, 2)
            assert action.dtype == np.float64
            return super().step([action.sum()])

    class Four(Tests):
        def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
            assert obs.shape[1] == 5
            assert obs[:, 2:].tolist() == [[0, 1, 0]] * len(obs)
            return Act(torch.full((len(obs), 4), 0.25))

    result = evaluate(Four(), Square, episodes=4)
    assert result.returns.tolist() == result.lengths.tolist()


def test_success_at_any_step_or_at_the_last():
    def env():
        return Clock(report="is_success", when="start")

    lasting = evaluate(Constant(), env, episodes=30)
    assert lasting.success_rate == 1
    last = evaluate(Constant(), env, episodes=30, success="last")
    assert last.successes is not None
    assert last.successes.tolist() == (last.lengths == 1).tolist()
    assert evaluate(Constant(), lambda: Clock(report=""), episodes=3).successes is None


def test_training_mode_comes_back():
    policy = Constant().train()
    evaluate(policy, Clock, episodes=1)
    assert policy.training


class Spaced(Constant):
    def __init__(self, space):
        super().__init__()
        self.action_space = space


WRONG = {
    "size": (Spaced(Box((-1.0,) * 2, (1.0,) * 2)), Clock, "action space does not fit"),
    "bounds": (Spaced(Box((-2.0,), (2.0,))), Clock, "action space does not fit"),
    "kind": (Spaced(Discrete(2)), Clock, "action space does not fit"),
    "too few": (Spaced(Box((-1.0,), (1.0,))), "CartPole-v1", "action space does not fit"),
    "shape": (Constant(), "CartPole-v1", "actions do not fit"),
    "type": (Left(), Clock, "actions do not fit"),
    "range": (Constant(1.5), Clock, "acts outside"),
    "nan": (Constant(float("nan")), Clock, "acts outside"),
    "reward": (Constant(), Broken, "the return is not finite"),
    "name": (Constant(), "Pendullum-v1", "no environment is called 'Pendullum-v1'"),
    "not an env": (Constant(), dict, "makes no environment"),
    "not callable": (Constant(), 5, "'env' has the wrong type"),
    "policy": ("a policy", Clock, "does not act"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name):
    policy, env, part = WRONG[name]
    with pytest.raises(TelosError, match=part):
        evaluate(policy, env, episodes=2)


def test_narrower_bounds_fit():
    assert evaluate(Spaced(Box((-0.6,), (0.6,))), Clock, episodes=2).mean > 0


def test_options_and_shared_environments():
    for options in ({"episodes": 0}, {"vector": 0}, {"success": "first"}):
        with pytest.raises(TelosError, match="an option is wrong"):
            evaluate(Constant(), Clock, **options)
    shared = Clock()
    with pytest.raises(TelosError, match="the same environment again"):
        evaluate(Constant(), lambda: shared, episodes=2)
    assert len(evaluate(Constant(), lambda: shared, episodes=2, vector=1).returns) == 2


def test_an_episode_without_end_stops(monkeypatch):
    monkeypatch.setattr("telos.judge.evaluate.LONGEST", 50)
    with pytest.raises(TelosError, match="has not ended after 50 steps"):
        evaluate(Constant(), Endless, episodes=2)


class Chaser(Tests):
    """Acts with a tenth of its goal's first value; keeps the goals that it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        assert goal.shape[0] == len(obs) and goal.dtype == torch.float32
        self.seen.append(goal)
        return Act(goal[:, :1] / 10)


@pytest.mark.parametrize("vector", [1, 3, None])
def test_goals_are_those_of_their_episodes(vector):
    lengths = np.array(lengths_by_seed(2, 7))
    same = evaluate(Chaser(), Clock, episodes=7, seed=2, vector=vector, goal=[3.0, 9.0])
    assert same.returns == pytest.approx(0.3 * lengths)
    each = np.stack([np.arange(7.0), np.zeros(7)], 1)
    for goal in (each, torch.from_numpy(each)):
        result = evaluate(Chaser(), Clock, episodes=7, seed=2, vector=vector, goal=goal)
        assert result.returns == pytest.approx(0.1 * np.arange(7) * lengths)


@pytest.mark.parametrize("vector", [1, 3, None])
def test_a_function_makes_goals_of_seed_and_first_observation(vector):
    asked = []

    def goal(seed, first):
        asked.append(seed)
        env = Clock()
        assert first.dtype == np.float32 and env.reset(seed=seed)[0].tolist() == first.tolist()
        return [first[1], 0.0]

    result = evaluate(Chaser(), Clock, episodes=7, seed=2, vector=vector, goal=goal)
    lengths = np.array(lengths_by_seed(2, 7))
    assert result.returns == pytest.approx(0.1 * lengths**2)
    rng = Rng(2).at("evaluate")
    assert sorted(asked) == sorted(rng.at("episode", k).integer() % 2**31 for k in range(7))


class Asking(Clock):
    """Dict observations with a desired goal, which changes with time."""

    def __init__(self):
        super().__init__()
        goal = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({"desired_goal": goal, "observation": self.observation_space})

    def look(self):
        return {"desired_goal": np.array([self.t], dtype=np.float32), "observation": super().look()}


def test_a_part_of_the_observation_is_the_goal():
    result = evaluate(Chaser(), Asking, episodes=5, seed=2, goal="desired_goal")
    assert result.returns == pytest.approx(0.1 * result.lengths * (result.lengths - 1) / 2)


def test_in_environments_that_reset_themselves_goals_follow_their_episodes():
    def several():
        return SyncVectorEnv([Clock] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)

    goals = np.arange(1.0, 7.0)[:, None]
    result = evaluate(Chaser(), several, episodes=6, seed=2, goal=goals)
    assert result.returns == pytest.approx(0.1 * goals[:, 0] * result.lengths)
    with pytest.raises(TelosError, match="its episodes are not known"):
        evaluate(Chaser(), several, episodes=6, goal=lambda seed, first: [0.0])


@pytest.mark.parametrize(
    ("goal", "part"),
    [
        (np.zeros((3, 2)), "'goal' has the wrong shape"),
        (np.zeros((1, 1, 1)), "'goal' has the wrong shape"),
        ("desired_goal", "no part 'desired_goal'"),
        (lambda seed, first: [[1.0]], "the goal cannot be used"),
        (lambda seed, first: [float("nan")], "the goal cannot be used"),
    ],
)
def test_goals_that_do_not_fit_are_named(goal, part):
    with pytest.raises(TelosError, match=part):
        evaluate(Chaser(), Clock, episodes=2, goal=goal)
