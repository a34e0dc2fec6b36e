"""Branches against fresh forward passes, beams against brute force, texts at the boundary, and what is counted."""

import numpy as np
import pytest
import torch
from lm_toys import bpe_model, tiny

from telos.core.errors import TelosError
from telos.core.products import load_product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.lm.model import STORIES, LanguageModel, load_model
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.lm.search import (
    Branches,
    Cost,
    Node,
    Rewards,
    SearchPolicy,
    beam_search,
    expand,
    look_ahead,
    ranking,
    tail_texts,
)
from telos.purposes import resolve
from telos.worlds import tiny_sent


def ragged(model: LanguageModel, lengths: tuple[int, ...] = (3, 7, 5)) -> list[np.ndarray]:
    """Prompts of different lengths."""
    draw = Rng(1000).at("ragged").numpy()
    return [draw.integers(3, 40, n) for n in lengths]


@torch.no_grad()
def fresh(model: LanguageModel, ids) -> torch.Tensor:
    """(V,) log-probs of the next token by a plain forward pass of one row."""
    return model.network(input_ids=torch.tensor([list(map(int, ids))])).logits[0, -1].log_softmax(-1)


def brute_force_beams(model, head, width: int, k: int, steps: int) -> list[tuple[float, tuple[int, ...]]]:
    """Beam search in plain Python: a fresh forward pass for every beam, finished ones leave their place."""
    live, done = [(0.0, ())], []
    for step in range(steps):
        pool = []
        for total, tokens in live:
            values, order = fresh(model, [*head, *tokens]).sort(descending=True, stable=True)
            pool += [(total + v, (*tokens, t)) for v, t in zip(values[:k].tolist(), order[:k].tolist(), strict=True)]
        pool.sort(key=lambda item: -item[0])
        live = []
        for total, tokens in pool[: width - len(done)]:
            (done if tokens[-1] == model.eos_id or step + 1 == steps else live).append((total, tokens))
        if not live:
            break
    return sorted(done, key=lambda item: -item[0])


MODELS = pytest.mark.parametrize("model", [tiny(), bpe_model()], ids=["tiny", "bpe"])


@MODELS
def test_branches_give_the_log_probs_of_fresh_passes_whatever_the_lengths(model):
    heads = ragged(model)
    branches = Branches(model, heads, [2, 7, 4], cost := Cost())
    rows = [list(head) for head in heads]
    draw = Rng(1000).at("tokens").numpy()
    for _ in range(4):
        tokens = draw.integers(3, 40, 3)
        branches.extend(torch.from_numpy(tokens))
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
    picked = branches.branch(torch.tensor([2, 0, 2]))
    for got, row in zip(picked.logits().log_softmax(-1), (2, 0, 2), strict=True):
        assert torch.allclose(got, fresh(model, rows[row]), atol=2e-5)
    assert cost.prompt_tokens == 13
    assert cost.lm_tokens == (3 - 2) + (7 - 7) + (5 - 4) + 3 + 4 * 3


@MODELS
def test_a_look_ahead_is_the_greedy_continuation_and_leaves_the_committed_prefix_alone(model):
    heads = ragged(model)
    branches = Branches(model, heads, [len(h) for h in heads], Cost())
    before = branches.logits().clone()
    parents, tokens = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([9, 4, 5, model.eos_id, 8])
    limits = torch.tensor([6, 2, 0, 5, 6])
    found = look_ahead(branches, parents, tokens, limits)
    for parent, token, limit, ahead in zip(parents.tolist(), tokens.tolist(), limits.tolist(), found, strict=True):
        row, expected = [*heads[parent], token], []
        while len(expected) < limit and row[-1] != model.eos_id:
            row.append(int(fresh(model, row).argmax()))
            expected.append(row[-1])
        assert ahead == expected
    assert torch.equal(branches.logits(), before)
    # Going on from the committed prefixes afterwards is as if nothing had been tried out.
    branches.extend(torch.tensor([9, 5, 8]))
    for got, head, token in zip(branches.logits().log_softmax(-1), heads, (9, 5, 8), strict=True):
        assert torch.allclose(got, fresh(model, [*head, token]), atol=2e-5)


def test_an_end_token_in_the_look_ahead_freezes_the_text_there_and_costs_nothing_more():
    model = tiny()
    heads = [np.array(model.tokenizer(f"topic{i}")["input_ids"]) for i in range(8)]
    branches = Branches(model, heads, [2] * 8, cost := Cost())
    used = cost.lm_tokens
    children, parents, tokens = expand(branches, [Node(i) for i in range(8)], 4)
    found = look_ahead(branches, parents, tokens, torch.full((32,), 20))
    ended = [ahead for ahead in found if ahead and ahead[-1] == model.eos_id]
    assert len(ended) > 10 and all(model.eos_id not in ahead[:-1] for ahead in found)
    assert cost.lm_tokens - used == sum(map(len, found)) < 32 * 20
    assert len(children) == 32 and children[5].prompt == 1


