"""Nash-MD: the dossier's checks 1 to 5, its theorem and figures, the mixture's ends, the token form, that it learns."""

import itertools

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.fit import named
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs, token_log_probs
from telos.lm.model import STORIES, TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.sample import sample
from telos.lm.tokens import Sequences, tokenise_prompts
from telos.methods.preferences.nash_md import NashLearner, NashMD, mixture, nash_advantages, nash_loss
from telos.methods.preferences.nash_md_variants import STEPS, bound, decaying, nash_md, trajectory
from telos.ops import games
from telos.worlds.games import circle, style_game

PROMPTS = Prompts([f"topic{i % 8}" + " word2" * (i % 2) for i in range(32)])
TAU = 0.1


def normal(*shape, name="x"):
    return torch.randn(shape, generator=Rng(3).at(name).torch(), dtype=torch.float64)


def simplex(*shape, name):
    return normal(*shape, name=name).log_softmax(-1)


def random_preferences(n, name):
    upper = torch.rand((n, n), generator=Rng(4).at(name).torch(), dtype=torch.float64).triu(1)
    return upper + (1 - upper).triu(1).mT + 0.5 * torch.eye(n, dtype=torch.float64)


# Finite games.


def test_the_equilibrium_of_the_dossier_answers_itself_and_the_game_is_even_against_oneself():
    game = circle("even")
    aim = game.equilibrium(TAU)
    assert aim.exp().tolist() == pytest.approx([0.46066, 0.21266, 0.32668], abs=6e-6)
    by_hand = game.log_reference.exp() * (game.preferences @ aim.exp() / TAU).exp()
    assert torch.allclose(by_hand / by_hand.sum(), aim.exp(), atol=1e-12)
    for policy in (aim, simplex(3, name="p")):
        pull = TAU * games.kl(policy, game.log_reference)
        assert float(policy.exp() @ games.win_rates(game.preferences, policy) - pull + pull) == pytest.approx(0.5)


def test_the_limits_of_the_equilibrium():
    game = circle("even")
    assert games.total_variation(game.equilibrium(1e4), game.log_reference) < 1e-4
    indifferent = torch.full((3, 3), 0.5, dtype=torch.float64)
    assert games.total_variation(games.equilibrium(indifferent, game.log_reference, TAU), game.log_reference) < 1e-12
    ways = trajectory("nash_md", indifferent, game.log_reference, 5, TAU, eta=3.0)
    assert torch.allclose(ways, game.log_reference.expand_as(ways))


def test_the_dice_step():
    current, uniform = (torch.tensor(p, dtype=torch.float64).log() for p in ([0.6, 0.3, 0.1], [1 / 3] * 3))
    mixed = games.mixture(current, uniform, 5 * TAU)
    assert mixed.exp().tolist() == pytest.approx([0.4727, 0.3343, 0.1930], abs=6e-5)
    step = nash_md(circle("dice").preferences, current, uniform, TAU, 5.0, 0)
    assert step.exp().tolist() == pytest.approx([0.4909, 0.3088, 0.2003], abs=6e-5)


def distance(game, *arguments, **options):
    ways = trajectory(arguments[0], game.preferences, game.log_reference, arguments[1], TAU, **options)
    return games.kl(game.equilibrium(TAU).expand_as(ways), ways)


def test_the_last_iterate_of_the_dossier():
    kl = distance(circle("even"), "nash_md", 1000)
    assert kl[[0, 1, 10, 100]].tolist() == pytest.approx([0.1918, 0.392, 0.00253, 0.000121], rel=2e-3)
    assert 0 < kl[1000] < 1.1e-6 and float(bound(TAU, 1000)[-1]) == pytest.approx(0.799, abs=1e-3)


