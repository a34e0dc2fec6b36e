"""DeAL's checks: its limits against greedy decoding and beam search, against brute force, and its traps."""

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.lm.model import TINY, load_model
from telos.methods.decoding.beam import Beam
from telos.methods.decoding.best_of_n import BestOfN
from telos.methods.decoding.deal import BlockDeAL, DeAL
from telos.worlds import keywords, tiny_sent

PROMPTS = ["topic1", "topic2", "topic3 word2 word2", "topic5 word7"]
ASKED = keywords.prompts(12, Rng(1000).at("deal").numpy())
WORLDS = pytest.mark.parametrize(
    ("model", "prompts", "purpose"),
    [(TINY, PROMPTS, tiny_sent.gold), (keywords.model_folder(0), ASKED, keywords.coverage)],
    ids=["tiny", "keywords"],
)
REFERENCE = load_model(TINY)


def constant(prompts, completions):
    return [3.0] * len(completions)


def deal(model, purpose, **options):
    return DeAL(**options).fit(model=model, purpose=purpose, device="cpu")


def block(model, purpose, **options):
    return BlockDeAL(**options).fit(model=model, purpose=purpose, device="cpu")


def answers(product, prompts, **options):
    drawn = product.generate(prompts, max_new_tokens=12, **options)
    return [ids[a:b].tolist() for ids, a, b in zip(drawn.tokens, drawn.boundaries, drawn.lengths, strict=True)]


@torch.no_grad()
def brute_force(prompt: str, h, *, k: int, lookahead: int, weight: float, room: int) -> list[int]:
    """The greedy agent in plain Python on the bundled model: a fresh forward pass for every token."""
    model = REFERENCE
    head = model.tokenizer(prompt)["input_ids"]

    def log_probs(tokens):
        return model.network(input_ids=torch.tensor([[*head, *tokens]])).logits[0, -1].log_softmax(-1)

    answer, total = [], 0.0
    while len(answer) < room and (not answer or answer[-1] != model.eos_id):
        values, order = log_probs(answer).sort(descending=True, stable=True)
        best = None
        for value, token in zip(values[:k].tolist(), order[:k].tolist(), strict=True):
            text = [*answer, token]
            for _ in range(min(lookahead, room - len(text))):
                if text[-1] == model.eos_id:
                    break
                text.append(int(log_probs(text).argmax()))
            words = model.tokenizer.decode([t for t in text if t != model.eos_id])
            c = total + value + weight * float(h([prompt], [words])[0])
            if best is None or c > best[0] + 1e-9:
                best = c, total + value, token
        total, answer = best[1], [*answer, best[2]]
    return answer


# The dossier's checks.


@WORLDS
@pytest.mark.parametrize("lookahead", [0, 1, 4])
def test_weight_zero_is_greedy_decoding_or_beam_search(model, prompts, purpose, lookahead):
    greedy = answers(Beam(width=1).fit(model=model, device="cpu"), prompts)
    assert answers(deal(model, purpose, weight=0.0, lookahead=lookahead), prompts) == greedy
    assert answers(deal(model, purpose, weight=0.0, lookahead=lookahead, agent="beam", beams=1), prompts) == greedy
    beams = answers(Beam(width=3).fit(model=model, device="cpu"), prompts)
    assert answers(deal(model, purpose, weight=0.0, lookahead=lookahead, agent="beam", beams=3), prompts) == beams
    assert beams != greedy


@WORLDS
@pytest.mark.parametrize("agent", ["greedy", "best_first"])
def test_one_candidate_is_greedy_decoding_whatever_the_purpose(model, prompts, purpose, agent):
    greedy = answers(Beam(width=1).fit(model=model, device="cpu"), prompts)
    assert answers(deal(model, purpose, k=1, weight=50.0, lookahead=3, agent=agent), prompts) == greedy


