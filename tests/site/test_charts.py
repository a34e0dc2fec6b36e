"""Positions against closed forms, escaping, degenerate results, and the size and form of every recorded result."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from telos.judge.results import read_results
from telos.judge.stats import paired_t
from telos.site import charts

RESULTS = read_results()
each_result = pytest.mark.parametrize("result", RESULTS.values(), ids=[".".join(key) for key in RESULTS])

NASTY = "<b a='1'>\"&amp; & co</b>"


def arm(label: str, values: list[float], interval: tuple[float, float] | None, **more: Any) -> dict[str, Any]:
    mean = sum(values) / len(values)
    found = {"estimate": mean, "low": interval[0], "high": interval[1]} if interval else None
    runs = [{"seed": i, "measures": {"score": value}, "points": []} for i, value in enumerate(values)]
    return {"label": label, "group": "", "runs": runs, "summary": {"score": {"mean": mean, "interval": found}}, **more}


def make_result(arms: dict[str, dict[str, Any]], parts: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    seeds = list(range(len(next(iter(arms.values()))["runs"])))
    claim = {"metrics": {"score": "points a game"}}
    return {"arms": arms, "order": list(arms), "parts": [{"part": part} for part in parts], "judged": ["score"],
            "seeds": seeds, "claim": claim}  # fmt: skip


def with_points(points: list[list[dict[str, float]]], label: str = "A", group: str = "") -> dict[str, Any]:
    runs = [{"seed": i, "measures": {}, "points": p} for i, p in enumerate(points)]
    return {"label": label, "group": group, "runs": runs, "summary": {}}


def part(kind: str, estimate: float, low: float, high: float, status: str = "confirmed", **stated: Any) -> dict:
    interval = {"estimate": estimate, "low": low, "high": high}
    return {"part": {"kind": kind, **stated}, "text": NASTY, "status": status, "interval": interval}


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def drawn(svg: str, kind: str) -> list[ElementTree.Element]:
    return [e for e in parse(svg).iter() if kind in e.get("class", "").split()]


def numbers(element: ElementTree.Element) -> list[float]:
    return [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", element.get("d", ""))]


def sound(svg: str) -> None:
    """What every drawing keeps: XML, a title and a sentence, no style, no ids, no NaN."""
    root = parse(svg)
    assert root.get("role") == "img"
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert root[0].text and root[1].text
    for element in root.iter():
        assert "style" not in element.attrib and "id" not in element.attrib and element.tag != "style"
        for name, value in element.attrib.items():
            assert not re.search(r"\b(nan|inf|None)\b", value), (name, value)
    assert not re.search(r"\bnan\b", str(svg))


# --- effect_bar ------------------------------------------------------------------------------------------------------


def test_effect_bar_puts_least_and_greatest_at_the_ends():
    # From 0 (the baseline) to 4 (the interval's end): 156 px from 6 to 162, so 39 px a unit.
    svg = charts.effect_bar(part("Better", 3, 2, 4, margin=1.0))
    assert svg is not None
    sound(svg)
    assert numbers(drawn(svg, "zero")[0])[0] == 6
    assert numbers(drawn(svg, "bound")[0])[0] == 45
    left, _, right = numbers(drawn(svg, "bar")[0])
    assert (left, right) == (84, 162)
    assert drawn(svg, "dot")[0].get("cx") == "123"
    assert parse(svg)[1].text == "3 [2, 4], held against 1: confirmed."
    assert parse(svg)[0].text == NASTY


def test_effect_bar_draws_both_bounds_of_within_and_its_status():
    svg = charts.effect_bar(part("Within", 0, -1, 1, status="not shown", tolerance=2.0))
    assert svg is not None
    assert [numbers(bound)[0] for bound in drawn(svg, "bound")] == [6, 162]
    assert numbers(drawn(svg, "zero")[0])[0] == 84
    assert parse(svg).get("class") == "chart chart-effect not-shown"


@pytest.mark.parametrize(("low", "zeros"), [(0.5, 1), (100.0, 0)])
def test_effect_bar_of_a_threshold_shows_zero_only_where_it_is_near(low: float, zeros: int):
    svg = charts.effect_bar(part("Threshold", low + 0.5, low, low + 1, at_least=low + 0.1, at_most=None))
    assert svg is not None
    assert len(drawn(svg, "zero")) == zeros


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-12, 1e12])
def test_effect_bar_of_a_zero_width_interval_has_a_dot_and_no_bar(value: float):
    better = part("Better", value, value, value, margin=0.0)
    for stated in (better, part("Threshold", value, value, value, at_least=value, at_most=None)):
        svg = charts.effect_bar(stated)
        assert svg is not None
        sound(svg)
        assert not drawn(svg, "bar")
        assert 6 <= float(drawn(svg, "dot")[0].get("cx", "nan")) <= 162


def test_effect_bar_stands_huge_ranges_and_refuses_what_has_no_number():
    svg = charts.effect_bar(part("Better", 0.0, -1e9, 1e9, margin=1e-9))
    assert svg is not None
    sound(svg)
    assert charts.effect_bar({"part": {"kind": "Holds"}, "interval": None, "status": "confirmed"}) is None
    assert charts.effect_bar(part("Better", float("nan"), 0, 1, margin=0.0)) is None


# --- dots ------------------------------------------------------------------------------------------------------------


def test_dots_stand_at_their_share_of_the_width():
    bound = {"kind": "Threshold", "a": "one", "metric": "score", "at_least": 4.0, "at_most": None}
    result = make_result({"one": arm("One", [0.0, 2.0], (1.0, 3.0)), "two": arm("Two", [8.0, 9.0], (8.0, 10.0))},
                         (bound,))  # fmt: skip
    svg = charts.dots(result, "score")
    assert svg is not None
    sound(svg)
    # The nested drawing has 1000 units for the axis from 0 (the least dot) to 10 (the greatest end of an interval).
    assert [numbers(path)[0] for path in drawn(svg, "seeds")] == [0, 800]
    assert [numbers(path)[0] for path in drawn(svg, "mean")] == [100, 850]
    assert [(numbers(path)[0], numbers(path)[2]) for path in drawn(svg, "bar")] == [(100, 300), (800, 1000)]
    assert [numbers(path)[0] for path in drawn(svg, "bound")] == [400]
    ticks = {element.text: element.get("x") for element in drawn(svg, "tick")}
    assert ticks == {"0": "2%", "2": "21.2%", "4": "40.4%", "6": "59.6%", "8": "78.8%", "10": "98%"}
    assert [element.text for element in drawn(svg, "value")] == ["1 [1, 3]", "8.5 [8, 10]"]
    assert [element.text for element in drawn(svg, "label")] == ["score: points a game"]
    assert parse(svg)[1].text == "One 1 [1, 3], bound 4; Two 8.5 [8, 10]."


def test_dots_of_equal_values_are_all_visible():
    result = make_result({"one": arm("One", [1.0] * 10, (0.7, 1.0)), "two": arm("Two", [0.0, 1.0] * 5, (0.2, 0.8))})
    svg = charts.dots(result, "score")
    assert svg is not None
    for path, count in zip(drawn(svg, "seeds"), (10, 10), strict=True):
        places = re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", path.get("d", ""))
        assert len(places) == len(set(places)) == count
    # Piles are centred on their value: ten in columns of three, three, three and one.
    lefts = [float(left) for left, _ in re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", drawn(svg, "seeds")[0].get("d", ""))]
    assert sorted(set(lefts)) == [979, 993, 1007, 1021]


def test_dots_escape_labels_and_keep_a_shortened_one_whole_in_its_title():
    long = NASTY + "x" * 60
    svg = charts.dots(make_result({"a": arm(NASTY, [1.0, 2.0], (0.0, 3.0)), "b": arm(long, [1.0], None)}), "score")
    assert svg is not None
    sound(svg)
    short, shortened = drawn(svg, "name")
    assert short.text == NASTY and len(short) == 0
    assert str(shortened.text).endswith("…")
    assert shortened[0].tag == "title" and shortened[0].text == long


def test_dots_of_one_seed_have_no_interval_and_other_arms_no_row():
    other = with_points([[]], "Other")
    svg = charts.dots(make_result({"one": arm("One", [2.0], None), "other": other}), "score")
    assert svg is not None
    sound(svg)
    assert not drawn(svg, "bar")
    assert [element.text for element in drawn(svg, "value")] == ["2"]
    assert [element.text for element in drawn(svg, "name")] == ["One"]
    assert numbers(drawn(svg, "mean")[0])[0] == 500
    assert charts.dots(make_result({"one": other}), "score") is None


def test_dots_of_eight_arms_and_ten_seeds_stay_small():
    rng = np.random.default_rng(0)
    arms = {f"arm_{i}": arm(f"Method with setting {i}", list(rng.normal(size=10)), (-1.0, 1.0)) for i in range(8)}
    svg = charts.dots(make_result(arms), "score")
    assert svg is not None
    assert len(svg.encode()) < 8000


# --- curves ----------------------------------------------------------------------------------------------------------


def test_curves_draw_means_and_their_t_interval():
    seeds = [[0.0, 1.0, 4.0], [0.0, 3.0, 5.0], [0.0, 2.0, 9.0]]
    points = [[{"y": y, "step": 10.0 * i} for i, y in enumerate(ys)] for ys in seeds]
    key, panel = charts.curves(make_result({"a": with_points(points)}))
    for svg in (key, panel):
        sound(svg)
    series = charts._series(points, "step", "y")
    assert series is not None
    for index, interval in enumerate([paired_t([ys[i] for ys in seeds]) for i in range(3)]):
        assert series.mean[index, 1] == pytest.approx(interval.estimate)
        assert series.mean[index, 1] + series.half[index, 1] == pytest.approx(interval.high)
    line = numbers(drawn(panel, "line")[0])
    # x runs from the gutter to ten px before the right end, and the middle step lies in the middle.
    assert line[4] == charts.WIDTH - 10
    assert line[2] == pytest.approx((line[0] + line[4]) / 2, abs=0.06)
    # y: from the band's lower end to its upper end, widened by 4 %, over 150 px; the means are 0, 2 and 6.
    low, high = 6 - series.half[2, 1], 6 + series.half[2, 1]
    low = min(low, 2 - series.half[1, 1])
    assert line[1] - line[5] == pytest.approx(6 * 150 / (1.08 * (high - low)), abs=0.11)
    assert len(re.findall("M", drawn(panel, "seed")[0].get("d", ""))) == 3


def test_curves_prefer_step_then_a_key_that_the_seeds_share():
    def rows(seed: int, **more: float) -> list[dict[str, float]]:
        return [{"own": i + 0.1 * seed, "round": float(i), "y": 1.0, **({"step": 2.0 * i} if more else {})}
                for i in range(4)]  # fmt: skip

    shared = make_result({"a": with_points([rows(0), rows(1)])})
    assert charts._increasing_key(shared) == "round"
    stepped = make_result({"a": with_points([rows(0, step=1), rows(1, step=1)])})
    assert charts._increasing_key(stepped) == "step"
    own = make_result({"a": with_points([[{"own": p["own"], "y": 1.0} for p in rows(s)] for s in (0, 1)])})
    assert charts._increasing_key(own) == "own"


def test_curves_leave_out_short_arms_and_paths_that_turn_back():
    steps = [{"step": float(i), "y": float(i)} for i in range(3)]
    ends = [{"step": 0.0, "y": 0.0}, {"y": 1.0}]
    key, panel = charts.curves(make_result({"a": with_points([steps]), "b": with_points([ends], "B")}))
    assert [element.text for element in drawn(key, "name")] == ["A"]
    assert len(drawn(panel, "line")) == 1
    assert not drawn(panel, "band")
    turning = [{"x": x, "y": 1.0} for x in (0.0, 1.0, 0.5)]
    assert charts.curves(make_result({"a": with_points([turning])})) == []
    assert charts.curves(make_result({"a": with_points([[]])})) == []


def test_curves_put_named_quantities_first_and_stop_at_the_limit():
    points = [{"step": float(i), "a": 1.0, "b": 2.0, "c": 3.0, "score": 1.0 * i} for i in range(3)]
    result = make_result({"a": with_points([points])})
    titles = [parse(svg)[0].text for svg in charts.curves(result, limit=2)[1:]]
    assert titles == ["score against step, means over 1 seed", "a against step, means over 1 seed"]


def test_arms_of_a_group_share_the_colour_and_a_hidden_line_shines_through():
    points = [[{"step": float(i), "score": 1.0 * i} for i in range(3)]]
    other = [[{"step": float(i), "score": 2.0 * i} for i in range(3)]]
    arms = {"a": with_points(points, "A", "g"), "b": with_points(other, "B", "g"), "c": with_points(points, "C")}
    key, panel = charts.curves(make_result(arms))
    assert [element.get("class") for element in drawn(key, "line")] == ["line d0", "line d1", "line d0"]
    assert [element.get("class") for element in drawn(panel, "line")] == ["line d0 c0", "line d1 c0", "line over c1"]


def test_more_kinds_than_colours_differ_by_dash_and_marker():
    points = [[{"kl": 1.0 * i, "score": 1.0 * i} for i in range(3)]]
    result = make_result({f"a{i}": with_points(points, f"A{i}") for i in range(12)})
    styles = charts._styles(result, result["order"])
    assert len(set(styles.values())) == 12


# --- plane -----------------------------------------------------------------------------------------------------------


def test_plane_draws_lines_of_points_and_markers_of_measures():
    points = [[{"step": 1.0 * i, "kl": 2.0 * i, "gold": 1.0 * i + seed} for i in range(3)] for seed in (0, 2)]
    single = [{"seed": s, "measures": {"kl": 4.0, "gold": 2.0}, "points": []} for s in (0, 1)]
    arms = {"a": with_points(points), "b": {**with_points([]), "label": "B", "runs": single}}
    svg = charts.plane(make_result(arms))
    assert svg is not None
    sound(svg)
    assert parse(svg)[0].text == "gold against kl by arm, means over 2 seeds"
    assert parse(svg)[1].text == "A ends at kl 4 and gold 3; B at kl 4 and gold 2."
    line = numbers(drawn(svg, "line")[0])
    # x from 0 to 4, widened by 3 % of the range at both ends of the axis.
    axis = numbers(drawn(svg, "axis")[0])
    length = charts.WIDTH - 10 - axis[0]
    assert line[0] == pytest.approx(axis[0] + length * 0.03 / 1.06, abs=0.06)
    assert line[4] == pytest.approx(axis[0] + length * 1.03 / 1.06, abs=0.06)
    assert len(re.findall("V", drawn(svg, "whisker")[0].get("d", ""))) == 3
    # B's two seeds agree: a marker without whiskers, where A's line ends in x.
    assert numbers(drawn(svg, "marker")[1])[0] == line[4]
    assert len(drawn(svg, "whisker")) == 1


def test_plane_is_none_without_the_measure():
    assert charts.plane(make_result({"one": arm("One", [1.0, 2.0], (0.0, 3.0))})) is None
    assert charts.plane(make_result({"a": with_points([[{"kl": 1.0, "step": 1.0}]])})) is None


# --- badge -----------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("verdict", ["confirmed", "not shown", "refuted", "indicative", "of another kind"])
def test_badge_has_contrast_and_fits_its_texts(verdict: str):
    svg = charts.badge(NASTY, verdict)
    space = "{http://www.w3.org/2000/svg}"
    root = parse(svg)
    assert root.find(f"{space}title").text == f"{NASTY}: {verdict}"  # type: ignore[union-attr]
    assert [text.text for text in root.iter(f"{space}text")] == [NASTY, verdict]
    grounds = [path.get("fill", "") for path in root.iter(f"{space}path")]
    assert len(grounds) == 2
    assert all((1 + 0.05) / (luminance(ground) + 0.05) >= 4.5 for ground in grounds)
    lengths = [float(text.get("textLength", 0)) for text in root.iter(f"{space}text")]
    assert float(root.get("width", 0)) == sum(lengths) + 24
    assert not any("style" in element.attrib or "class" in element.attrib for element in root.iter())


def test_luminance_is_the_published_one():
    assert (luminance("#ffffff") + 0.05) / (luminance("#000000") + 0.05) == pytest.approx(21)
    assert (luminance("#ffffff") + 0.05) / (luminance("#767676") + 0.05) == pytest.approx(4.54, abs=0.01)


def test_text_width_adds_up():
    assert charts.text_width("il", 100) == 2 * 28
    assert charts.text_width("W", 50) == 49


# --- ticks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-1, 9, ["0", "2", "4", "6", "8"]),
        (0.71, 0.88, ["0.75", "0.80", "0.85"]),
        (-2e7, 2e7, ["-2.000e+07", "-1.000e+07", "0", "1.000e+07", "2.000e+07"]),
        (0, 3e-7, ["0", "1e-07", "2e-07", "3e-07"]),
        (1000000, 1000004, ["1000000", "1000001", "1000002", "1000003", "1000004"]),
    ],
)
def test_ticks_are_round_and_told_apart(low: float, high: float, texts: list[str]):
    assert charts.tick_texts(charts.nice_ticks(low, high)) == texts


# --- every recorded result -------------------------------------------------------------------------------------------


@each_result
def test_recorded_results_draw_soundly_and_small(result: dict[str, Any]):
    bars = [charts.effect_bar(p) for p in result["parts"]]
    assert [bar is None for bar in bars] == [p["part"]["kind"] == "Holds" for p in result["parts"]]
    plots = [charts.dots(result, metric) for metric in result["judged"]]
    multiples = charts.curves(result)
    whole = charts.plane(result)
    for svg in [*bars, *plots, *multiples, whole]:
        if svg is not None:
            sound(svg)
    assert all(len(bar) < 600 for bar in bars if bar)
    assert all(len(plot) < 1000 + 900 * len(result["arms"]) for plot in plots if plot)
    assert all(len(panel) < 2_000 + 2_500 * len(result["arms"]) for panel in multiples)
    assert whole is None or len(whole) < max(16_000, 900 * len(result["arms"]))


@each_result
def test_recorded_results_draw_the_same_however_often(result: dict[str, Any]):
    before = deepcopy(result)
    first = [charts.dots(result, m) for m in result["judged"]], charts.curves(result), charts.plane(result)
    assert result == before
    assert first == ([charts.dots(result, m) for m in result["judged"]], charts.curves(result), charts.plane(result))


def test_there_are_recorded_results():
    assert RESULTS
