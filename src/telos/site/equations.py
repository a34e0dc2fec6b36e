"""LaTeX to MathML Core, which browsers lay out themselves: nothing is fetched and screen readers can read it."""

from __future__ import annotations

import functools
import re
import unicodedata
import xml.etree.ElementTree as ET

from latex2mathml.converter import convert
from markupsafe import Markup

from telos.core.errors import TelosError

ALPHABETS = {
    "script": "SCRIPT", "double-struck": "DOUBLE-STRUCK", "bold": "BOLD", "bold-italic": "BOLD ITALIC",
    "fraktur": "FRAKTUR",
}  # fmt: skip
"""Values of mathvariant that MathML Core has no more, and how Unicode calls the letters that replace them."""
RENAMED = {
    r"\\arg(?![a-zA-Z])": r"\\operatorname{arg}", r"\\[bB]igg?[lrm]?(?![a-zA-Z])": "",
    "<": r"\\lt ", ">": r"\\gt ",
}  # fmt: skip
"""What the converter does not know or, in texts, does not escape, and what stands for it."""
OVERLINE = "\u2015"
TOKENS = {"mi", "mn", "mo", "mtext"}


@functools.cache
def mathml(latex: str) -> Markup:
    """An equation as a <math display="block"> element.

    Raises:
        TelosError: a command that the converter does not know, or what is no LaTeX.
    """
    given = latex
    for command, known in RENAMED.items():
        latex = re.sub(command, known, latex)
    try:
        tree = ET.fromstring(re.sub(r' xmlns="[^"]+"', "", convert(latex, display="block")))
    except Exception as error:  # the converter's own have nothing in common
        raise TelosError(
            "an equation cannot be converted", expected="LaTeX that latex2mathml knows", got=given
        ) from error
    for element in tree.iter():
        adapt(element)
    for parent in tree.iter():
        join(parent)
        space(parent)
    if "\\" in "".join(tree.itertext()):
        raise TelosError("an equation cannot be converted", expected="LaTeX that latex2mathml knows", got=given)
    return Markup(ET.tostring(tree, encoding="unicode", short_empty_elements=False))


def adapt(element: ET.Element) -> None:
    """Letters of other alphabets by their own code points, names of functions as names, a mean's line as a class.

    No style attributes, which the page's policy refuses, and no links.
    """
    for name in ("style", "href"):
        element.attrib.pop(name, None)
    if element.tag == "mover" and element[1].text == OVERLINE:
        # Fonts without a stretchy overline would draw a dash: the style sheet draws this line.
        element.tag = "mrow"
        element.set("class", "mean")
        element.remove(element[1])
    if element.tag not in TOKENS:
        return
    if element.tag == "mo" and (element.text or "").isalpha():
        element.tag = "mi"
    alphabet = ALPHABETS.get(element.get("mathvariant", ""))
    if alphabet is not None:
        del element.attrib["mathvariant"]
        element.text = "".join(letter(alphabet, character) for character in element.text or "")


def letter(alphabet: str, character: str) -> str:
    """A Latin letter or digit of an alphabet, or the character itself where Unicode has none."""
    name = unicodedata.name(character, "").split(" ")[-1]
    kind = {"Lu": "CAPITAL", "Ll": "SMALL", "Nd": "DIGIT"}.get(unicodedata.category(character), "")
    for candidate in (f"MATHEMATICAL {alphabet} {kind} {name}", f"{alphabet} {kind} {name}"):
        try:
            return unicodedata.lookup(candidate)
        except KeyError:
            continue
    return character


def join(parent: ET.Element) -> None:
    """Upright letters that stand side by side are one word: KL, ref."""
    before: ET.Element | None = None
    for child in list(parent):
        upright = child.tag == "mi" and child.get("mathvariant") == "normal"
        if upright and before is not None:
            before.text = (before.text or "") + (child.text or "")
            parent.remove(child)
        else:
            before = child if upright else None
    for child in parent:
        # A word is upright anyway, and MathML Core knows mathvariant for single letters only.
        if child.tag == "mi" and len(child.text or "") > 1:
            child.attrib.pop("mathvariant", None)


def space(parent: ET.Element) -> None:
    """Thin spaces around the name of a function: none beside brackets and operators."""
    if parent.tag not in ("mrow", "math", "mtd", "mstyle"):
        return
    children = list(parent)
    for index in reversed(range(len(children) - 1)):
        here, following = children[index], children[index + 1]
        if (named(here) or named(following)) and not {here.tag, following.tag} & {"mspace", "mo"}:
            parent.insert(index + 1, ET.Element("mspace", {"width": "0.167em"}))


def named(element: ET.Element) -> bool:
    """Whether this is a word such as log, with its indices."""
    word = element[0] if element.tag in ("msub", "msup", "msubsup", "munder") else element
    return word.tag == "mi" and len(word.text or "") > 1 and (word.text or "").isalpha()
