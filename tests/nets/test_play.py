"""Columns, scaling, the past and the goal of policies over windows; the denoisers' causality."""

import pytest
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Box, Transitions
from telos.nets.denoisers import MLPDenoiser, Sizes, TransformerDenoiser, make_denoiser
from telos.nets.play import Play


def normal(*shape: int, stream: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Rng(1000).at(stream).torch())


def data(rows: int = 200) -> Transitions:
    observations = 5 + 2 * normal(rows, 4)
    observations[:, 3] = 7.0
    actions = torch.rand(rows, 2, generator=Rng(2).torch()) * torch.tensor([0.5, 1.0])
    return Transitions.validated(
        observations=observations, actions=actions, rewards=torch.zeros(rows), next_observations=observations,
        terminated=torch.zeros(rows, dtype=torch.bool), truncated=torch.arange(rows) % 20 == 19,
        action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )  # fmt: skip


def test_scalings():
    record = data()
    whole = Play.fitted(record, "standardise")
    states = whole.scaled_states(record.observations)
    assert states[:, :3].mean(0).abs().max() < 1e-5 and (states[:, :3].std(0, correction=0) - 1).abs().max() < 1e-5
    assert states[:, 3].abs().max() == 0  # a column that never changes
    part = Play.fitted(record, "minmax", observation_columns=(2, 0), goal_columns=(1,))
    states, goals = part.scaled_states(record.observations), part.scaled_goals(record.observations)
    assert states.shape == (200, 2) and goals.shape == (200, 1)
    for column in (states[:, 0], states[:, 1], goals[:, 0], *part.actions(record.actions).T):
        assert torch.allclose(column.aminmax().min, torch.tensor(-1.0)) and torch.isclose(
            column.max(), torch.tensor(1.0)
        )
    assert torch.equal(states[:, 1].argmax(), record.observations[:, 0].argmax())
    plain = Play.fitted(record, "none")
    assert torch.equal(plain.scaled_states(record.observations), record.observations)
    assert torch.allclose(part.raw(part.actions(record.actions)), record.actions, atol=1e-6)


def test_the_past_is_what_was_seen_and_executed():
    play = Play.fitted(data(), "standardise", window=3)
    looks, acts = 5 + normal(5, 2, 4), 3 * normal(5, 2, 2)
    state, seen, executed = None, [], []
    for step in range(5):
        window = play.look(looks[step], torch.zeros(4), state)
        seen.append(play.scaled_states(looks[step]))
        expected = torch.stack([seen[max(step - 2 + i, 0)] for i in range(3)], 1)
        assert torch.allclose(window.states, expected)
        assert window.mask.tolist() == [[step >= 2, step >= 1, True]] * 2
        for back, action in enumerate(reversed(executed[-2:])):
            assert torch.allclose(window.past[:, -1 - back], action)
        raw, state = play.finish(window, acts[step])
        # What is remembered is the clipped action, scaled again.
        assert (raw >= torch.tensor(play.low)).all() and (raw <= torch.tensor(play.high)).all()
        executed.append(play.actions(raw))
    assert not torch.allclose(executed[-1], acts[-1])


def test_rows_are_independent_and_one_observation_is_a_batch_of_one():
    play = Play.fitted(data(), "minmax", window=2, goal_columns=(0, 1))
    obs, goal = 5 + normal(3, 4), normal(3, 2)
    window = play.look(obs, goal, None)
    _, state = play.finish(window, normal(3, 2))
    later = play.look(obs + 1, goal, state)
    alone = play.look(obs[1], goal[1], None)
    raw, single = play.finish(alone, normal(3, 2)[1:2])
    assert raw.shape == (2,)
    again = play.look(obs[1] + 1, goal[1], single)
    assert torch.allclose(again.states[0], later.states[1]) and torch.allclose(again.past[0], later.past[1])
    assert torch.allclose(again.goals[0], later.goals[1])  # type: ignore[index]


def test_goals_in_all_their_shapes():
    play = Play.fitted(data(), "none", goal_columns=(0, 2), goal_length=2)
    obs = normal(3, 4)
    one = play.look(obs, [1.0, 2.0], None).goals
    assert one is not None and one.tolist() == [[[1.0, 2.0], [1.0, 2.0]]] * 3
    each = normal(3, 2, 2)
    for shape in (each, each.flatten(1)):
        found = play.look(obs, shape, None).goals
        assert found is not None and torch.equal(found, each)
    for wrong in (torch.zeros(4, 2), torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 3, 2), torch.tensor(1.0)):
        with pytest.raises(TelosError, match="columns \\[0, 2\\]"):
            play.look(obs, wrong, None)
    with pytest.raises(TelosError, match="not finite"):
        play.look(obs, [float("nan"), 0.0], None)
    with pytest.raises(TelosError, match="observations do not fit"):
        play.look(normal(3, 5), None, None)
    with pytest.raises(TelosError, match="column numbers 0 to 3"):
        Play.fitted(data(), "none", goal_columns=(4,))
    window = play.look(obs, None, None)
    with pytest.raises(TelosError, match="3 rows"):
        play.look(obs, None, play.finish(window, normal(3, 2))[1] | {"steps": torch.zeros(2)})


