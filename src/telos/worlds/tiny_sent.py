"""TinySent: a language of 36 words in which the gold reward, the corpus likelihood and the entropy are known exactly.

A prompt is one topic word ("topic3"), a completion 8 to 15 words joined by single spaces. The world works on text, so
that it goes through the pipeline of a user's own data; the tokenizer adds <bos> in front of the prompt and the
pipeline closes the completion with <eos>.

The corpus: topic uniform; length L uniform on 8..15; the class of a word repeats that of the word before with
probability 0.35, and is drawn otherwise (positive 0.15, negative 0.15, neutral 0.70); the word within its class comes
from 0.9 Dirichlet(0.5) + 0.1 uniform, drawn once for each topic and class. The class chain is stationary, therefore

    E[gold] = E[L] (p_pos - p_neg) - (E[L] - 1) sum_c p_c (0.35 + 0.65 p_c) E_topic sum_w q(w | topic, c)^2
    H       = log 8 + H(p) + (E[L] - 1) H(class | class before) + E[L] sum_c p_c E_topic H(q(. | topic, c))

Source: the testbed of the preference family, first used for DPO; its variants (tilted corpora, word styles) serve
SALSA, RSO, INPO and Nash-MD.
"""

from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import entr, expit

from telos.core.errors import TelosError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
TOPICS = tuple(f"topic{i}" for i in range(8))
POSITIVE = tuple(f"good{i}" for i in range(8))
NEGATIVE = tuple(f"bad{i}" for i in range(8))
NEUTRAL = tuple(f"word{i}" for i in range(20))
SPARE = tuple(f"<spare{i}>" for i in range(17))
WORDS = POSITIVE + NEGATIVE + NEUTRAL

CONTEXT = 24  # tokens: <bos>, the topic and at most 22 new ones
LENGTHS = range(8, 16)
CLASS_REPEAT = 0.35
STYLES = 3

_class_of_word = np.repeat([0, 1, 2], [len(POSITIVE), len(NEGATIVE), len(NEUTRAL)])
_MEAN_LENGTH = float(np.mean(LENGTHS))


def vocabulary() -> list[str]:
    """The 64 tokens in the order of their ids."""
    return [PAD, BOS, EOS, *TOPICS, *WORDS, *SPARE]


def prompts(n: int, rng: np.random.Generator) -> list[str]:
    """`n` prompts, topics uniform."""
    return [TOPICS[topic] for topic in rng.integers(len(TOPICS), size=n)]


def sentences(
    n: int, rng: np.random.Generator, *, positive_odds: float = 0.0, style: int | None = None
) -> tuple[list[str], list[str]]:
    """`n` sentences of the corpus as (prompts, completions).

    positive_odds: x multiplies the probability of a drawn positive class by e^x and that of a negative one by e^-x
        (their odds by e^2x); their sum stays 0.30.
    style: 0, 1 or 2 keeps only the neutral words whose number is `style` modulo 3; None keeps all.
    """
    class_probs, word_probs = class_probabilities(positive_odds), word_probabilities(style)
    cumulative = word_probs.cumsum(axis=-1)
    cumulative /= cumulative[..., -1:]
    topics = rng.integers(len(TOPICS), size=n)
    lengths = rng.integers(LENGTHS.start, LENGTHS.stop, size=n)
    words = np.empty((n, LENGTHS.stop - 1), dtype=np.int64)
    classes = rng.choice(3, size=n, p=class_probs)
    for position in range(words.shape[1]):
        if position > 0:
            repeats = rng.random(n) < CLASS_REPEAT
            classes = np.where(repeats, classes, rng.choice(3, size=n, p=class_probs))
        words[:, position] = (rng.random((n, 1)) >= cumulative[topics, classes]).sum(axis=-1)
    completions = [" ".join(WORDS[w] for w in row[:length]) for row, length in zip(words, lengths, strict=True)]
    return [TOPICS[topic] for topic in topics], completions


def class_probabilities(positive_odds: float = 0.0) -> Floats:
    """(3,): positive, negative, neutral."""
    tilt = np.tanh(positive_odds)
    return np.array([0.15 * (1 + tilt), 0.15 * (1 - tilt), 0.70])


def word_probabilities(style: int | None = None) -> Floats:
    """(8 topics, 3 classes, 36 words): each row sums to one and is zero outside of its class."""
    if style is not None and style not in range(STYLES):
        raise TelosError("style of TinySent", expected="0, 1, 2 or None", got=repr(style), fix="pass one of these")
    # A generator of its own, by name: the shipped model was trained on this very draw.
    rng = np.random.default_rng(list(b"tiny_sent/words"))
    probs = np.zeros((len(TOPICS), 3, len(WORDS)))
    for topic in range(len(TOPICS)):
        for kind in range(3):
            members = np.flatnonzero(kind == _class_of_word)
            drawn = rng.dirichlet(np.full(len(members), 0.5))
            probs[topic, kind, members] = 0.9 * drawn + 0.1 / len(members)
    if style is not None:
        number = np.arange(len(WORDS)) - len(POSITIVE) - len(NEGATIVE)
        probs[:, 2, number % STYLES != style] = 0.0
    return probs / probs.sum(axis=-1, keepdims=True)