def test_sampled_look_aheads_have_the_models_frequencies():
    model = tiny()
    head = np.array(model.tokenizer("topic1")["input_ids"])
    branches = Branches(model, [head], [2], Cost())
    word = model.tokenizer.convert_tokens_to_ids("word1")
    many = 4000
    zeros = torch.zeros(many, dtype=torch.int64)
    found = look_ahead(branches, zeros, zeros + word, zeros + 1, temperature=1.0, rng=Rng(1000).torch())
    exact = fresh(model, [*head, word]).exp()
    counts = torch.bincount(torch.tensor([row[0] for row in found]), minlength=len(exact)) / many
    assert (counts - exact).abs().max() < 4 * 0.5 / many**0.5


@MODELS
@pytest.mark.parametrize(("width", "k"), [(1, 1), (1, 5), (3, 3), (4, 2)])
def test_beam_search_is_brute_force_beam_search(model, width, k):
    heads = ragged(model) if model.tokenizer.vocab_size > 100 else [np.array([1, 3 + i]) for i in range(3)]
    found = beam_search(
        model, heads, boundaries=[len(h) for h in heads], width=width, k=k, steps=12, cost=(cost := Cost())
    )
    for nodes, head in zip(found, heads, strict=True):
        expected = brute_force_beams(model, head, width, k, 12)
        assert [node.tokens for node in nodes] == [tokens for _, tokens in expected]
        assert [node.log_prob for node in nodes] == pytest.approx([value for value, _ in expected], abs=1e-4)
    if width == 1:
        assert cost.lm_tokens == sum(len(nodes[0].tokens) for nodes in found)


def test_a_wider_beam_finds_likelier_answers():
    heads = [np.array([1, 3 + i]) for i in range(8)]
    best = [
        [n[0].log_prob for n in beam_search(tiny(), heads, boundaries=[2] * 8, width=w, k=w, steps=10, cost=Cost())]
        for w in (1, 8)
    ]
    assert np.mean(best[1]) > np.mean(best[0])


def test_ties_keep_the_models_ranking():
    nodes = [Node(0, (i,), (value,), score) for i, (value, score) in enumerate([(-3, 1), (-1, 1), (-2, 2), (-1, 1)])]
    assert ranking(nodes) == [2, 1, 3, 0]
    branches = Branches(tiny(), [np.array([1, 3])], [2], Cost())
    branches.last = torch.zeros_like(branches.last)  # a head without bias then gives equal logits
    children, _, _ = expand(branches, [Node(0)], 4)
    assert [child.tokens for child in children] == [(0,), (1,), (2,), (3,)]


def test_texts_are_decoded_with_their_prompt():
    model = load_model(STORIES)
    whole = model.tokenizer("Once upon a time there was a princess")["input_ids"]
    pieces = [model.tokenizer.decode(whole[:cut]) for cut in range(1, len(whole))]
    heads = [np.array(whole[:cut]) for cut in range(1, len(whole))]
    tails = [whole[cut:] for cut in range(1, len(whole))]
    texts = tail_texts(model, heads, tails)
    assert all(first.removeprefix("<s>").strip() + text for first, text in zip(pieces, texts, strict=True))
    joined = {model.tokenizer.decode(h.tolist(), skip_special_tokens=True) + t for h, t in zip(heads, texts)}
    assert joined == {model.tokenizer.decode(whole, skip_special_tokens=True)}
    # Decoded alone a word that starts anew looks like one that goes on.
    alone = [model.tokenizer.decode(tail) for tail in tails]
    assert any(text.startswith(" ") for text in texts) and any(not text.startswith(" ") for text in texts)
    assert sum(a != t for a, t in zip(alone, texts, strict=True)) > 2
    assert tail_texts(model, heads[:1], [[*tails[0], model.eos_id]]) == texts[:1]


def test_a_purpose_is_asked_once_for_each_different_answer():
    asked = []

    def purpose(prompts, completions):
        asked.extend(zip(prompts, completions, strict=True))
        return [len(text.split()) for text in completions]

    model = tiny()
    heads = [np.array([1, 3]), np.array([1, 4])]
    rewards = Rewards(model, purpose, heads, ["topic0", "topic1"], cost := Cost())
    eos = model.eos_id
    first = rewards([0, 0, 1, 0], [(11,), (11, 12), (11,), (11,)])
    second = rewards([0, 1, 1], [(11, 12, eos), (11,), (12, 13, 14)])
    assert first.tolist() == [1, 2, 1, 1] and second.tolist() == [2, 1, 3]
    assert len(asked) == len(set(asked)) == 4
    assert (cost.reward_calls, cost.reward_hits) == (4, 3)


