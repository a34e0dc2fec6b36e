"""The session simulator against its own closed forms."""

import math

import numpy as np
import pytest
import torch

from telos.core.rng import Rng
from telos.worlds import sessions
from telos.worlds.sessions import BAIT, ITEMS, LIKED, LONGEST, SHARED, affinities, expected, logging_policy, play


def uniform(seen: torch.Tensor) -> torch.Tensor:
    return torch.full((len(seen), ITEMS), 1 / ITEMS)


def test_expected_responses_are_the_formulas():
    users = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    u = (sessions.VECTORS @ users[0]) / 2
    assert torch.allclose(affinities(users)[0], u, atol=1e-6)
    means = expected(users, torch.tensor([2]))[0]
    for item in (0, 2, 5, 9):
        watch = math.log1p(math.exp(u[item] + BAIT[item])) * math.exp(0.045) * (0.5 if item == 2 else 1)
        drawn = math.exp(0.6 * min(max(float(u[item]), -2), 2))
        assert means[item].tolist() == pytest.approx(
            [watch, float(LIKED[item]) * drawn, float(SHARED[item]) * drawn], rel=1e-5
        )
    assert float(expected(users, torch.tensor([-1]))[0, 2, 0]) == pytest.approx(2 * float(means[2, 0]))
    assert float(means[:, 1:].max()) < 1  # they are probabilities
    assert float(expected(10 * users, torch.tensor([0]))[..., 1:].max()) <= 0.104 * math.exp(1.2) + 1e-6


def test_sessions_are_left_at_one_rate_and_cut_after_twenty_steps():
    played = play(uniform, 4000, Rng(1).at("play"))
    lengths = played.alive.sum(1).double()
    exact = (1 - 0.95**LONGEST) / 0.05
    assert abs(lengths.mean() - exact) < 4 * lengths.std() / math.sqrt(4000)
    assert (played.alive[:, 1:] <= played.alive[:, :-1]).all() and played.alive[:, 0].all()
    assert (played.left.sum(1) <= 1).all()
    # Who left has no further step; who did not has all twenty.
    assert torch.equal(played.left.any(1) & (lengths < LONGEST), lengths < LONGEST)


def test_responses_have_the_means_that_are_said():
    played = play(logging_policy, 4000, Rng(2).at("play"))
    alive = played.alive
    for index in range(3):
        gap = (played.responses[..., index] - played.expected[..., index])[alive].double()
        assert abs(gap.mean()) < 4 * gap.std() / math.sqrt(int(alive.sum())), sessions.RESPONSES[index]
    means = played.means()
    assert means["watch"] == pytest.approx(float(played.expected[..., 0][alive].mean()), rel=1e-5)
    assert means["like_a_session"] == pytest.approx(means["like"] * float(alive.sum(1).double().mean()), rel=1e-5)
    assert means["interactions"] == pytest.approx(means["like"] + means["share"])


def test_the_log_is_what_was_played():
    played = play(logging_policy, 50, Rng(3).at("play"))
    log = played.record()
    assert len(log) == int(played.alive.sum()) and log.auxiliary_names == ("like", "share")
    ends = log.terminated | log.truncated
    assert int(ends.sum()) == 50 and bool(ends[-1])
    assert int(log.truncated.sum()) == int((~played.left.any(1)).sum()) > 0
    assert torch.equal(log.next_observations[:-1][~ends[:-1]], log.observations[1:][~ends[:-1]])
    # What was shown last, and the mood, a running mean of the affinities without the bait.
    row = int((~ends).nonzero()[0])
    assert log.next_observations[row, 4 : 4 + ITEMS].argmax() == log.actions[row]
    own = affinities(log.observations[row : row + 1, :4])[0, log.actions[row]] - BAIT[log.actions[row]]
    assert float(log.next_observations[row, -1]) == pytest.approx(float(0.7 * log.observations[row, -1] + 0.3 * own))
    assert log.log_probs is not None
    exact = logging_policy(log.observations).gather(1, log.actions[:, None])[:, 0].log()
    assert torch.allclose(log.log_probs, exact, atol=1e-5)


def test_policies_on_one_stream_meet_the_same_users():
    one, other = play(uniform, 30, Rng(4)), play(logging_policy, 30, Rng(4))
    assert torch.equal(one.observations[:, 0], other.observations[:, 0]) and torch.equal(one.alive, other.alive)
    assert not torch.equal(one.actions, other.actions)
    assert not torch.equal(play(uniform, 30, Rng(5)).actions, one.actions)


def test_bait_sells_watch_time_and_costs_interactions():
    def only(items: range):
        shares = torch.zeros(ITEMS).index_fill(0, torch.tensor(list(items)), 1 / len(items))
        return play(lambda seen: shares.expand(len(seen), -1), 2000, Rng(6)).means()

    bait, liked, shared = only(range(4)), only(range(4, 8)), only(range(8, 12))
    assert bait["watch"] > max(liked["watch"], shared["watch"]) + 0.1
    assert liked["like"] > 10 * bait["like"] and shared["share"] > 10 * bait["share"]


def test_returns_are_discounted_sums_to_the_session_s_end():
    played = play(uniform, 20, Rng(7))
    returns = played.returns(0.9)
    session = int(played.alive.sum(1).argmin())
    length = int(played.alive[session].sum())
    earned = played.expected[session, :length, 0].numpy()
    assert float(returns[session, 0, 0]) == pytest.approx(float((0.9 ** np.arange(length) * earned).sum()), rel=1e-5)
    assert (returns[session, length:] == 0).all()


def test_the_environments_sessions_are_those_of_the_simulator():
    env = sessions.environment()
    draws = Rng(4).numpy()
    rows, lengths = [], []
    for seed in range(600):
        seen, _ = env.reset(seed=seed)
        user, last, length, over = torch.from_numpy(seen[:4])[None], torch.tensor([-1]), 0, False
        assert (seen[4:] == 0).all() and env.observation_space.contains(seen)
        while not over:
            item = int(draws.integers(ITEMS))
            means = expected(user, last)[0, item]
            mood = 0.7 * seen[-1] + 0.3 * float(affinities(user)[0, item] - BAIT[item])
            seen, watch, left, cut, info = env.step(item)
            rows.append([watch, info["like"], info["share"], *means.tolist()])
            last, length, over = torch.tensor([item]), length + 1, left or cut
            assert np.allclose(seen, sessions.observations(user, last, torch.tensor([mood])).numpy()[0], atol=1e-5)
            assert cut == (length == LONGEST and not left)
        lengths.append(length)
    found = np.array(rows)
    gaps = found[:, :3] - found[:, 3:]
    assert (np.abs(gaps.mean(0)) < 4 * gaps.std(0) / math.sqrt(len(gaps))).all()
    assert np.std(np.log(found[:, 0] / found[:, 3])) == pytest.approx(0.3, abs=0.01)
    assert np.mean(lengths) == pytest.approx((1 - 0.95**LONGEST) / 0.05, abs=4 * np.std(lengths) / math.sqrt(600))
    first, again = env.reset(seed=7)[0], env.reset(seed=7)[0]
    assert (first == again).all() and (first != env.reset(seed=8)[0]).any()