def mean_length() -> float:
    """Expected number of words of a completion, exact."""
    return _MEAN_LENGTH


def mean_gold(positive_odds: float = 0.0, style: int | None = None) -> float:
    """Expected gold reward of the corpus, exact (first formula of the module)."""
    p, q = class_probabilities(positive_odds), word_probabilities(style)
    same_class = p * (CLASS_REPEAT + (1 - CLASS_REPEAT) * p)
    same_word = (q**2).sum(axis=-1).mean(axis=0)
    return float(_MEAN_LENGTH * (p[0] - p[1]) - (_MEAN_LENGTH - 1) * (same_class @ same_word))


def entropy(positive_odds: float = 0.0, style: int | None = None) -> float:
    """Entropy in nats of a completion with its end, given the prompt, exact (second formula of the module).

    Divided by `mean_length() + 1` it is the lowest cross-entropy per token that any model reaches.
    """
    p, q = class_probabilities(positive_odds), word_probabilities(style)
    transition = CLASS_REPEAT * np.eye(3) + (1 - CLASS_REPEAT) * p
    of_classes = entr(p).sum() + (_MEAN_LENGTH - 1) * (p @ entr(transition).sum(axis=-1))
    of_words = _MEAN_LENGTH * (p @ entr(q).sum(axis=-1).mean(axis=0))
    return float(np.log(len(LENGTHS)) + of_classes + of_words)


def counts(completions: Sequence[str]) -> Ints:
    """(n, 3): positive words, negative words, words equal to the word just before. Unknown words are neutral."""
    rows = np.zeros((len(completions), 3), dtype=np.int64)
    for row, completion in zip(rows, completions, strict=True):
        words = completion.split()
        row[0] = sum(word in _POSITIVE for word in words)
        row[1] = sum(word in _NEGATIVE for word in words)
        row[2] = sum(before == word for before, word in pairwise(words))
    return rows


def gold(prompts: Sequence[str], completions: Sequence[str]) -> Floats:
    """(n,) gold reward: positive words minus negative words minus immediate repetitions. The prompt has no part."""
    _same_length(prompts, completions)
    positive, negative, repeated = counts(completions).T
    return (positive - negative - repeated).astype(np.float64)


def styles(completions: Sequence[str]) -> Ints:
    """(n,): the most frequent style (number modulo 3) of the neutral words, -1 where it is not unique."""
    tallies = np.zeros((len(completions), STYLES), dtype=np.int64)
    for tally, completion in zip(tallies, completions, strict=True):
        for word in completion.split():
            if word in _STYLE:
                tally[_STYLE[word]] += 1
    unique = (tallies == tallies.max(axis=1, keepdims=True)).sum(axis=1) == 1
    return np.where(unique, tallies.argmax(axis=1), -1)


def label(
    gold_a: npt.ArrayLike, gold_b: npt.ArrayLike, rng: np.random.Generator, noiseless: bool = False
) -> npt.NDArray[np.bool_]:
    """True where a is preferred to b: Bernoulli(sigmoid(gold_a - gold_b)), of the shape of the gap.

    `noiseless` prefers the higher gold; equal golds are then tossed with a fair coin.
    """
    gap = np.asarray(gold_a, dtype=np.float64) - np.asarray(gold_b, dtype=np.float64)
    if not np.isfinite(gap).all():
        raise TelosError("gold rewards of a pair", expected="finite numbers", got=str(gap), fix="score them anew")
    probability = np.heaviside(gap, 0.5) if noiseless else expit(gap)
    return np.asarray(rng.random(gap.shape) < probability)


def preference_rows(
    prompts: Sequence[str], samples: Sequence[Sequence[str]], rng: np.random.Generator, noiseless: bool = False
) -> list[dict[str, str]]:
    """Rows of prompt, chosen, rejected: all pairs of `samples[i]`, completions of `prompts[i]`, whose golds differ."""
    _same_length(prompts, samples)
    pairs: list[tuple[str, str, str]] = []
    gaps: list[float] = []
    for prompt, completions in zip(prompts, samples, strict=True):
        golds = gold([prompt] * len(completions), completions)
        for a, b in combinations(range(len(completions)), 2):
            if golds[a] != golds[b]:
                pairs.append((prompt, completions[a], completions[b]))
                gaps.append(golds[a] - golds[b])
    a_preferred = label(gaps, 0.0, rng, noiseless)
    return [
        {"prompt": prompt, "chosen": a if first else b, "rejected": b if first else a}
        for (prompt, a, b), first in zip(pairs, a_preferred, strict=True)
    ]


def _same_length(prompts: Sequence[str], completions: Sequence[object]) -> None:
    if len(prompts) != len(completions):
        raise TelosError(
            "prompts and completions of TinySent",
            expected=f"as many completions as prompts ({len(prompts)})",
            got=str(len(completions)),
            fix="repeat a prompt for each of its completions",
        )


_POSITIVE, _NEGATIVE = frozenset(POSITIVE), frozenset(NEGATIVE)
_STYLE = {word: number % STYLES for number, word in enumerate(NEUTRAL)}
