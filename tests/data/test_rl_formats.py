"""Transitions through the data door: Minari, D4RL's HDF5, .npz, recordings, and what a broken file is told."""

import importlib.util
import json
import os
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.data import environments
from telos.data.formats import load, save_npz
from telos.data.records import Box, Discrete, Preferences, Transitions


def same(a: Transitions, b: Transitions) -> None:
    assert a.action_space == b.action_space
    for name, column in a.columns().items():
        assert torch.equal(column, getattr(b, name)), name


class Line(gym.Env):
    """Position t after t steps; the action is added to the reward; ends at `end`."""

    def __init__(self, end: int = 3):
        self.observation_space = gym.spaces.Box(-100, 100, (1,), np.float64)
        self.action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
        self.end, self.t = end, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1), {}

    def step(self, action):
        self.t += 1
        return np.array([float(self.t)]), float(action[0]), self.t == self.end, False, {}


class Goal(Line):
    """As a goal environment, with discrete actions that start at 5."""

    def __init__(self):
        super().__init__()
        box = gym.spaces.Box(-100, 100, (1,), np.float64)
        self.observation_space = gym.spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
        self.action_space = gym.spaces.Discrete(3, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.parts(), {}

    def step(self, action):
        assert action in (5, 6, 7)
        super().step([action])
        return self.parts(), float(action), False, self.t == self.end, {}

    def parts(self):
        return {
            key: np.array([self.t + v])
            for key, v in (("observation", 0.0), ("achieved_goal", 10.0), ("desired_goal", 20.0))
        }


class Always(Policy):
    """The same action for every observation."""

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.value = value

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        return Act(torch.full((len(obs), 1), self.value))

    def config(self):
        return {"value": self.value}

    def probe(self):
        return {}


def collect(env: gym.Env, dataset_id: str, root: Path, episodes: int, data_format: str = "hdf5") -> Path:
    """A Minari data set of random actions, written by Minari itself (its DataCollector would need jax)."""
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    def stacked(parts: list):
        return (
            {key: stacked([p[key] for p in parts]) for key in parts[0]}
            if isinstance(parts[0], dict)
            else np.stack(parts)
        )

    env.action_space.seed(0)
    buffers = []
    for number in range(episodes):
        observation, _ = env.reset(seed=number)
        seen, steps, ended = [observation], [], False
        while not ended:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            steps.append((action, reward, terminated, truncated))
            ended = terminated or truncated
        actions, rewards, terminations, truncations = (list(column) for column in zip(*steps))
        buffers.append(
            EpisodeBuffer(
                id=number, seed=number, observations=stacked(seen), actions=np.stack(actions), rewards=rewards,
                terminations=terminations, truncations=truncations,
            )
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        create_dataset_from_buffers(
            dataset_id, buffers, env=env, observation_space=env.observation_space, action_space=env.action_space,
            data_format=data_format,
        )  # fmt: skip
    return root / dataset_id


@pytest.fixture
def minari_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_pendulum(minari_root, data_format):
    folder = collect(gym.make("Pendulum-v1"), "telos/pendulum-v0", minari_root, 2, data_format)
    data = load("minari:telos/pendulum-v0")
    assert isinstance(data, Transitions)
    assert data.origin == "minari:telos/pendulum-v0"
    assert len(data) == 400
    assert data.action_space == Box((-2.0,), (2.0,))
    assert data.truncated.nonzero().ravel().tolist() == [199, 399]
    assert not data.terminated.any()
    # T+1 observations: the next observation is the next row's, but for the last of an episode.
    assert torch.equal(data.next_observations[:199], data.observations[1:200])
    assert not torch.equal(data.next_observations[199], data.observations[200])
    # The first observation is the one that the environment gives for the seed.
    first, _ = gym.make("Pendulum-v1").reset(seed=1)
    assert torch.equal(data.observations[200], torch.from_numpy(first))
    for path in (folder, folder / "data"):
        again = load(path)
        same(data, again)
        same(data, load(again.origin))


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="mujoco is not installed")
def test_minari_inverted_pendulum_terminates(minari_root):
    folder = collect(gym.make("InvertedPendulum-v5"), "telos/inverted-v0", minari_root, 3)
    data = load(folder)
    assert data.terminated.sum() == 3, "the pole falls within the time limit"
    assert not data.truncated.any()
    assert data.action_space == Box((-3.0,), (3.0,))
    same(data, load(folder / "data" / "main_data.hdf5"))


def test_minari_goal_environment_is_flattened_as_gymnasium_does(minari_root):
    folder = collect(Goal(), "telos/goal-v0", minari_root, 1)
    data = load(folder)
    assert data.action_space == Discrete(3)
    assert data.actions.dtype == torch.int64
    assert set(data.actions.tolist()) <= {0, 1, 2}
    assert torch.equal(data.rewards, data.actions + 5.0)
    assert data.observations.tolist() == [[10, 20, 0], [11, 21, 1], [12, 22, 2]]
    assert data.next_observations[-1].tolist() == [13, 23, 3]
    space = Goal().observation_space
    assert data.observations[1].tolist() == gym.spaces.flatten(
        space, {"observation": np.array([1.0]), "achieved_goal": np.array([11.0]), "desired_goal": np.array([21.0])}
    ).tolist()  # fmt: skip


def d4rl(path: Path, **changes) -> Path:
    """Episodes of rows 0-2 (terminal), 3-5 (timeout), 6-7 (the file ends)."""
    columns = {
        "observations": np.arange(16, dtype=np.float32).reshape(8, 2),
        "actions": np.linspace(-1, 1, 8, dtype=np.float32)[:, None],
        "rewards": np.arange(8, dtype=np.float32),
        "terminals": np.isin(np.arange(8), [2]),
        "timeouts": np.isin(np.arange(8), [5]),
        "infos/qpos": np.zeros((8, 3)),
    } | changes
    with h5py.File(path, "w") as file:
        for name, column in columns.items():
            if column is not None:
                file[name] = column
    return path


def test_d4rl_without_next_observations(tmp_path):
    path = d4rl(tmp_path / "d.hdf5")
    data = load(path)
    # Row 5 was cut and row 7 is the last: their next observations are unknown.
    assert data.rewards.tolist() == [0, 1, 2, 3, 4, 6]
    assert data.terminated.tolist() == [False, False, True, False, False, False]
    assert data.truncated.tolist() == [False, False, False, False, True, True]
    assert data.next_observations[:, 0].tolist() == [2, 4, 4, 8, 10, 14]
    assert data.action_space == Box((-1.0,), (1.0,))
    same(data, load(data.origin))


def test_d4rl_with_next_observations(tmp_path):
    following = np.arange(16, dtype=np.float32).reshape(8, 2) + 0.5
    data = load(d4rl(tmp_path / "d.h5", next_observations=following))
    assert len(data) == 8
    assert np.array_equal(data.next_observations.numpy(), following)
    assert data.truncated.nonzero().ravel().tolist() == [5, 7]


def test_d4rl_one_step_episodes(tmp_path):
    """A timeout at once leaves nothing of its episode, and does not mark the episode before."""
    terminals, timeouts = np.isin(np.arange(8), [0, 2, 7]), np.isin(np.arange(8), [1])
    data = load(d4rl(tmp_path / "d.h5", terminals=terminals, timeouts=timeouts))
    assert data.rewards.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert data.terminated.tolist() == [True, True, False, False, False, False, True]
    assert not data.truncated.any()


def test_action_options(tmp_path):
    path = d4rl(tmp_path / "d.hdf5", actions=np.linspace(-3, 3, 8)[:, None])
    with pytest.raises(TelosError, match=r"d\.hdf5: column 'actions', row 0 is out of range"):
        load(path)
    wide = load(path, action_low=-3, action_high=[3.0])
    assert wide.action_space == Box((-3.0,), (3.0,))
    assert wide.origin == f"{path}?action_high=3.0&action_low=-3"
    same(wide, load(wide.origin))
    clipped = load(f"{path}?clip_actions=true")
    assert clipped.actions[0] == -1
    assert clipped.actions.max() == 1
    for query in ("action_low=0", "action_low=1&action_high=-1", "action_low=a&action_high=1", "n_actions=0"):
        with pytest.raises(TelosError, match=r"action_|n_actions"):
            load(f"{path}?{query}")
    with pytest.raises(TelosError, match="action_low does not fit the actions"):
        load(path, action_low=[-1, -1], action_high=1)


def test_npz_round_trip(tmp_path):
    data = load("gym:Pendulum-v1?steps=30&seed=4")
    path = save_npz(data, tmp_path / "new" / "p.npz")
    again = load(path)
    same(data, again)
    assert again.origin == str(path)
    assert os.listdir(path.parent) == ["p.npz"]
    discrete = load("gym:CartPole-v1?steps=30")
    same(discrete, load(save_npz(discrete, tmp_path / "c.npz")))
    with pytest.raises(TelosError, match=r"ends in \.npz"):
        save_npz(data, tmp_path / "p.npy")


def test_gym_recordings_repeat_and_keep_the_true_last_observation():
    data = load("gym:CartPole-v1", steps=300, seed=7)
    assert len(data) == 300
    assert data.action_space == Discrete(2)
    assert data.origin == "gym:CartPole-v1?policy=random&seed=7&steps=300"
    same(data, load(data.origin))
    assert not torch.equal(data.observations, load("gym:CartPole-v1", steps=300, seed=8).observations)
    ends = data.terminated.nonzero().ravel()
    assert len(ends) > 5
    fallen = (data.next_observations[:, 2].abs() > 0.2095) | (data.next_observations[:, 0].abs() > 2.4)
    assert torch.equal(fallen, data.terminated)
    inside = ~(data.terminated | data.truncated)
    assert torch.equal(data.next_observations[inside], data.observations[1:][inside[:-1]])
    assert bool(data.truncated[-1]) != bool(data.terminated[-1]), "the recording stops here"
    limited = load("gym:Pendulum-v1?steps=401")
    assert limited.truncated.nonzero().ravel().tolist() == [199, 399, 400]


def test_recording_with_a_policy():
    data = environments.record(Line, Always(1.5), steps=7)
    assert data.rewards.tolist() == [1.5] * 7
    assert data.observations.ravel().tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert data.next_observations.ravel().tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert data.terminated.nonzero().ravel().tolist() == [2, 5]
    assert data.truncated.nonzero().ravel().tolist() == [6]
    assert data.origin is None
    with pytest.raises(TelosError, match="outside the action space"):
        environments.record(Line, Always(2.5), steps=7)


def test_recording_with_a_saved_policy(tmp_path, monkeypatch):
    from telos.nets.policies import DeterministicPolicy

    torch_rng = torch.Generator().manual_seed(3)
    policy = DeterministicPolicy(3, [-2.0], [2.0], hidden=(8,), rng=torch_rng)
    policy.save(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    data = load("gym:Pendulum-v1?steps=20&policy=run")
    assert str(tmp_path / "run") in str(data.origin)
    with torch.no_grad():
        torch.testing.assert_close(data.actions, policy.act(data.observations).action)
    monkeypatch.chdir("/")
    same(data, load(str(data.origin)))


WHOLE = {
    "observations": np.zeros((4, 3)), "actions": np.zeros((4, 1)), "rewards": np.zeros(4),
    "next_observations": np.zeros((4, 3)), "terminated": np.zeros(4, bool), "truncated": np.zeros(4, bool),
    "action_low": np.array([-1.0]), "action_high": np.array([1.0]),
}  # fmt: skip
NAN = np.array([0.0, 1.0, np.nan, 3.0])

BROKEN_NPZ = {
    "missing": ({"rewards": None}, ["column 'rewards' is missing"]),
    "no space": ({"action_low": None, "action_high": None}, ["action space is missing", "?action_low=-1"]),
    "half a space": ({"action_high": None}, ["action_high does not fit"]),
    "NaN": ({"rewards": NAN}, ["column 'rewards', row 2 is not finite"]),
    "inf": ({"observations": np.full((4, 3), np.inf)}, ["column 'observations', row 0 is not finite"]),
    "unequal": ({"terminated": np.zeros(5, bool)}, ["column 'terminated' has 5 rows", "expected: 4"]),
    "range": ({"actions": np.array([[0], [0], [0], [1.5]])}, ["column 'actions', row 3 is out of range"]),
    "text": ({"rewards": np.array(list("abcd"))}, ["column 'rewards' has type"]),
    "objects": ({"rewards": np.array([{}, {}, {}, {}])}, ["cannot be read", "plain number arrays"]),
    "images": ({"observations": np.zeros((4, 2, 2, 3))}, ["column 'observations' has shape (4, 2, 2, 3)"]),
    "matrix actions": ({"actions": np.zeros((4, 1, 1))}, ["column 'actions' has shape (4, 1, 1)"]),
    "other next": ({"next_observations": np.zeros((4, 2))}, ["column 'next_observations' has shape (4, 2)"]),
    "empty": ({n: c[:0] for n, c in WHOLE.items() if n[:7] != "action_"}, ["no transitions"]),
    "scalar": ({"rewards": np.array(1.0)}, ["column 'rewards'", "one row a step"]),
    "fractions": ({"n_actions": np.array(2), "actions": NAN / 2}, ["'actions' does not hold discrete actions"]),
    "too many": ({"n_actions": np.array(2), "actions": np.arange(4)}, ["column 'actions', row 2", "0..1"]),
}


@pytest.mark.parametrize("name", BROKEN_NPZ)
def test_broken_npz(tmp_path, name):
    changes, parts = BROKEN_NPZ[name]
    columns = {key: value for key, value in {**WHOLE, **changes}.items() if value is not None}
    if "n_actions" in changes:
        columns = {key: value for key, value in columns.items() if key not in ("action_low", "action_high")}
    path = tmp_path / "broken.npz"
    np.savez(path, allow_pickle=True, **columns)
    with pytest.raises(TelosError) as error:
        load(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


BROKEN_HDF5 = {
    "missing": ({"terminals": None}, ["column 'terminals' is missing"]),
    "no timeouts": ({"timeouts": None}, ["column 'timeouts' is missing", "all false"]),
    "NaN": ({"rewards": np.full(8, np.nan)}, ["column 'rewards', row 0 is not finite"]),
    "NaN in a dropped row": (
        {"observations": np.where(np.arange(8)[:, None] == 7, np.nan, np.zeros((8, 2)))},
        ["column 'observations', row 7 is not finite"],
    ),
    "unequal": ({"actions": np.zeros((7, 1))}, ["column 'actions' has 7 rows"]),
    "range": ({"actions": np.linspace(0, 2, 8)}, ["column 'actions', row 4 is out of range"]),
    "group": ({"observations": None, "observations/x": np.zeros(8)}, ["column 'observations' is a group"]),
    "text": ({"rewards": np.array([b"a"] * 8)}, ["column 'rewards' has type"]),
    "empty": ({"observations": np.zeros((0, 2)), "actions": np.zeros((0, 1)), "rewards": np.zeros(0),
               "terminals": np.zeros(0, bool), "timeouts": np.zeros(0, bool)}, ["no steps"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_HDF5)
def test_broken_hdf5(tmp_path, name):
    changes, parts = BROKEN_HDF5[name]
    path = d4rl(tmp_path / "broken.hdf5", **changes)
    with pytest.raises(TelosError) as error:
        load(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)


def test_truncated_files(tmp_path):
    np.savez(tmp_path / "a.npz", allow_pickle=False, **WHOLE)
    d4rl(tmp_path / "b.hdf5")
    for path in (tmp_path / "a.npz", tmp_path / "b.hdf5"):
        whole = path.read_bytes()
        for part in (whole[: len(whole) // 2], b"nonsense", b""):
            path.write_bytes(part)
            with pytest.raises(TelosError, match=rf"{path.name} (cannot be read|is empty)"):
                load(path)


def test_broken_minari(minari_root):
    folder = collect(gym.make("Pendulum-v1"), "telos/broken-v0", minari_root, 2)
    data, metadata = folder / "data" / "main_data.hdf5", folder / "data" / "metadata.json"
    whole = data.read_bytes()

    def told(path: Path = folder) -> str:
        with pytest.raises(TelosError) as error:
            load(path)
        assert str(folder) in str(error.value)
        return str(error.value)

    with h5py.File(data, "a") as file:
        file["episode_1/rewards"][17] = np.nan
    assert "episode 1: column 'rewards', row 17 is not finite" in told()
    data.write_bytes(whole)
    with h5py.File(data, "a") as file:
        file["episode_0/actions"][5] = 2.5
    assert "episode 0: column 'actions', row 5 is out of range" in told()
    data.write_bytes(whole)
    with h5py.File(data, "a") as file:
        values = file["episode_1/observations"][:200]
        del file["episode_1/observations"]
        file["episode_1/observations"] = values
    assert "episode 1, observations: values do not fit their space" in told()
    data.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in told()
    data.write_bytes(whole)
    saved = metadata.read_text()
    metadata.write_text(saved[:50])
    assert "metadata.json is not JSON" in told()
    metadata.write_text(json.dumps({**json.loads(saved), "minari_version": "0.0.1"}))
    assert "does not support" in told()
    metadata.unlink()
    assert "metadata.json is missing" in told()
    with pytest.raises(TelosError, match=r"alone\.hdf5 is the data file of a Minari data set"):
        load(data.rename(minari_root / "alone.hdf5"))


def test_unknown_environments_and_options():
    for name, part in {
        "Hoper-v5": "no environment is called 'Hoper-v5'", "CartPole-v99": "'CartPole-v99' cannot be made",
        "os:CartPole-v1": "names a module",
    }.items():  # fmt: skip
        with pytest.raises(TelosError, match=part):
            load(f"gym:{name}")
    for query, part in {"steps=0": "'steps'", "steps=x": "'steps'", "stesp=3": "unknown option 'stesp'"}.items():
        with pytest.raises(TelosError, match=part):
            load(f"gym:CartPole-v1?{query}")
    with pytest.raises(TelosError, match="is not a product"):
        load("gym:CartPole-v1?policy=no/such/folder")
    with pytest.raises(TelosError, match="holds transitions"):
        load("gym:CartPole-v1", kind=Preferences)


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    path = d4rl(tmp_path / "d.hdf5")
    for package, what in (("h5py", str(path)), ("minari", "minari:x-v0"), ("gymnasium", "gym:CartPole-v1")):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, package, None)
            with pytest.raises(TelosError, match=package) as error:
                load(what)
            assert error.value.fix == 'pip install "telos[rl]"'
