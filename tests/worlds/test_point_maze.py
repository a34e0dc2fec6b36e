import numpy as np
import pytest

from telos.core.rng import Rng
from telos.worlds import point_maze

pytest.importorskip("gymnasium_robotics")


def test_records_hold_goals_that_the_controller_reaches():
    data = point_maze.records(4, Rng(1000), expert=0.5)
    assert len(data) == 4 * point_maze.LIMIT and data.truncated.sum() == 4 and not data.terminated.any()
    position, goal = data.next_observations[:, point_maze.POSITION], data.observations[:, point_maze.DESIRED]
    near = ((position - goal).norm(dim=-1) <= point_maze.RADIUS).view(4, -1)
    assert near[:2, -1].all()
    goals = goal.view(4, -1, 2)
    assert (goals == goals[:, :1]).all()
    assert (data.observations[:, point_maze.STATE][:, :2] == data.observations[:, point_maze.POSITION]).all()
    inside = ~data.truncated[:-1]
    assert (data.next_observations[:-1][inside] == data.observations[1:][inside]).all()


def test_the_controller_pushes_towards_the_next_cell():
    # From the left end of the upper arm to the lower one, the way is to the right.
    at = np.array([-1, 1, -1, -1, -1, 1, 0, 0], dtype=np.float32)
    assert point_maze.waypoint(at, np.zeros(2)).tolist() == [1.0, 0.0]
    # In the goal's cell it goes to the goal, and brakes.
    at = np.array([-1, -1, -0.9, -1, -1, -1, 0.4, 0], dtype=np.float32)
    assert point_maze.waypoint(at, np.zeros(2)) == pytest.approx([0.0, 0.0], abs=1e-6)


def test_an_episode_ends_at_the_goal_or_after_its_decisions():
    env, going = point_maze.environment(), point_maze.environment(continuing=True)
    for made, ends in ((env, True), (going, False)):
        raw, _ = made.reset(seed=3)
        step, terminated, truncated, info = 0, False, False, {}
        while not (terminated or truncated):
            step += 1
            seen = np.concatenate([raw[name] for name in sorted(raw)]).astype(np.float32)
            raw, _, terminated, truncated, info = made.step(point_maze.waypoint(seen, np.zeros(2)))
        assert info["success"] and terminated == ends and truncated == (step == point_maze.LIMIT)
        assert (step < point_maze.LIMIT) == ends
        made.close()
