"""Measures of data sets: the paper's checks with numbers, and what an unusual data set is told."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.measures import COUNTERS, HyperLogLog, column_limits, episodes, mean_return, measure
from telos.data.records import Box, Discrete, Transitions


def data(rows: int = 200, seed: int = 1, length: int = 20, **changes) -> Transitions:
    """A walk in two dimensions with continuous actions; episodes of `length` steps, cut at their ends."""
    draw = Rng(seed).numpy()
    observations = draw.integers(0, 6, (rows, 2)) / 2
    columns = {
        "observations": observations,
        "actions": draw.uniform(-1, 1, (rows, 1)),
        "rewards": draw.normal(size=rows) + observations[:, 0],
        "next_observations": observations + 0.5,
        "terminated": np.zeros(rows, bool),
        "truncated": np.arange(rows) % length == length - 1,
        "action_space": Box((-1.0,), (1.0,)),
    }
    return Transitions.validated(**{**columns, **changes})


def joined(*parts: Transitions) -> Transitions:
    """One after another."""
    columns = {name: torch.cat([part.columns()[name] for part in parts]) for name in parts[0].columns()}
    return replace(parts[0], **columns)


def grid(cells: list[int], actions: list[int]) -> Transitions:
    """One-hot cells of four, with two actions and rewards of 0; one episode."""
    rows = len(cells)
    observations = np.eye(4)[cells]
    return Transitions.validated(
        observations=observations, actions=actions, rewards=np.zeros(rows), next_observations=observations,
        terminated=np.zeros(rows, bool), truncated=np.arange(rows) == rows - 1, action_space=Discrete(2),
    )  # fmt: skip


# Trajectory quality: check 1.


def test_quality_is_0_for_random_and_1_for_expert_data():
    random, better = data(), replace(data(), rewards=data().rewards + 1)
    low, high = mean_return(random), mean_return(better)
    assert high == pytest.approx(low + 20, abs=1e-4)
    assert measure(random, random_return=low, expert_return=high).tq == pytest.approx(0, abs=1e-9)
    assert measure(better, random_return=low, expert_return=high).tq == pytest.approx(1, abs=1e-9)


def test_quality_does_not_change_with_the_scale_of_rewards():
    one = data()
    plain = measure(one, random_return=-3, expert_return=50).tq
    scaled = measure(replace(one, rewards=one.rewards * 7), random_return=-21, expert_return=350).tq
    assert plain == pytest.approx(scaled, rel=1e-5)
    assert 0 < plain < 1


def quality_with(constant: float, length: int) -> float:
    """TQ of data with a constant added to each reward, of which random and expert data of 20-step episodes are told."""
    random, expert = data(seed=2), replace(data(seed=3), rewards=data(seed=3).rewards + 2)
    shifted = [replace(part, rewards=part.rewards + constant) for part in (data(length=length), random, expert)]
    return measure(shifted[0], random_return=mean_return(shifted[1]), expert_return=mean_return(shifted[2])).tq


def test_a_constant_a_step_changes_quality_only_where_lengths_differ():
    assert quality_with(3, 20) == pytest.approx(quality_with(0, 20), abs=1e-5)
    assert abs(quality_with(3, 40) - quality_with(0, 40)) > 1


def test_ends_that_are_not_given_are_inferred_and_named():
    found = measure(data())
    assert found.tq == pytest.approx(
        (found.returns.mean - found.returns.least) / (found.returns.most - found.returns.least)
    )
    assert set(found.inferred) == {"random", "expert"} and "lowest" in found.inferred["random"]
    wide = measure(data(), reference=replace(data(seed=5), rewards=data(seed=5).rewards * 9))
    assert wide.expert_return > found.expert_return
    assert measure(data(), random_return=0.0).inferred.keys() == {"expert"}
    flat = grid([0, 1], [0, 1])
    assert measure(flat).tq is None


# Coverage: checks 2 and 3.


@pytest.mark.parametrize("counter", COUNTERS)
def test_a_set_covers_itself_once_also_twice_over(counter):
    one = data(3000)
    assert measure(one, reference=one, counter=counter).saco == 1
    found = measure(joined(one, one), reference=one, counter=counter, equal_size=False)
    assert found.saco == 1 and found.lsaco == 1
    assert found.unique == measure(one, counter=counter).unique


def test_coverage_grows_with_the_set():
    whole = data(2000)
    covered = [measure(whole[:rows], reference=whole, equal_size=False).saco for rows in (100, 500, 1000, 2000)]
    assert covered == sorted(covered) and covered[-1] == 1 and covered[0] < 0.2


def test_counts_on_a_grid():
    found = measure(
        grid([0, 0, 1, 2, 2, 2], [0, 0, 1, 0, 1, 1]), reference=grid([0, 1, 2, 3, 3, 0], [0, 1, 0, 0, 1, 1])
    )
    assert found.unique == 4 and found.share == pytest.approx(4 / 6)
    assert found.saco == pytest.approx(4 / 6) and found.lsaco == pytest.approx(math.log(4) / math.log(6))
    assert found.action_shares == (0.5, 0.5) and found.duplicates == 2
    assert found.constant == ("observations[3]",)


def test_entropy_is_that_of_the_pairs():
    uneven = measure(grid([0, 0, 0, 1], [0, 0, 0, 1]))
    assert uneven.entropy == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert uneven.perplexity < uneven.unique == 2
    even = measure(grid([0, 1, 2, 3], [0, 1, 0, 1]))
    assert even.perplexity == pytest.approx(4) and even.unique == 4
    one = measure(grid([2, 2], [1, 1]))
    assert one.entropy == 0 and one.unique == 1
    for seed in range(5):
        found = measure(data(seed=seed), bins=4)
        assert found.perplexity <= found.unique + 1e-9


def test_pairs_are_told_apart_as_digits_are():
    one = data(5000)
    found = measure(one, bins=7)
    limits = column_limits(one)
    values = np.concatenate([one.observations.numpy(), one.actions.numpy()], 1)
    digits = np.clip((values - limits[0]) / (limits[1] - limits[0]) * 7, 0, 6).astype(int)
    assert found.unique == len(np.unique(digits, axis=0)) <= 6 * 6 * 7


def test_limits_are_shared_and_can_be_given():
    small = replace(data(), observations=data().observations / 100)
    assert measure(small, bins=4).unique > measure(small, bins=4, reference=data()).unique
    limits = ([0, 0, -1], [2.5, 2.5, 1])
    assert measure(small, bins=4, limits=limits).unique == len(
        np.unique((small.actions + 1).mul(2).long().clamp(max=3))
    )
    with pytest.raises(TelosError, match="limits do not fit"):
        measure(small, limits=([0, 0], [1, 1]))


def test_sets_of_different_sizes_are_compared_by_equal_draws():
    large, small = data(4000, seed=1), data(1000, seed=2)
    for one, other in ((large, small), (small, large)):
        found = measure(one, reference=other, bins=5)
        assert found.compared == 1000 and 0.8 < found.saco < 1.2
        assert any("without replacement" in note for note in found.notes)
    again = measure(large, reference=small, bins=50)
    assert again == measure(large, reference=small, bins=50)
    assert again.saco != measure(large, reference=small, bins=50, seed=1).saco
    unequal = measure(large, reference=small, bins=50, equal_size=False)
    assert unequal.saco > 1.5 and unequal.unique_compared == unequal.unique


def test_without_a_reference_only_the_raw_share_is_told():
    found = measure(data())
    assert found.saco is None and found.lsaco is None and found.share == found.unique / 200
    assert any("no reference" in note for note in found.notes)


# Counters: check 4.


@pytest.mark.parametrize("count", [10, 1_000, 20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("seed", range(3))
def test_hyperloglog_is_within_2_per_cent(count: int, seed: int):
    hashes = Rng(seed).numpy().integers(0, 2**64, count, dtype=np.uint64)
    counter = HyperLogLog()
    for part in np.array_split(np.concatenate([hashes, hashes[: count // 2]]), 7):
        counter.add(part)
    assert abs(counter.unique() - count) <= 0.02 * count


def test_hyperloglog_of_pairs_is_within_2_per_cent_of_the_exact_count():
    draw = Rng(3).numpy()
    rows = 150_000
    walk = data(rows, observations=draw.integers(0, 40, (rows, 2)), actions=draw.uniform(-1, 1, (rows, 1)))
    exact, hashed = measure(walk), measure(walk, counter="hashed")
    assert exact.unique > 90_000 and hashed.unique == pytest.approx(exact.unique, rel=0.02)
    assert hashed.entropy is None and hashed.duplicates is None and HyperLogLog().unique() == 0


# Episodes.


def test_how_episodes_end_and_what_they_earn():
    ends = np.zeros(20, bool)
    terminated, truncated = ends.copy(), ends.copy()
    terminated[[2, 11]] = True
    truncated[6] = True
    one = data(20, rewards=np.arange(20), terminated=terminated, truncated=truncated)
    found = episodes(one)
    assert found.lengths.tolist() == [3, 4, 5, 8]
    assert found.ends == {"terminated": 2, "truncated": 1, "recording": 1}
    assert found.returns.tolist() == [3, 18, 45]
    half = episodes(one, 0.5).returns
    assert half[0] == 0 + 1 / 2 + 2 / 4 and half[1] == 3 + 4 / 2 + 5 / 4 + 6 / 8


def test_a_last_episode_that_is_cut_short_is_the_recordings_end():
    truncated = np.isin(np.arange(25), [9, 19, 24])
    assert episodes(data(25, truncated=truncated)).ends == {"terminated": 0, "truncated": 2, "recording": 1}
    assert episodes(data(20, length=10)).ends == {"terminated": 0, "truncated": 2, "recording": 0}
    only = episodes(data(5))
    assert only.ends["recording"] == 1 and len(only.returns) == 1


def test_returns_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch):
    one = data(1000, length=17)
    whole, count = episodes(one, 0.9).returns, measure(one, bins=9)
    monkeypatch.setattr(
        "telos.data.measures.chunks", lambda rows, width: (slice(a, min(a + 7, rows)) for a in range(0, rows, 7))
    )
    np.testing.assert_allclose(episodes(one, 0.9).returns, whole, rtol=1e-12)
    assert measure(one, bins=9).unique == count.unique


# The rest.


def test_duplicates_are_whole_transitions_bit_by_bit():
    one = data(100)
    assert measure(one).duplicates == 0
    assert measure(joined(one, one)).duplicates == 100
    rewards = one.rewards.clone()
    rewards[0] += 1e-6
    assert measure(joined(one, replace(one, rewards=rewards))).duplicates == 99
    ended = one.terminated.clone()
    ended[3] = True
    assert measure(joined(one, replace(one, terminated=ended))).duplicates == 99
    zeros = replace(one[:2], rewards=torch.tensor([0.0, -0.0]))
    same = zeros[torch.tensor([0, 0])]
    assert measure(replace(same, rewards=zeros.rewards)).duplicates == 1


def test_actions_and_constant_columns():
    one = data(
        400,
        actions=np.stack([np.linspace(-1, 0, 400), np.full(400, 0.5)], 1),
        action_space=Box((-1.0,) * 2, (1.0,) * 2),
    )
    found = measure(one, bins=50)
    assert found.action_coverage == pytest.approx((26 / 50, 1 / 50)) and found.action_shares is None
    assert found.constant == ("actions[1]",)
    assert measure(grid([0, 1, 2, 3], [1, 1, 1, 1])).constant == ("actions",)
    assert measure(grid([0, 1], [1, 1])).action_coverage == (0.5,)


def test_it_is_json():
    found = measure(data(), reference=data(seed=2))
    told = json.loads(json.dumps(found.to_json()))
    assert told == found.to_json() and told["lengths"]["mean"] == 20 and told["origin"] is None
    assert sum(told["returns"]["counts"]) == 10 and len(told["returns"]["edges"]) == len(told["returns"]["counts"]) + 1


def test_wrong_options_and_references_are_named():
    one = data()
    for options, words in (
        ({"discount": 0.0}, "discount"), ({"bins": 0}, "bins"), ({"counter": "guess"}, "counter"),
        ({"random_return": 3.0, "expert_return": 2.0}, "expert's return"),
        ({"reference": grid([0, 1], [0, 1])}, "another environment"),
        ({"reference": data(observations=np.zeros((200, 3)), next_observations=np.zeros((200, 3)))}, "observations"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=words):
            measure(one, **options)
