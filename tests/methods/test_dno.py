"""DNO: the dossier's checks 1 to 5, the exact iteration, its step by hand, pairs and regimes, a teacher."""

import numpy as np
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
from telos.methods.preferences.dno import (
    DNO,
    PAIRS,
    DNOLearner,
    dno_ratios,
    hard_loss,
    repetitive,
    soft_loss,
    teachers_answers,
)
from telos.methods.preferences.dno_variants import running_average, soft_iteration, soft_step
from telos.ops import games, preferences
from telos.worlds.games import average, circle, duels, fitted, observed_win_rates, style_game

PROMPTS = Prompts([f"topic{i % 8}" for i in range(24)])
TAUGHT = Prompts(PROMPTS.prompts, columns={"answer": [" good1 good2 good3 good4"] * 24})


def normal(*shape, name="x"):
    return torch.randn(shape, generator=Rng(3).at(name).torch(), dtype=torch.float64)


def good(prompts, completions):
    """The number of good words among the first eight."""
    return [sum(word.startswith("good") for word in text.split()[:8]) for text in completions]


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_minimiser_of_the_soft_loss_is_the_exact_step_for_any_pairs(eta):
    game, current = circle("uneven"), normal(3, name="c").log_softmax(0)
    won = games.win_rates(game.preferences, current)
    exact = soft_step(game.preferences, current, eta)
    pairs = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0]])
    weights = torch.tensor([1.0, 5.0, 0.2, 2.0]).double()
    logits = current.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        rows = (row[pairs] for row in (logits.log_softmax(-1), current, current))
        value = (weights * soft_loss(dno_ratios(*rows, eta), won[pairs], eta)).sum()
        value.backward()
        return value

    for _ in range(4):
        optimizer.step(closure)
    assert games.total_variation(logits.detach().log_softmax(-1), exact) < 1e-7 < games.total_variation(current, exact)


def test_with_equal_win_rates_nothing_moves():
    policy = normal(5, 2).requires_grad_()
    losses = soft_loss(dno_ratios(policy, policy.detach(), policy.detach(), 0.7), torch.full((5, 2), 0.3).double(), 0.7)
    losses.sum().backward()
    assert torch.allclose(losses, torch.full((5,), 0.693147).double(), atol=1e-6) and policy.grad.abs().max() < 1e-12


def test_soft_labels_become_hard_ones_and_hard_ones_at_the_reference_are_dpo():
    policy, current, reference = (normal(6, 2, name=n) for n in "abc")
    ratios = dno_ratios(policy, current, reference, 0.4)
    certain = torch.tensor([[50.0, 0.0]]).double().expand(6, 2)
    assert torch.allclose(soft_loss(ratios, certain, 0.4), hard_loss(ratios, 0.4), atol=1e-12)
    dpo = preferences.sigmoid(preferences.margin(preferences.anchored(policy, (1.0, reference))), 0.4)
    assert torch.allclose(hard_loss(dno_ratios(policy, reference, reference, 0.4), 0.4), dpo)
    assert torch.allclose(soft_loss(ratios.flip(1), certain.flip(1), 0.4), soft_loss(ratios, certain, 0.4))


def test_the_regularised_anchor_is_the_geometric_mixture():
    policy, current, reference = (normal(6, 2, name=n) for n in "abc")
    assert torch.allclose(dno_ratios(policy, current, reference, 0.4, 0.1), policy - 0.75 * current - 0.25 * reference)
    assert torch.allclose(dno_ratios(policy, current, reference, 0.4, 0.4), policy - reference)
    assert torch.equal(dno_ratios(policy, current, reference, 0.4), dno_ratios(policy, current, policy, 0.4))
    parts = [normal(4, 2, name=n).requires_grad_() for n in "abc"]
    hard_loss(dno_ratios(*parts, 0.5, 0.2), 0.5).sum().backward()
    assert parts[0].grad is not None and parts[1].grad is parts[2].grad is None


