"""Rounds: which prompts, what is judged and kept, anchors, replay, and what a kill in a judging stage leaves."""

import itertools

import numpy as np
import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.rounds import (
    Judgements,
    JudgeSource,
    PairSet,
    Plan,
    SampleJudge,
    pooled,
    round_prompts,
    rounds,
    with_answers,
)
from telos.lm.setup import policy_and_reference
from telos.lm.tokens import tokenise_prompts
from telos.ops.pairs import every

PROMPTS = [f"topic{i % 8}" + " word2" * (i % 3) for i in range(10)]


def good(prompts, completions):
    return [float(text.count("good") - text.count("bad")) for text in completions]


def longer(prompts, first, second):
    return [0.5 + 0.1 * np.sign(len(a) - len(b)) for a, b in zip(first, second, strict=True)]


def source(judge=good, reference=None, samples=3, batch=4, answers=None, **columns):
    model = reference or load_model(TINY).frozen()
    prompts = tokenise_prompts(model, PROMPTS, 9)
    return JudgeSource(
        SampleJudge(prompts, judge, model, samples, 40, columns, {"max_new_tokens": 9}, Rng(1), answers), batch
    )


def perturbed():
    model = load_model(TINY)
    with torch.no_grad():
        for parameter in model.trainable():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=Rng(5).torch()))
    return model


def test_prompts_of_rounds_go_through_the_data_and_begin_again_in_another_order():
    rng = Rng(3)
    drawn = [round_prompts(10, 4, number, rng) for number in range(5)]
    flat = list(itertools.chain(*drawn))
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10)) and flat[:10] != flat[10:]
    assert round_prompts(10, 4, 1, rng) == drawn[1] != round_prompts(10, 4, 1, Rng(4))
    assert sorted(round_prompts(10, 25, 0, rng)[:20]) == sorted([*range(10), *range(10)])


