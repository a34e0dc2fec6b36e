"""SALSA: where it is plain RL, what its anchor pulls towards, and the optimum of a tabular case."""

import json
from typing import Any

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs, token_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.soup import GeometricMixture, soup
from telos.lm.tokens import Sequences
from telos.methods.language_rl.salsa import SALSA

PROMPTS = Prompts([f"topic{i}" for i in range(8)])
SMALL_PPO = use("ppo", beta=0.2, learning_rate=1e-3, prompts_per_batch=8, minibatch_size=4, max_new_tokens=6)
SMALL_RLOO = use("rloo", beta=0.2, learning_rate=1e-3, prompts_per_batch=8, max_new_tokens=6)


def good(prompts, completions):
    return [float(text.count("good")) for text in completions]


def constant(prompts, completions):
    return [0.7] * len(completions)


def perturbed(seed, size=0.05):
    model = load_model(TINY)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=Rng(seed).at(name).torch()))
    return model


ONE, TWO = perturbed(1), perturbed(2)


def trajectory(method, steps=3, **given):
    """Metrics and parameters after each update, with the streams the same whatever the method is called."""
    spec = Spec(PROMPTS, {"purpose": good, **given}, steps, torch.device("cpu"), Rng(1000))
    spec = method.prepare(spec)
    learner, source = method.learner(spec, Rng(1000)), method.source(spec)
    found = []
    for step in range(steps):
        batch = source.next(learner.behaviour, Rng(1000).at("source", step))
        metrics = learner.update(batch, Rng(1000).at("update", step))
        weights = torch.cat([p.detach().flatten() for p in learner.product().model.network.parameters()])
        found.append(({name: float(value) for name, value in metrics.items()}, weights.clone()))
    return found


@pytest.mark.parametrize("rl", [SMALL_PPO, SMALL_RLOO], ids=["ppo", "rloo"])
@pytest.mark.parametrize(
    ("options", "other"), [({}, ONE), ({"alpha": 1.0}, TWO), ({"anchor": "start"}, TWO)], ids=["same", "alpha", "start"]
)
def test_with_equal_models_or_alpha_1_it_is_plain_rl_to_the_bit(rl, options, other):
    plain = trajectory(rl, model=ONE)
    ours = trajectory(SALSA(rl=rl, **options), model=ONE, reference=other)
    for (metrics, weights), (our_metrics, our_weights) in zip(plain, ours, strict=True):
        assert metrics == our_metrics and torch.equal(weights, our_weights)
    moved = trajectory(SALSA(rl=rl), model=ONE, reference=TWO)
    assert not torch.equal(moved[-1][1], plain[-1][1])


@pytest.mark.parametrize("anchor", ["soup", "mixture", "start"])
def test_kl_at_the_first_step(anchor):
    """To the soup and to the mixture it is positive, to the start it is 0."""
    method = SALSA(rl=use("rloo", prompts_per_batch=8, samples_per_prompt=64, max_new_tokens=6), anchor=anchor)
    kl = trajectory(method, steps=1, model=ONE, reference=TWO)[0][0]["kl"]
    assert abs(kl) < 1e-4 if anchor == "start" else 0.1 < kl < 5


def test_the_policy_starts_at_theta_1_or_at_the_soup():
    made = soup([ONE, TWO])
    for method, expected in ((SALSA(rl=SMALL_RLOO), ONE), (SALSA(rl=SMALL_RLOO, initial="soup"), made)):
        spec = method.prepare(
            Spec(PROMPTS, {"model": ONE, "reference": TWO, "purpose": good}, 1, torch.device("cpu"), Rng(0))
        )
        ours = spec.given["model"].network.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in expected.network.state_dict().items())
        reference = spec.given["reference"].network.state_dict()
        assert all(torch.equal(reference[name], value) for name, value in made.network.state_dict().items())


def kl(policy, reference, rng):
    drawn = policy.generate(list(PROMPTS.prompts), n=64, rng=rng, max_new_tokens=6)
    with torch.no_grad():
        sequences = Sequences(drawn.tokens, drawn.lengths, drawn.boundaries)
        return float((drawn.log_probs.sum(-1) - sequence_log_probs(reference, sequences)).mean())