@pytest.mark.parametrize("make", [lambda: circle("even"), lambda: circle("uneven"), lambda: style_game(Rng(1000))])
def test_the_theorem(make):
    game = make()
    kl = distance(game, "nash_md", 400)
    assert (kl[1:] <= bound(TAU, 400)).all()
    rates = torch.tensor([decaying(TAU, t) for t in range(400)]).double()
    assert (kl[1:] <= (1 - rates * TAU) * kl[:-1] + 2 * rates**2).all()
    for eta in (0.5, 5.0):
        constant = distance(game, "nash_md", 400, eta=eta)
        assert (constant[1:] <= (1 - eta * TAU) * constant[:-1] + 2 * eta**2).all()


def test_the_first_decaying_step_forgets_where_it_began():
    game = circle("even")
    ends = [
        nash_md(game.preferences, simplex(3, name=name), game.log_reference, TAU, decaying(TAU, 0), 0) for name in "ab"
    ]
    assert torch.allclose(*ends) and decaying(TAU, 0) * TAU == pytest.approx(1.0)


def test_with_a_constant_eta_it_settles_at_its_own_mixtures_answer_beside_the_equilibrium():
    game = circle("even")
    for eta, beside in ((5.0, 0.107), (0.5, 5.4e-4)):
        last = trajectory("nash_md", game.preferences, game.log_reference, 700, TAU, eta=eta)[-1]
        assert float(games.kl(game.equilibrium(TAU), last)) == pytest.approx(beside, rel=0.01)
        mixed = games.mixture(last, game.log_reference, eta * TAU)
        answer = games.best_response(game.preferences, mixed, game.log_reference, TAU)
        assert games.total_variation(answer, last) < 1e-12
    assert float(distance(game, "nash_md", 1200, eta=0.1)[-1]) < 4e-5  # the gap vanishes with eta


def test_what_it_is_compared_with():
    game = circle("even")
    assert abs(float(distance(game, "omd", 700, eta=0.5)[-1])) < 1e-12  # unbiased
    assert distance(game, "omd", 700, eta=5.0)[-300:].mean() > 0.2  # cycles
    assert float(distance(game, "fictitious_play", 700)[-1]) < 1e-5
    uneven, uniform = circle("uneven").preferences, torch.zeros(3).double().log_softmax(0)
    ways = trajectory("self_play", uneven, uniform, 1000, TAU, eta=1.0)
    found = games.exploitability(uneven, ways)[[0, 100, 500, 1000]]
    assert (found.diff() > 0.01).all() and found[-1] > 0.29  # spirals outward
    sums = [trajectory(kind, uneven, uniform, 3, TAU)[-1].logsumexp(0) for kind in STEPS]
    assert torch.allclose(torch.stack(sums), torch.zeros(4).double(), atol=1e-12)


def test_trajectories_out_of_range_are_errors():
    game = circle("even")
    for kind, tau, eta in (("sgd", 0.1, None), ("omd", 0.0, None), ("omd", 0.1, 11.0), ("omd", 0.1, 0.0)):
        with pytest.raises(TelosError, match="out of range"):
            trajectory(kind, game.preferences, game.log_reference, 2, tau, eta=eta)


# The policy gradient.


def enumerated(name):
    """Log-probs (9, 2) of the tokens of all sequences of two tokens out of three, and logits with gradient."""
    first, second = (2 * normal(*shape, name=name + str(shape)) for shape in ((3,), (3, 3)))
    for logits in (first, second):
        logits.requires_grad_()
    rows = torch.tensor(list(itertools.product(range(3), range(3))))
    one, two = first.log_softmax(-1), second.log_softmax(-1)
    return torch.stack([one[rows[:, 0]], two[rows[:, 0], rows[:, 1]]], 1), [first, second]


def expected_gradient(policy, reference, opponent, preferences, tau, logits, advantages):
    """The mean of the loss's gradient over all pairs of sequences."""
    pairs = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    own, other = pairs.T
    weights = (policy.sum(-1)[own] + opponent.sum(-1)[other]).exp().detach()
    ratios = (policy - reference)[own]
    factors = advantages(preferences[own, other], ratios, torch.ones_like(ratios, dtype=torch.bool), tau)
    total = sum(weights[i] * nash_loss(policy[own[i : i + 1]], factors[i : i + 1])[0] for i in range(81))
    return torch.autograd.grad(total, logits, retain_graph=True)


