"""Tables, estimates and pictures of a result."""

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from toys import write_toy

from telos.judge.check import check
from telos.judge.claim import load_claim
from telos.judge.plots import PALETTE, _series, colours, dots, figure, plane
from telos.judge.report import Board, describe, number, show
from telos.judge.run import Task
from telos.judge.verdict import Better, Holds, Threshold, Within

ARMS = {"a": {"label": "A"}, "b": {"label": "B"}}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (Better("a", "b", "gold", 0.5), "gold: A > B by more than 0.5"),
        (Better("a", "b", "cost", lower_is_better=True), "cost: A < B"),
        (Better("a", "b", "gold", -0.1), "gold: A not worse than B by more than 0.1"),
        (Within("a", "b", "gold", 0.1), "gold: A equals B within 0.1"),
        (Threshold("a", "gold", 1, 2), "gold of A is at least 1 and at most 2"),
        (Holds("exact", "a"), "exact holds exactly in A"),
    ],
)
def test_parts_in_words(part, words):
    assert describe(part, ARMS) == words


def test_numbers_stay_short():
    assert [number(v) for v in (0.123456, 8.0, 1234.56, 45678.9, 2.5e7)] == [
        "0.1235", "8", "1235", "45679", "2.500e+07",
    ]  # fmt: skip


def test_the_time_left_uses_each_arms_own_mean(monkeypatch, tmp_path):
    claim = load_claim(write_toy(monkeypatch, tmp_path), "laptop")
    tasks = [Task("toy", "laptop", arm, seed, "full", "") for seed in range(3) for arm in ("new", "old")]
    board = Board(claim, tasks, jobs=2)
    assert board.seconds_left() == pytest.approx(6.0)
    board.found({tasks[0]: {"seconds": 4.0, "measures": {}}})
    # Five are missing, at 4 s each as nothing else is known, on two processes.
    assert board.seconds_left() == pytest.approx(10.0)
    board.found({tasks[1]: {"seconds": 1.0, "measures": {}}})
    assert board.seconds_left() == pytest.approx((2 * 4 + 2 * 1) / 2)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as monkeypatch:
        return check(write_toy(monkeypatch, folder), jobs=1, out=folder / "out")


def test_a_result_is_shown_from_its_file_alone(result):
    screen = Console(file=io.StringIO(), width=120)
    show(result, [Path("there/result.json")], screen)
    text = screen.file.getvalue()
    gold = [run["measures"]["gold"] for run in result["arms"]["new"]["runs"]]
    half = stats.t.ppf(0.975, 4) * np.std(gold, ddof=1) / np.sqrt(5)
    assert f"{np.mean(gold):.4g} [{np.mean(gold) - half:.4g}, {np.mean(gold) + half:.4g}]" in text
    assert "5 of 5 seeds" in text and "confirmed: 2 of 2 parts hold" in text and "there/result.json" in text


def test_groups_share_a_colour(result):
    assert colours(result) == {"new": PALETTE[0], "old": PALETTE[1]}
    one = {**result, "arms": {name: {**arm, "group": "g"} for name, arm in result["arms"].items()}}
    assert set(colours(one).values()) == {PALETTE[0]}


def test_series_are_means_over_seeds_with_half_widths(result):
    runs = result["arms"]["new"]["runs"]
    means_x, half_x, means_y, half_y = _series(runs, "kl", "gold")
    gold = np.array([[point["gold"] for point in run["points"]] for run in runs])
    assert means_x.tolist() == [1, 2, 3] and half_x.tolist() == [0, 0, 0]
    assert means_y == pytest.approx(gold.mean(axis=0))
    assert half_y == pytest.approx(stats.t.ppf(0.975, 4) * gold.std(axis=0, ddof=1) / np.sqrt(5))
    single = [{"points": [], "measures": {"kl": 1.0, "gold": 2.0}}]
    assert [part.tolist() for part in _series(single, "kl", "gold")] == [[1], [0], [2], [0]]
    assert _series(runs, "kl", "silver") is None


def test_pictures_are_drawn_whole_or_not_at_all(result, tmp_path):
    for draw in (dots, plane):
        draw(result, tmp_path / "figure.png")
        pixels = matplotlib.image.imread(tmp_path / "figure.png")
        assert pixels.shape[1] == 7 * 150
        seen = {tuple(row) for row in np.unique((pixels[..., :3] * 255).round().astype(int).reshape(-1, 3), axis=0)}
        shades = {tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in PALETTE[:2]}
        assert shades <= seen, "both groups' colours are on the paper"
    with pytest.raises(ZeroDivisionError), figure(tmp_path / "broken.png"):
        1 / 0  # noqa: B018
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
