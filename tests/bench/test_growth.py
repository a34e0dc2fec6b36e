"""bench/growth.py: exponents, a point in this process, the picture and the sections."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch


def test_the_exponent_of_a_power_law_is_its_power():
    from growth import exponent

    x = [10.0, 100.0, 1000.0]
    assert exponent(x, [5 * value**1.7 for value in x]) == pytest.approx(1.7)
    assert exponent(x, [3.0, 3.0, 3.0]) == pytest.approx(0.0)


def test_the_number_of_parameters_is_the_models():
    from transformers import AutoModelForCausalLM

    from growth import WORDS, llama, parameters

    model = AutoModelForCausalLM.from_pretrained(llama(64))
    assert model.config.vocab_size == WORDS
    assert sum(p.numel() for p in model.parameters()) == parameters(64)


def test_updates_are_timed_by_fit():
    """Of networks 8 and 512 wide the second takes longer; the start is told apart."""
    import telos
    from growth import fitted, transitions

    data = transitions()[torch.arange(500)]
    small, large = (fitted(telos.IQL(hidden=(width, width)), data, 4, ticks=4) for width in (8, 512))
    assert 0 < small["update"] < large["update"] and large["start"] < 5
    both = fitted(telos.IQL(hidden=(8, 8)), data, 4, ticks=4, seeds=2)
    assert 0 < both["update"] < 5


def test_a_watch_sees_what_was_allocated_inside():
    from resident import Watch

    with Watch() as watch:
        held = np.ones(64_000_000, np.uint8)  # so large that it is not taken from what was freed before
        time.sleep(0.1)
        del held
        time.sleep(0.1)
    assert 55e6 < watch.most < 100e6


def test_the_section_on_precision(tmp_path):
    import report

    found = {"returns": {"auto": [1.0, 3.0], "medium": [2.0, 6.0]}, "speed": 1.5}
    row = {"work": "runs", "rows": {"iql": found | {"difference": {"estimate": 2.0, "low": -1.0, "high": 5.0}}}}
    text = report.record("precision", row | {"date": "2026-01-01", "machine": "M", "commit": "c"}, tmp_path)
    assert "| iql | 2 | 4 | 2 [-1, 5] | 1.50 |" in text


def test_the_picture_and_the_section(tmp_path):
    import report
    from growth import draw

    line = {
        "work": "IQL", "label": "width", "x": [64.0, 128.0], "series": {"update": [0.1, 0.4], "MB": [10.0, 20.0]},
        "exponents": {"update": 2.0, "MB": 1.0},
    }  # fmt: skip
    draw({"width": line, "again": line}, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"
    about = {"date": "2026-01-01", "machine": "M", "commit": "c"}
    text = report.record("growth", {"lines": {"width": line}, **about}, tmp_path)
    assert "| IQL | width | 64, 128 | update | 0.1 s | 0.4 s | 2.00 |" in text
    assert "| IQL | width | 64, 128 | memory | 10 MB | 20 MB | 1.00 |" in text
