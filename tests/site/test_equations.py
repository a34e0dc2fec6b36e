"""LaTeX to MathML: what the converter alone gets wrong, and every equation of the catalogue."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET

import pytest

from telos.core.errors import TelosError
from telos.site.content import Library
from telos.site.equations import letter, mathml

EQUATIONS = [(slug, latex) for slug in Library().rows for latex in Library(results={}).page(slug)["equations"]]


def parse(latex: str) -> ET.Element:
    root = ET.fromstring(str(mathml(latex)))
    assert root.tag == "math" and root.get("display") == "block"
    return root


def texts(latex: str, tag: str) -> list[str]:
    return [each.text or "" for each in parse(latex).iter(tag)]


def test_letters_of_other_alphabets_are_their_own_characters():
    assert texts(r"\mathcal{D}", "mi") == ["𝒟"]
    # Unicode put some letters elsewhere, before it had the alphabets.
    assert texts(r"\mathcal{B}", "mi") == ["ℬ"] and texts(r"\mathcal{L}", "mi") == ["ℒ"]
    assert texts(r"\mathbb{E}", "mi") == ["𝔼"] and texts(r"\mathbb{R}", "mi") == ["ℝ"]
    assert texts(r"\mathbf{x}", "mi") == ["𝐱"] and texts(r"\mathfrak{g}", "mi") == ["𝔤"]
    assert texts(r"\mathbf{1}", "mn") == ["𝟏"] or texts(r"\mathbf{1}", "mi") == ["𝟏"]
    assert letter("DOUBLE-STRUCK", "+") == "+" and letter("SCRIPT", "é") == "é"
    assert all("mathvariant" not in each.attrib for each in parse(r"\mathcal{D}+\mathbb{E}+\mathbf{x}").iter())


def test_a_mean_is_a_line_that_the_style_sheet_draws():
    root = parse(r"\overline{ab}")
    means = [each for each in root.iter() if each.get("class") == "mean"]
    assert [each.tag for each in means] == ["mrow"] and "".join(means[0].itertext()) == "ab"
    assert not list(root.iter("mover"))
    # Other accents stay accents.
    assert len([*parse(r"\hat f").iter("mover")]) == 1 and "mean" not in str(mathml(r"\hat f"))


def test_upright_letters_are_joined_to_words():
    assert texts(r"\mathrm{KL}(p)", "mi") == ["KL", "p"]
    assert texts(r"\pi_{\mathrm{ref}}", "mi") == ["π", "ref"]
    assert texts(r"\operatorname{softmax} x", "mi")[0] == "softmax"
    # Letters of variables stay apart, and a single upright letter keeps its mark.
    assert texts("ab", "mi") == ["a", "b"]
    single = parse(r"\mathrm{d+K}").findall(".//mi")
    assert [(each.text, each.get("mathvariant")) for each in single] == [("d", "normal"), ("K", "normal")]
    assert "mathvariant" not in str(mathml(r"\mathrm{KL}"))


def spaces(latex: str) -> list[list[str]]:
    root = parse(latex)
    return [
        [each.tag if each.tag == "mspace" else "".join(each.itertext()) for each in row] for row in root.iter("mrow")
    ]


def test_thin_spaces_stand_around_names_of_functions():
    assert ["log", "mspace", "x"] in spaces(r"\log x")
    assert ["2", "mspace", "log", "mspace", "x"] in spaces(r"2\log x")
    # None beside brackets and signs.
    assert "mspace" not in spaces(r"\log(x)")[0] and "mspace" not in spaces(r"a+\log(x)")[0]
    assert "mspace" not in spaces("ab")[0]
    widths = {each.get("width") for each in parse(r"2\log x").iter("mspace")}
    assert widths == {"0.167em"}


def test_commands_that_the_converter_has_not():
    assert "arg" in texts(r"\arg\max_a Q", "mi")
    assert "".join(parse(r"\big( a \Bigr)").itertext()).replace(" ", "") == "(a)"
    assert "".join(parse(r"\Biggl[ a \biggr]").itertext()).replace(" ", "") == "[a]"


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"a + \frobnicate{b}"])
def test_an_unknown_command_is_an_error(latex: str):
    with pytest.raises(TelosError, match="cannot be converted") as error:
        mathml(latex)
    assert latex in str(error.value)


@pytest.mark.parametrize("latex", [r"\left( a", "a_b_c", r"\begin{cases} a", r"\text{a & b}", r"\text{<b>}"])
def test_broken_latex_is_an_error_of_ours(latex: str):
    with pytest.raises(TelosError, match="cannot be converted") as error:
        mathml(latex)
    assert latex in str(error.value)


def test_no_markup_comes_out_of_an_equation():
    made = str(mathml(r"a<script>b"))
    assert "&lt;" in made and "&gt;" in made and "<script" not in made
    for latex in (r"\text{<script>x</script>}", r"\operatorname{<script>}", r"\text{<b onclick=1>x</b>}"):
        with contextlib.suppress(TelosError):
            assert not {each.tag for each in parse(latex).iter()} & {"script", "b"}
    linked = parse(r"\style{color:red}{x}\href{javascript:alert(1)}{x}")
    attributes = {name for each in linked.iter() for name in each.attrib}
    assert not attributes & {"style", "href"}


def test_every_equation_of_the_catalogue():
    assert len(EQUATIONS) > 30
    for slug, latex in EQUATIONS:
        root = parse(latex)
        for each in root.iter():
            assert "style" not in each.attrib and not any(name.startswith("on") for name in each.attrib), slug
            assert each.tag.startswith("m"), (slug, each.tag)
            alphabet = each.get("mathvariant")
            assert alphabet is None or (alphabet == "normal" and len(each.text or "") == 1), (slug, latex)
        assert not set("".join(root.itertext())) & set("\\{}$") or r"\{" in latex, (slug, latex)
        assert "".join(root.itertext()).strip()
