"""INPO: the dossier's checks 1 to 5, the exact recursion, its step by hand, the table of pairs, and that it learns."""

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.rounds import Judged, Pairs
from telos.lm.tokens import Sequences
from telos.methods.preferences.inpo import INPO, PAIRS, INPOLearner, inpo_loss, inpo_ratios
from telos.methods.preferences.inpo_variants import omd_step, plan_exactly
from telos.ops import games, preferences
from telos.worlds.games import circle, duels, fitted, style_game

PROMPTS = Prompts([f"topic{i % 8}" for i in range(32)])


def normal(*shape, name="x"):
    return torch.randn(shape, generator=Rng(3).at(name).torch(), dtype=torch.float64)


def simplex(n, name):
    return normal(n, name=name).log_softmax(-1)


def test_the_margin_is_antisymmetric_and_ignores_constants_of_a_prompt():
    policy, reference, current = (normal(6, 2, name=n) for n in "abc")
    h = preferences.margin(inpo_ratios(policy, reference, current, 0.7, 0.2))
    swapped = preferences.margin(inpo_ratios(policy.flip(1), reference.flip(1), current.flip(1), 0.7, 0.2))
    assert torch.allclose(swapped, -h)
    shift = normal(6, 1, name="d")
    for shifted in ((policy + shift, reference, current), (policy, reference + shift, current)):
        assert torch.allclose(preferences.margin(inpo_ratios(*shifted, 0.7, 0.2)), h, atol=1e-12)
    assert torch.allclose(preferences.margin(inpo_ratios(policy, reference, current + shift, 0.7, 0.2)), h, atol=1e-12)
    by_hand = policy[0] - 0.2 / 0.7 * reference[0] - 0.5 / 0.7 * current[0]
    assert h[0].item() == pytest.approx((by_hand[0] - by_hand[1]).item())


@pytest.mark.parametrize("eta", [0.005, 0.3, 2.0])
def test_the_loss_where_all_three_policies_are_one(eta):
    x = normal(5, 2)
    assert torch.allclose(
        inpo_loss(inpo_ratios(x, x, x, eta, eta / 3), eta), torch.full((5,), 1 / (4 * eta**2)).double()
    )


def test_tau_of_eta_is_ipo_and_tau_of_zero_drops_the_reference():
    policy, reference, current = (normal(6, 2, name=n) for n in "abc")
    ipo = preferences.squared(preferences.margin(policy - reference), 0.4)
    assert torch.allclose(inpo_loss(inpo_ratios(policy, reference, current, 0.4, 0.4), 0.4), ipo)
    one, other = (inpo_ratios(policy, r, current, 0.4, 0.0) for r in (reference, normal(6, 2, name="e")))
    assert torch.equal(one, other) and torch.allclose(one, policy - current)


def test_gradients_reach_the_policy_only():
    parts = [normal(4, 2, name=n).requires_grad_() for n in "abc"]
    inpo_loss(inpo_ratios(*parts, 0.5, 0.2), 0.5).sum().backward()
    assert parts[0].grad is not None and parts[0].grad.abs().max() > 0 and parts[1].grad is parts[2].grad is None


def population_minimiser(chances, current, reference, eta, tau):
    """The minimum of the expected loss over independent pairs of pi_t with drawn labels, by Newton's method (LBFGS)."""
    logits = current.clone().requires_grad_()
    n = len(current)
    pairs = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    weights = current.exp()[pairs].prod(-1) * chances[pairs[:, 0], pairs[:, 1]] * 2
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        rows = (row[pairs] for row in (logits.log_softmax(-1), reference, current))
        value = (weights * inpo_loss(inpo_ratios(*rows, eta, tau), eta)).sum()
        value.backward()
        return value

    for _ in range(4):
        optimizer.step(closure)
    return logits.detach().log_softmax(-1)


@pytest.mark.parametrize(("eta", "tau"), [(0.5, 0.1), (1.0, 0.0), (0.3, 0.3)])
def test_the_population_minimiser_is_the_exact_step(eta, tau):
    game = circle("uneven")
    current = simplex(3, "current")
    found = population_minimiser(game.preferences, current, game.log_reference, eta, tau)
    exact = omd_step(game.preferences, current, game.log_reference, eta, tau)
    assert games.total_variation(found, exact) < 1e-7 < games.total_variation(current, exact)


