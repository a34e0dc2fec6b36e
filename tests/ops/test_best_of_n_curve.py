"""The unbiased best-of-n curve against its limits, closed forms and brute force."""

import itertools
import math

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.ops.best_of_n import best_of_n_curve, best_of_n_weights


@pytest.mark.parametrize("n", [1, 2, 64, 2048, 4096])
def test_weights_are_a_distribution_over_ranks(n):
    weights = best_of_n_weights(n, 4096)
    assert weights.sum().item() == pytest.approx(1, abs=1e-9) and (weights >= 0).all()
    assert (weights[: n - 1] == 0).all()
    # The best of n has rank n (N + 1) / (n + 1) on average.
    mean = (weights * torch.arange(1, 4097)).sum().item()
    assert mean == pytest.approx(n * 4097 / (n + 1), rel=1e-9)


def test_weights_are_binomials():
    expected = [math.comb(i - 1, 2) / math.comb(7, 3) for i in range(1, 8)]
    assert best_of_n_weights(3, 7).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_ends_are_the_mean_and_the_top_ranked():
    gold, proxy = torch.randn((2, 3, 500), generator=Rng(1000).torch())
    curve = best_of_n_curve(gold, proxy, [1, 500])
    assert torch.allclose(curve[:, 0], gold.double().mean(-1))
    assert torch.allclose(curve[:, 1], gold.gather(-1, proxy.argmax(-1, keepdim=True))[:, 0].double())


def test_it_is_the_mean_over_all_subsets():
    gold, proxy = torch.randn((2, 9), generator=Rng(1001).torch()).double()
    subsets = [torch.tensor(s) for s in itertools.combinations(range(9), 4)]
    expected = torch.stack([gold[s[proxy[s].argmax()]] for s in subsets]).mean()
    assert best_of_n_curve(gold, proxy, [4]).item() == pytest.approx(expected.item(), abs=1e-12)


def test_gold_moves_with_its_sample():
    """The order of the pool says nothing: gold that stays behind in another order would change the curve."""
    gold, proxy = torch.randn((2, 200), generator=Rng(1002).torch()).double()
    shuffled = torch.randperm(200, generator=Rng(1003).torch())
    sizes = [1, 5, 60, 200]
    curve = best_of_n_curve(gold, proxy, sizes)
    assert torch.allclose(best_of_n_curve(gold[shuffled], proxy[shuffled], sizes), curve)
    assert not torch.allclose(best_of_n_curve(gold[shuffled], proxy, sizes)[2:], curve[2:], atol=1e-2)
    own = best_of_n_curve(proxy, proxy, sizes)
    assert (own.diff() > 0).all() and own[-1] == proxy.max()


@pytest.mark.parametrize("n", [0, 11])
def test_a_size_outside_the_pool_is_refused(n):
    with pytest.raises(TelosError, match="best-of-n"):
        best_of_n_curve(torch.zeros(10), torch.zeros(10), [n])