@WORLDS
@pytest.mark.parametrize("agent", ["greedy", "beam", "best_first"])
def test_a_constant_purpose_changes_nothing_nor_does_a_constant_added(model, prompts, purpose, agent):
    options = {"agent": agent, "lookahead": 2, "k": 4, "expansions": 20}
    nothing = answers(deal(model, purpose, weight=0.0, **options), prompts)
    assert answers(deal(model, constant, weight=5.0, **options), prompts) == nothing
    plain = answers(deal(model, purpose, weight=5.0, **options), prompts)
    raised = deal(model, lambda p, c: np.asarray(purpose(p, c)) + 2.0, weight=5.0, **options)
    assert answers(raised, prompts) == plain != nothing


@WORLDS
def test_a_large_weight_with_full_look_ahead_never_ends_below_greedy(model, prompts, purpose):
    greedy = Beam(width=1).fit(model=model, device="cpu").generate(prompts, max_new_tokens=6)
    best = deal(model, purpose, weight=1e6, lookahead=6, k=64).generate(prompts, max_new_tokens=6)
    low, high = (purpose(d.prompts, d.texts) for d in (greedy, best))
    assert (high >= low - 1e-9).all() and high.mean() > low.mean() + 0.1
    if model == TINY:
        # One word more at a time is always to be had, so the search ends at the most that there is.
        assert high[:2].tolist() == [6, 6]


@WORLDS
def test_a_weight_of_zero_in_the_sum_leaves_the_other_purpose(model, prompts, purpose):
    other = tiny_sent.gold if purpose is keywords.coverage else keywords.brevity
    both = deal(model, [(purpose, 2.5), (other, 0.0)], weight=2.0, lookahead=2)
    alone = deal(model, purpose, weight=5.0, lookahead=2)
    assert answers(both, prompts) == answers(alone, prompts)
    assert answers(both, prompts, weights=(0.0, 0.0)) == answers(deal(model, purpose, weight=0.0), prompts)


@WORLDS
def test_each_step_asks_for_k_rewards_less_those_that_are_known(model, prompts, purpose):
    for lookahead in (0, 3):
        product = deal(model, purpose, k=5, lookahead=lookahead)
        steps = sum(map(len, answers(product, prompts)))
        assert product.cost.reward_calls + product.cost.reward_hits == 5 * steps
        assert 0 < product.cost.reward_hits < product.cost.reward_calls
    # Without look-ahead the model is read as often as greedy decoding reads it.
    product = deal(model, purpose, lookahead=0)
    assert product.generate(prompts, max_new_tokens=12).texts
    assert product.cost.lm_tokens == sum(map(len, answers(product, prompts)))


# The equations.


def arbitrary(prompts, completions):
    """A purpose in [0, 1) that has another value for nearly every text."""
    return [sum(31 * i * ord(letter) for i, letter in enumerate(text.strip())) % 97 / 97 for text in completions]


@pytest.mark.parametrize(("k", "lookahead", "weight"), [(4, 0, 1.0), (4, 3, 1.0), (4, 20, 2.0), (3, 2, 5.0)])
def test_the_greedy_agent_is_the_brute_force_search(k, lookahead, weight):
    product = deal(TINY, arbitrary, k=k, lookahead=lookahead, weight=weight)
    prompts = PROMPTS[:3]
    expected = [brute_force(p, arbitrary, k=k, lookahead=lookahead, weight=weight, room=12) for p in prompts]
    assert answers(product, prompts) == expected


def test_a_look_ahead_stays_within_the_longest_answer():
    seen = []

    def spy(prompts, completions):
        seen.extend(completions)
        return arbitrary(prompts, completions)

    deal(TINY, spy, k=3, lookahead=4).generate(["topic1"], max_new_tokens=1)
    assert {len(text.split()) for text in seen} == {1} and len(seen) == 3
    seen.clear()
    deal(TINY, spy, k=3, lookahead=4).generate(["topic1"], max_new_tokens=7)
    assert max(len(text.split()) for text in seen) == 7
    # The first candidates are seen with four words more.
    assert [len(text.split()) for text in seen[:3]] == [5, 5, 5]


