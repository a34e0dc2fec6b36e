"""Stories: the bundled 264 k-parameter model of children's stories, scored by a sentiment lexicon.

A prompt is the beginning of a story, a completion its next `TOKENS` tokens. The gold reward is VADER's compound score
of the completion, in [-1, 1]. Samples of the model itself (seed 0, 32 tokens, 240 texts): mean 0.23, standard
deviation 0.39, deciles 0.1 / 0.5 / 0.9 at -0.30 / 0.21 / 0.74, a quarter exactly 0: a wide spread with room above.

Sources: the tinystories_260k checkpoint of karpathy/llama2.c (MIT); Hutto and Gilbert 2014 for the lexicon.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from telos.lm.model import STORIES as MODEL  # noqa: F401
from telos.purposes import resolve

TOKENS = 32
"""Length of a completion in tokens; the model seldom ends a story within it."""

NAMES = ("Lily", "Tom", "Sara", "Ben", "Mia", "Max", "Anna", "Tim", "Sue", "Jack")
OPENINGS = (
    "Once upon a time, there was a child named {}. One day, {}",
    "{} went to the park. There,",
    "One day, {} saw a dog. The dog",
    "{} was at home with Mom. Then",
    "{} had a toy. But",
    "In the big forest, {} found a",
    "{} and a friend sat under a tree. They",
    "It was late. {} looked out of the window and",
    "{} heard a noise in the garden. It was",
)
HELD_OUT = ("{} walked to the river. There,", "One day, {} met a cat. The cat", "{} opened the box. Inside,")


def prompts(n: int, rng: np.random.Generator, held_out: bool = False) -> list[str]:
    """`n` beginnings, an opening and a name drawn uniformly; `held_out` takes the openings kept for measuring."""
    openings = HELD_OUT if held_out else OPENINGS
    pairs = zip(rng.integers(len(openings), size=n), rng.integers(len(NAMES), size=n), strict=True)
    return [openings[opening].replace("{}", NAMES[name]) for opening, name in pairs]


def sentiment(prompts: Sequence[str], completions: Sequence[str]) -> npt.NDArray[np.float64]:
    """(n,) gold reward in [-1, 1]: the compound score of each completion; the prompt has no part.

    Raises:
        TelosError: vaderSentiment is not installed.
    """
    return np.asarray(resolve("sentiment")(prompts, completions), dtype=np.float64)