def own_ratio_only(chance, ratios, mask, tau):
    """What the dossier's trap does: each token has its own log-ratio alone."""
    return (chance[:, None] - 0.5 - tau * ratios).detach()


def test_both_token_forms_are_the_gradient_of_the_objective_and_the_own_ratio_alone_is_not():
    policy, logits = enumerated("policy")
    reference, opponent = (enumerated(name)[0].detach() for name in ("reference", "opponent"))
    preferences, tau = random_preferences(9, "sequences"), 0.7
    sums = policy.sum(-1)
    chance = sums.exp() @ preferences @ opponent.sum(-1).exp()
    objective = chance - tau * games.kl(sums, reference.sum(-1))
    exact = torch.autograd.grad(-objective, logits, retain_graph=True)
    for kl in ("causal", "sequence"):
        found = expected_gradient(
            policy, reference, opponent, preferences, tau, logits,
            lambda *parts, kl=kl: nash_advantages(*parts, kl),
        )  # fmt: skip
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, exact, strict=True)), kl
    wrong = expected_gradient(policy, reference, opponent, preferences, tau, logits, own_ratio_only)
    assert (wrong[0] - exact[0]).abs().max() > 0.05  # of the first token; the last one's agrees
    assert torch.allclose(wrong[1], exact[1], atol=1e-12)


def test_the_causal_form_is_less_noisy_than_the_sequence_form():
    policy, logits = enumerated("policy")
    reference = enumerated("reference")[0].detach()
    ratios, weights = (policy - reference).detach(), policy.sum(-1).exp().detach()
    spread = {}
    for kl in ("causal", "sequence"):
        factors = nash_advantages(torch.full((9,), 0.5).double(), ratios, torch.ones(9, 2, dtype=torch.bool), 1.0, kl)
        rows = [torch.autograd.grad(factors[i] @ policy[i], logits[1], retain_graph=True)[0] for i in range(9)]
        grads = torch.stack(rows).flatten(1)
        spread[kl] = float((weights[:, None] * grads**2).sum() - ((weights[:, None] * grads).sum(0) ** 2).sum())
    assert spread["causal"] < 0.8 * spread["sequence"]


@pytest.mark.parametrize("seed", range(3))
def test_in_self_play_the_expected_update_is_zero_at_the_equilibrium_alone(seed):
    preferences, reference = random_preferences(5, f"game{seed}"), simplex(5, name=f"reference{seed}")
    aim = games.equilibrium(preferences, reference, TAU)

    def update(log_policy):
        logits = log_policy.clone().requires_grad_()
        policy = logits.log_softmax(-1)
        own, other = torch.cartesian_prod(torch.arange(5), torch.arange(5)).T
        factors = nash_advantages(
            preferences[own, other], (policy - reference)[own, None], torch.ones(25, 1, dtype=torch.bool), TAU
        )
        weights = (policy[own] + policy[other]).exp().detach()
        (weights[:, None] * factors * -policy[own, None]).sum().backward()
        return logits.grad.abs().max()

    assert update(aim) < 1e-12 and update(reference) > 1e-2


def test_advantages_by_hand():
    ratios = torch.tensor([[0.0, 0.0, 1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 3.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0]]).bool()
    chance = torch.tensor([0.9, 0.3])
    causal = nash_advantages(chance, ratios, mask, 0.1)
    assert torch.allclose(causal, torch.tensor([[0, 0, -0.3, -0.2, 0.0, 0], [0, 0, -0.5, 0, 0, 0]]), atol=1e-6)
    flat = nash_advantages(chance, ratios, mask, 0.1, "sequence")
    assert torch.allclose(flat, torch.tensor([[0, 0, -0.3, -0.3, -0.3, 0], [0, 0, -0.5, 0, 0, 0]]), atol=1e-6)