def test_wider_beams_and_longer_look_aheads_earn_more_reward():
    prompts = keywords.prompts(100, Rng(1000).at("more").numpy())
    model = keywords.model_folder(0)

    def hard(**options):
        drawn = deal(model, keywords.coverage, weight=10.0, **options).generate(prompts, max_new_tokens=18)
        return keywords.all_words(drawn.prompts, drawn.texts).mean()

    greedy = Beam(width=1).fit(model=model, device="cpu").generate(prompts, max_new_tokens=18)
    none, ahead, beams = hard(lookahead=0), hard(lookahead=6), hard(lookahead=0, agent="beam", beams=4)
    assert keywords.all_words(greedy.prompts, greedy.texts).mean() <= none < ahead - 0.1
    assert beams > none + 0.1


def test_sampled_look_aheads_of_temperature_almost_zero_are_greedy_ones():
    greedy = answers(deal(TINY, tiny_sent.gold, lookahead=3), PROMPTS)
    for reduce in ("mean", "max"):
        cold = deal(TINY, tiny_sent.gold, lookahead=3, rollout="sample", samples=2, reduce=reduce, temperature=1e-4)
        assert answers(cold, PROMPTS, rng=Rng(1000).torch()) == greedy
    warm = deal(TINY, tiny_sent.gold, lookahead=6, rollout="sample", samples=3)
    drawn = warm.generate(["topic1"] * 2, n=4, rng=Rng(1000).torch(), max_new_tokens=12)
    again = warm.generate(["topic1"] * 2, n=4, rng=Rng(1000).torch(), max_new_tokens=12)
    assert len(set(drawn.texts)) > 1 and drawn.texts == again.texts


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_of_several_samples_the_mean_or_the_most_counts(reduce):
    # Purposes see k * samples texts a step; with one step left every sample is the candidate itself.
    product = deal(TINY, tiny_sent.gold, k=4, samples=3, rollout="sample", reduce=reduce, weight=2.0)
    one = product.generate(PROMPTS, rng=Rng(1000).torch(), max_new_tokens=1)
    assert one.texts == deal(TINY, tiny_sent.gold, k=4, weight=2.0).generate(PROMPTS, max_new_tokens=1).texts
    assert product.cost.reward_calls + product.cost.reward_hits == 4 * 4 * 3


@torch.no_grad()
def test_best_first_without_reward_finds_the_likeliest_answer_of_all():
    room, size = 3, 64
    head = REFERENCE.tokenizer("topic1")["input_ids"]
    first = REFERENCE.network(input_ids=torch.tensor([head])).logits[0, -1].log_softmax(-1)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    rows = torch.cat([torch.tensor(head).expand(size**2, -1), pairs], 1)
    logits = REFERENCE.network(input_ids=rows).logits[:, -2:].log_softmax(-1)
    total = first[pairs[:, 0]] + logits[:, 0].gather(1, pairs[:, 1:])[:, 0]
    # An answer that has ended goes no further; all others have three tokens.
    eos = REFERENCE.eos_id
    ended = torch.cat([first[eos][None], total[(pairs[:, 1] == eos) & (pairs[:, 0] != eos)]])
    whole = (total + logits[:, 1].max(-1).values)[(pairs != eos).all(1)]
    product = deal(TINY, tiny_sent.gold, agent="best_first", k=size, lookahead=0, weight=0.0, expansions=9999)
    drawn = product.generate(["topic1"], max_new_tokens=room)
    assert float(drawn.log_probs.sum()) == pytest.approx(float(torch.cat([ended, whole]).max()), abs=1e-4)


def test_best_first_ends_with_a_whole_answer_when_its_steps_are_spent():
    product = deal(TINY, tiny_sent.gold, agent="best_first", expansions=1, k=4, lookahead=2, weight=0.5)
    greedy = deal(TINY, tiny_sent.gold, k=4, lookahead=2, weight=0.5)
    assert answers(product, PROMPTS) == answers(greedy, PROMPTS)
    for tokens in answers(deal(TINY, tiny_sent.gold, agent="best_first", expansions=30), PROMPTS):
        assert len(tokens) == 12 or tokens[-1] == REFERENCE.eos_id


# Blocks.


