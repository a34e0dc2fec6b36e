"""Soups: exact identities, what is refused, and the mixture that a soup is where logits are linear in the weights."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Preferences
from telos.lm.log_probs import token_log_probs
from telos.lm.model import STORIES, TINY, add_lora, load_model
from telos.lm.products import LanguagePolicy, probe_tokens
from telos.lm.sample import sample
from telos.lm.soup import GeometricMixture, soup, soup_weights
from telos.lm.tokens import Sequences, tokenise_prompts
from telos.methods.preferences.dpo import DPO

TOKENS = probe_tokens(47)


def perturbed(seed, size=0.03, only=""):
    model = load_model(TINY)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            if only in name:
                parameter.add_(size * torch.randn(parameter.shape, generator=Rng(seed).at(name).torch()))
    return model


ONE, TWO, THREE = perturbed(1), perturbed(2), perturbed(3)


def state(model):
    return model.network.state_dict()


def same(a, b, tolerance=0.0):
    assert state(a).keys() == state(b).keys()
    return all(torch.allclose(state(a)[k], state(b)[k], rtol=0, atol=tolerance) for k in state(a))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0, None])
def test_of_one_model_with_itself_is_that_model_to_the_bit(alpha):
    assert same(soup([ONE, ONE], alpha), ONE) and same(soup([ONE] * 3, alpha), ONE)


def test_ends_and_symmetry():
    assert same(soup([ONE, TWO], 1.0), ONE) and same(soup([ONE, TWO], 0.0), TWO)
    assert same(soup([ONE, TWO], 0.3), soup([TWO, ONE], 0.7), 1e-7)
    assert not same(soup([ONE, TWO], 0.3), soup([ONE, TWO], 0.7), 1e-2)
    name = "lm_head.weight"
    expected = 0.25 * state(ONE)[name] + 0.75 * state(TWO)[name]
    assert torch.allclose(state(soup([ONE, TWO], 0.25))[name], expected, atol=1e-7)


def test_of_three_all_alike_or_the_first_by_alpha():
    assert soup_weights(3) == pytest.approx([1 / 3] * 3) and soup_weights(3, 0.5) == [0.5, 0.25, 0.25]
    name = "lm_head.weight"
    expected = (state(ONE)[name] + state(TWO)[name] + state(THREE)[name]) / 3
    assert torch.allclose(state(soup([ONE, TWO, THREE]))[name], expected, atol=1e-7)


def test_sources_stay_as_they_are_and_the_soup_has_no_gradient():
    before = {name: value.clone() for name, value in state(ONE).items()}
    made = soup([ONE, TWO])
    assert all(torch.equal(state(ONE)[name], value) for name, value in before.items())
    assert made.trainable() == [] and ONE.trainable()


def test_integer_buffers_are_the_firsts_and_the_type_is_kept():
    one, two = load_model(TINY), load_model(TINY)
    for number, model in enumerate((one, two)):
        model.network.register_buffer("count", torch.tensor(3 + 4 * number))
        model.network.register_buffer("scale", torch.tensor(1.0 + number))
    made = soup([one, two])
    assert int(made.network.count) == 3 and float(made.network.scale) == 1.5
    half = [model.copy() for model in (ONE, TWO)]
    for model in half:
        model.network.to(torch.bfloat16)
    low = soup(half)
    assert low.network.dtype == torch.bfloat16
    # One rounding, of the exact mean: not the rounded sum of rounded halves.
    mean = (state(half[0])["lm_head.weight"].double() + state(half[1])["lm_head.weight"].double()) / 2
    assert torch.equal(state(low)["lm_head.weight"], mean.to(torch.bfloat16))


def test_adapters_are_merged_before_they_are_averaged():
    pytest.importorskip("peft")
    adapted = [add_lora(load_model(TINY), 2, Rng(seed)) for seed in (1, 2)]
    with torch.no_grad():
        for seed, model in enumerate(adapted):
            for name, parameter in model.network.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=Rng(seed).at(name).torch()))
    made = soup(adapted)
    assert not made.adapted and same(made, soup([model.merged() for model in adapted]), 1e-7)
    assert not same(made, load_model(TINY), 1e-3)


def test_models_that_do_not_match_are_refused():
    with pytest.raises(TelosError, match="checkpoint 2 of the soup"):
        soup([TINY, STORIES])
    for checkpoints, alpha in (([TINY], None), ([TINY, TINY], 1.5)):
        with pytest.raises(TelosError, match="out of range"):
            soup(checkpoints, alpha)


def test_where_logits_are_linear_in_the_weights_it_is_the_geometric_mixture():
    """Only the last norm's gain differs, and the head is linear in it."""
    one, two = (perturbed(seed, size=0.5, only="model.norm.weight") for seed in (1, 2))
    assert not same(one, two, 0.1)
    mixture = GeometricMixture([one, two], [0.3, 0.7])
    by_weights, by_outputs = token_log_probs(soup([one, two], 0.3), TOKENS), token_log_probs(mixture, TOKENS)  # type: ignore[arg-type]
    assert torch.allclose(by_weights, by_outputs, atol=1e-5)
    assert not torch.allclose(by_weights, token_log_probs(one, TOKENS), atol=1e-2)


