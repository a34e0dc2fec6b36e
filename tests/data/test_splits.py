"""What is held out: whole episodes, later decisions, other prompts."""

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Demonstrations, Discrete, LoggedBandit, Preferences, Transitions
from telos.data.splits import hold_out


def episodes(lengths):
    ends = [step == length - 1 for length in lengths for step in range(length)]
    names = [float(number) for number, length in enumerate(lengths) for _ in range(length)]
    steps = np.arange(len(names), dtype=float)
    return Transitions.validated(
        observations=np.stack([names, steps], 1), actions=np.zeros(len(names)), rewards=steps,
        next_observations=np.stack([names, steps + 1], 1), terminated=np.zeros(len(names), bool), truncated=ends,
        action_space=Discrete(2), origin="file.npz",
    )  # fmt: skip


def test_transitions_are_split_by_whole_episodes_in_their_order():
    data = episodes([3, 1, 4, 2, 5, 3, 2, 1])
    kept, aside = hold_out(data, 0.25, Rng(0))
    names = [set(part.observations[:, 0].tolist()) for part in (kept, aside)]
    assert names[0] | names[1] == set(map(float, range(8))) and not names[0] & names[1] and len(names[1]) == 2
    assert len(kept) + len(aside) == len(data)
    assert all((torch.diff(part.observations[:, 1]) > 0).all() for part in (kept, aside))
    assert kept.origin is None and aside.origin is None
    other = hold_out(data, 0.25, Rng(1))[1]
    assert set(other.observations[:, 0].tolist()) != names[1]


def test_an_unfinished_last_episode_is_an_episode():
    data = episodes([3, 2])
    data = type(data)(**{**vars(data), "truncated": torch.tensor([False, False, True, False, False])})
    kept, aside = hold_out(data, 0.5, Rng(0))
    assert sorted([len(kept), len(aside)]) == [2, 3]


def test_of_decisions_the_last_ones_are_held_out():
    log = LoggedBandit.validated(contexts=np.arange(8.0)[:, None], actions=[0, 1] * 4, rewards=np.zeros(8), n_actions=2)
    kept, aside = hold_out(log, 0.25, Rng(0))
    assert kept.contexts[:, 0].tolist() == [0, 1, 2, 3, 4, 5] and aside.contexts[:, 0].tolist() == [6, 7]


def test_pairs_of_one_prompt_stay_together_whether_it_is_given_or_implied():
    prompts = [f"q{i // 2} " for i in range(20)]
    chosen, rejected = [f"yes {i}" for i in range(20)], [f"no {i}" for i in range(20)]
    explicit = Preferences(prompts, chosen, rejected)
    implicit = Preferences(
        [None] * 20, *([p + t for p, t in zip(prompts, texts, strict=True)] for texts in (chosen, rejected))
    )
    for data in (explicit, implicit):
        kept, aside = hold_out(data, 0.3, Rng(0))
        sides = [{int(text.split()[-1]) // 2 for text in part.chosen} for part in (kept, aside)]
        assert not sides[0] & sides[1] and len(sides[1]) == 3 and len(kept) + len(aside) == 20


def test_what_cannot_be_split_is_refused():
    with pytest.raises(TelosError, match="single episode"):
        hold_out(episodes([5]), 0.5, Rng(0))
    with pytest.raises(TelosError, match="out of range"):
        hold_out(episodes([5, 5]), 1.0, Rng(0))
    with pytest.raises(TelosError, match="Demonstrations cannot be split"):
        hold_out(Demonstrations(["a"], ["b"]), 0.5, Rng(0))
