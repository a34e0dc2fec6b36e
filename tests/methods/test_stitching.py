"""The dossier's checks of TDA-OCBC, with numbers, and learning in the corridor in seconds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from telos.claims.stitching import hindsight_q, walker
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.goals import Clusters, Episodes, future, geometric
from telos.data.records import Transitions
from telos.data.returns import returns_to_go
from telos.data.windows import episode_bounds
from telos.methods.goals.stitching import (
    Joined,
    Stitching,
    StitchingLearner,
    Stretch,
    action_loss,
    joined,
    k_means,
)
from telos.worlds import bypass2d, corridor

GPT = {"network": "transformer", "layers": 1, "width": 8, "heads": 2, "context": 3, "batch_size": 32}
MLP = {"hidden": (16, 16), "batch_size": 32}


def demonstrations(episodes: int = 60) -> Transitions:
    return corridor.demonstrations(episodes, Rng(1000))


def cells(data: Transitions, rows: Tensor) -> Tensor:
    """Where rows lead to."""
    return data.next_observations[rows].argmax(-1)


def drawn(
    data: Transitions, prob: float, length: int = 1, clusters: Clusters | None = None, law=future, n: int = 20000
) -> tuple[Tensor, Joined]:
    """Rows and what is joined to them; clusters are the cells unless given."""
    clusters = clusters or Clusters.of(cells(data, torch.arange(len(data))))
    rows = torch.randint(len(data), (n,), generator=Rng(1).torch())
    draws = torch.rand((4, n), generator=Rng(2).torch())
    return rows, joined(rows, Episodes(episode_bounds(data)[1], 0.5), clusters, length, prob, law, draws)


def spec(method: Stitching, data: Transitions) -> Spec:
    return method.prepare(Spec(data, {}, 100, torch.device("cpu"), Rng(0)))


def batch_of(method: Stitching, data: Transitions, seed: int = 0) -> Stretch:
    return method.source(spec(method, data)).next(lambda: None, Rng(seed))  # type: ignore[arg-type, return-value]


def learner(method: Stitching, data: Transitions) -> StitchingLearner:
    return method.learner(spec(method, data), Rng(0))


@pytest.mark.parametrize("law", [future, geometric])
def test_without_augmentation_goals_are_later_states_of_the_same_episode(law):
    data = demonstrations()
    last = episode_bounds(data)[1]
    rows, found = drawn(data, 0.0, law=law)
    assert not found.swap.any()
    assert ((found.goals >= rows) & (found.goals <= last[rows])).all()  # row j leads to a state after the step's own
    steps = (cells(data, found.goals) - data.observations[rows].argmax(-1)).abs()
    assert torch.equal(steps, found.goals - rows + 1) and int(steps.min()) == 1


def test_the_geometric_law_halves_with_each_step():
    data = demonstrations()
    rows, found = drawn(data, 0.0, law=geometric)
    long = episode_bounds(data)[1][rows] - rows > 4
    ahead = torch.bincount((found.goals - rows)[long])[:3] / long.sum()
    assert torch.allclose(ahead, torch.tensor([0.5, 0.25, 0.125]), atol=0.02)


def test_with_a_cluster_for_each_state_swapped_goals_are_futures_of_a_future():
    data = demonstrations(12)
    rows, found = drawn(data, 1.0, clusters=Clusters.of(torch.arange(len(data))), n=200_000)
    last = episode_bounds(data)[1]
    assert found.swap.all() and torch.equal(found.between, found.other)
    row = int((last - torch.arange(len(data))).argmax())
    left = int(last[row]) - row + 1
    goals = torch.bincount(found.goals[rows == row] - row, minlength=left) / (rows == row).sum()
    exact = torch.tensor([sum(1 / left / (left - w) for w in range(k + 1)) for k in range(left)])
    assert goals.shape == exact.shape and torch.allclose(goals, exact, atol=0.02) and left > 5


def test_every_swapped_goal_is_joined_by_two_recorded_ways():
    data = demonstrations()
    first, last = episode_bounds(data)
    rows, found = drawn(data, 1.0)
    assert ((found.between >= rows) & (found.between <= last[rows])).all()
    assert torch.equal(cells(data, found.between), cells(data, found.other))
    assert ((found.goals >= found.other) & (found.goals <= last[found.other])).all()
    assert (found.goals == found.other).any()
    other_episode = first[found.other] != first[rows]
    assert float(other_episode.float().mean()) > 0.8
    # Pairs of different arms occur, which no episode has.
    top = data.observations[rows].argmax(-1) < 7
    assert (top & (cells(data, found.goals) > 12)).any()


def test_the_share_of_swaps_and_their_actions():
    data = demonstrations()
    rows, found = drawn(data, 0.3)
    assert float(found.swap.float().mean()) == pytest.approx(0.3, abs=0.01)
    assert torch.equal(found.steps[:, 0], rows) and found.mask.all()
    batch = batch_of(Stitching(augment_prob=1.0, cluster_space="identity", **{**MLP, "batch_size": 5000}), data)
    pairs = {(int(s), int(a)) for s, a in zip(data.observations.argmax(-1), data.actions)}
    seen = {(int(s), int(a)) for s, a in zip(batch.observations[:, 0].argmax(-1), batch.actions[:, 0])}
    assert seen <= pairs and batch.goals.shape == (5000, 1, 20)


def test_a_spliced_window_goes_on_where_the_other_episode_is_in_the_same_cluster():
    data, k = demonstrations(), 5
    rows, found = drawn(data, 0.5, k)
    assert found.steps.shape == found.mask.shape == (20000, k) and found.mask[:, 0].all()
    assert torch.equal(found.mask, found.mask.cummin(1).values)
    here = data.observations[found.steps].argmax(-1)
    gone = (here[:, 1:] - cells(data, found.steps[:, :-1])) * found.mask[:, 1:]
    assert (gone == 0).all()  # each real step begins where the one before it led to
    jumps = (found.steps.diff(dim=1) != 1) & found.mask[:, 1:]
    assert jumps.any() and (jumps.sum(1) <= 1).all() and (jumps.any(1) <= found.swap).all()
    which, place = jumps.nonzero().unbind(1)
    assert torch.equal(found.steps[which, place], found.between[which])
    assert torch.equal(found.steps[which, place + 1], found.other[which] + 1)
    # No real step lies behind the goal, and a stretch that is short of k steps ends at it.
    count = found.mask.sum(1)
    newest = found.steps[torch.arange(len(rows)), count - 1]
    crossed = found.swap & (count > found.between - rows + 1)
    assert (newest <= torch.where(found.swap & ~crossed, found.between, found.goals)).all() and crossed.any()
    at_goal = (newest == found.goals) | (found.swap & (newest == found.between) & (found.other == found.goals))
    assert at_goal[count < k].all()


def test_k_means_finds_places_and_stops_at_the_distinct_ones():
    draw = Rng(0).numpy()
    centres = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])
    truth = draw.integers(3, size=300)
    points = centres[truth] + 0.1 * draw.normal(size=(300, 2))
    labels = k_means(points, 3, Rng(1).numpy())
    assert len({(int(a), int(b)) for a, b in zip(truth, labels)}) == 3
    few = k_means(np.repeat(np.eye(4), 5, 0), 40, Rng(2).numpy())
    assert len(set(few.tolist())) == 4 and len({tuple(few[i : i + 5]) for i in range(0, 20, 5)}) == 4


def test_cluster_spaces():
    data = bypass2d.dataset(20, Rng(1000))
    for space, columns in (("state", None), ("achieved_goal", (0,)), ("achieved_goal", (1,))):
        method = Stitching(cluster_space=space, goal_columns=columns, n_clusters=8, **MLP)  # type: ignore[arg-type]
        clusters = method.clusters(data, Rng(3))
        assert int(clusters.label.max()) == 7
        spreads = torch.stack([data.next_observations[clusters.label == c].std(0) for c in range(8)]).mean(0)
        whole = data.next_observations.std(0)
        for column in range(2):
            narrow = columns is None or column in columns
            assert (float(spreads[column] / whole[column]) < 0.55) == narrow, (space, columns, column)
    assert len(Stitching(cluster_space="identity", **MLP).clusters(demonstrations(), Rng(0)).start) == 21


def test_the_loss_is_the_squared_error_or_the_cross_entropy_of_real_steps():
    outputs = torch.tensor([[[0.3, -0.2], [9.0, 9.0]], [[0.0, 1.0], [2.0, 0.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    actions = torch.zeros(2, 2, 2)
    total, count = action_loss(outputs, actions, mask)
    expected = torch.tanh(outputs).square().mean(-1)[mask].sum()
    assert float(total) == pytest.approx(float(expected)) and int(count) == 3
    total, _ = action_loss(outputs, torch.tensor([[0, 0], [1, 0]]), mask)
    exact = -sum(torch.log_softmax(outputs[i, t], -1)[a] for i, t, a in ((0, 0, 0), (1, 0, 1), (1, 1, 0)))
    assert float(total) == pytest.approx(float(exact))


def test_returns_are_swapped_with_what_the_other_episode_earns():
    data = demonstrations()
    rewards = torch.rand(len(data), generator=Rng(4).torch())
    data = replace(data, rewards=rewards)
    last = episode_bounds(data)[1]
    left = returns_to_go(data)
    for row in (0, 7, len(data) - 1):
        assert float(left[row]) == pytest.approx(float(rewards[row : int(last[row]) + 1].sum()), rel=1e-5)
    method = Stitching(condition="return", cluster_space="identity", augment_prob=0.5, **{**MLP, "batch_size": 500})
    batch = batch_of(method, data)
    source = method.source(spec(method, data))
    generator = Rng(0).torch()
    rows = torch.randint(len(data), (500,), generator=generator)
    found = joined(rows, source.episodes, source.clusters, 1, 0.5, future, torch.rand((4, 500), generator=generator))
    for i in range(40):
        row, between, other = int(rows[i]), int(found.between[i]), int(found.other[i])
        rest = rewards[row : between + 1].sum() + rewards[other + 1 : int(last[other]) + 1].sum()
        expected = float(rest if found.swap[i] else left[row])
        assert float(batch.goals[i]) == pytest.approx(expected, abs=1e-4)
    policy = method.fit(data, steps=3, device="cpu")
    assert policy.act(data.observations[:5], goal=[1.5]).action.shape == (5,)


@pytest.mark.parametrize("discrete", [True, False])
def test_the_transformer_acts_as_it_was_trained(discrete: bool):
    """Outputs for a whole stretch at once are those of acting step by step along it."""
    data = demonstrations() if discrete else bypass2d.dataset(20, Rng(1000))
    method = Stitching(dropout=0.0, **{**GPT, "batch_size": 200})
    policy = learner(method, data).policy
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=Rng(len(parameter)).torch()))
    batch = batch_of(method, data)
    whole = batch[batch.mask.all(1)]
    play, captured = policy.play, []
    policy.register_forward_hook(lambda module, inputs, output: captured.append(output))
    actions = torch.nn.functional.one_hot(whole.actions, 4).float() if discrete else whole.actions
    targets = play.actions(actions)
    state = None
    for t in range(3):
        made = policy.act(whole.observations[:, t], goal=whole.goals, state=state)
        # What was executed is what the data did, whatever the policy wanted.
        assert made.state is not None
        state = {**made.state, "actions": torch.cat([made.state["actions"][:, :-1], targets[:, t : t + 1]], 1)}
    stepwise = torch.stack([o[:, -1] for o in captured], 1)
    assert state is not None
    window = play.look(whole.observations[:, 2], whole.goals, {**state, "steps": torch.full((len(whole),), 2)})
    at_once = policy(replace(window, states=play.scaled_states(whole.observations), past=targets[:, :-1]))
    assert len(whole) > 20 and torch.allclose(at_once, stepwise, atol=1e-5)
    assert stepwise.std(0).min() > 1e-3


@pytest.mark.parametrize("options", [MLP, {**GPT, "dropout": 0.0}, {**GPT, "dropout": 0.3}])
def test_a_batch_in_parts_gives_the_same_step(options: dict):
    data = demonstrations()
    method = Stitching(**options)
    whole, parts, batch = learner(method, data), learner(method, data), batch_of(method, data)
    first, second = whole.update(batch, Rng(5)), parts.update(batch, Rng(5), 5)
    assert float(first["loss"]) == pytest.approx(float(second["loss"]), rel=1e-5)
    for a, b in zip(whole.policy.parameters(), parts.policy.parameters()):
        assert a.grad is not None and b.grad is not None and torch.allclose(a.grad, b.grad, atol=1e-6)
    norm = torch.stack([p.grad.square().sum() for p in whole.policy.parameters() if p.grad is not None]).sum().sqrt()
    assert float(norm) <= 0.25 + 1e-5 and float(first["grad_norm"]) > 0.25


def test_the_learning_rate_rises():
    data = demonstrations()
    mine = learner(Stitching(warmup_steps=10, **MLP), data)
    for step in range(1, 13):
        mine.update(batch_of(mine.method, data), Rng(step))
        assert mine.optimiser.param_groups[0]["lr"] == pytest.approx(1e-3 * min(1, step / 10))


@pytest.mark.parametrize("options", [MLP, GPT])
@pytest.mark.parametrize("discrete", [True, False])
def test_saved_and_loaded_it_acts_alike(options: dict, discrete: bool, tmp_path: Path):
    data = demonstrations() if discrete else bypass2d.dataset(20, Rng(1000))
    policy = Stitching(goal_columns=(1,), n_clusters=5, **options).fit(data, steps=5, device="cpu")
    loaded = load_product(policy.save(tmp_path / "product"))
    state = mine = None
    for t in range(4):
        a = policy.act(data.observations[t : t + 3], goal=(0.5,), state=state)
        b = loaded.act(data.observations[t : t + 3], goal=(0.5,), state=mine)
        state, mine = a.state, b.state
        assert torch.equal(a.action, b.action)
        assert a.action.shape == ((3,) if discrete else (3, 2))
    one, again = (policy.act(data.observations[index], goal=(0.5,)).action for index in (0, slice(1)))
    assert one.shape == (() if discrete else (2,)) and torch.equal(one, again[0])
    assert discrete or (one.abs() <= 1).all()
    with pytest.raises(TelosError, match="needs a goal"):
        policy.act(data.observations[:1])


def test_probabilities_of_discrete_actions_sum_to_one_and_are_those_it_was_fitted_by():
    data = demonstrations()
    policy = Stitching(cluster_space="identity", **MLP).fit(data, steps=20, device="cpu")
    seen, goal = data.observations[:7], data.next_observations[40]
    found = torch.stack([policy.log_prob(seen, torch.full((7,), move), goal=goal) for move in range(4)], 1)
    assert torch.allclose(found.exp().sum(1), torch.ones(7), atol=1e-5)
    assert torch.equal(found.argmax(1), policy.act(seen, goal=goal).action)
    window = policy.play.look(seen, goal, None)
    loss, _ = action_loss(policy(window), data.actions[:7, None], torch.ones(7, 1, dtype=torch.bool))
    assert torch.isclose(policy.log_prob(seen, data.actions[:7], goal=goal).sum(), -loss, rtol=1e-5)
    assert policy.log_prob(seen[0], 2, goal=goal).shape == ()
    allowed = torch.tensor([True, False, True, False])
    masked = torch.stack([policy.log_prob(seen, torch.full((7,), move), goal=goal, mask=allowed) for move in (0, 2)], 1)
    assert torch.allclose(masked.exp().sum(1), torch.ones(7), atol=1e-5)
    for options, records in ((GPT, data), (MLP, bypass2d.dataset(20, Rng(1000)))):
        other = Stitching(cluster_space="identity", **options).fit(records, steps=1, device="cpu")  # type: ignore[arg-type]
        with pytest.raises(TelosError, match="no log_prob"):
            other.log_prob(records.observations[:2], records.actions[:2], goal=records.observations[3])


@pytest.mark.parametrize(
    "options",
    [
        {"augment_prob": 1.5}, {"n_clusters": 0}, {"discount": 1.0}, {"grad_clip": 0.0}, {"goal_columns": (20,)},
        {"condition": "return", "network": "transformer"}, {"context": 0, "network": "transformer"},
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options: dict):
    with pytest.raises(TelosError, match=r"out of range|return|goal_columns"):
        Stitching(**{**MLP, **options}).fit(demonstrations(), steps=1, device="cpu")


def test_swapped_goals_join_the_arms_and_plain_goals_do_not():
    found = {}
    for prob in (0.0, 0.5):
        data = corridor.demonstrations(500, Rng(1000), corridor.coordinates)
        options = {"hidden": (64, 64), "batch_size": 128, "learning_rate": 3e-3, "cluster_space": "identity"}
        policy = Stitching(augment_prob=prob, **options).fit(data, steps=600, seed=1000, device="cpu")  # type: ignore[arg-type]
        found[prob] = corridor.measures(lambda policy=policy: walker(policy, corridor.coordinates))
    assert found[0.0]["seen"] > 0.95 and found[0.5]["seen"] > 0.95
    assert found[0.0]["unseen"] < 0.2 and found[0.5]["unseen"] > 0.5


def test_q_learning_with_hindsight_has_the_discounted_distances():
    table = hindsight_q(corridor.demonstrations(1000, Rng(1000)))
    starts, goals = corridor.pairs(range(20), range(20))
    best = table[goals, starts].amax(-1)
    assert torch.allclose(best, 0.95 ** ((starts - goals).abs() - 1.0), atol=1e-6)
