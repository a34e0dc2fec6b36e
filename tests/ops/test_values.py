import torch

from telos.ops.values import advantage_weights, ensemble_mse, expectile_loss, smoothed_actions, td_target


def test_td_target_bootstraps_unless_terminated():
    target = td_target(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([10.0, 10.0]), 0.9)
    assert torch.allclose(target, torch.tensor([10.0, 1.0]))


def test_td_target_of_a_terminated_row_ignores_even_an_infinite_value():
    target = td_target(torch.tensor([2.0]), torch.tensor([True]), torch.tensor([torch.inf]), 0.9)
    assert target.tolist() == [2.0]


def test_ensemble_mse_sums_members_and_counts_rows():
    total, count = ensemble_mse(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([1.0, 1.0, 1.0]))
    assert (total.item(), count) == (0 + 1 + 4 + 1 + 1 + 1, 3)


def test_expectile_of_one_half_is_half_the_squared_error():
    errors = torch.tensor([-2.0, 0.5, 3.0])
    total, count = expectile_loss(errors, 0.5)
    assert torch.isclose(total, errors.square().sum() / 2) and count == 3


def test_expectile_weights_by_sign():
    total, _ = expectile_loss(torch.tensor([-2.0, 3.0]), 0.7)
    assert torch.isclose(total, torch.tensor(0.3 * 4 + 0.7 * 9))


def minimiser(samples: torch.Tensor, tau: float) -> float:
    grid = torch.linspace(0, 1, 1001)
    losses = torch.stack([expectile_loss(samples - v, tau)[0] for v in grid])
    return grid[losses.argmin()].item()


def test_expectile_minimisers_of_a_fair_coin_are_tau_and_tend_to_the_maximum():
    # tau (1 - v) = (1 - tau) v has the solution v = tau.
    coin = torch.tensor([0.0, 1.0])
    for tau in (0.5, 0.7, 0.9):
        assert abs(minimiser(coin, tau) - tau) < 1.1e-3
    assert minimiser(coin, 0.9999) > 0.998


def test_advantage_weights_are_clipped_exponentials():
    weights = advantage_weights(torch.tensor([0.0, 1.0, 5.0]), 3.0, 100.0)
    assert torch.allclose(weights, torch.tensor([1.0, 20.085537, 100.0]))
    assert torch.equal(advantage_weights(torch.tensor([-3.0, 9.0]), 0.0, 100.0), torch.ones(2))


def test_smoothed_actions_scale_clip_and_stay_in_the_box():
    low, high = torch.tensor([-2.0]), torch.tensor([2.0])
    noise = torch.tensor([[1.0], [10.0], [-10.0]])
    # Half the range is 2: noise 0.2 * 2 = 0.4; clipped at 0.5 * 2 = 1; the box ends at -2.
    got = smoothed_actions(torch.tensor([[0.0], [0.0], [-1.5]]), noise, 0.2, 0.5, low, high)
    assert torch.allclose(got, torch.tensor([[0.4], [1.0], [-2.0]]))
