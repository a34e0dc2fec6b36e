"""The optional column log_probs of transitions: checked, indexed, recorded, written and read."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.environments import record
from telos.data.formats import load, save_npz
from telos.data.records import Box, Discrete, Transitions
from telos.nets.policies import CategoricalPolicy, DeterministicPolicy, GaussianPolicy


def rows(n=6, **more):
    columns = {
        "observations": np.arange(n), "actions": np.arange(n) % 2, "rewards": np.arange(n),
        "next_observations": np.arange(n) + 1, "terminated": np.arange(n) % 3 == 2, "truncated": np.zeros(n, bool),
    }  # fmt: skip
    return Transitions.validated(action_space=Discrete(2), **{**columns, **more})


class Walk(gym.Env):
    """Position t after t steps, ends after 3."""

    def __init__(self, space: gym.Space):
        self.observation_space, self.action_space = gym.spaces.Box(-9, 9, (1,), np.float32), space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == 3, False, {}


BOX = gym.spaces.Box(-1, 3, (2,), np.float32)


def test_a_column_like_the_others_and_none_by_default(tmp_path: Path):
    log_probs = -np.arange(6) / 10
    plain, data = rows(), rows(log_probs=log_probs[:, None])
    assert plain.log_probs is None and "log_probs" not in plain.columns() and data.log_probs is not None
    assert data[[1, 4]].log_probs.tolist() == pytest.approx([-0.1, -0.4])
    assert plain[[1, 4]].log_probs is None
    assert data.fingerprint() != plain.fingerprint() == replace(data, log_probs=None).fingerprint()
    for one in (plain, data):
        back = load(save_npz(one, tmp_path / "d.npz"))
        assert back.fingerprint() == one.fingerprint()


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([-1.0] * 5, "column 'log_probs' has 5 rows"),
        ([-1.0] * 5 + [math.nan], "column 'log_probs', row 5 is not finite"),
        ([-1.0] * 5 + [-math.inf], "column 'log_probs', row 5 is not finite"),
        ([-1.0] * 3 + [0.5] * 3, "column 'log_probs', row 3 is no log-probability"),
        ([[-1.0, -1.0]] * 6, "column 'log_probs' has 2 values a row"),
        (["a"] * 6, "column 'log_probs' has type"),
    ],
)
def test_what_is_refused(column, message):
    with pytest.raises(TelosError, match=message):
        rows(log_probs=column)


def test_a_density_may_be_above_one():
    n = 3
    data = Transitions.validated(
        observations=np.zeros(n), actions=np.zeros(n), rewards=np.zeros(n), next_observations=np.zeros(n),
        terminated=np.zeros(n, bool), truncated=np.zeros(n, bool), action_space=Box((-1.0,), (1.0,)),
        log_probs=[2.0, 0.0, -1.0],
    )  # fmt: skip
    assert data.log_probs.tolist() == [2, 0, -1]


def test_recorded_where_the_policy_gives_them():
    uniform = record(lambda: Walk(BOX), steps=5)
    assert uniform.log_probs.tolist() == pytest.approx([-math.log(16)] * 5)
    assert record(lambda: Walk(gym.spaces.Discrete(3)), steps=4).log_probs.tolist() == pytest.approx([-math.log(3)] * 4)
    gaussian = GaussianPolicy(1, (-1.0, -1.0), (3.0, 3.0), (4,), rng=Rng(1).torch())
    gaussian.log_std.data.fill_(-3)
    categorical = CategoricalPolicy(1, 3, (4,), rng=Rng(2).torch())
    for policy, space in ((gaussian, BOX), (categorical, gym.spaces.Discrete(3))):
        data = record(lambda space=space: Walk(space), policy, steps=7, explore=True)
        expected = policy.log_prob(data.observations, data.actions)
        assert torch.allclose(data.log_probs, expected.detach(), atol=1e-5)
        assert record(lambda space=space: Walk(space), policy, steps=7).log_probs is None
    certain = DeterministicPolicy(1, (-1.0, -1.0), (3.0, 3.0), (4,))
    assert record(lambda: Walk(BOX), certain, steps=4).log_probs is None


def d4rl(path: Path, **entries) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in {
            "observations": np.arange(8.0)[:, None], "actions": np.zeros((8, 1)), "rewards": np.arange(8.0),
            "terminals": np.arange(8) == 2, "timeouts": np.arange(8) == 5, **entries,
        }.items():  # fmt: skip
            file[name] = value
    return path


def test_hdf5(tmp_path: Path):
    values = -np.arange(8.0)
    for entry in ({"log_probs": values}, {"infos/action_log_probs": values[:, None]}):
        data = load(d4rl(tmp_path / "d.hdf5", **entry))
        assert data.log_probs.tolist() == [-r for r in data.rewards.tolist()] == [0, -1, -2, -3, -4, -6]
    both = d4rl(tmp_path / "d.hdf5", **{"log_probs": values, "infos/action_log_probs": values - 1})
    assert load(both).log_probs[3] == -3
    assert load(d4rl(tmp_path / "d.hdf5")).log_probs is None
    # A tool's own entry that cannot be used is left alone; our own column is refused.
    bad = np.full(8, np.nan)
    assert load(d4rl(tmp_path / "d.hdf5", **{"infos/action_log_probs": bad})).log_probs is None
    with pytest.raises(TelosError, match="'log_probs', row 0 is not finite"):
        load(d4rl(tmp_path / "d.hdf5", log_probs=bad))


def test_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    from minari import create_dataset_from_buffers
    from minari.data_collector import EpisodeBuffer

    env = Walk(gym.spaces.Box(-1, 1, (1,), np.float32))

    def save(name: str, infos: list):
        buffers = [
            EpisodeBuffer(
                id=i, seed=i, observations=np.arange(4, dtype=np.float32)[:, None], infos=info,
                actions=np.zeros((3, 1), np.float32), rewards=[0.0, 1.0, 2.0], terminations=[False, False, True],
                truncations=[False] * 3,
            )
            for i, info in enumerate(infos)
        ]  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            create_dataset_from_buffers(
                name, buffers, env=env, observation_space=env.observation_space, action_space=env.action_space
            )
        return load(f"minari:{name}")

    # The first info is the reset's.
    steps = {"log_probs": np.array([9.0, -1.0, -2.0, -3.0])}
    assert save("walk/infos-v0", [steps, steps]).log_probs.tolist() == [-1, -2, -3, -1, -2, -3]
    assert save("walk/none-v0", [None, None]).log_probs is None
    assert save("walk/other-v0", [{"x": np.zeros(4)}] * 2).log_probs is None