# The language model's form.


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


def good_oracle(prompts, first, second):
    return [0.5 + 0.4 * np.sign(a - b) for a, b in zip(good(prompts, first), good(prompts, second), strict=True)]


def one_sided(prompts, first, second):
    """Not antisymmetric: it likes whatever it sees first."""
    return [0.8] * len(first)


def perturbed(seed=5, size=0.1):
    model = load_model(TINY)
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=Rng(seed).at(name).torch()))
    return model


def set_up(method, purpose=good_oracle, **given):
    given = {"model": perturbed(), "reference": TINY, "purpose": purpose, **given}
    spec = method.prepare(Spec(PROMPTS, named(given), 1, torch.device("cpu"), Rng(1000)))
    learner, source = method.learner(spec, Rng(1000)), method.source(spec)
    return learner, source, spec


def writes(model, prompts=("topic1", "topic2 word2"), n=20):
    """Completions drawn with a fixed generator."""
    ids = tokenise_prompts(model, list(prompts), 10)
    return sample(model, ids, n=n, rng=Rng(6).torch(), max_new_tokens=10)


def test_the_ends_of_the_mixture_are_the_policy_and_the_reference_token_exactly():
    policy, reference = perturbed(), load_model(TINY)
    assert not torch.equal(writes(policy).tokens, writes(reference).tokens)
    for options, expected in (
        ({"beta": 0.0}, policy), ({"opponent": "self"}, policy),
        ({"beta": 1.0}, reference), ({"opponent": "reference"}, reference),
    ):  # fmt: skip
        learner, _, _ = set_up(NashMD(max_new_tokens=10, **options))
        drawn, aim = writes(learner.behaviour().opponent), writes(expected)
        assert torch.equal(drawn.tokens, aim.tokens) and torch.equal(drawn.log_probs, aim.log_probs), options
    # The mixing itself, without the shortcut at its ends: beta is the weight of the reference.
    for beta, expected in ((1e-9, policy), (1 - 1e-9, reference)):
        learner, _, _ = set_up(NashMD(beta=beta, max_new_tokens=10))
        assert torch.equal(writes(mixture(learner)).tokens, writes(expected).tokens)


def test_one_token_responses_mix_as_the_sequence_formula():
    learner, _, _ = set_up(NashMD(beta=0.3, max_new_tokens=10))
    tokens = torch.tensor([[1, 5]])
    with torch.no_grad():
        one, two = (m.head(m.hidden(tokens))[0, -1].log_softmax(-1) for m in (learner.model, learner.reference))
        writer = learner.behaviour().opponent
        found = writer.head(writer.hidden(tokens))[0, -1].log_softmax(-1)
    assert torch.allclose(found, games.mixture(one, two, 0.3), atol=1e-5)
    assert (found - one).abs().max() > 0.05


def test_the_policy_moves_within_the_mixture_and_the_reference_does_not():
    learner, source, spec = set_up(NashMD(beta=0.3, learning_rate=1e-2, prompts_per_batch=8, max_new_tokens=6))
    before, opponent = writes(spec.given["reference"]).tokens, writes(learner.behaviour().opponent).log_probs
    for step in range(3):
        learner.update(source.next(learner.behaviour, Rng(0).at(step)), Rng(1).at(step))
    assert torch.equal(before, writes(learner.reference).tokens)
    moved = writes(learner.behaviour().opponent).log_probs
    assert opponent.shape != moved.shape or not torch.allclose(opponent, moved, atol=1e-3)


