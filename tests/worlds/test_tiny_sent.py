"""TinySent against its closed forms, and the shipped model against the exact entropy of the corpus."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import chisquare

import telos.lm
from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.worlds import tiny_sent

MODEL = Path(telos.lm.__file__).parent / "bundled" / "tiny"
KINDS = {word: kind for kind, group in enumerate(("POSITIVE", "NEGATIVE", "NEUTRAL"))
         for word in getattr(tiny_sent, group)}  # fmt: skip
WORD_PROBS = tiny_sent.word_probabilities()
WORD_IDS = {word: i for i, word in enumerate(tiny_sent.WORDS)}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def z_score(values: np.ndarray, expected: float) -> float:
    return float((values.mean() - expected) / (values.std(ddof=1) / np.sqrt(len(values))))


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], list[list[str]]]:
    prompts, completions = tiny_sent.sentences(20_000, rng())
    return prompts, [completion.split(" ") for completion in completions]


def reference_log_prob(prompt: str, words: list[str]) -> float:
    """The generator's definition, word by word, for an untilted sentence of legal length with its end."""
    base, word_probs = [0.15, 0.15, 0.70], WORD_PROBS[tiny_sent.TOPICS.index(prompt)]
    total, before = -np.log(8), None
    for word in words:
        kind = KINDS[word]
        class_prob = base[kind] if before is None else 0.35 * (kind == before) + 0.65 * base[kind]
        total += np.log(class_prob) + np.log(word_probs[kind, WORD_IDS[word]])
        before = kind
    return float(total)


def test_vocabulary():
    words = tiny_sent.vocabulary()
    assert len(words) == len(set(words)) == 64
    assert words[:4] == ["<pad>", "<bos>", "<eos>", "topic0"]
    assert words[11] == "good0" and words[19] == "bad0" and words[27] == "word0" and words[47:] == list(tiny_sent.SPARE)


@pytest.mark.parametrize(
    "completion, expected",
    [
        ("", 0),
        ("good0 good1 bad0", 1),
        ("good0 good0", 1),
        ("bad3 bad3 bad3", -5),
        ("word1 word1 word1 word2 word1", -2),
        ("topic1 unheard <spare0>", 0),
        ("good1 word0 good1 word0 good7 good7 good7", 3),
    ],
)
def test_gold_by_hand(completion: str, expected: int):
    assert tiny_sent.gold(["topic0"], [completion]).tolist() == [expected]


def test_gold_needs_as_many_completions():
    with pytest.raises(TelosError, match="completions"):
        tiny_sent.gold(["topic0"], ["good0", "good1"])


def test_corpus_follows_its_closed_forms(corpus: tuple[list[str], list[list[str]]]):
    prompts, sentences = corpus
    lengths = np.array([len(words) for words in sentences])
    assert chisquare(np.bincount(lengths)[8:]).pvalue > 1e-3 and lengths.min() == 8 and lengths.max() == 15
    assert chisquare(np.unique(prompts, return_counts=True)[1]).pvalue > 1e-3

    kinds = [np.array([KINDS[word] for word in words]) for words in sentences]
    for kind, share in enumerate((0.15, 0.15, 0.70)):
        assert abs(z_score(np.array([(k == kind).sum() - share * len(k) for k in kinds]), 0.0)) < 4
    same_class = sum(p * (0.35 + 0.65 * p) for p in (0.15, 0.15, 0.70))
    excess = np.array([(k[1:] == k[:-1]).sum() - same_class * (len(k) - 1) for k in kinds])
    assert abs(z_score(excess, 0.0)) < 4
    assert abs(z_score(lengths, tiny_sent.mean_length())) < 4

    golds = tiny_sent.gold(prompts, [" ".join(words) for words in sentences])
    assert abs(z_score(golds, tiny_sent.mean_gold())) < 4
    log_probs = np.array([reference_log_prob(p, w) for p, w in zip(prompts[:4000], sentences[:4000], strict=True)])
    assert abs(z_score(-log_probs, tiny_sent.entropy())) < 4


def test_words_within_a_class_depend_on_the_topic_as_stated(corpus: tuple[list[str], list[list[str]]]):
    prompts, sentences = corpus
    words = [w for p, sentence in zip(prompts, sentences, strict=True) if p == "topic5" for w in sentence]
    counts = np.array([words.count(w) for w in tiny_sent.NEUTRAL])
    expected = tiny_sent.word_probabilities()[5, 2, 16:]
    assert expected.min() >= 0.1 / 20 - 1e-12
    # Given the classes the words are independent, so the chi-square test is exact.
    assert chisquare(counts, counts.sum() * expected).pvalue > 1e-3