@pytest.mark.parametrize("seed", range(5))
def test_the_exact_step_beats_the_policy_by_at_least_its_distance(seed):
    game = style_game(Rng(seed).at("game"))
    current = normal(30, name=str(seed)).log_softmax(0)
    for eta in (0.1, 0.5, 2.0):
        new = soft_step(game.preferences, current, eta)
        wins = float(new.exp() @ game.preferences @ current.exp())
        assert wins >= 0.5 + eta * float(games.kl(new, current))
    won = games.win_rates(game.preferences, current)
    assert torch.allclose(games.mirror_step(7 * won, current, 1 / (7 * 0.5)), soft_step(game.preferences, current, 0.5))


def test_averages_settle_on_a_circle_and_the_last_policy_does_not():
    game = circle("uneven")
    ways = soft_iteration(game.preferences, torch.zeros(3).double().log_softmax(0), 1.0, 2000)
    exploitability = games.exploitability(game.preferences, running_average(ways))
    printed = [0.033, 0.049, 0.0115, 0.0050, 0.0034]
    for count, number in zip((1, 10, 100, 1000, 2000), printed, strict=True):
        assert float(exploitability[count - 1]) == pytest.approx(number, abs=6e-4)
    assert float(games.exploitability(game.preferences, ways[-1])) == pytest.approx(0.34, abs=0.005)
    assert torch.allclose(running_average(ways[:50])[-1], average(ways[:50]))


def test_the_sampled_soft_loss_follows_the_exact_iteration():
    game, policy = style_game(Rng(1000).at("game")), style_game(Rng(1000).at("game")).log_reference
    exact = soft_step(game.preferences, policy, 0.5)
    pairs = duels(game, policy, 20_000, Rng(1).torch())
    won = observed_win_rates(pairs, 30)
    error = won - games.win_rates(game.preferences, policy)
    assert float(policy.exp() @ error.abs()) < 0.015 and error.abs().max() < 0.1

    def loss(new):
        return soft_loss(dno_ratios(pairs.of(new), pairs.of(policy), pairs.of(policy), 0.5), pairs.of(won), 0.5).mean()

    found = fitted(policy, loss, steps=300)
    assert games.total_variation(found, exact) < 0.02 < games.total_variation(policy, exact)


def test_the_rule_of_pairs():
    scores = torch.tensor([[5.0, 5.0, 4.0, 2.0, 6.0, 6.0]])  # students, then the teacher
    method = DNO(teacher="answer")
    full = PAIRS["full"](scores, method)
    by_teacher, by_students = full[full[:, 1] == 5], full[full[:, 1] < 5]
    assert (len(full), len(by_teacher), len(by_students), int((full[:, 2] == 5).sum())) == (10, 2, 8, 0)
    assert PAIRS["restrictive"](scores, method).tolist() == by_teacher.tolist() == [[0, 5, 2], [0, 5, 3]]
    assert PAIRS["spin"](scores, method).tolist() == [[0, 5, i] for i in range(5)]
    soft = DNO(loss="soft", pairs="every")
    assert len(PAIRS["every"](scores, soft)) == 15 and len(PAIRS["every"](scores.expand(3, 6), soft)) == 45
    ordered = PAIRS["every"](scores, method)  # without the two pairs of equal scores
    assert len(ordered) == 13 and (scores[0][ordered[:, 1]] > scores[0][ordered[:, 2]]).all()
    assert len(PAIRS["full"](torch.full((1, 6), 6.0), method)) == 0
    # Without a teacher the last one is a student like the others: six pairs more that lead by one point.
    assert len(PAIRS["full"](scores, DNO())) == 12


