"""%BC: which episodes are imitated, by hand, and what selection earns on the Bernoulli bandit."""

from typing import Any

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions
from telos.methods.offline_rl.percent_bc import PercentBC, best
from telos.worlds import bernoulli_bandit as bandit

LENGTHS, RETURNS = (2, 3, 1, 4), (1.0, 6.0, 3.0, 2.0)


def episodes() -> Transitions:
    """Episodes of 2, 3, 1 and 4 steps that return 1, 6, 3 and 2; all is paid at the end."""
    lengths = torch.tensor(LENGTHS)
    ends = torch.zeros(10, dtype=torch.bool)
    ends[lengths.cumsum(0) - 1] = True
    rewards = torch.zeros(10)
    rewards[ends] = torch.tensor(RETURNS)
    return Transitions.validated(
        observations=torch.arange(10.0)[:, None], actions=torch.arange(10) % 2, rewards=rewards,
        next_observations=torch.zeros(10, 1), terminated=ends, truncated=torch.zeros(10), action_space=Discrete(2),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("share", "above", "kept"),
    [
        (0.01, None, [2, 3, 4]), (0.3, None, [2, 3, 4]), (0.31, None, [2, 3, 4, 5]), (0.4, None, [2, 3, 4, 5]),
        (0.41, None, [2, 3, 4, 5, 6, 7, 8, 9]), (1.0, None, list(range(10))), (1.0, 1.0, list(range(2, 10))),
        (1.0, 2.5, [2, 3, 4, 5]), (0.3, 0.0, [2, 3, 4]),
    ],
)  # fmt: skip
def test_the_best_episodes_are_kept_whole(share: float, above: float | None, kept: list[int]):
    assert best(episodes(), share, above).nonzero()[:, 0].tolist() == kept


def test_with_all_episodes_it_is_bc_and_on_a_part_bc_of_that_part():
    data, options = episodes(), {"hidden": (8,), "batch_size": 4}
    for share, rows in ((1.0, slice(None)), (0.3, slice(2, 5))):
        ours = PercentBC(share=share, bc=use("bc", **options))
        theirs = use("bc", **options)
        learners = []
        for method, records in ((ours, data), (theirs, data[rows])):
            spec = method.prepare(Spec(records, {}, 5, torch.device("cpu"), Rng(0)))
            learner: Any = method.learner(spec, Rng(0))
            source = method.source(spec)
            for step in range(5):
                learner.update(source.next(learner.behaviour, Rng(1).at(step)), Rng(2))
            learners.append(learner.policy.state_dict())
        assert all(torch.equal(learners[0][name], learners[1][name]) for name in learners[0])


def test_selection_believes_in_luck():
    # Among pulls that paid both arms are equally frequent: 0.5, where imitation of all earns 2 p (1 - p) = 0.18.
    data = bandit.dataset(2000, 0.1, Rng(1000))
    clone = use("bc", hidden=(8,), learning_rate=0.02, batch_size=64)
    for method, earned in ((PercentBC(share=1.0, above=0.0, bc=clone), 0.5), (clone, bandit.imitation(0.1))):
        policy = method.fit(data, steps=300, seed=1000, device="cpu")
        assert bandit.expected_reward(policy.probabilities([0.0]).detach(), 0.1) == pytest.approx(earned, abs=0.06)


def test_what_cannot_be_imitated_is_refused():
    for options, match in (({"share": 0.0}, "share"), ({"share": 1.1}, "share"), ({"above": 6.0}, "no episode")):
        with pytest.raises(TelosError, match=match):
            PercentBC(**options).fit(episodes(), steps=1)  # type: ignore[arg-type]