def test_the_draw_that_the_shipped_model_was_trained_on():
    assert tiny_sent.mean_gold() == pytest.approx(-1.004049312, abs=1e-8)
    assert tiny_sent.entropy() == pytest.approx(36.383660075, abs=1e-8)


@pytest.mark.parametrize("tilt", [0.4, -0.4])
def test_tilt_multiplies_the_odds(tilt: float):
    p = tiny_sent.class_probabilities(tilt)
    assert p[0] / p[1] == pytest.approx(np.exp(2 * tilt), rel=1e-12)
    assert p[2] == 0.70 and p.sum() == pytest.approx(1.0, abs=1e-12)

    prompts, completions = tiny_sent.sentences(8000, rng(1), positive_odds=tilt)
    positive, negative, _ = tiny_sent.counts(completions).T
    assert abs(z_score(positive - np.exp(2 * tilt) * negative, 0.0)) < 4
    assert abs(z_score(tiny_sent.gold(prompts, completions), tiny_sent.mean_gold(tilt))) < 4


def test_styles():
    assert tiny_sent.styles(["word0 word3 word1", "word1 word2", "good0", "word2 word5"]).tolist() == [0, -1, -1, 2]
    prompts, completions = tiny_sent.sentences(8000, rng(2), style=1)
    neutral = {word for text in completions for word in text.split() if word.startswith("word")}
    assert neutral == {f"word{i}" for i in range(1, 20, 3)}
    assert set(tiny_sent.styles(completions)) <= {1, -1}
    assert abs(z_score(tiny_sent.gold(prompts, completions), tiny_sent.mean_gold(style=1))) < 4
    with pytest.raises(TelosError, match="style"):
        tiny_sent.sentences(1, rng(), style=3)


def test_labels_follow_the_sigmoid_of_the_gap():
    gaps, n = np.arange(-4.0, 5.0), 20_000
    wins = tiny_sent.label(np.tile(gaps + 2.0, (n, 1)), 2.0, rng(3)).sum(axis=0)
    expected = expit(gaps)
    assert np.abs((wins - n * expected) / np.sqrt(n * expected * (1 - expected))).max() < 4

    sure = tiny_sent.label(np.tile([-0.1, 0.0, 0.1], (n, 1)), 0.0, rng(4), noiseless=True).mean(axis=0)
    assert sure[0] == 0 and sure[2] == 1 and abs(sure[1] - 0.5) < 4 * 0.5 / np.sqrt(n)
    with pytest.raises(TelosError, match="finite"):
        tiny_sent.label([np.nan], [0.0], rng())


def test_preference_rows():
    prompts = ["topic0", "topic1", "topic2"]
    samples = [["good0", "bad0", "word0", "good1"], ["word1", "word2"], ["bad1"]]
    rows = tiny_sent.preference_rows(prompts, samples, rng(), noiseless=True)
    assert {tuple(row.values()) for row in rows} == {
        ("topic0", "good0", "bad0"),
        ("topic0", "good0", "word0"),
        ("topic0", "word0", "bad0"),
        ("topic0", "good1", "bad0"),
        ("topic0", "good1", "word0"),
    }  # of the six pairs of topic0 good0/good1 is a tie; topic1 has only a tie, topic2 no pair
    assert len(rows) == 5 and list(rows[0]) == ["prompt", "chosen", "rejected"]

    noisy = tiny_sent.preference_rows(["topic0"] * 10_000, [["good0", "bad0"]] * 10_000, rng(5))
    share = np.mean([row["chosen"] == "good0" for row in noisy])
    assert abs(share - expit(2.0)) < 4 * np.sqrt(expit(2.0) * expit(-2.0) / 10_000)
    with pytest.raises(TelosError, match="completions"):
        tiny_sent.preference_rows(prompts, samples[:2], rng())


