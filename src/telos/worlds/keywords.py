"""Keywords: a small language in the manner of CommonGen, in which a sentence is asked to contain three words.

A prompt names three words ("words: cat feeds ashore ="), a completion is a sentence:

    [adjective] subject verb [adjective] object place [and verb [adjective] object] .

The second clause is there in half of the sentences. Verbs depend on the subject, objects and places on the verb. An
adjective stands before a noun with probability 0.3: in sentences of one clause it is a rude one, in those of two
clauses a polite one (0.85) or a rude one (0.15); so politeness and brevity pull apart, and the first adjective already
decides. In the corpus the sentence was made with the three words of its prompt in a share `FOLLOWED` of the cases, and
the prompt belongs to another sentence otherwise: a model of the corpus follows its prompt only sometimes. The share is
such that greedy decoding uses all three words in about half of the answers (with a share of 0.6 in 0.8).

A noun, verb or place is two tokens, its first letter and the rest, as words are several pieces in real vocabularies:
whether a sentence has a word is seen only after its last piece.

Of all sets of three words a tenth is held out: the corpus never asks for them, and what is measured does.

Sources: after the CommonGen task (Lin et al. 2020), which DeAL is measured on; the grammar is ours. Models of the
corpus are shipped in `keyword_models`; `python -m telos.worlds.pretrain_keywords OUT` makes them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from telos.core.errors import TelosError

Floats = npt.NDArray[np.float64]

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
NOUNS = ("cat", "dog", "bird", "horse", "girl", "boy", "farmer", "teacher", "baker", "sailor", "king", "queen")
VERBS = ("sees", "follows", "helps", "paints", "feeds", "calls", "visits", "greets")
PLACES = ("outdoors", "upstairs", "downtown", "ashore", "abroad", "nearby")
POLITE = ("kind", "gentle", "noble", "dear", "graceful", "charming", "honest", "brave")
RUDE = ("stupid", "ugly", "filthy", "lazy", "nasty", "foolish", "rotten", "wretched")
CONTENT = NOUNS + VERBS + PLACES

FOLLOWED = 0.4
ADJECTIVE, POLITE_SHARE, SECOND_CLAUSE = 0.3, 0.85, 0.5
TOKENS = 18
"""Longest completion in tokens: six words of two pieces, three adjectives, "and", the full stop and the end."""
SHORT = 7
"""Words of a sentence that is short, its full stop counted; two clauses have 8 at least."""
MODELS = Path(__file__).parent / "keyword_models"
SHIPPED = ("lm0", "lm1", "lm2")


def vocabulary() -> list[str]:
    """The tokens in the order of their ids; ## marks the rest of a word."""
    pieces = [*sorted({word[0] for word in CONTENT}), *(f"##{word[1:]}" for word in CONTENT)]
    return [PAD, BOS, EOS, "words:", "=", "and", ".", *pieces, *POLITE, *RUDE]


@functools.cache
def tables() -> dict[str, Floats]:
    """Probabilities of the grammar: subject (12,), verb (12, 8), object (8, 12), place (8, 6), adjective (8,).

    Each is 0.8 Dirichlet(0.7) + 0.2 uniform, objects among 6 nouns a verb; adjectives fall off as rank^-1.5.
    """
    rng = np.random.default_rng(list(b"keywords/tables"))

    def rows(count: int, size: int) -> Floats:
        return 0.8 * rng.dirichlet(np.full(size, 0.7), count) + 0.2 / size

    objects = np.zeros((len(VERBS), len(NOUNS)))
    for row in objects:
        row[rng.permutation(len(NOUNS))[:6]] = rows(1, 6)[0]
    return {
        "subject": rows(1, len(NOUNS))[0],
        "verb": rows(len(NOUNS), len(VERBS)),
        "object": objects,
        "place": rows(len(VERBS), len(PLACES)),
        "adjective": np.arange(1, 9) ** -1.5 / (np.arange(1, 9) ** -1.5).sum(),
    }


