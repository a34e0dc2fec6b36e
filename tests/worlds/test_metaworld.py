import warnings

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.core.rng import Rng
from telos.judge.evaluate import evaluate
from telos.methods.goals.beso import BESO
from telos.worlds import metaworld as world

pytest.importorskip("metaworld", reason="Meta-World is not installed: pip install 'telos[robots]'")

TASK = "faucet-open-v3"
pytestmark = [pytest.mark.filterwarnings("ignore")]


class Scripted(Policy):
    """The task's expert, which reads the target and no goal."""

    def __init__(self, task: str):
        super().__init__()
        self.expert, self.goals = world.expert(task), []

    def config(self):
        return {}

    def probe(self):
        return {}

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        self.goals.append(goal)
        return Act(torch.from_numpy(np.stack([self.expert(row.numpy()) for row in obs])).float())


@pytest.fixture(scope="module")
def demonstrations():
    return world.demonstrations((TASK, "reach-v3"), n=2, rng=Rng(1000))


def test_a_seed_fixes_objects_and_target_whatever_came_before():
    env, other = world.environment(TASK, limit=7), world.environment(TASK)
    first, _ = env.reset(seed=5)
    for step in range(7):
        _, _, _, truncated, info = env.step(np.ones(4, np.float32))
        assert truncated == (step == 6) and "success" in info
    assert np.array_equal(env.reset(seed=5)[0], first) and np.array_equal(other.reset(seed=5)[0], first)
    assert not np.array_equal(env.reset(seed=6)[0], first)
    assert np.abs(first[36:]).max() > 0  # the target is there for the expert; STATE leaves it out
    assert max(world.STATE) < 36 and set(world.GOAL) < set(world.STATE)


def test_demonstrations_end_in_success_and_differ_in_speed(demonstrations):
    data = demonstrations
    assert data.observations.shape[1] == 39 and data.actions.shape[1] == 4
    assert data.truncated.sum() == 4 and data.truncated[-1] and not data.terminated.any()
    ends = data.truncated.nonzero()[:, 0]
    lengths = torch.diff(ends, prepend=torch.tensor([-1]))
    assert (lengths > 20).all() and (lengths < 2 * world.LIMIT).all() and len(lengths.unique()) > 1
    inside = ~data.truncated[:-1]
    assert torch.allclose(data.next_observations[:-1][inside], data.observations[1:][inside])


def test_the_same_stream_gives_the_same_demonstrations():
    one, two = (world.demonstrations((TASK,), n=1, rng=Rng(3)).fingerprint() for _ in range(2))
    assert one == two != world.demonstrations((TASK,), n=1, rng=Rng(4)).fingerprint()


def test_goals_are_where_the_expert_ends_from_the_same_objects():
    policy = Scripted(TASK)
    result = evaluate(policy, lambda: world.environment(TASK), episodes=2, seed=1000, goal=world.goals(TASK))
    assert result.success_rate == 1.0 and (result.lengths < world.LIMIT).all()
    seeds = [Rng(1000).at("evaluate", "episode", k).integer() % 2**31 for k in range(2)]
    assert torch.allclose(policy.goals[0], torch.tensor([world.reached(TASK, seed) for seed in seeds]))
    # The faucet's handle is turned there: the object's columns differ from those at the start.
    first, _ = world.environment(TASK).reset(seed=seeds[0])
    assert np.abs(np.array(world.reached(TASK, seeds[0]))[4:] - first[4:7]).max() > 0.05


def test_a_tiny_policy_learns_from_demonstrations_and_acts(demonstrations):
    policy = BESO(
        network="mlp", window=1, hidden=(32, 32), batch_size=64, observation_columns=world.STATE,
        goal_columns=world.GOAL,
    ).fit(demonstrations, steps=20, device="cpu")  # fmt: skip
    result = evaluate(policy, lambda: world.environment(TASK, 10), episodes=2, seed=1000, goal=world.goals(TASK))
    assert result.successes is not None and (result.lengths <= 10).all()
    again = evaluate(policy, lambda: world.environment(TASK, 10), episodes=2, seed=1000, goal=world.goals(TASK))
    assert again.returns.tolist() == result.returns.tolist()
    apart = evaluate(
        policy, lambda: world.environment(TASK, 10), episodes=2, seed=1000, goal=world.goals(TASK), processes=True
    )
    assert apart.returns == pytest.approx(result.returns)


def test_an_unknown_task_is_named():
    with warnings.catch_warnings(), pytest.raises(TelosError, match="no task 'reach-v9'"):
        world.environment("reach-v9")