class TestShippedModel:
    @pytest.fixture(scope="class")
    def loaded(self):
        transformers = pytest.importorskip("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, local_files_only=True)
        return model.eval(), tokenizer

    def test_files_and_ids(self, loaded):
        model, tokenizer = loaded
        assert sum(file.stat().st_size for file in MODEL.iterdir()) < 8e6
        assert tokenizer.convert_ids_to_tokens(list(range(64))) == tiny_sent.vocabulary() and len(tokenizer) == 64
        for config in (tokenizer, model.config, model.generation_config):
            assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
        assert model.generation_config.top_k == 0 and model.config.max_position_embeddings == 64
        assert 0.10e6 < model.num_parameters() < 0.12e6

    def test_tokenizer_round_trip(self, loaded):
        _, tokenizer = loaded
        prompts, completions = tiny_sent.sentences(200, rng(6))
        for prompt, completion in zip(prompts, completions, strict=True):
            prompt_ids = tokenizer(prompt)["input_ids"]
            completion_ids = tokenizer(completion, add_special_tokens=False)["input_ids"]
            assert prompt_ids == [1, tiny_sent.vocabulary().index(prompt)]
            assert tokenizer(f"{prompt} {completion}")["input_ids"] == prompt_ids + completion_ids
            assert tokenizer.decode([*completion_ids, 2, 0, 0], skip_special_tokens=True) == completion
        assert (
            tokenizer.decode(tokenizer("topic0 <spare3>")["input_ids"], skip_special_tokens=True) == "topic0 <spare3>"
        )

    def test_close_to_the_corpus_and_not_below_its_entropy(self, loaded):
        torch = pytest.importorskip("torch")
        from telos.worlds.pretrain_tiny import IGNORED, encode

        model, tokenizer = loaded
        prompts, completions = tiny_sent.sentences(1500, rng(7))
        tokens = encode(tokenizer, prompts, completions)
        with torch.no_grad():
            logits = model(input_ids=tokens.masked_fill(tokens == IGNORED, 0)[:, :-1]).logits
        targets = tokens[:, 2:]
        picked = logits[:, 1:].log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        model_log_probs = picked.masked_fill(targets == IGNORED, 0.0).sum(1).double().numpy()
        exact = [reference_log_prob(p, c.split()) for p, c in zip(prompts, completions, strict=True)]
        gap = (np.array(exact) - model_log_probs) / (tiny_sent.mean_length() + 1)
        error = gap.std() / np.sqrt(len(gap))
        # The mean gap is KL(corpus || model) per token, measured 0.013 +- 0.001: small, but never below zero.
        assert -4 * error < gap.mean() < 0.03

    def test_samples_have_the_gold_of_the_corpus(self, loaded):
        torch = pytest.importorskip("torch")
        model, tokenizer = loaded
        prompts = tiny_sent.prompts(512, rng(8))
        tokens = tokenizer(prompts, return_tensors="pt")["input_ids"]
        generator = torch.Generator().manual_seed(0)
        ended = torch.zeros(len(tokens), dtype=torch.bool)
        with torch.no_grad():
            for _ in range(tiny_sent.CONTEXT - 2):
                drawn = torch.multinomial(model(tokens).logits[:, -1].softmax(-1), 1, generator=generator)[:, 0]
                drawn = drawn.masked_fill(ended, 0)
                tokens, ended = torch.cat([tokens, drawn[:, None]], dim=1), ended | (drawn == 2)
        golds = tiny_sent.gold(prompts, tokenizer.batch_decode(tokens[:, 2:], skip_special_tokens=True))
        assert ended.float().mean() > 0.99
        assert abs(golds.mean() - tiny_sent.mean_gold()) < 0.2 + 4 * golds.std() / np.sqrt(512)


class TestPretraining:
    def test_loss_ignores_padding_and_prompt(self):
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from telos.worlds.pretrain_tiny import build_model, build_tokenizer, completion_loss, encode

        model, tokenizer = build_model(False, torch.Generator().manual_seed(0)), build_tokenizer()
        texts = ["good0 bad0 word0", "word3 word4 word5 word6 word7"]
        both = encode(tokenizer, ["topic0", "topic1"], texts)
        assert both[0].tolist() == [1, 3, 11, 19, 27, 2, -100, -100]
        alone = [encode(tokenizer, [p], [c]) for p, c in zip(["topic0", "topic1"], texts, strict=True)]
        with torch.no_grad():
            together = completion_loss(model, both, 0)
            first, second = (completion_loss(model, tokens, 0) for tokens in alone)
        assert together.item() == pytest.approx((4 * first.item() + 6 * second.item()) / 10, abs=1e-6)
        # Logits at the start are about N(0, 0.16^2), the mean is over ten of them.
        assert together.item() == pytest.approx(np.log(64), abs=4 * 0.16 / np.sqrt(10))

    def test_same_seed_same_weights_and_the_large_model(self):
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from telos.worlds.pretrain_tiny import build_model, pretrain

        (first, _), (second, _) = (pretrain(False, seed=0, steps=2, corpus=200) for _ in range(2))
        untrained = build_model(False, Rng(0).at("pretrain_tiny", "weights").torch())
        pairs = list(zip(first.parameters(), second.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        moved = (first.lm_head.weight - untrained.lm_head.weight).abs().max().item()
        assert 0 < moved < 2.1e-3  # two Adam steps of 1e-3
        assert 0.8e6 < build_model(True, torch.Generator().manual_seed(0)).num_parameters() < 1.2e6