def test_the_mixture_is_normalised_and_between_its_models():
    mixture = GeometricMixture([ONE, TWO], [0.5, 0.5])
    tokens = TOKENS.tokens
    log_probs = mixture.head(mixture.hidden(tokens)).log_softmax(-1)
    parts = [model.head(model.hidden(tokens)).log_softmax(-1) for model in (ONE, TWO)]
    rest = log_probs - sum(parts) / 2
    assert torch.allclose(rest, rest[..., :1].expand_as(rest), atol=1e-5)  # the same but for a constant a place
    assert (rest > -1e-6).all()  # -log Z >= 0 by Hoelder's inequality
    alone = GeometricMixture([ONE, TWO], [1.0, 0.0])
    assert torch.allclose(token_log_probs(alone, TOKENS), token_log_probs(ONE, TOKENS), atol=1e-6)  # type: ignore[arg-type]


def test_it_is_a_reference_for_dpo_as_an_object_and_as_a_folder(tmp_path):
    pairs = Preferences(["topic1", "topic2"], [" good1 good2", " good3"], [" bad1", " bad2 bad3"])
    made = soup([ONE, TWO])
    folder = LanguagePolicy(made).save(tmp_path / "soup")
    assert same(load_product(folder).model, made)
    fits = [
        DPO(warmup_steps=0).fit(pairs, model=ONE, reference=reference, steps=2, device="cpu")
        for reference in (made, str(folder), ONE)
    ]
    assert same(fits[0].model, fits[1].model) and not same(fits[0].model, fits[2].model)


def test_sampling_from_a_mixture_is_token_by_token_with_a_cache_for_each_model():
    """The sampler's log-probs are the uncached mixture's, prompts of unequal length in one batch."""
    mixture = GeometricMixture([ONE, TWO], [0.3, 0.7])
    prompts = tokenise_prompts(ONE, ["topic1", "topic2 word2 word3", "topic3 word1"], 8)
    drawn = sample(mixture, prompts, n=4, rng=Rng(4).torch(), max_new_tokens=8)
    with torch.no_grad():
        values = token_log_probs(mixture, Sequences(drawn.tokens, drawn.lengths, drawn.boundaries))  # type: ignore[arg-type]
        alone = token_log_probs(ONE, Sequences(drawn.tokens, drawn.lengths, drawn.boundaries))
    assert (values - drawn.log_probs).abs().max() < 1e-4 < (alone - drawn.log_probs).abs().max()
    assert mixture.context == ONE.context and mixture.eos_id == ONE.eos_id


@pytest.mark.parametrize(("weights", "expected"), [([1.0, 0.0], ONE), ([0.0, 1.0], TWO)])
def test_the_ends_of_a_mixture_sample_the_tokens_of_one_model(weights, expected):
    prompts = tokenise_prompts(ONE, ["topic1", "topic2 word2"], 8)
    drawn, aim = (
        sample(model, prompts, n=20, rng=Rng(4).torch(), max_new_tokens=8)
        for model in (GeometricMixture([ONE, TWO], weights), expected)
    )
    assert torch.equal(drawn.tokens, aim.tokens) and torch.allclose(drawn.log_probs, aim.log_probs, atol=1e-5)
    other = sample(TWO if expected is ONE else ONE, prompts, n=20, rng=Rng(4).torch(), max_new_tokens=8)
    assert other.tokens.shape != aim.tokens.shape or not torch.equal(other.tokens, aim.tokens)
