"""Purposes by name: built-in ones, a saved reward model, a function in a file of the user's, weighted sums of these."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.purposes.answers import Answer
from telos.purposes.keywords import AllKeywords, Keywords
from telos.purposes.lengths import Length, MaxWords
from telos.purposes.oracles import Oracle
from telos.purposes.patterns import Match, Regex
from telos.purposes.sentiment import Sentiment
from telos.purposes.user import user_function
from telos.purposes.weighted import Weighted

BUILT_IN: dict[str, Callable[[str], Any]] = {
    "length": Length.parse,
    "max_words": MaxWords.parse,
    "keywords": Keywords.parse,
    "all_keywords": AllKeywords.parse,
    "sentiment": Sentiment.parse,
    "regex": Regex.parse,
    "match": Match.parse,
    "answer": Answer.parse,
}
"""Name -> maker from the text after the colon (empty without one)."""

FORMS = f"{', '.join(BUILT_IN)}, the folder of a saved reward model, file.py:function, or 0.7*A + 0.3*B"
WEIGHT = r"\d*\.?\d+(?:[eE][+-]?\d+)?\s*\*"
HASH = re.compile(r"\.py:\w+ sha256:[0-9a-f]{64}")


def resolve(purpose: str | Path | Mapping[Any, float] | Sequence[Any] | Any) -> Any:
    """The purpose that is named; it has an attribute `origin`, the text that names it.

    Args:
        purpose: a text in one of the forms of `telos.purposes`; a mapping {purpose: weight}, or a sequence of purposes
            (weight 1 each) or of (purpose, weight) pairs, where each purpose is again any of these; a callable, which
            is returned as it is. A user's file is imported as a module of its own; what it imports must be installed
            or on the path.

    Raises:
        TelosError: an unknown name, no such folder, file or function; a wrong option; a product that does not score.
    """
    if isinstance(purpose, str | Path):
        return from_text(str(purpose))
    if isinstance(purpose, Mapping):
        return Weighted(tuple((resolve(name), weight) for name, weight in purpose.items()))
    if isinstance(purpose, Sequence):
        pairs = [item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0) for item in purpose]
        return Weighted(tuple((resolve(name), weight) for name, weight in pairs))
    if not callable(purpose) and not isinstance(purpose, Oracle):
        raise TelosError("not a purpose", expected=f"a function, an oracle, or {FORMS}", got=repr(purpose))
    return purpose


def from_text(text: str) -> Any:
    """The purpose of a text."""
    if re.match(rf"\s*[+-]?\s*{WEIGHT}", text):
        return weighted(text)
    name, colon, rest = text.partition(":")
    folder = Path(text).expanduser()
    if folder.is_dir():
        return scorer(folder)
    if name.strip() in BUILT_IN:
        return BUILT_IN[name.strip()](rest)
    file, colon, function = text.rpartition(":")
    if colon and file.endswith(".py") and function:
        return user_function(Path(file).expanduser(), function)
    close = difflib.get_close_matches(name.strip(), BUILT_IN, n=1)
    fix = f"did you mean {close[0]}?" if close else "check the name or the path"
    if " + " in text:
        fix = "give every purpose of a sum its weight: 0.5*A + 0.5*B"
    raise TelosError(f"no such purpose: {text}", expected=FORMS, fix=fix)


def weighted(text: str) -> Weighted:
    """The sum in a text; between the terms stands + or - with spaces around it."""
    parts = re.split(rf"\s+([+-])\s+(?={WEIGHT})", text.strip())
    terms: list[tuple[Any, float]] = []
    for sign, part in zip(["+", *parts[1::2]], parts[::2], strict=True):
        number, _, name = part.partition("*")
        weight = float(number.replace(" ", ""))
        terms.append((from_text(name.strip()), -weight if sign == "-" else weight))
    return Weighted(tuple(terms))


def named_again(origin: str) -> bool:
    """Whether a recorded purpose must be named again to be resolved: it holds a function in a file, by its hash."""
    return HASH.search(origin) is not None


def again(origin: str) -> Any:
    """The purpose that a saved product recorded; a stand-in for a function in a file, which only its owner can name."""
    return NamedPurpose(origin) if named_again(origin) else resolve(origin)


class NamedPurpose:
    """The place of a function in a loaded product: only its name was saved."""

    def __init__(self, origin: str):
        self.origin = origin

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Any:
        raise TelosError(
            "this product needs its purpose again",
            expected=self.origin,
            fix="product.purpose = telos.purposes.resolve('file.py:function')",
        )


def scorer(folder: Path) -> Any:
    """The saved Scorer in `folder`."""
    from telos.core.products import Scorer, load_product

    product = load_product(folder)
    if not isinstance(product, Scorer):
        raise TelosError(f"{folder} does not score", expected="a Scorer", got=type(product).__name__)
    vars(product)["origin"] = str(folder.absolute())
    return product
