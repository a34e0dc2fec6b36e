"""Recorded results still speak for the code: where code under a claim changed, its digests are run again."""

import pytest

from telos.core.registry import PACKAGE, entries
from telos.judge.check import rejudge, stale
from telos.judge.claim import load_claim
from telos.judge.results import read_results

RESULTS = sorted(read_results().items())


def test_every_claim_at_laptop_scale_has_a_result():
    claimed = {slug for slug, entry in entries().items() if entry.claim_module}
    assert claimed <= {slug for (slug, scale), _ in RESULTS if scale == "laptop"}


@pytest.mark.parametrize(("name", "result"), RESULTS, ids=[f"{slug}.{scale}" for (slug, scale), _ in RESULTS])
def test_a_result_is_fresh_or_says_that_it_is_stale(name, result):
    slug, scale = name
    if result["stale"]:
        pytest.skip(f"{slug}.{scale} is marked stale")
    assert stale(slug, scale, jobs=1) != "stale", f"run `telos check {slug} --scale {scale} --record` again"


@pytest.mark.parametrize(("name", "result"), RESULTS, ids=[f"{slug}.{scale}" for (slug, scale), _ in RESULTS])
def test_a_recorded_verdict_follows_from_the_recorded_runs(name, result):
    assert rejudge(result, load_claim(*name)).status == result["verdict"]
    assert result["git"] and not result["git"]["dirty"]
    assert (PACKAGE.parents[1] / "results" / f"{name[0]}.{name[1]}.png").is_file()