def test_a_repeated_run_bars_a_completion_from_being_preferred():
    tokens = torch.tensor([[[1, 9, 5, 6, 7, 5, 6, 7], [1, 9, 5, 6, 7, 8, 5, 6], [1, 5, 6, 7, 5, 6, 7, 2]]])
    sequences = Sequences(tokens, torch.tensor([[8, 8, 8]]), torch.tensor([[2, 2, 3]]))
    assert repetitive(sequences, 3).tolist() == [[True, False, False]]
    # What the third repeats stands in its prompt.
    assert repetitive(sequences, 2).tolist() == [[True, True, False]]
    scores = torch.tensor([[6.0, 5.0, 3.0]])
    judged = Judged(sequences, scores, scores, torch.full((1, 3, 3), 0.5), scores)
    found = DNO(repeated_tokens=3).chosen(judged, Rng(0).torch()).tolist()
    assert sorted(found) == [[0, 1, 0], [0, 1, 2]]
    assert sorted(DNO().chosen(judged, Rng(0).torch()).tolist()) == [[0, 0, 1], [0, 0, 2], [0, 1, 2]]


# The language model's form.


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("loss", ["soft", "hard"])
def test_the_step_by_hand(loss, micro):
    model = load_model(TINY)
    tokens = torch.randint(3, 40, (4, 2, 9), generator=Rng(2).torch())
    sequences = Sequences(tokens, torch.tensor([[5, 9], [9, 9], [4, 6], [7, 3]]), torch.full((4, 2), 2))
    with torch.no_grad():
        exact = sequence_log_probs(model, sequences)
    won = torch.rand((4, 2), generator=Rng(4).torch())
    batch = Pairs(
        sequences, exact + normal(4, 2, name="c").float(), exact + normal(4, 2, name="r").float(), torch.ones(4),
        torch.zeros(4, 2), won,
    )  # fmt: skip
    learner = DNOLearner(DNO(loss=loss, eta=0.5, tau=0.2, max_grad_norm=1e9), model)
    log_probs = sequence_log_probs(model, sequences)
    total = 0.0
    for i in range(4):
        u = log_probs[i] - 0.4 * batch.reference[i] - 0.6 * batch.current[i]
        d, label = 0.5 * (u[0] - u[1]), (won[i, 0] - won[i, 1]).sigmoid() if loss == "soft" else 1.0
        total = total - (label * d.sigmoid().log() + (1 - label) * (-d).sigmoid().log()) / 4
    expected = torch.autograd.grad(total, learner.parameters)
    seen = []
    learner.optimizer.register_step_pre_hook(lambda *_: seen.extend(p.grad.clone() for p in learner.parameters))
    metrics = learner.update(batch, Rng(0), micro)
    scale = max(g.abs().max() for g in expected)
    assert all(torch.allclose(a, b, atol=1e-4 * scale) for a, b in zip(seen, expected, strict=True))
    assert float(metrics["loss"]) == pytest.approx(float(total.detach()), rel=1e-4)


def walk(method, data, steps=8):
    """The stages of a fit: (name, steps, first, batches of pairs), and the spec."""
    spec = method.prepare(Spec(data, {"model": TINY, "purpose": good}, steps, torch.device("cpu"), Rng(1000)))
    stages, seen = method.stages(spec, Rng(1000)), []
    stage = next(stages)
    while True:
        batches = []
        for step in range(stage.steps):
            batch = stage.source.next(stage.learner.behaviour, Rng(1).at(stage.name, step))
            batches.append((batch, float(stage.learner.update(batch, Rng(2).at(step)).get("loss", 0.0))))
        seen.append((stage.name, stage.steps, stage.first, batches))
        try:
            stage = stages.send(stage.learner.product())
        except StopIteration:
            return seen, spec


SMALL = {"least_score": 1.0, "learning_rate": 1e-3, "batch_size": 24, "max_new_tokens": 8, "rounds": 2}