@pytest.mark.parametrize("kl", ["causal", "sequence"])
@pytest.mark.parametrize("micro", [1, 3])
def test_the_step_by_hand(kl, micro):
    method = NashMD(tau=0.3, kl=kl, prompts_per_batch=6, max_new_tokens=8, max_grad_norm=1e9)
    learner, source, spec = set_up(method)
    batch = source.next(learner.behaviour, Rng(0))
    log_probs = token_log_probs(learner.model, batch.sequences)
    with torch.no_grad():
        ratios = log_probs - token_log_probs(load_model(TINY), batch.sequences)
    loss = 0.0
    for i in range(6):
        start, end = int(batch.sequences.boundaries[i]), int(batch.sequences.lengths[i])
        for n in range(start, end):
            pull = ratios[i, n if kl == "causal" else start : end].sum()
            loss = loss - (batch.rewards[i] - 0.5 - 0.3 * pull) * log_probs[i, n] / 6
    expected = torch.autograd.grad(loss, learner.parameters)
    seen = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.parameters))
    metrics = learner.update(batch, Rng(0), micro)
    scale = max(g.abs().max() for g in expected)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    assert float(metrics["kl"]) == pytest.approx(float(ratios.sum(-1).mean()), rel=1e-4)
    assert not any(p.requires_grad for p in spec.given["reference"].network.parameters())


def test_rewards_are_the_oracles_chance_of_the_policys_text_against_the_opponents():
    seen = []

    def oracle(prompts, first, second):
        seen.append((list(prompts), list(first), list(second)))
        return good_oracle(prompts, first, second)

    learner, source, _ = set_up(NashMD(prompts_per_batch=6, max_new_tokens=8), purpose=oracle)
    batch = source.next(learner.behaviour, Rng(0))
    prompts, first, second = seen[0]
    assert seen[1] == (prompts, second, first)  # asked both ways round
    assert batch.rewards.tolist() == pytest.approx(good_oracle(prompts, first, second))
    assert len(batch) == 6 and 0 < float(batch.rewards.min()) < float(batch.rewards.max())
    sequences, tokenizer = batch.sequences, learner.model.tokenizer
    for row, text in enumerate(first):  # the policy's text stands first
        ids = sequences.tokens[row, sequences.boundaries[row] : sequences.lengths[row]]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    with torch.no_grad():
        assert torch.allclose(token_log_probs(learner.model, sequences), batch.log_probs, atol=1e-4)
    assert first != second


def test_a_one_sided_oracle_is_made_even_and_scores_become_chances():
    method = NashMD(prompts_per_batch=6, max_new_tokens=8)
    learner, source, _ = set_up(method, purpose=one_sided)
    assert torch.allclose(source.next(learner.behaviour, Rng(0)).rewards, torch.tensor(0.5))
    kept = []

    def scored(prompts, completions):
        kept.extend(completions)
        return good(prompts, completions)

    learner, source, _ = set_up(method, purpose=scored)
    batch = source.next(learner.behaviour, Rng(0))
    gaps = torch.tensor(good(None, kept)).view(6, 2).float()
    assert torch.allclose(batch.rewards, (gaps[:, 0] - gaps[:, 1]).sigmoid())


def test_averaged_weights_are_the_opponent_and_may_be_shipped():
    method = NashMD(opponent="ema", decay=0.75, prompts_per_batch=4, max_new_tokens=6, learning_rate=1e-2)
    learner, source, _ = set_up(method)
    assert torch.equal(writes(learner.behaviour().opponent).tokens, writes(learner.model).tokens)
    name = "lm_head.weight"
    ways = [learner.network.state_dict()[name].clone()]
    for step in range(3):
        learner.update(source.next(learner.behaviour, Rng(0).at(step)), Rng(1).at(step))
        ways.append(learner.network.state_dict()[name].clone())
    by_hand = ways[0]
    for way in ways[1:]:
        by_hand = 0.75 * by_hand + 0.25 * way
    assert torch.allclose(learner.average.state_dict()[name], by_hand, atol=1e-6)
    assert (by_hand - ways[-1]).abs().max() > 1e-3
    assert learner.behaviour().opponent is learner.averaged and learner.product().model is learner.model
    shipped = NashLearner(NashMD(opponent="ema", deliver="averaged"), perturbed(), load_model(TINY))
    assert shipped.product().model is shipped.averaged
    assert {k.split(".")[0] for k in shipped.state()[0]} == {"network", "average"}
    plain, _, _ = set_up(NashMD(max_new_tokens=10))
    assert not any(k.startswith("average") for k in plain.state()[0])