SIZES = Sizes(state=3, goal=3, action=2, window=4, goal_length=2, same=True)


def transformer(sizes: Sizes = SIZES, **options: float) -> TransformerDenoiser:
    net = TransformerDenoiser(sizes, layers=2, width=12, heads=2, rng=Rng(0).torch(), **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=Rng(1).torch()))
    return net


def inputs(rows: int = 5) -> list[Tensor]:
    mask = torch.ones(rows, 4, dtype=torch.bool)
    return [
        normal(rows, 4, 2),
        normal(rows, 4, 3, stream=1),
        normal(rows, 2, 3, stream=2),
        normal(rows, stream=3),
        mask,
    ]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("step", range(4))
def test_a_changed_state_or_action_alters_no_earlier_output(which: int, step: int):
    net, values = transformer(), inputs()
    before = net(*values)
    values[which] = values[which].clone()
    values[which][:, step] += 1.0
    changed = (net(*values) - before).abs().amax((0, 2))
    assert changed[:step].sum() == 0 and (changed[step:] > 1e-4).all()


@pytest.mark.parametrize("which", [2, 3])
def test_a_changed_goal_or_noise_level_alters_all_outputs(which: int):
    net, values = transformer(), inputs()
    before = net(*values)
    values[which] = values[which] + 1.0
    assert ((net(*values) - before).abs().amax((0, 2)) > 1e-4).all()


def test_steps_before_the_start_are_not_seen_and_positions_count_from_it():
    net, values = transformer(), inputs()
    values[4][:, :2] = False
    before = net(*values)
    values[0], values[1] = values[0].clone(), values[1].clone()
    values[0][:, :2] += 9.0
    values[1][:, :2] -= 9.0
    assert torch.equal(net(*values)[:, 2:], before[:, 2:])
    # The same two steps at the beginning of a whole window: the same outputs there.
    early = [values[0].roll(2, 1), values[1].roll(2, 1), values[2], values[3], torch.ones(5, 4, dtype=torch.bool)]
    assert torch.allclose(net(*early)[:, :2], before[:, 2:], atol=1e-6)


def test_embeddings_are_shared_where_columns_are():
    assert transformer().embed_goal is None
    other = transformer(Sizes(3, 2, 2, 4, 2, same=False))
    assert other.embed_goal is not None and other.embed_goal.weight.shape == (12, 2)
    values = inputs()
    values[2] = values[2][..., :2]
    assert other(*values).shape == (5, 4, 2)


def test_dropout_takes_given_numbers_in_parts_as_at_once():
    net, values = transformer(attention_dropout=0.3, residual_dropout=0.2), inputs()
    assert net.dropouts == 2 * (2 * 11 * 11 + 2 * 11 * 12)
    draws = torch.rand(5, net.dropouts, generator=Rng(4).torch())
    dropped = net(*values, draws)
    parts = [net(*(v[rows] for v in values), draws[rows]) for rows in (slice(0, 2), slice(2, 5))]
    assert torch.allclose(torch.cat(parts), dropped, atol=1e-6)
    assert not torch.allclose(net(*values), dropped, atol=1e-3)
    assert torch.allclose(net(*values, torch.ones_like(draws)), net(*values, torch.ones_like(draws)))
    assert transformer().dropouts == 0


def test_the_mlp_reads_states_goal_noise_and_the_newest_action():
    net = make_denoiser(SIZES, {"kind": "mlp", "hidden": [16]}, Rng(0).torch())
    assert isinstance(net, MLPDenoiser) and net.slots == 1
    actions, *rest = inputs()
    before = net(actions[:, -1:], *rest)
    assert before.shape == (5, 1, 2)
    for i in range(3):
        other = list(rest)
        other[i] = other[i] + 1
        assert (net(actions[:, -1:], *other) - before).abs().min() > 0
    with pytest.raises(TelosError, match="width and heads"):
        make_denoiser(SIZES, {"kind": "transformer", "width": 10, "heads": 3})
