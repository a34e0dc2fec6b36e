"""Experience from environments: what is kept, how time limits count, and checkpoints between episodes."""

import gymnasium
import numpy as np
import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.interaction import Interaction
from telos.core.method import Spec
from telos.core.products import Act, Policy
from telos.core.rng import Rng


class Counter(gymnasium.Env):
    """Observes (seed of the episode, step); each step pays 1; `length` steps by a time limit or by an end."""

    observation_space = gymnasium.spaces.Box(-1e9, 1e9, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    made = 0

    def __init__(self, length=4, ends=False):
        self.length, self.ends = length, ends
        Counter.made += 1
        self.number = Counter.made

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_, self.first = 0, float(seed or 0) % 1000
        self.limit = self.length if isinstance(self.length, int) else self.length[int(self.first) % len(self.length)]
        return np.array([self.first, 0.0], np.float32), {}

    def step(self, action):
        self.step_ += 1
        over = self.step_ == self.limit
        return np.array([self.first, self.step_], np.float32), 1.0, over and self.ends, over and not self.ends, {}


class Still(Policy):
    """Always half way up."""

    def config(self):
        return {}

    def probe(self):
        return {}

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False):
        return Act(torch.full((len(obs), 1), 0.5))


def source(length=4, ends=False, **options):
    defaults = {"batch_size": 4, "capacity": 100, "warmup": 6, "environments": 1}
    return Interaction(lambda: Counter(length, ends), Rng(0).at("seeds"), **{**defaults, **options})


def test_steps_are_kept_as_they_were_with_the_true_last_observation():
    experience = source()
    batch = experience.next(Still, Rng(0).at(0))
    assert len(batch) == 4 and len(experience) == 7
    for step in range(1, 6):
        experience.next(Still, Rng(0).at(step))
    kept = experience.experience()
    assert kept.observations[:, 1].tolist() == [0, 1, 2, 3] * 3
    assert kept.next_observations[:, 1].tolist() == [1, 2, 3, 4] * 3
    assert kept.truncated.tolist() == [False, False, False, True] * 3 and not kept.terminated.any()
    assert (kept.observations[:, 0] == kept.next_observations[:, 0]).all()
    assert len(set(kept.observations[::4, 0].tolist())) == 3  # each episode has a seed of its own
    assert (kept.actions[6:] == 0.5).all() and kept.actions[:6].unique().numel() == 6  # uniform while it warms up


def test_an_end_of_the_task_is_terminated():
    experience = source(ends=True)
    experience.next(Still, Rng(0))
    assert experience.experience().terminated.tolist()[:4] == [False, False, False, True]
    assert not experience.experience().truncated.any()


def test_copies_are_stepped_together_and_old_steps_give_way():
    experience = source(environments=3, capacity=10, warmup=3, steps=2)
    experience.next(Still, Rng(0).at(0))
    assert experience.seen == 9
    experience.next(Still, Rng(0).at(1))
    assert experience.seen == 15 and len(experience) == 10
    assert sorted(experience.experience().observations[:, 1].tolist()) == [0, 0, 0, 1, 2, 2, 2, 3, 3, 3]


def test_batches_come_from_the_newest_steps_however_many_are_kept():
    # The same steps are drawn from a memory that keeps nothing else and from one that keeps all.
    short, long = source(capacity=8, newest=8, batch_size=8), source(capacity=100, newest=8, batch_size=8)
    for step in range(20):
        batches = [one.next(Still, Rng(0).at(step)) for one in (short, long)]
        assert all(torch.equal(batches[0].columns()[name], batches[1].columns()[name]) for name in batches[0].columns())
    newest = long.experience().observations[-8:]
    assert len(long) == 26 and len(short) == 8
    drawn = batches[1].observations
    assert (drawn[:, None] == newest).all(-1).any(-1).all() and len(drawn.unique(dim=0)) > 2
    with pytest.raises(TelosError, match="an option is out of range"):
        source(newest=3)


def test_copies_whose_episode_ends_wait_before_a_checkpoint_and_all_begin_anew():
    experience = source(length=[3, 5, 8], environments=3, warmup=3, capacity=400)
    assert experience.rests()  # nothing has begun
    experience.next(Still, Rng(0))
    step = 0
    while not experience.rests():
        experience.next(Still, Rng(0).at(step))
        step += 1
    kept = experience.experience()
    ends = int((kept.terminated | kept.truncated).sum())
    begins = int((kept.observations[:, 1] == 0).sum())
    assert begins == ends and step > 1  # nothing is cut, nothing goes on
    before = experience.seen
    experience.next(Still, Rng(0).at(step))
    assert (experience.experience().observations[before:, 1] == 0).all() and experience.seen == before + 3