class Killed(BaseException):
    """As a kill: no library handles it."""


@pytest.mark.parametrize("deliver", ["last", "averaged"])
def test_nash_ema_killed_and_resumed_is_the_uninterrupted_run(deliver, tmp_path):
    method = NashMD(
        opponent="ema", decay=0.8, deliver=deliver, prompts_per_batch=4, max_new_tokens=5, learning_rate=1e-2
    )
    arguments = {"model": TINY, "purpose": good_oracle, "steps": 8, "seed": 1000, "device": "cpu"}

    def stop(step, product):
        if step == 5:
            raise Killed
        return {}

    whole = method.fit(PROMPTS, **arguments)
    with pytest.raises(Killed):
        method.fit(PROMPTS, out=tmp_path / "run", checkpoint_every=2, evaluate=stop, evaluate_every=1, **arguments)
    again = method.fit(PROMPTS, out=tmp_path / "run", checkpoint_every=2, resume=True, **arguments)
    a, b = whole.state_dict(), again.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_with_adapters_the_average_is_of_the_adapters(tmp_path):
    pytest.importorskip("peft")
    method = NashMD(opponent="ema", decay=0.5, deliver="averaged", prompts_per_batch=4, max_new_tokens=4)
    policy = method.fit(PROMPTS, model=TINY, purpose=good_oracle, lora=2, steps=2, device="cpu")
    assert policy.model.adapted
    policy.save(tmp_path / "adapters")


@pytest.mark.parametrize(
    "options", [{"beta": 0.125}, {"opponent": "ema", "decay": 0.9}, {"beta": 1.0, "kl": "sequence"}], ids=str
)
def test_it_learns(options):
    method = NashMD(tau=0.01, learning_rate=2e-3, prompts_per_batch=32, max_new_tokens=8, **options)
    purpose = good if "kl" in options else good_oracle
    policy = method.fit(PROMPTS, model=TINY, purpose=purpose, steps=15, seed=1000, device="cpu")

    def reached(product):
        drawn = product.generate(PROMPTS.prompts, n=8, rng=Rng(5).torch(), max_new_tokens=8)
        with torch.no_grad():
            kl = drawn.log_probs.sum() - sequence_log_probs(load_model(TINY), sequences(drawn)).sum()
        return np.mean(good(drawn.prompts, drawn.texts)), float(kl) / len(drawn.texts)

    start, end = reached(LanguagePolicy(load_model(TINY))), reached(policy)
    assert end[0] > start[0] + 0.5 and abs(start[1]) < 1e-3 < end[1]


def sequences(drawn):
    return Sequences(drawn.tokens, drawn.lengths, drawn.boundaries)


def test_options_out_of_range_are_errors():
    for bad in ({"beta": 1.1}, {"beta": -0.1}, {"decay": 1.0}, {"tau": -1.0}, {"prompts_per_batch": 0}):
        with pytest.raises(TelosError, match="out of range"):
            NashMD(**bad)
    for bad in ({"opponent": "twin"}, {"kl": "own"}, {"deliver": "averaged"}, {"deliver": "best", "opponent": "ema"}):
        with pytest.raises(TelosError, match="no such"):
            NashMD(**bad)
    with pytest.raises(TelosError, match="'purpose' is missing"):
        NashMD().fit(PROMPTS, model=TINY, steps=1, device="cpu")
    with pytest.raises(TelosError, match="another vocabulary"):
        NashMD().fit(PROMPTS, model=TINY, reference=STORIES, purpose=good, steps=1, device="cpu")