def test_a_purpose_may_read_token_ids_and_its_errors_are_named():
    model = tiny()
    heads = [np.array([1, 3])]

    def by_ids(prompts, completions, completion_ids):
        return [sum(ids) for ids in completion_ids]

    assert Rewards(model, by_ids, heads, ["topic0"], Cost())([0, 0], [(11, 12), (7,)]).tolist() == [23, 7]
    with pytest.raises(TelosError, match="returned nan for prompt 'topic0'"):
        Rewards(model, lambda p, c: [float("nan")] * len(c), heads, ["topic0"], Cost())([0], [(11,)])


def test_a_reward_model_reads_the_tokens():
    model = tiny()
    scorer = RewardScorer.from_language_model(model, Rng(0))
    torch.nn.init.normal_(scorer.network.score.weight, generator=Rng(1).torch())
    rewards = Rewards(model, scorer, [np.array([1, 3])], ["topic0"], Cost())
    got = rewards([0, 0], [(11, 12), (13, 14, 15, model.eos_id)])
    texts = [model.tokenizer.decode([11, 12]), model.tokenizer.decode([13, 14, 15])]
    expected = scorer.score(["topic0"] * 2, [" " + text for text in texts])
    assert got == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_saved_search_comes_back_with_its_named_purposes(tmp_path):
    purpose = resolve("2*keywords:good1,good2 + 1*max_words:4")
    product = use("deal", k=3, lookahead=2, template="topic1 {prompt}").fit(model="telos:tiny", purpose=purpose)
    loaded = load_product(product.save(tmp_path / "a"))
    ours, theirs = (p.generate(["topic2"], max_new_tokens=8) for p in (product, loaded))
    assert ours.texts == theirs.texts and torch.equal(ours.log_probs, theirs.log_probs)
    assert loaded.template == "topic1 {prompt}" and loaded.purpose.terms == purpose.terms

    (tmp_path / "mine.py").write_text("def longest(prompts, completions):\n    return [len(c) for c in completions]\n")
    mine = resolve(f"{tmp_path / 'mine.py'}:longest")
    loaded = load_product(SearchPolicy(LanguagePolicy(tiny()), use("deal"), mine).save(tmp_path / "b"))
    with pytest.raises(TelosError, match="needs its purpose again"):
        loaded.generate(["topic2"], max_new_tokens=3)
    loaded.purpose = mine
    assert loaded.generate(["topic2"], max_new_tokens=3).texts
    with pytest.raises(TelosError, match="cannot be saved"):
        SearchPolicy(LanguagePolicy(tiny()), use("deal"), tiny_sent.gold).save(tmp_path / "c")


def test_answers_hold_the_models_own_log_probs_and_keep_the_order_of_the_prompts():
    product = use("deal", k=4, lookahead=3, weight=2.0).fit(model="telos:tiny", purpose=tiny_sent.gold)
    prompts = ["topic3 word1 word2", "topic1", "topic2 word4", "topic1"]
    many = product.generate(prompts, n=2, max_new_tokens=9, batch_size=3)
    assert many.prompts == [p for p in prompts for _ in range(2)]
    assert many.texts[2:4] == many.texts[6:8] and many.texts[0] == many.texts[1]
    policy = LanguagePolicy(load_model("telos:tiny"))
    for row in range(8):
        ids = many.tokens[row, : many.lengths[row]].tolist()
        start = int(many.boundaries[row])
        for place in range(start, len(ids)):
            expected = fresh(policy.model, ids[:place])[ids[place]]
            assert many.log_probs[row, place] == pytest.approx(float(expected), abs=1e-4)
        assert bool(many.finished[row]) == (ids[-1] == policy.model.eos_id)
    alone = [product.generate([p], max_new_tokens=9).texts[0] for p in prompts]
    assert many.texts[::2] == alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1.0}, "no option 'temperature'"),
        ({"max_new_tokens": 0}, "must be positive"),
        ({"weights": [1.0, 2.0]}, "weights"),
        ({"max_new_tokens": 64}, "leaves no room"),
    ],
)
def test_wrong_options_are_named(options, message):
    product = use("deal").fit(model="telos:tiny", purpose=tiny_sent.gold)
    with pytest.raises(TelosError, match=message):
        product.generate(["topic1"], **options)


def test_random_searches_need_a_generator_and_templates_texts():
    product = use("deal", rollout="sample").fit(model="telos:tiny", purpose=tiny_sent.gold)
    with pytest.raises(TelosError, match="draws samples"):
        product.generate(["topic1"])
    product = use("deal", template="topic2 {prompt}").fit(model="telos:tiny", purpose=tiny_sent.gold)
    with pytest.raises(TelosError, match="template"):
        product.generate([np.array([1, 3])])
    with pytest.raises(TelosError, match="no prompts"):
        product.generate([])
