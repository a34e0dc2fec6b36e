"""Purposes: what scores completions. By name on the command line and as objects in Python; higher is better.

| name                  | score of a completion                                              | range            |
|-----------------------|--------------------------------------------------------------------|------------------|
| length                | words; `length:limit=40` counts no more than 40                    | 0 and up         |
| length:target=20      | minus the distance to 20 words; `,limit=10` at worst -10           | at most 0        |
| max_words:20          | 1 within 20 words, else minus the words in excess                  | 1, or at most -1 |
| keywords:cat,dog      | the share of these words that occur, in any simple inflection      | 0 to 1           |
| all_keywords:cat,dog  | 1 if all of them occur, else 0                                     | 0 or 1           |
| sentiment             | VADER's compound score, from negative to positive (English)        | -1 to 1          |
| regex:PATTERN         | 1 if the pattern is found, else 0                                  | 0 or 1           |
| match:PATTERN         | 1 if the pattern covers the whole completion, else 0               | 0 or 1           |
| answer                | 1 if the last number is that of the data's column `answer`, else 0 | 0 or 1           |
| FOLDER                | the reward model that was saved there                              | any              |
| FILE.py:FUNCTION      | your own function, with TRL's signature (see `telos.purposes.user`)| any              |
| 0.7*A + 0.3*B         | a weighted sum of any of these                                     | any              |

`resolve` turns a name into an object, `score` asks any purpose, in batches, with a cache and checked answers.
"""

from telos.purposes.answers import Answer
from telos.purposes.keywords import AllKeywords, Keywords
from telos.purposes.lengths import Length, MaxWords
from telos.purposes.names import BUILT_IN, again, named_again, resolve
from telos.purposes.patterns import Match, Regex
from telos.purposes.scoring import score
from telos.purposes.sentiment import Sentiment
from telos.purposes.user import UserPurpose
from telos.purposes.weighted import Weighted

__all__ = [
    "BUILT_IN",
    "AllKeywords",
    "Answer",
    "Keywords",
    "Length",
    "Match",
    "MaxWords",
    "Regex",
    "Sentiment",
    "UserPurpose",
    "Weighted",
    "again",
    "named_again",
    "resolve",
    "score",
]
