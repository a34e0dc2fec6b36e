"""Claims, arms and trials: what is refused at the door, and what a budget does."""

import random
from dataclasses import dataclass

import pytest
import torch
from toys import TOY, write_toy

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Source, Spec
from telos.core.products import Policy
from telos.core.rng import Rng
from telos.judge.claim import Arm, Claim, Trial, load_claim, load_claims, part_from_json, part_json, plain, run_arm
from telos.judge.verdict import Better, Holds, Threshold, Within


class Still(Policy):
    """Acts like nothing; a product with one number."""

    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))

    def config(self):
        return {}

    def probe(self):
        return {"value": self.value.detach()}

    def act(self, obs, **_):
        raise NotImplementedError


class HalvingLearner(Learner):
    """Moves its number half-way to a target that the step's stream draws around 1."""

    def __init__(self) -> None:
        self.policy = Still()

    def update(self, batch, rng, micro=1):
        target = 1 + torch.randn((), generator=rng.torch())
        with torch.no_grad():
            self.policy.value += 0.5 * (target - self.policy.value)
        return {"value": self.policy.value.detach().clone(), "target": target}

    def product(self):
        return self.policy


class Nothing(Source):
    def next(self, behaviour, rng):
        return None


@dataclass(frozen=True)
class Halving(Method):
    rate: float = 0.5

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        return HalvingLearner()

    def source(self, spec: Spec) -> Source:
        return Nothing()


def arm(trial, gain=1.0):
    return {"gold": gain}


def make(**changes):
    given = {
        "statement": "s", "source": "Table 1", "world": "w", "parts": (Better("a", "b", "gold"),), "seeds": (0, 1),
        "arms": {"a": Arm(arm), "b": Arm(arm)}, "refuted_if": "r", "metrics": {"gold": "a score"}, "minutes": 1.0,
    }  # fmt: skip
    return Claim(**{**given, **changes})


def test_budgets_cut_steps_and_counts():
    full, quick, digest = Trial(0), Trial(0, "quick"), Trial(0, "digest")
    assert (full.steps(300), quick.steps(300), digest.steps(300), quick.steps(7)) == (300, 20, 20, 7)
    assert (full.count(1024), quick.count(1024), digest.count(1024), digest.count(5)) == (1024, 64, 64, 5)


def test_trials_of_one_seed_share_their_streams():
    draws = [Trial(seed).rng.at("world").numpy().random() for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_fit_records_the_digest_on_the_digest_budget_only():
    trial = Trial(5, "digest")
    product = trial.fit(Halving(), steps=500)
    # fit reports every ten steps: two reports of (target, value), names in order.
    assert len(trial.digest) == 4
    assert trial.digest[-1] == product.value.item()
    again, full = Trial(5, "digest"), Trial(5, "full")
    again.fit(Halving(), steps=500)
    assert full.fit(Halving(), steps=20).value.item() == product.value.item()
    assert again.digest == trial.digest and full.digest == []


@pytest.mark.parametrize(("budget", "expected"), [("full", [25, 50]), ("quick", [20]), ("digest", [20])])
def test_fit_evaluates_at_least_once_on_every_budget(budget, expected):
    steps = []
    Trial(0, budget).fit(
        Halving(), steps=50, evaluate=lambda step, product: steps.append(step) or {}, evaluate_every=25
    )
    assert steps == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metrics": {"return": "sum"}}, "unknown metric"),
        ({"parts": (Better("a", "c", "gold"),)}, "unknown arm 'c'"),
        ({"parts": ()}, "0 parts"),
        ({"seeds": (0, 0)}, r"seeds \[0, 0\]"),
        ({"arms": {"a": Arm(lambda trial: {}), "b": Arm(arm)}}, "top-level"),
        ({"arms": {"a": Arm(arm, {"gain": object()}), "b": Arm(arm)}}, "JSON value or a Method"),
    ],
)
def test_wrong_claims_are_refused(changes, words):
    with pytest.raises(TelosError, match=words):
        make(**changes)


def test_an_arm_may_come_from_derive():
    assert make(parts=(Better("frontier", "b", "gold"),), derive=lambda arms: {"frontier": {"gold": 1.0}}).derive


@pytest.mark.parametrize(
    "part",
    [Better("a", "b", "m", 0.5, True), Within("a", "b", "m", 0.1), Holds("m", "a"), Threshold("a", "m", at_most=2.0)],
)
def test_parts_survive_json(part):
    assert part_from_json(part_json(part)) == part


def test_methods_among_options_are_known_by_slug_and_hyper_parameters():
    options = plain({"method": Halving(rate=0.25), "sizes": (1, 2)})
    assert options == {"method": {"use": "test_claim", "rate": 0.25}, "sizes": [1, 2]}
    assert Arm(arm, {"methods": [Halving()]}).modules() == {arm.__module__, Halving.__module__}


def test_run_arm_gives_numbers_points_and_digest(monkeypatch, tmp_path):
    toy = write_toy(monkeypatch, tmp_path)
    value = run_arm(toy, "laptop", "new", 3, "digest")
    rng = random.Random(3)
    expected = [2.0 * i + rng.gauss(0, 0.1) for i in (1, 2, 3)]
    assert [point["gold"] for point in value["points"]] == expected
    assert value["measures"] == {"gold": expected[-1], "exact": 1.0}
    # It fits nothing, so its measures are its digest, by name.
    assert value["digest"] == [1.0, expected[-1]]
    assert run_arm(toy, "laptop", "new", 3, "full")["digest"] == []


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [('"exact": True', '"exact": float("nan")', "'exact' is nan"), ('"exact": True, ', "", "measured no 'exact'")],
)
def test_run_arm_refuses_what_cannot_be_judged(monkeypatch, tmp_path, before, after, words):
    toy = write_toy(monkeypatch, tmp_path, TOY.replace(before, after))
    with pytest.raises(TelosError, match=words):
        run_arm(toy, "laptop", "new", 0, "full")


def test_unknown_claims_and_scales_are_named(monkeypatch, tmp_path):
    with pytest.raises(TelosError, match="no method is called 'dppo'"):
        load_claims("dppo")
    with pytest.raises(TelosError, match=r"no claims in toys\.missing"):
        load_claims("toys.missing")
    with pytest.raises(TelosError, match=r"no scale 'standard'\n  expected: laptop"):
        load_claim(write_toy(monkeypatch, tmp_path), "standard")