@pytest.mark.parametrize("anchor", ["soup", "mixture"])
def test_with_a_constant_reward_the_policy_moves_to_its_anchor(anchor):
    rl = use("rloo", beta=1.0, learning_rate=1e-3, prompts_per_batch=32, max_new_tokens=6)
    policy = SALSA(rl=rl, anchor=anchor).fit(
        PROMPTS, model=ONE, reference=TWO, purpose=constant, steps=40, device="cpu", seed=1000
    )
    made = soup([ONE, TWO]) if anchor == "soup" else GeometricMixture([ONE, TWO], [0.5, 0.5])
    before, after = (kl(p, made, Rng(1000).torch()) for p in (LanguagePolicy(ONE), policy))
    assert before > 0.5 and after < 0.7 * before


def test_one_token_converges_to_the_tilted_soup_from_either_start():
    """With one prompt and one token the policy is tabular: softmax(log pi_soup + r / beta)."""
    one, two = perturbed(1, 0.1), perturbed(2, 0.1)
    made = soup([one, two])

    def distribution(model):
        tokens = torch.tensor([[*model.tokenizer("topic1")["input_ids"]]])
        with torch.no_grad():
            return model.head(model.hidden(tokens))[0, -1].log_softmax(-1)

    words = made.tokenizer.convert_ids_to_tokens(range(64))
    reward = torch.tensor([float(word.startswith("good")) for word in words])
    optima = {name: (distribution(m) + reward / 0.5).softmax(-1) for name, m in (("soup", made), ("one", one))}

    def distance(policy, name):
        return float((distribution(policy.model).exp() - optima[name]).abs().sum() / 2)

    rl = use("rloo", beta=0.5, learning_rate=1e-3, prompts_per_batch=16, samples_per_prompt=8, max_new_tokens=1)
    assert float((optima["soup"] - optima["one"]).abs().sum() / 2) > 0.15
    for method in (SALSA(rl=rl), SALSA(rl=rl, initial="soup")):
        policy = method.fit(
            Prompts(["topic1"] * 16), model=one, reference=two, purpose=good, steps=60, device="cpu", seed=1000
        )
        assert distance(policy, "soup") < 0.05 and distance(policy, "one") > 0.1


def test_several_checkpoints_by_list_and_by_names(tmp_path):
    folders = [LanguagePolicy(model).save(tmp_path / name) for name, model in (("b", TWO), ("c", perturbed(3)))]
    method = SALSA(rl=SMALL_RLOO)
    given = {"model": ONE, "purpose": good, "steps": 1, "device": "cpu"}
    by_name = method.fit(PROMPTS, reference=",".join(map(str, folders)), **given)
    by_list = method.fit(PROMPTS, reference=[TWO, perturbed(3)], **given)
    tokens = Sequences(
        torch.randint(3, 40, (2, 9), generator=Rng(0).torch()), torch.tensor([9, 7]), torch.tensor([2, 2])
    )
    assert torch.equal(token_log_probs(by_name.model, tokens), token_log_probs(by_list.model, tokens))


def test_what_it_cannot_use_is_refused():
    wrong: list[dict[str, Any]] = [{"rl": use("dpo")}, {"alpha": 1.2}, {"initial": "theta_2"}, {"anchor": "average"}]
    for options in wrong:
        with pytest.raises(TelosError, match="out of range"):
            SALSA(**options)
    with pytest.raises(TelosError, match="reference"):
        SALSA(rl=SMALL_RLOO).fit(PROMPTS, model=ONE, purpose=good, steps=1, device="cpu")
    with pytest.raises(TelosError, match="RLOO does not use 'critic'"):
        SALSA(rl=SMALL_RLOO).fit(PROMPTS, model=ONE, reference=TWO, critic="x", purpose=good, steps=1, device="cpu")


def test_options_of_the_held_method_are_kept_with_the_run(tmp_path):
    SALSA(rl=SMALL_RLOO).fit(
        PROMPTS, model=ONE, reference=TWO, purpose=good, steps=1, device="cpu", out=tmp_path / "run"
    )
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    assert options["rl"]["use"] == "rloo" and options["rl"]["beta"] == 0.2
    assert SALSA.from_options(options) == SALSA(rl=SMALL_RLOO)