def test_rounds_are_anchored_at_the_policy_of_their_beginning():
    seen, _ = walk(DNO(**SMALL, student_margin=0.5), PROMPTS)
    assert [row[:3] for row in seen] == [
        ("round1-judge", 1, 0), ("round1-update", 4, 0), ("round2-judge", 1, 0), ("round2-update", 4, 4),
    ]  # fmt: skip
    for name, _, _, batches in seen:
        if name.endswith("update"):
            # Replayed pairs of the first round are among the second's: they are anchored anew, or this is not log 2.
            assert batches[0][1] == pytest.approx(0.693147, abs=1e-4) and batches[3][1] < 0.69


def test_offline_has_one_round_and_lookahead_goes_back_to_the_beginning():
    seen, _ = walk(DNO(**SMALL, student_margin=0.5, regime="offline"), PROMPTS)
    assert [row[:2] for row in seen] == [("round1-judge", 1), ("round1-update", 8)]
    seen, _ = walk(DNO(**SMALL, student_margin=0.5, regime="lookahead"), PROMPTS)
    assert [row[:3] for row in seen][1::2] == [("round1-update", 2, 0), ("round2-update", 2, 2)]
    name, steps, first, batches = seen[-1]
    assert (name, steps, first) == ("lookahead", 4, 4)
    assert all(torch.allclose(batch.current, batch.reference, atol=1e-4) for batch, _ in batches)
    assert batches[0][1] == pytest.approx(0.693147, abs=1e-4)


def test_a_teacher_from_a_column_and_from_a_model():
    method = DNO(teacher="answer", pairs="spin", max_new_tokens=4)
    seen, spec = walk(method, TAUGHT, steps=3)
    model = spec.given["model"]
    assert all(len(ids) == 4 for ids in spec.given["answers"])  # the end token is cut
    batch, _ = seen[1][3][0]
    first = batch.sequences[:, 0]
    rows = zip(first.tokens, first.boundaries, first.lengths, strict=True)
    assert {model.tokenizer.decode(row[a:b].tolist()) for row, a, b in rows} == {"good1 good2 good3 good4"}
    assert (batch.chance == 0.5).all()  # nobody judged
    given = {"model": model, "purpose": good}
    drawn = teachers_answers(DNO(teacher=TINY, max_new_tokens=6), Spec(PROMPTS, given, 1, torch.device("cpu"), Rng(0)))
    assert drawn is not None and len(drawn) == 24 and all(1 <= len(ids) <= 6 for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) > 10
    with pytest.raises(TelosError, match="neither a column"):
        teachers_answers(DNO(teacher="no_such"), Spec(TAUGHT, given, 1, torch.device("cpu"), Rng(0)))


@pytest.mark.parametrize(
    "options",
    [
        {"student_margin": 0.5},
        {"loss": "soft", "pairs": "every", "eta": 0.05},
        {"teacher": "answer", "pairs": "restrictive"},
        {"tau": 0.05, "student_margin": 0.5},
    ],
    ids=["prct", "soft", "restrictive", "regularised"],
)
def test_it_learns(options):
    method = DNO(**{**SMALL, "prompts_per_round": 48, **options})
    policy = method.fit(TAUGHT, model=TINY, purpose=good, steps=16, seed=1000, device="cpu")

    def reached(policy):
        drawn = policy.generate(PROMPTS.prompts, n=8, rng=Rng(5).torch(), max_new_tokens=8)
        return np.mean(good(drawn.prompts, drawn.texts))

    assert reached(policy) > reached(LanguagePolicy(load_model(TINY))) + 0.5


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"eta": 0.0}, "out of range"),
        ({"eta": 0.1, "tau": 0.2}, "out of range"),
        ({"student_margin": 0.0}, "out of range"),
        ({"loss": "none"}, "no such loss"),
        ({"pairs": "all"}, "no such pairs"),
        ({"regime": "once"}, "no such regime"),
        ({"pairs": "spin"}, "needs a teacher"),
        ({"pairs": "spin", "teacher": "answer", "loss": "soft"}, "no win rates"),
    ],
)
def test_options_out_of_range_are_errors(options, word):
    with pytest.raises(TelosError, match=word):
        DNO(**options)
