import torch

from telos.core.products import Act, Policy
from telos.core.rng import Rng
from telos.worlds import bypass2d


class Scripted(Policy):
    """The demonstrator without noise, on a fixed side, or straight ahead (side 0)."""

    def __init__(self, side: float):
        super().__init__()
        self.side = side

    def config(self):
        return {}

    def probe(self):
        return {}

    def act(self, obs, *, goal=None, state=None, mask=None, rng=None, explore=False) -> Act:
        if self.side == 0:
            return Act((goal - obs) / (goal - obs).norm(dim=-1, keepdim=True).clamp(min=bypass2d.SPEED))
        return Act(bypass2d.expert(obs, goal, torch.full((len(obs),), self.side)))


def test_steps_and_collisions_by_hand():
    nexts = bypass2d.step(torch.tensor([[0.0, 0.5], [0.97, 0.5]]), torch.tensor([[3.0, -0.5], [1.0, 0.0]]))
    assert torch.allclose(nexts, torch.tensor([[0.1, 0.45], [1.0, 0.5]]))
    assert bypass2d.collides(torch.tensor([[0.5, 0.66], [0.5, 0.68]])).tolist() == [True, False]


def test_demonstrations_pass_on_both_sides_and_reach_their_goals():
    data = bypass2d.dataset(400, Rng(1000))
    steps = bypass2d.DEMONSTRATION
    assert len(data) == 400 * steps and data.truncated.sum() == 400 and not data.terminated.any()
    ways = data.observations.view(400, steps, 2)
    assert torch.allclose(data.next_observations.view(400, steps, 2)[:, :-1], ways[:, 1:])
    touched = bypass2d.collides(data.observations).view(400, steps).any(1).float().mean()
    assert touched < 0.02
    above = ways[torch.arange(400), (ways[..., 0] > 0.5).float().argmax(1), 1] > 0.5
    assert 0.42 < above.float().mean() < 0.58
    ends = data.next_observations.view(400, steps, 2)[:, -1]
    assert (ends[:, 0] > 0.85).all() and abs(ends[:, 1].std() - 0.165) < 0.03
    # The mean action at the start leads towards the disc; each single one does not.
    first = data.actions.view(400, steps, 2)[:, 0]
    assert first[:, 1].mean().abs() < 0.1 and first[:, 1].abs().mean() > 0.6 and first[:, 0].mean() > 0.5


def test_data_depend_on_the_stream_only():
    assert bypass2d.dataset(5, Rng(3)).fingerprint() == bypass2d.dataset(5, Rng(3)).fingerprint()
    assert bypass2d.dataset(5, Rng(3)).fingerprint() != bypass2d.dataset(5, Rng(4)).fingerprint()


def test_the_demonstrator_succeeds_on_either_side_and_the_straight_way_collides():
    for side, share in ((1.0, 1.0), (-1.0, 0.0)):
        measures = bypass2d.attempt(Scripted(side), 100, Rng(1001)).measures()
        assert measures == {"success": 1.0, "collided": 0.0, "above": share}
    measures = bypass2d.attempt(Scripted(0.0), 100, Rng(1001)).measures()
    assert measures["success"] == 0.0 and measures["collided"] == 1.0


def test_a_collision_after_the_goal_is_no_collision_and_paths_are_whole():
    made = bypass2d.attempt(Scripted(1.0), 20, Rng(1002), limit=30)
    assert made.paths.shape == (20, 31, 2) and made.reached.all()
    assert torch.equal(made.paths[:, 0], bypass2d.starts_and_goals(20, Rng(1002).at("bypass2d", "places"))[0])
    assert bypass2d.attempt(Scripted(1.0), 20, Rng(1002), limit=3).measures()["above"] == 0.5