def test_without_preferences_the_minimiser_is_the_geometric_mixture_and_rounds_end_at_the_reference():
    even, current, reference = torch.full((4, 4), 0.5).double(), simplex(4, "c"), simplex(4, "r")
    mixed = (0.25 * reference + 0.75 * current).log_softmax(-1)
    assert torch.allclose(population_minimiser(even, current, reference, 0.4, 0.1), mixed, atol=1e-6)
    policy = current
    for _ in range(100):
        policy = omd_step(even, policy, reference, 0.4, 0.1)
    assert games.total_variation(policy, reference) < 1e-10


@pytest.mark.parametrize("eta", [0.11, 0.5, 3.0])
def test_the_equilibrium_is_a_fixed_point_for_every_eta(eta):
    for game in (circle("uneven"), style_game(Rng(1000).at("game"))):
        aim = game.equilibrium(0.1)
        assert games.total_variation(omd_step(game.preferences, aim, game.log_reference, eta, 0.1), aim) < 1e-11


def test_the_recursion_of_the_dossier():
    game = circle("uneven")
    printed = torch.tensor([0.45348, 0.14884, 0.39767]).double().log()
    aim = game.equilibrium(0.1)
    assert games.total_variation(aim, printed) < 1e-5

    def run(**options):
        return plan_exactly(INPO(**options), game.preferences, game.log_reference, 3000)

    for eta in (0.2, 0.5, 1.0):
        assert games.total_variation(run(eta=eta, tau=0.1)[-1], aim) < 1e-14
    assert float(games.total_variation(run(eta=0.5, tau=0.1)[99], aim)) == pytest.approx(5e-8, rel=0.2)
    assert float(games.exploitability(game.preferences, run(eta=0.5, tau=0.0)[-1])) == pytest.approx(0.2, abs=1e-6)
    last = run(eta=0.12, tau=0.1)[-300:]
    assert games.total_variation(last, aim.expand_as(last)).min() > 0.1


def test_the_growing_schedule_keeps_the_bound_of_the_last_iterate():
    game = circle("uneven")
    method = INPO(tau=0.1, schedule="growing")
    assert [method.eta_at(t) for t in (1, 2, 8)] == pytest.approx([0.15, 0.2, 0.5])
    ways = plan_exactly(method, game.preferences, game.log_reference, 1000)
    farthest = (ways - game.log_reference).abs().max()
    bound = 32 * max(float(farthest) * 0.1, 1.0) ** 2 / (0.1**2 * (torch.arange(1000) + 2.0))
    kl = games.kl(game.equilibrium(0.1).expand_as(ways), ways)
    assert (kl <= bound).all() and kl[-1] < 1e-5


def test_the_sampled_game_ends_near_its_equilibrium_in_a_few_rounds():
    game = style_game(Rng(1000).at("game"))
    aim, policy = game.equilibrium(0.1), game.log_reference
    start = game.distances(policy, aim)["tv"]
    for number in range(10):
        d, current = duels(game, policy, 1000, Rng(1000).at("pairs", number).torch()), policy

        def loss(p, d=d, current=current):
            return inpo_loss(inpo_ratios(d.of(p), d.of(game.log_reference), d.of(current), 1.0, 0.1), 1.0).mean()

        policy = fitted(policy, loss, steps=60)
    assert game.distances(policy, aim)["tv"] < 0.2 < start


# The language model's form.


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


def longer(prompts, first, second):
    """An oracle: the text with more words is preferred with 0.9."""
    return [
        0.5 + 0.4 * ((len(a.split()) > len(b.split())) - (len(a.split()) < len(b.split())))
        for a, b in zip(first, second)
    ]


