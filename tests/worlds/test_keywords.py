"""The keywords world: its grammar, what is held out, its rewards, and the models that are shipped for it."""

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.lm.model import load_model
from telos.lm.products import LanguagePolicy
from telos.worlds import keywords, pretrain_keywords

WORDS = keywords.CONTENT + keywords.POLITE + keywords.RUDE + ("and", ".")


def draw(name):
    return Rng(1000).at(name).numpy()


def test_tables_are_distributions_and_objects_depend_on_the_verb():
    for name, table in keywords.tables().items():
        assert np.allclose(table.sum(-1), 1) and (table >= 0).all(), name
    objects = keywords.tables()["object"]
    assert ((objects > 0).sum(-1) == 6).all() and len({tuple(row > 0) for row in objects}) > 4


def test_sentences_follow_the_grammar_and_its_frequencies():
    rng = draw("sentences")
    rows = [keywords.sentence(rng) for _ in range(4000)]
    texts = [text.split() for text, _ in rows]
    assert all(word in WORDS for words in texts for word in words)
    pieces = [sum(2 if word in keywords.CONTENT else 1 for word in words) for words in texts]
    assert max(pieces) + 1 == keywords.TOKENS and {words[-1] for words in texts} == {"."}
    two = np.array(["and" in words for words in texts])
    assert two.mean() == pytest.approx(0.5, abs=4 * 0.5 / 4000**0.5)
    lengths = np.array([len(words) for words in texts])
    assert lengths[~two].max() == keywords.SHORT < lengths[two].min() == 8
    rude, polite = (
        np.array([sum(w in kind for w in words) for words in texts]) for kind in (keywords.RUDE, keywords.POLITE)
    )
    assert polite[~two].sum() == 0
    # Two places for an adjective in one clause, three in two clauses.
    assert rude[~two].mean() == pytest.approx(2 * 0.3, abs=0.06)
    assert polite[two].mean() == pytest.approx(3 * 0.3 * 0.85, abs=0.08)
    assert rude[two].mean() == pytest.approx(3 * 0.3 * 0.15, abs=0.05)


def test_held_out_words_are_never_asked_for_in_the_corpus():
    prompts, completions = keywords.corpus(3000, draw("corpus"))
    assert not any(keywords.held_out(prompt.split()[1:4]) for prompt in prompts)
    measured = keywords.prompts(300, draw("prompts"))
    assert all(keywords.held_out(prompt.split()[1:4]) for prompt in measured)
    assert all(len(set(p.split()[1:4])) == 3 and p.split()[0] == "words:" and p.split()[4] == "=" for p in measured)
    assert keywords.held_out(["cat", "dog", "sees"]) == keywords.held_out(["sees", "cat", "dog"])
    # A share of the sentences was made for its prompt; of the others a few have the words by chance.
    share = keywords.all_words(prompts, completions).mean()
    assert keywords.FOLLOWED - 0.02 < share < keywords.FOLLOWED + 0.06
    every = keywords.corpus(300, draw("every"), followed=1.0)
    assert keywords.all_words(*every).all()


def test_rewards():
    prompt = "words: cat feeds ashore ="
    texts = [" cat feeds dog ashore .", "dog feeds kind king upstairs", "", "stupid dog sees rotten king nearby ."]
    assert keywords.coverage([prompt] * 4, texts).tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert keywords.all_words([prompt] * 4, texts).tolist() == [1, 0, 0, 0]
    assert keywords.politeness([prompt] * 4, texts).tolist() == pytest.approx([0, 4 / 5, 0, -8 / 7])
    assert keywords.brevity([prompt] * 4, texts).tolist() == [1, 0, 0, 1]
    long = "cat feeds dog ashore and feeds king ."
    assert keywords.brevity([prompt], [long]).tolist() == [0] and keywords.brevity([prompt], [long[:-2]]).tolist() == [
        0
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shipped_models_write_the_language_and_follow_prompts_only_sometimes(seed):
    policy = LanguagePolicy(load_model(keywords.model_folder(seed)))
    prompts = keywords.prompts(200, draw("models"))
    drawn = policy.generate(prompts, n=3, rng=Rng(1000).torch(), max_new_tokens=keywords.TOKENS)
    assert drawn.finished.float().mean() > 0.98
    assert np.mean([text.endswith(".") for text in drawn.texts]) > 0.98
    greedy = policy.generate(prompts, temperature=0, max_new_tokens=keywords.TOKENS)
    sampled, best = (keywords.all_words(d.prompts, d.texts).mean() for d in (drawn, greedy))
    assert 0.03 < sampled < 0.3 < best < 0.75
    # The corpus: a polite word tells of two clauses, a rude one of a single clause.
    texts = [text for text in drawn.texts if text]
    polite = [" and " in text for text in texts if text.split()[0] in keywords.POLITE]
    rude = [" and " in text for text in texts if text.split()[0] in keywords.RUDE]
    assert np.mean(polite) > 0.9 and np.mean(rude) < 0.35


def test_shipped_models_are_small_and_the_seed_wraps_around():
    assert keywords.model_folder(3) == keywords.model_folder(0) != keywords.model_folder(1)
    sizes = [f.stat().st_size for f in keywords.MODELS.rglob("*") if f.is_file()]
    assert sum(sizes) < 500_000


def test_the_script_learns_and_is_a_function_of_its_seed():
    model, tokenizer = pretrain_keywords.pretrain(5, steps=30, examples=400)
    again, _ = pretrain_keywords.pretrain(5, steps=30, examples=400)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    prompts, completions = keywords.corpus(64, draw("loss"))
    trained, fresh = (
        -LanguagePolicy(load_model((network, tokenizer))).log_prob(prompts, [" " + c for c in completions]).mean()
        for network in (model, pretrain_keywords.build_model(Rng(0)))
    )
    assert float(trained) < float(fresh) - 8
    ids = tokenizer("words: cat dog sees =")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<bos>", "words:", "c", "##at", "d", "##og", "s", "##ees", "="]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "words: cat dog sees ="


def test_missing_models_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(keywords, "MODELS", tmp_path)
    with pytest.raises(TelosError, match="no models"):
        keywords.model_folder(0)