def test_episodes_without_end_are_cut_in_the_end(monkeypatch):
    monkeypatch.setattr("telos.core.interaction.LONGEST_REST", 5)
    experience = source(length=10**9, environments=2, warmup=2)
    experience.next(Still, Rng(0))
    asked = 0
    while not experience.rests():
        experience.next(Still, Rng(0).at(asked))
        asked += 1
    assert asked == 5 and experience.experience().truncated[-2:].all()
    assert int(experience.experience().truncated.sum()) == 2


def test_after_a_checkpoint_another_source_goes_on_alike():
    first = source(length=[3, 5], environments=2, warmup=4)
    while not first.rests():
        first.next(Still, Rng(0))
    first.next(Still, Rng(1))
    while not first.rests():
        first.next(Still, Rng(2))
    second = source(length=[3, 5], environments=2, warmup=4)
    second.load_state(*first.state())
    for step in range(4):
        ours, theirs = (one.next(Still, Rng(3).at(step)) for one in (first, second))
        assert all(torch.equal(ours.columns()[name], theirs.columns()[name]) for name in ours.columns())


def test_what_cannot_be_learnt_from_is_refused():
    with pytest.raises(TelosError, match="an option is out of range"):
        source(capacity=3)
    with pytest.raises(TelosError, match="no environment is called"):
        Interaction("Nowhere-v0", Rng(0), batch_size=1)
    with pytest.raises(TelosError, match="resets itself"):
        Interaction(lambda: gymnasium.make_vec("Pendulum-v1", 2), Rng(0), batch_size=1)
    with pytest.raises(TelosError, match="does not act"):
        source().next(lambda: telos.use("reward_model"), Rng(0))


@pytest.mark.parametrize(("ends", "value"), [(False, 10.0), (True, 1.0)])
def test_a_time_limit_has_a_next_value_and_an_end_has_none(ends, value):
    """One step an episode that pays 1: worth 1 if the task ends there, 1 / (1 - 0.9) if only time does."""
    method = telos.use(
        "sac",
        discount=0.9,
        hidden=(16,),
        learning_rate=1e-2,
        tau=0.2,
        batch_size=64,
        warmup=64,
        temperature=1e-9,
        train_temperature=False,
    )

    class Unit(Counter):
        def __init__(self):
            super().__init__(1, ends)

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, np.float32), super().reset(seed=seed)[1]

        def step(self, action):
            return np.zeros(2, np.float32), *super().step(action)[1:]

    spec_rng = Rng(0)
    spec = method.prepare(Spec(None, {"env": Unit}, 1, torch.device("cpu"), spec_rng))
    learner, experience = method.learner(spec, spec_rng.at("init")), method.source(spec)
    for step in range(500):
        learner.update(experience.next(learner.behaviour, spec_rng.at("s", step)), spec_rng.at("u", step))
    states, actions = torch.zeros(5, 2), torch.linspace(-0.9, 0.9, 5)[:, None]
    found = learner.critic(states, actions)
    assert found.detach().mean().item() == pytest.approx(value, rel=0.1)


class Rated(Counter):
    """Also says in its info how far the episode is, and how the action was liked."""

    def step(self, action):
        *made, _ = super().step(action)
        return *made, {"like": float(action[0] > 0), "far": self.step_ / 4}


class Sure(Still):
    """Half way up, which it calls a density of 2."""

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False):
        return Act(torch.full((len(obs), 1), 0.5), log_prob=torch.full((len(obs),), 2.0).log())


def test_further_responses_and_log_probs_are_kept_beside_the_steps():
    options = {"batch_size": 4, "capacity": 100, "warmup": 6, "environments": 2}
    rated = Interaction(lambda: Rated(4), Rng(0), auxiliary=("far", "like"), log_probs=True, **options)
    for step in range(4):
        batch = rated.next(Sure, Rng(0).at(step))
    kept = rated.experience()
    assert kept.auxiliary_names == ("far", "like") and batch.auxiliary.shape == (4, 2)
    assert torch.equal(kept.auxiliary[:, 0], kept.next_observations[:, 1] / 4)
    assert torch.equal(kept.auxiliary[:, 1], (kept.actions[:, 0] > 0).float()) and 0 < kept.auxiliary[:6, 1].mean() < 1
    assert torch.allclose(kept.log_probs[:6].exp(), torch.tensor(0.5))  # uniform on [-1, 1]
    assert torch.allclose(kept.log_probs[6:].exp(), torch.tensor(2.0))
    with pytest.raises(TelosError, match="'share' is missing"):
        Interaction(lambda: Rated(4), Rng(0), auxiliary=("share",), **options).next(Sure, Rng(0))
    with pytest.raises(TelosError, match="no log-probs"):
        Interaction(lambda: Rated(4), Rng(0), log_probs=True, **options).next(Still, Rng(0))
