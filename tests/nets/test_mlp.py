import torch

from telos.core.rng import Rng
from telos.nets.critics import EnsembleQ, frozen_copy, polyak_
from telos.nets.mlp import MLP, EnsembleMLP
from telos.nets.normaliser import Normaliser


def test_weights_come_from_the_given_generator_only():
    before = torch.get_rng_state()
    first, second = MLP((3, 8, 2), Rng(1).torch()), MLP((3, 8, 2), Rng(1).torch())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    assert torch.equal(before, torch.get_rng_state())
    assert all((p == 0).all() for p in EnsembleMLP(2, (3, 8, 2)).parameters())


def test_initial_weights_are_uniform_as_a_linear_layers():
    weight = MLP((100, 400, 1), Rng(2).torch()).layers[0].weight
    assert weight.abs().max() <= 0.1
    # Var of U(-b, b) is b^2 / 3; the standard error over 40,000 draws is about 0.5 %.
    assert abs(weight.var().item() / (0.01 / 3) - 1) < 0.03


def test_an_ensemble_computes_what_its_members_compute_alone():
    ensemble = EnsembleMLP(3, (4, 16, 8, 2), Rng(3).torch())
    x = torch.randn(5, 4, generator=Rng(4).torch())
    together = ensemble(x)
    for member in range(3):
        alone = MLP((4, 16, 8, 2))
        for layer, weight, bias in zip(alone.layers, ensemble.weights, ensemble.biases):
            layer.weight.data, layer.bias.data = weight[member].T, bias[member, 0]
        assert torch.allclose(together[member], alone(x), atol=1e-6)
        assert torch.allclose(together[member], ensemble.one(member, x), atol=1e-6)


def test_members_do_not_share_gradients():
    q = EnsembleQ(2, 3, 1, (8,), Rng(5).torch())
    q(torch.ones(4, 3), torch.ones(4, 1))[0].sum().backward()
    weight = q.net.weights[0]
    assert weight.grad is not None and weight.grad[0].abs().sum() > 0 and weight.grad[1].abs().sum() == 0


def test_polyak_is_exact_and_leaves_the_source_alone():
    source = MLP((2, 4, 1), Rng(6).torch())
    target = frozen_copy(MLP((2, 4, 1), Rng(7).torch()))
    old = [p.clone() for p in target.parameters()]
    kept = [p.clone() for p in source.parameters()]
    polyak_(target, source, 0.1)
    for new, before, other in zip(target.parameters(), old, source.parameters()):
        assert torch.allclose(new, 0.9 * before + 0.1 * other, atol=1e-7) and not new.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(kept, source.parameters()))


def test_a_frozen_copy_shares_nothing():
    source = MLP((2, 4, 1), Rng(8).torch())
    copy = frozen_copy(source)
    next(source.parameters()).data.add_(1)
    assert not torch.equal(next(source.parameters()), next(copy.parameters()))


def test_normaliser_standardises_and_keeps_its_constants():
    data = torch.tensor([[0.0, 10.0], [2.0, 10.0]])
    normaliser = Normaliser.fitted(data)
    assert torch.allclose(normaliser.std, torch.tensor([1.001, 0.001]))
    assert torch.allclose(normaliser(data)[:, 0], torch.tensor([-1.0, 1.0]) / 1.001)
    assert normaliser(data)[:, 1].tolist() == [0.0, 0.0]
    loaded = Normaliser.identity(2)
    loaded.load_state_dict(normaliser.state_dict())
    assert torch.equal(loaded(data), normaliser(data))