def test_one_block_of_full_samples_is_best_of_n():
    ours = block(TINY, tiny_sent.gold, proposals="sample", init_beams=6, lookahead=12, topk=1, max_iterations=1)
    other = BestOfN(n=6).fit(model=TINY, purpose=tiny_sent.gold, device="cpu")
    prompts = ["topic1", "topic2", "topic3"]
    one, two = (p.generate(prompts, rng=Rng(1000).torch(), max_new_tokens=12) for p in (ours, other))
    golds = [tiny_sent.gold(d.prompts, d.texts) for d in (one, two)]
    assert golds[0].tolist() == golds[1].tolist()
    sampled = other.policy.generate(prompts, n=6, rng=Rng(1000).torch(), max_new_tokens=12)
    assert ours.cost.lm_tokens == int((sampled.lengths - sampled.boundaries).sum())


def test_one_block_of_beams_is_the_reranked_beam_search():
    ours = block(TINY, tiny_sent.gold, init_beams=5, lookahead=12, topk=1, max_iterations=1)
    other = Beam(width=5).fit(model=TINY, purpose=tiny_sent.gold, device="cpu")
    assert answers(ours, PROMPTS) == answers(other, PROMPTS)


def test_blocks_are_scored_by_reward_alone_and_more_of_them_earn_more():
    prompts = list(tiny_sent.TOPICS)
    constant_blocks = answers(block(TINY, constant, init_beams=3, lookahead=4, topk=3), prompts)
    golds = []
    for beams in (1, 3, 8):
        drawn = block(TINY, tiny_sent.gold, init_beams=beams, lookahead=4).generate(prompts, max_new_tokens=12)
        golds.append(tiny_sent.gold(drawn.prompts, drawn.texts).mean())
    assert golds[0] < golds[1] < golds[2]
    assert all(len(tokens) <= 12 for tokens in constant_blocks)
    # The purpose alone decides: a tenth of it decides alike.
    small = block(TINY, lambda p, c: 0.1 * tiny_sent.gold(p, c), init_beams=3, lookahead=4)
    assert answers(small, prompts) == answers(block(TINY, tiny_sent.gold, init_beams=3, lookahead=4), prompts)
    short = block(TINY, tiny_sent.gold, lookahead=3, max_iterations=2)
    assert max(map(len, answers(short, prompts))) == 6


# Traps.


def test_an_end_token_as_candidate_has_the_reward_of_the_finished_text():
    def ended_early(prompts, completions):
        return [float(len(text.split()) <= 4) for text in completions]

    drawn = deal(TINY, ended_early, k=64, lookahead=12, weight=100.0).generate(PROMPTS, max_new_tokens=12)
    assert drawn.finished.all() and all(len(text.split()) <= 4 for text in drawn.texts)


def test_the_template_is_shown_to_the_model_and_not_to_the_purpose():
    seen = set()

    def purpose(prompts, completions):
        seen.update(prompts)
        return [0.0] * len(completions)

    product = deal(TINY, purpose, template="topic4 {prompt} word1", lookahead=1)
    drawn = product.generate(["topic1"], max_new_tokens=5)
    plain = Beam(width=1).fit(model=TINY, device="cpu").generate(["topic4 topic1 word1"], max_new_tokens=5)
    assert seen == {"topic1"} == set(drawn.prompts) and drawn.texts == plain.texts


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"lookahead": -1}, {"weight": -1.0}, {"weight": float("inf")}, {"temperature": 0.0}, {"beams": 0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(TelosError, match="out of range"):
        DeAL(**options)


def test_a_missing_purpose_or_place_for_the_prompt_is_named():
    with pytest.raises(TelosError, match="'purpose' is missing"):
        DeAL().fit(model=TINY, device="cpu")
    with pytest.raises(TelosError, match="'purpose' is missing"):
        BlockDeAL().fit(model=TINY, device="cpu")
    with pytest.raises(TelosError, match="template"):
        BlockDeAL(template="say something kind")
    with pytest.raises(TelosError, match="out of range"):
        BlockDeAL(topk=0)
