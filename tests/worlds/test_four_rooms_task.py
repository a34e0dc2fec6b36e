"""The task in four rooms: exact returns, and the five schemes."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.measures import episodes, mean_return
from telos.data.schemes import SCHEMES, random_share
from telos.worlds import four_rooms as rooms
from telos.worlds.four_rooms_task import EXPERT_RETURN, LIMIT, dataset, expected_return, reward


def one_hot(moves: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(moves, 4).float()


def test_the_shortest_way_earns_most_and_standing_still_nothing():
    cells = torch.arange(rooms.COUNT)
    best = one_hot(rooms.shortest(cells, torch.full_like(cells, rooms.GOAL)))
    assert expected_return(best) == pytest.approx(EXPERT_RETURN) == pytest.approx(1 - 0.9 * 12 / 60)
    assert expected_return(one_hot(torch.zeros_like(cells))) == 0
    assert reward(LIMIT) == pytest.approx(0.1)


def test_the_expected_return_is_the_mean_of_recorded_ones():
    recorded = episodes(dataset("random", 60_000, Rng(3))).returns
    uniform = expected_return(torch.full((rooms.COUNT, 4), 0.25))
    assert abs(recorded.mean() - uniform) < 4 * recorded.std() / len(recorded) ** 0.5
    assert 0.01 < uniform < 0.1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_follows_the_map(scheme):
    data = dataset(scheme, 700, Rng(1))
    cells, following = data.observations.argmax(-1), data.next_observations.argmax(-1)
    assert len(data) == 700 and torch.equal(rooms.NEXT[cells, data.actions], following)
    assert torch.equal(data.terminated, following == rooms.GOAL) and not (data.terminated & data.truncated).any()
    assert torch.equal(data.rewards > 0, data.terminated)
    ends = data.terminated | data.truncated
    assert ends[-1] and (cells[1:][ends[:-1]] == rooms.START).all()
    assert torch.equal(cells[1:][~ends[:-1]], following[:-1][~ends[:-1]])
    assert int(episodes(data).lengths.max()) <= LIMIT
    assert data.fingerprint() == dataset(scheme, 700, Rng(1)).fingerprint()


def test_schemes_lie_between_random_and_expert():
    quality = {scheme: mean_return(dataset(scheme, 5000, Rng(2))) for scheme in SCHEMES}
    assert quality["expert"] == pytest.approx(EXPERT_RETURN, abs=1e-6)
    assert quality["random"] < quality["mixed"] < quality["replay"] < quality["expert"]
    assert quality["mixed"] < quality["noisy"] < quality["expert"]


def test_shares_of_random_steps():
    replay, mixed = random_share("replay", 1000), random_share("mixed", 1000)
    assert replay(0) == 1 and replay(250) == pytest.approx(0.505) and replay(500) == pytest.approx(0.01) == replay(999)
    assert (mixed(799), mixed(800)) == (1, 0)
    assert random_share("noisy", 10)(3) == 0.2 and random_share("expert", 10)(3) == 0
    with pytest.raises(TelosError, match="no scheme"):
        random_share("human", 10)  # type: ignore[arg-type]