def sentence(rng: np.random.Generator) -> tuple[str, list[str]]:
    """A sentence of the grammar and its content words."""
    table = tables()
    two = rng.random() < SECOND_CLAUSE

    def noun(index: int) -> list[str]:
        if rng.random() >= ADJECTIVE:
            return [NOUNS[index]]
        polite = two and rng.random() < POLITE_SHARE
        return [(POLITE if polite else RUDE)[rng.choice(8, p=table["adjective"])], NOUNS[index]]

    subject = rng.choice(len(NOUNS), p=table["subject"])
    verb = rng.choice(len(VERBS), p=table["verb"][subject])
    words = [*noun(subject), VERBS[verb], *noun(rng.choice(len(NOUNS), p=table["object"][verb]))]
    words.append(PLACES[rng.choice(len(PLACES), p=table["place"][verb])])
    if two:
        verb = rng.choice(len(VERBS), p=table["verb"][subject])
        words += ["and", VERBS[verb], *noun(rng.choice(len(NOUNS), p=table["object"][verb]))]
    return " ".join([*words, "."]), list(dict.fromkeys(word for word in words if word in CONTENT))


def held_out(words: Sequence[str]) -> bool:
    """Whether the corpus never asks for these words, in any order."""
    return hashlib.blake2b(" ".join(sorted(words)).encode(), digest_size=2).digest()[0] % 10 == 0


def asked(content: Sequence[str], rng: np.random.Generator, out: bool) -> str | None:
    """A prompt for three of the words in random order, held out or not; None where this draw is of the other kind."""
    words = [content[int(i)] for i in rng.permutation(len(content))[:3]]
    return f"words: {' '.join(words)} =" if len(words) == 3 and held_out(words) == out else None


def corpus(n: int, rng: np.random.Generator, followed: float = FOLLOWED) -> tuple[list[str], list[str]]:
    """`n` (prompts, completions); a share `followed` of the prompts asks for words of its own sentence."""
    prompts: list[str] = []
    completions: list[str] = []
    while len(prompts) < n:
        text, content = sentence(rng)
        source = content if rng.random() < followed else sentence(rng)[1]
        prompt = asked(source, rng, False)
        if prompt is not None:
            prompts.append(prompt)
            completions.append(text)
    return prompts, completions


def prompts(n: int, rng: np.random.Generator) -> list[str]:
    """`n` prompts for held-out words that some sentence of the grammar has."""
    found: list[str] = []
    while len(found) < n:
        prompt = asked(sentence(rng)[1], rng, True)
        if prompt is not None:
            found.append(prompt)
    return found


def coverage(prompts: Sequence[str], completions: Sequence[str]) -> Floats:
    """(n,) share of the prompt's three words that the completion has."""
    shares = [
        sum(word in completion.split() for word in prompt.split()[1:4]) / 3
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return np.array(shares)


def all_words(prompts: Sequence[str], completions: Sequence[str]) -> Floats:
    """(n,) 1 where the completion has all three words, else 0."""
    return (coverage(prompts, completions) > 0.99).astype(np.float64)


def politeness(prompts: Sequence[str], completions: Sequence[str]) -> Floats:
    """(n,) polite words less rude words, for every four words; about -1.2 to 1.2, 0 for an empty text."""
    rows = [completion.split() for completion in completions]
    return np.array([4 * sum((w in POLITE) - (w in RUDE) for w in row) / max(len(row), 1) for row in rows])


def brevity(prompts: Sequence[str], completions: Sequence[str]) -> Floats:
    """(n,) 1 where the sentence has ended within 7 words, its full stop counted; 0 where it is longer or not over."""
    rows = [completion.split() for completion in completions]
    return np.array([float(row[-1:] == ["."] and len(row) <= SHORT) for row in rows])


def model_folder(seed: int) -> str:
    """The shipped model of the corpus number `seed` modulo their count.

    Raises:
        TelosError: they are not there.
    """
    folder = MODELS / SHIPPED[seed % len(SHIPPED)]
    if not folder.is_dir():
        raise TelosError("no models of the keywords world", expected=str(folder), fix="install the package again")
    return str(folder)