def test_what_is_judged_of_a_scorer():
    policy, made = LanguagePolicy(perturbed()), source()
    batches = [made.next(lambda: policy, Rng(0).at(step)) for step in range(3)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    batch = batches[0]
    flat = batch.sequences.flat()
    with torch.no_grad():
        assert torch.allclose(batch.current.flatten(), sequence_log_probs(policy.model, flat), atol=1e-5)
        assert torch.allclose(batch.reference.flatten(), sequence_log_probs(load_model(TINY), flat), atol=1e-5)
    texts = policy.model.tokenizer.batch_decode(
        [row[a:b].tolist() for row, a, b in zip(flat.tokens, flat.boundaries, flat.lengths, strict=True)],
        skip_special_tokens=True,
    )
    assert batch.scores.flatten().tolist() == good(None, texts) and batch.scores.unique().numel() > 1
    gap = batch.scores[:, 0] - batch.scores[:, 2]
    assert torch.allclose(batch.prefers[:, 0, 2], gap.sigmoid())
    assert torch.allclose(batch.win_rates[:, 0], (batch.prefers[:, 0, 1] + batch.prefers[:, 0, 2]) / 2)
    heads = batch.sequences.tokens[:, :, 1]
    assert (heads == heads[:, :1]).all()


def test_what_is_judged_by_an_oracle_and_by_nobody():
    policy = LanguagePolicy(load_model(TINY))
    batch = source(longer).next(lambda: policy, Rng(0))
    assert torch.allclose(batch.prefers + batch.prefers.mT, torch.ones(4, 3, 3))
    off = ~torch.eye(3, dtype=torch.bool)
    assert {4.0, 6.0} <= set(batch.prefers[:, off].flatten().mul(10).round().tolist()) <= {4.0, 5.0, 6.0}
    assert torch.allclose(batch.scores, batch.win_rates)
    nothing = source(None).next(lambda: policy, Rng(0))
    assert (nothing.prefers == 0.5).all() and (nothing.scores == 0).all()


def test_a_purpose_is_given_its_column():
    def named(prompts, completions, number):
        return [float(n) for n in number]

    batch = source(named, number=list(range(10))).next(lambda: LanguagePolicy(load_model(TINY)), Rng(0))
    assert batch.scores.tolist() == [[float(i)] * 3 for i in range(4)]


def test_a_teachers_answer_is_the_last_of_its_group():
    model = load_model(TINY)
    ids = [np.array([*model.tokenizer(text)["input_ids"][1:], model.eos_id]) for text in ("good1 good2", "bad1")]
    own = LanguagePolicy(model).generate(["topic1", "topic2 word2"], n=2, rng=Rng(0).torch(), max_new_tokens=5)
    both = with_answers(own, ids, model)
    assert both.texts == [*own.texts[:2], "good1 good2", *own.texts[2:], "bad1"]
    assert both.prompts == ["topic1"] * 3 + ["topic2 word2"] * 3
    assert both.lengths[2] == own.boundaries[0] + 3 and both.lengths[5] == own.boundaries[2] + 2
    for row in (2, 5):
        assert both.tokens[row, both.boundaries[row] : both.lengths[row]].tolist() == ids[row // 3].tolist()
        assert (
            both.tokens[row, : both.boundaries[row]].tolist() == both.tokens[row - 1, : both.boundaries[row]].tolist()
        )
    assert bool(both.finished[2]) and torch.equal(both.tokens[0][: own.tokens.shape[1]], own.tokens[0])
    batch = source(answers=[ids[0]] * 10).next(lambda: LanguagePolicy(model), Rng(0))
    assert batch.scores.shape == (4, 4) and batch.scores[:, 3].tolist() == [2.0] * 4


def judged(count=6, n=3):
    policy = LanguagePolicy(perturbed())
    return source(samples=n, batch=count).next(lambda: policy, Rng(1))


def test_judgements_survive_being_saved(tmp_path):
    batch = judged()
    kept = Judgements(6, 3, 14)
    for start in (0, 4):
        kept.write_rows(start, batch[start : start + 4])
    loaded = telos.load_product(kept.save(tmp_path / "kept"))
    assert isinstance(loaded, Judgements)
    for name in ("current", "reference", "prefers", "scores"):
        assert torch.equal(getattr(loaded.judged, name), getattr(batch, name))
    width = batch.sequences.tokens.shape[-1]
    assert torch.equal(loaded.judged.sequences.tokens[..., :width], batch.sequences.tokens)


def test_a_pair_set_has_the_preferred_first():
    whole = judged()
    pairs = PairSet(whole, every(whole.prefers))
    batch = pairs.batch(range(len(pairs)))
    assert (batch.chance > 0.5).all() and (batch.scores[:, 0] > batch.scores[:, 1]).all()
    assert (batch.win_rates[:, 0] > batch.win_rates[:, 1]).all()
    with torch.no_grad():
        again = sequence_log_probs(perturbed(), batch.sequences)
    assert torch.allclose(again, batch.current, atol=1e-4) and not torch.allclose(again, batch.reference, atol=0.1)
    assert pairs.lengths.tolist() == batch.sequences.lengths.amax(-1).tolist()
    with pytest.raises(TelosError, match="no pair"):
        PairSet(whole, every(torch.full_like(whole.prefers, 0.5)))


def test_replayed_pairs_are_anchored_at_the_model_of_now():
    whole, model = judged(), load_model(TINY)
    pairs = PairSet(whole, every(whole.prefers))
    part = pairs.part(0.3, Rng(0).torch())
    assert part is not None and len(part) == int(0.3 * len(pairs)) and pairs.part(0.01, Rng(0).torch()) is None
    moved = part.anchored_at(model)
    old, new = part.batch(range(len(part))), moved.batch(range(len(part)))
    assert torch.equal(old.sequences.tokens, new.sequences.tokens) and torch.equal(old.scores, new.scores)
    assert torch.allclose(new.current, new.reference, atol=1e-4) and not torch.allclose(old.current, new.current)
    both = pooled([pairs, moved])
    assert len(both) == len(pairs) + len(part)
    last = both.batch(range(len(pairs), len(both)))
    assert torch.equal(last.current, new.current) and torch.equal(last.win_rates, new.win_rates)


def walk(steps, **plan):
    """All stages of rounds with a learner that does nothing: (name, steps, first, pairs)."""
    spec = Spec(Prompts(PROMPTS), {"model": TINY, "purpose": good}, steps, torch.device("cpu"), Rng(0))
    spec, seen = policy_and_reference(spec), []
    method = use("inpo", eta=1.0, tau=0.0)
    given = {"rounds": 3, "prompts": 4, "samples": 4, "batch_size": 8, "max_new_tokens": 6, "judge_batch": 3}
    stages = rounds(
        spec, Plan(**{**given, **plan}), lambda model: method.learner(spec, Rng(0)), lambda j, g: every(j.prefers)
    )
    stage = next(stages)
    while True:
        if stage.name.endswith("judge"):
            for step in range(stage.steps):
                stage.learner.update(stage.source.next(stage.learner.behaviour, Rng(9).at(stage.name, step)), Rng(0))
            pairs = 0
        else:
            pairs = len(stage.source.data)
        seen.append((stage.name, stage.steps, stage.first, pairs))
        try:
            stage = stages.send(stage.learner.product())
        except StopIteration as stop:
            return seen, stop.value


def test_steps_are_shared_among_rounds_and_earlier_pairs_come_back():
    seen, product = walk(8)
    assert [row[:3] for row in seen] == [
        ("round1-judge", 2, 0), ("round1-update", 2, 0), ("round2-judge", 2, 0), ("round2-update", 2, 2),
        ("round3-judge", 2, 0), ("round3-update", 4, 4),
    ]  # fmt: skip
    assert isinstance(product, LanguagePolicy)
    plain = [row[3] for row in seen if row[3]]
    again = [row[3] for row in walk(8, replay=0.5)[0] if row[3]]
    assert again == [plain[0], plain[1] + plain[0] // 2, plain[2] + plain[1] // 2 + plain[0] // 4]


def test_counts_out_of_range():
    with pytest.raises(TelosError, match="fewer steps than rounds"):
        walk(2)
    for bad in ({"rounds": 0}, {"samples": 0}, {"replay": 1.5}, {"judge_batch": 0}):
        with pytest.raises(TelosError, match="out of range"):
            walk(8, **bad)


def test_without_steps_nothing_is_judged():
    method = use("inpo", max_new_tokens=4)
    policy = method.fit(Prompts(PROMPTS), model=TINY, purpose=lambda prompts, completions: 1 / 0, steps=0)
    before = load_model(TINY).network.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in policy.network.state_dict().items())


def test_a_kill_while_judging_changes_nothing(tmp_path):
    calls = itertools.count()

    class Killed(BaseException):
        pass

    def frail(prompts, completions):
        if armed and next(calls) == 3:  # in the second of round 2's judging steps
            raise Killed
        return good(prompts, completions)

    frail.cache = False
    method = use("inpo", eta=1.0, tau=0.1, pairs="iid", rounds=2, prompts_per_round=100, samples_per_prompt=2,
                 learning_rate=1e-3, batch_size=8, max_new_tokens=4)  # fmt: skip
    given = {"model": TINY, "purpose": frail, "steps": 4, "device": "cpu", "checkpoint_every": 1}
    armed = False
    whole = method.fit(Prompts(PROMPTS), **given)
    armed = True
    with pytest.raises(Killed):
        method.fit(Prompts(PROMPTS), out=tmp_path / "run", **given)
    left = [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()]
    assert left == ["round2-judge-000000001"]
    armed = False
    resumed = method.fit(Prompts(PROMPTS), out=tmp_path / "run", resume=True, **given)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_adapters_alone_are_trained_in_every_round(tmp_path):
    pytest.importorskip("peft")
    base = LanguagePolicy(load_model(TINY)).save(tmp_path / "base")
    method = use("inpo", eta=1.0, tau=0.1, pairs="iid", rounds=2, prompts_per_round=16, samples_per_prompt=2,
                 learning_rate=1e-2, batch_size=8, max_new_tokens=4)  # fmt: skip
    given = {"model": str(base), "purpose": good, "steps": 4, "device": "cpu", "lora": 2}
    policy = method.fit(Prompts(PROMPTS), out=tmp_path / "run", **given)
    trained = {name for name, value in policy.network.named_parameters() if value.requires_grad}
    assert trained and all("lora" in name for name in trained)
    before = load_model(str(base)).network.state_dict()
    after = {
        name.replace("base_model.model.", "").replace(".base_layer", ""): v
        for name, v in policy.network.state_dict().items()
    }
    assert all(torch.equal(before[name], after[name]) for name in before if name in after)
