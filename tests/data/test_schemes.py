"""Recording an environment by the five schemes."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.environments import record
from telos.data.formats import load
from telos.data.measures import episodes
from telos.data.schemes import SCHEMES, generate
from telos.nets.policies import CategoricalPolicy

pytest.importorskip("gymnasium")


def leaning() -> CategoricalPolicy:
    """Pushes the pole's cart to where the pole falls: far better than chance."""
    policy = CategoricalPolicy(4, 2, (), rng=Rng(0).torch())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        weight, _ = policy.parameters()
        weight[1] = torch.tensor([0, 0.5, 10, 1])
    return policy


@pytest.mark.parametrize("scheme", SCHEMES)
def test_data_of_every_scheme(scheme):
    expert = leaning()
    data = generate("CartPole-v1", scheme, expert, steps=600, seed=3)
    assert (
        len(data) == 600
        and data.fingerprint() == generate("CartPole-v1", scheme, expert, steps=600, seed=3).fingerprint()
    )
    random = data.actions != expert.act(data.observations).action
    share = {"random": 0.5, "expert": 0, "mixed": 0.4, "noisy": 0.1, "replay": 0.13}[scheme]
    assert abs(float(random.float().mean()) - share) < 0.05
    if scheme == "mixed":
        assert not random[480:].any() and random[:480].any()
    if scheme == "replay":
        assert random[:200].float().mean() > 0.2 and random[300:].float().mean() < 0.05
    assert (data.log_probs is not None) == (scheme == "random")


def test_experts_last_longer():
    long, short = (episodes(generate("CartPole-v1", s, leaning(), steps=1500)).lengths for s in ("expert", "random"))
    assert long.mean() > 3 * short.mean()


def test_the_random_scheme_is_a_recording_without_a_policy():
    assert generate("CartPole-v1", "random", steps=50).fingerprint() == record("CartPole-v1", steps=50).fingerprint()
    with pytest.raises(TelosError, match="needs an expert"):
        generate("CartPole-v1", "noisy", steps=50)


def test_schemes_through_the_door(tmp_path):
    folder = leaning().save(tmp_path / "expert")
    data = load(f"gym:CartPole-v1?scheme=noisy&steps=200&policy={folder}")
    assert data.fingerprint() == generate("CartPole-v1", "noisy", leaning(), steps=200).fingerprint()
    assert data.origin is not None and load(data.origin).fingerprint() == data.fingerprint()