@pytest.mark.parametrize("micro", [1, 3])
def test_the_step_by_hand(micro):
    model = load_model(TINY)
    tokens = torch.randint(3, 40, (4, 2, 9), generator=Rng(2).torch())
    lengths = torch.tensor([[5, 9], [9, 9], [4, 6], [7, 3]])
    sequences = Sequences(tokens, lengths, torch.full((4, 2), 2))
    with torch.no_grad():
        exact = sequence_log_probs(model, sequences)
    batch = Pairs(
        sequences, exact + normal(4, 2, name="c").float(), exact + normal(4, 2, name="r").float(), torch.ones(4),
        torch.zeros(4, 2), torch.zeros(4, 2),
    )  # fmt: skip
    learner = INPOLearner(INPO(eta=0.5, tau=0.2, max_grad_norm=1e9), model, 0.5)
    log_probs = sequence_log_probs(model, sequences)
    loss = 0.0
    for i in range(4):
        u = log_probs[i] - 0.4 * batch.reference[i] - 0.6 * batch.current[i]
        loss = loss + (u[0] - u[1] - 1.0) ** 2 / 4
    expected = torch.autograd.grad(loss, learner.parameters)
    seen = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.parameters))
    metrics = learner.update(batch, Rng(0), micro)
    scale = max(g.abs().max() for g in expected)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
    assert float(metrics["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_the_table_of_pairs():
    scores = torch.tensor([[0.0, 3.0, 1.0, -2.0]])
    prefers = (scores[:, :, None] - scores[:, None, :]).sigmoid()
    blank = Sequences(
        torch.zeros(1, 4, 3, dtype=torch.int64), torch.full((1, 4), 3), torch.ones(1, 4, dtype=torch.int64)
    )
    judged = Judged(blank, scores, scores, prefers, scores)
    found = {name: build(judged, Rng(0).torch()).tolist() for name, build in PAIRS.items()}
    assert found["best_worst"] == found["playoff"] == [[0, 1, 3]]
    assert [sorted(row[1:]) for row in found["iid"]] == [[0, 1], [2, 3]]
    first = [PAIRS["iid"](judged, Rng(seed).torch())[0, 1].item() == 0 for seed in range(2000)]
    assert sum(first) / 2000 == pytest.approx(torch.tensor(-3.0).sigmoid().item(), abs=0.012)


def test_rounds_grow_the_step_and_start_from_the_policy_before():
    method = INPO(tau=0.1, schedule="growing", rounds=2, samples_per_prompt=2, max_new_tokens=6, pairs="iid")
    spec = Spec(PROMPTS, {"model": TINY, "purpose": good}, 4, torch.device("cpu"), Rng(1000))
    spec = method.prepare(spec)
    stages = method.stages(spec, Rng(1000))
    stage, etas, names = next(stages), [], []
    while True:
        for step in range(stage.steps):
            batch = stage.source.next(stage.learner.behaviour, Rng(1).at(stage.name, step))
            if isinstance(batch, Pairs):
                with torch.no_grad():
                    now = sequence_log_probs(spec.given["model"], batch.sequences)
                # The anchor is the policy of the round's beginning; at first that is the policy itself.
                assert torch.allclose(now, batch.current, atol=1e-4) == (step == 0)
                assert torch.allclose(batch.current, batch.reference, atol=1e-4) == (stage.name == "round1-update")
            stage.learner.update(batch, Rng(2).at(step))
        names.append(stage.name)
        if isinstance(stage.learner, INPOLearner):
            etas.append(stage.learner.eta)
        try:
            stage = stages.send(stage.learner.product())
        except StopIteration:
            break
    assert names == ["round1-judge", "round1-update", "round2-judge", "round2-update"]
    assert etas == pytest.approx([0.15, 0.2])


@pytest.mark.parametrize("pairs", ["best_worst", "iid"])
def test_it_learns_from_scores(pairs):
    method = INPO(
        eta=0.2, tau=0.05, pairs=pairs, rounds=2, samples_per_prompt=8, prompts_per_round=48, learning_rate=1e-3,
        batch_size=24, max_new_tokens=8,
    )  # fmt: skip
    fitted_policy = method.fit(PROMPTS, model=TINY, purpose=good, steps=16, seed=1000, device="cpu")

    def reached(policy):
        drawn = policy.generate(PROMPTS.prompts, n=8, rng=Rng(5).torch(), max_new_tokens=8)
        return sum(good(drawn.prompts, drawn.texts)) / len(drawn.texts)

    assert reached(fitted_policy) > reached(LanguagePolicy(load_model(TINY))) + 0.5


def test_it_learns_from_a_function_that_compares():
    method = INPO(
        eta=0.2, tau=0.05, rounds=2, samples_per_prompt=4, prompts_per_round=48, learning_rate=1e-3, batch_size=24,
        max_new_tokens=20,
    )  # fmt: skip
    policy = method.fit(PROMPTS, model=TINY, purpose=longer, steps=16, seed=1000, device="cpu")

    def words(policy):
        drawn = policy.generate(PROMPTS.prompts, n=8, rng=Rng(5).torch(), max_new_tokens=20)
        return sum(len(text.split()) for text in drawn.texts) / len(drawn.texts)

    assert words(policy) > words(LanguagePolicy(load_model(TINY))) + 1


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"eta": 0.0}, "out of range"),
        ({"eta": 0.1, "tau": 0.2}, "out of range"),
        ({"tau": 0.0, "schedule": "growing"}, "out of range"),
        ({"schedule": "none"}, "no such"),
        ({"pairs": "all"}, "no such"),
        ({"samples_per_prompt": 6}, "power of two"),
    ],
)
def test_options_out_of_range_are_errors(options, word):
    with pytest.raises(TelosError, match=word):
        INPO(**options)
