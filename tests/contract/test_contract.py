"""The contract that every method keeps. Methods are found through the registry; see contract_cases.py."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import random
import re
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from contract_cases import (
    COUNT,
    WORLDS,
    Case,
    cases,
    classes,
    differing,
    fitted,
    state,
    texts,
    transitions,
    warmed,
)
from contract_cases import prompts as topics
from safetensors.torch import load_file, save_file

import telos
from reading_budget import MOST_FILES, MOST_LINES, MOST_OWN, budget
from telos.catalogue import hyperparameters
from telos.core import compiled, compiler
from telos.core.errors import HealthError, TelosError
from telos.core.method import Learner, Method
from telos.core.products import Product
from telos.core.registry import PACKAGE, Entry, class_slug, entries, use
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.records import Prompts, Record, Transitions
from telos.lm.log_probs import token_log_probs
from telos.lm.model import TINY, load_model
from telos.lm.products import PROBE_FILE, RewardScorer
from telos.lm.tokens import Sequences, pad

ALL = cases()
TRAINED = [case for case in ALL if case.cls.trains]
PARTS = [case for case in TRAINED if case.cls.accumulates]

each = pytest.mark.parametrize("case", ALL, ids=str)
each_trained = pytest.mark.parametrize("case", TRAINED, ids=str)
each_accumulating = pytest.mark.parametrize("case", PARTS, ids=str)
each_class = pytest.mark.parametrize("cls", classes(), ids=class_slug)
each_entry = pytest.mark.parametrize("entry", entries().values(), ids=lambda entry: entry.slug)


# Discovery.


@each_class
def test_there_is_a_world_for_what_it_learns_from(cls: type[Method]):
    kind = cls.data.__name__ if cls.data else "nothing (data = None)"
    assert cls.data in WORLDS, (
        f"{cls.__name__} learns from {kind}, for which the contract suite has no world: add one to WORLDS in "
        "tests/contract/contract_cases.py (a few dozen rows, and what else fit needs)"
    )
    assert [case for case in ALL if case.cls is cls], f"{cls.__name__} refuses every world for {kind}"


# Bits.


@each_trained
def test_same_seed_same_bits_whatever_the_global_generators_say(case: Case):
    first = state(fitted(case))
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    second = state(case.fit())
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert differing(first, second) == []
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


each_descending = pytest.mark.parametrize(
    "case", [c for c in TRAINED if "self.descend(" in Path(inspect.getfile(c.cls)).read_text()], ids=str
)


@each_descending
def test_compiled_steps_are_torch_s(case: Case, monkeypatch: pytest.MonkeyPatch):
    """All but the compiler: the program is run operator by operator."""
    made, used = [], []

    def program(code: str, tensors: Any, *, step: dict[str, Any]) -> Any:
        own = compiler.Step(code, **step)
        made.append(own)
        return lambda tensors: used.append(own) or own(*tensors)

    monkeypatch.setattr(compiled, "program", program)
    product = case.fit(numerics="compiled")
    for name, tensor in state(fitted(case)).items():
        torch.testing.assert_close(state(product)[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    # Each program agreed with torch, and went on.
    assert len(used) > len(made) > 0 or str(case) in ("bcq-continuous", "cql-continuous")  # whose steps are their own


@each_descending
def test_seeds_trained_together_are_those_trained_apart(case: Case):
    together = case.fit(seeds=2)
    for product, alone in zip(together, (fitted(case), case.fit(seed=1)), strict=True):
        for name, tensor in state(alone).items():
            torch.testing.assert_close(state(product)[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@each_trained
def test_another_seed_gives_other_bits(case: Case):
    assert differing(state(fitted(case)), state(case.fit(seed=1)))


@each_trained
def test_training_changes_the_product(case: Case):
    assert differing(state(fitted(case)), state(case.fit(steps=0)))


class Killed(BaseException):
    """As a kill: no library handles it."""


@each_trained
def test_killed_again_and_again_and_resumed_is_the_uninterrupted_run(case: Case, tmp_path: Path):
    out = tmp_path / "run"
    product, kills = None, 0
    while product is None:
        calls = 0

        def evaluate(step: int, current: Any) -> dict[str, float]:
            nonlocal calls
            calls += 1
            state(current())
            if calls == 5:  # more than a checkpoint's distance, so every attempt gets further
                raise Killed
            return {"evaluated": 1.0}

        try:
            product = case.fit(out=out, checkpoint_every=3, evaluate=evaluate, evaluate_every=1, resume=kills > 0)
        except Killed:
            kills += 1
            assert not (out / "product").exists()
    assert kills > 0
    # Where environments are acted in, the distance of checkpoints is part of the run: episodes begin anew there.
    whole = case.fit(checkpoint_every=3) if "env" in case.cls.takes else fitted(case)
    assert differing(state(whole), state(product)) == []
    assert differing(state(product), state(telos.load_product(out))) == []
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    logged = [(row["stage"], row["step"]) for row in rows]
    assert len(set(logged)) == len(logged)
    for stage in dict.fromkeys(stage for stage, _ in logged):
        steps = [step for name, step in logged if name == stage]
        assert steps == list(range(1, len(steps) + 1))


KILL_ME = """
import json, sys, time
import torch
torch.set_num_threads(1)
from telos.core.registry import use
slug, arguments = sys.argv[1], json.loads(sys.argv[2])
def evaluate(step, product):
    print(step, flush=True)
    time.sleep(0.005)
    return {}
use(slug, **arguments.pop("options")).fit(**arguments, evaluate=evaluate, evaluate_every=1, device="cpu")
"""


def kill_and_resume(slug: str, arguments: dict[str, Any], out: Path, kill_at: int) -> None:
    """Fits in a process of its own, kills it with SIGKILL after step `kill_at`, resumes here and compares."""
    code = [sys.executable, "-c", KILL_ME, slug, json.dumps({**arguments, "out": str(out)})]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == kill_at:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert (out / "run.json").is_file() and not (out / "product").exists()
    resumed = telos.resume(out)
    arguments = dict(arguments)
    whole = use(slug, **arguments.pop("options")).fit(**arguments, device="cpu")
    assert differing(state(whole), state(resumed)) == []
    rows = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(set(rows)) and rows[-1] == arguments["steps"]


def test_a_real_kill_of_an_rl_method(tmp_path: Path):
    data = save_npz(transitions(), tmp_path / "data.npz")
    arguments = {
        "source": str(data), "steps": 200, "seed": 3, "checkpoint_every": 7,
        "options": {"hidden": [16, 16], "batch_size": 10},
    }  # fmt: skip
    kill_and_resume("td3", arguments, tmp_path / "run", kill_at=40)


@pytest.mark.slow
def test_a_real_kill_of_a_language_method(tmp_path: Path):
    data = tmp_path / "pairs.jsonl"
    rows = zip(topics(), texts(2), texts(0), strict=True)
    data.write_text("".join(json.dumps({"prompt": p, "chosen": c, "rejected": r}) + "\n" for p, c, r in rows))
    arguments = {
        "source": str(data), "model": TINY, "steps": 60, "seed": 3, "checkpoint_every": 7,
        "options": {"batch_size": 10, "learning_rate": 1e-3},
    }  # fmt: skip
    kill_and_resume("dpo", arguments, tmp_path / "run", kill_at=30)


@each_trained
def test_a_learner_takes_over_the_state_of_another(case: Case):
    (_, first, source), (_, second, other) = case.prepared(seed=0), case.prepared(seed=1)
    for step in range(3):
        first.update(source.next(first.behaviour, Rng(0).at(step)), Rng(1).at(step))
    tensors, numbers = first.state()
    second.load_state({k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(numbers)))
    source_tensors, source_numbers = source.state()
    other.load_state(source_tensors, json.loads(json.dumps(source_numbers)))
    assert differing(first.state()[0], second.state()[0]) == [] and second.state()[1] == numbers
    batch = source.next(first.behaviour, Rng(2))
    first.update(batch, Rng(3))
    second.update(batch, Rng(3))
    assert differing(first.state()[0], second.state()[0]) == []


# Products.


def holds_function(product: Product) -> bool:
    """Has a function of the user's inside, which cannot be saved."""
    return any(isinstance(value, types.FunctionType) for module in product.modules() for value in vars(module).values())


@pytest.fixture(scope="module")
def scorer() -> RewardScorer:
    """A reward model with scores that differ."""
    made = RewardScorer.from_language_model(load_model(TINY), Rng(0))
    torch.nn.init.normal_(made.network.score.weight, generator=Rng(1).torch())
    return made


def saveable(case: Case, scorer: RewardScorer) -> Product:
    """The case's product, with a reward model where it would hold a function."""
    return case.fit(purpose=scorer) if holds_function(fitted(case)) else fitted(case)


@each
def test_saved_and_loaded_it_is_the_same(case: Case, scorer: RewardScorer, tmp_path: Path):
    product = saveable(case, scorer)
    loaded = telos.load_product(product.save(tmp_path / "product"))
    assert type(loaded) is type(product) and loaded.config() == product.config()
    assert not loaded.training
    assert differing(state(product), state(loaded)) == []
    with torch.no_grad():
        before, after = product.probe(), loaded.probe()
    assert before and differing(before, after) == []
    assert loaded.provenance == json.loads(json.dumps(product.provenance))
    assert loaded.provenance["method"] == class_slug(case.cls)
    assert list(tmp_path.iterdir()) == [tmp_path / "product"]


@each
def test_a_product_that_holds_a_function_refuses_to_be_saved(case: Case, tmp_path: Path):
    if holds_function(fitted(case)):
        with pytest.raises(TelosError, match="function"):
            fitted(case).save(tmp_path / "product")
        assert list(tmp_path.iterdir()) == []


@each
def test_a_changed_weight_is_noticed(case: Case, scorer: RewardScorer, tmp_path: Path):
    folder = saveable(case, scorer).save(tmp_path / "product")
    files = [file for file in sorted(folder.rglob("*.safetensors")) if file.name != PROBE_FILE]
    assert files
    for file in files:
        good = load_file(file)
        metadata = {"format": "pt"}
        floating = [name for name, t in good.items() if t.is_floating_point() and not name.startswith("probe.")]
        for name in floating[:: max(1, len(floating) // 4)]:
            noise = torch.randn(good[name].shape, generator=Rng(0).torch())
            changed = good[name] + 0.3 * good[name].abs().mean() + 0.1 * noise
            save_file({**good, name: changed}, file, metadata)
            with pytest.raises(TelosError):
                telos.load_product(folder)
                pytest.fail(f"a changed {name} in {file.name} was not noticed")
        save_file(good, file, metadata)
    telos.load_product(folder)
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(TelosError):
        telos.load_product(folder)


# Accumulation and padding.


def slots(learner: Learner) -> dict[str, torch.Tensor]:
    """What the optimisers have gathered, by name: running means of gradients and of their squares."""
    names = [name for name, value in vars(learner).items() if isinstance(value, torch.optim.Optimizer)]
    return {k: t for k, t in learner.state()[0].items() if k.split(".")[0] in names and t.dim() > 0}


def assert_same_step(one: Learner, other: Learner, metrics: tuple[Any, Any], tolerance: float) -> None:
    """Both took the same gradient step: gradients agree relative to the largest entry, and so do the metrics."""
    a, b = slots(one), slots(other)
    assert set(a) == set(b) and a
    for name in a:
        assert (a[name] - b[name]).abs().max() <= tolerance * a[name].abs().max() + 1e-12, name
    for name, value in metrics[0].items():
        got = float(metrics[1][name])
        assert abs(float(value) - got) <= tolerance * max(1.0, abs(float(value))), f"{name}: {float(value)} and {got}"


@each_accumulating
@pytest.mark.parametrize("micro", [1, 4, 7])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(case: Case, micro: int):
    (whole, source), (parts, _) = warmed(case), warmed(case)
    batch = max((source.next(whole.behaviour, Rng(0)) for _ in range(3)), key=len)
    metrics = whole.update(batch, Rng(1)), parts.update(batch, Rng(1), micro)
    assert_same_step(whole, parts, metrics, 0.0 if micro == 1 else 1e-5)


@each_accumulating
def test_training_in_parts_ends_where_training_at_once_does(case: Case):
    at_once, in_parts = state(case.fit(steps=4)), state(case.fit(steps=4, micro=4))
    for name, value in at_once.items():
        # A fiftieth of one step: Adam turns the rounding of a vanishing gradient, the processor's own, into a step.
        assert torch.allclose(value.float(), in_parts[name].float(), rtol=0, atol=2e-5), name


@pytest.mark.parametrize("case", [c for c in TRAINED if not c.cls.accumulates], ids=str)
def test_parts_are_refused_where_an_update_cannot_be_taken_in_parts(case: Case):
    with pytest.raises(TelosError, match="parts"):
        case.fit(micro=2)


def padded(batch: Any, extra: int) -> Any:
    """The batch with `extra` columns more on the right and random ids wherever there was padding."""
    width = widths(batch)[0]
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, Sequences):
            noise = torch.randint(3, 40, (*value.tokens.shape[:-1], width + extra), generator=Rng(4).torch())
            inside = torch.arange(width + extra) < value.lengths[..., None]
            wide = torch.nn.functional.pad(value.tokens, (0, extra))
            changes[f.name] = dataclasses.replace(value, tokens=torch.where(inside, wide, noise))
        elif isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[-1] == width:
            changes[f.name] = torch.nn.functional.pad(value, (0, extra))
    return dataclasses.replace(batch, **changes)


def widths(batch: Any) -> list[int]:
    """Widths of the token sequences in a batch; empty where there are none."""
    if not isinstance(batch, Record):
        return []
    return [c.tokens.shape[-1] for c in batch.columns().values() if isinstance(c, Sequences)]


LANGUAGE = [case for case in TRAINED if "model" in case.world.given]


@pytest.mark.parametrize("case", LANGUAGE, ids=str)
def test_padding_and_its_contents_make_no_difference_to_an_update(case: Case):
    (plain, source), (other, _) = warmed(case), warmed(case)
    batches = [source.next(plain.behaviour, Rng(0)) for _ in range(3)]
    if not widths(batches[0]):
        pytest.skip("its batches hold no token sequences")
    batch = next(b for b in batches if len(b.sequences.lengths.unique()) > 1)
    metrics = plain.update(batch, Rng(1)), other.update(padded(batch, 7), Rng(1))
    assert_same_step(plain, other, metrics, 1e-5)


def ragged() -> tuple[Sequences, Sequences]:
    """Sequences of different lengths, and the same with random padding of another width."""
    draw = Rng(2).at("ragged").numpy()
    ids = [draw.integers(3, 40, n) for n in (4, 9, 6)]
    plain = pad([row[:2] for row in ids], [row[2:] for row in ids])
    batch = dataclasses.make_dataclass("Batch", [("sequences", Sequences)], bases=(Record,), frozen=True)(plain)
    return plain, padded(batch, 6).sequences


def test_padding_makes_no_difference_to_log_probs_and_their_gradients():
    results = []
    for sequences in ragged():
        model = load_model(TINY)
        values = token_log_probs(model, sequences)
        assert (values[~sequences.mask] == 0).all()
        values.sum().backward()
        results.append((values[:, :9], [p.grad for p in model.trainable() if p.grad is not None]))
    (a, grads_a), (b, grads_b) = results
    assert torch.allclose(a, b, atol=1e-6, rtol=1e-6)
    for one, other in zip(grads_a, grads_b, strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max() + 1e-6


def test_padding_makes_no_difference_to_scores(scorer: RewardScorer):
    plain, wide = ragged()
    with torch.no_grad():
        assert torch.allclose(scorer.score_tokens(plain), scorer.score_tokens(wide), atol=1e-6, rtol=0)
        assert scorer.score_tokens(plain).unique().numel() == 3


# Refusals.


@each_trained
def test_nan_stops_training_with_its_reason(case: Case, monkeypatch: pytest.MonkeyPatch):
    make = case.cls.learner

    def poisoned(self: Any, spec: Any, rng: Rng) -> Learner:
        learner = make(self, spec, rng)
        for value in vars(learner).values():
            if isinstance(value, torch.nn.Module):
                for parameter in value.parameters():
                    parameter.data.fill_(torch.nan)
        return learner

    monkeypatch.setattr(case.cls, "learner", poisoned)
    with pytest.raises(HealthError) as stopped:
        case.fit()
    assert "nan" in stopped.value.what and "step" in stopped.value.what and stopped.value.fix


@pytest.mark.parametrize("case", [c for c in TRAINED if "purpose" in c.world.given], ids=str)
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_purpose_that_returns_no_finite_number_is_named(case: Case, bad: float):
    def purpose(prompts: Any, completions: Any) -> list[float]:
        return [bad] * len(completions)

    with pytest.raises(TelosError, match="topic"):
        case.fit(purpose=purpose)


@pytest.mark.parametrize("case", [c for c in ALL if c.cls.data is not None], ids=str)
def test_other_data_and_no_data_are_refused_before_anything_is_written(case: Case, tmp_path: Path):
    assert case.cls.data is not None
    other = Prompts(topics()) if issubclass(case.cls.data, Transitions) else transitions()
    whole = case.world.data()
    if isinstance(whole, Record):
        empty = whole[:0]
    else:
        lists = {f.name: [] for f in dataclasses.fields(whole) if isinstance(getattr(whole, f.name), list)}
        empty = dataclasses.replace(whole, **lists)
    assert len(empty) == 0 and len(whole) >= COUNT
    for bad in (other, empty, str(tmp_path / "nothing.npz"), 3):
        with pytest.raises(TelosError):
            case.fit(data=bad, out=tmp_path / "run")
    for required in ("model",) if "model" in case.world.given else ():
        with pytest.raises(TelosError, match=required):
            case.fit(out=tmp_path / "run", **{required: None})
    assert list(tmp_path.iterdir()) == []


@each_trained
def test_steps_must_be_said(case: Case):
    with pytest.raises(TelosError, match="steps"):
        case.fit(steps=None)


@each
def test_further_records_that_it_accepts_are_learnt_from(case: Case):
    for kind in case.cls.accepts:
        learnt = 0
        for world in WORLDS[kind]:
            try:
                product = case.fit(data=world.data(), **{**world.given, "steps": 1})
            except TelosError:
                assert world.optional
                continue
            assert isinstance(product, Product)
            learnt += 1
        assert learnt


def test_the_network_is_out_of_reach_here(network_error: type[BaseException]):
    with pytest.raises(network_error):
        socket.create_connection(("127.0.0.1", 9))
    with pytest.raises(network_error):
        socket.getaddrinfo("localhost", 80)


# The file.

HEADER = {"method", "title", "year", "purpose", "product", "data", "summary", "equations", "deviations"}
PAPER = HEADER | {"arxiv", "url", "claim", "paper_claim", "traps", "at_scale", "usage", "terms"}
PAPER_CLAIM = {"where", "text", "value", "data", "model", "mechanism"}
LISTS = {"purpose", "equations", "deviations", "traps", "usage", "terms"}
MAY_BE_EMPTY = {"deviations"}
USEFUL = re.compile(r"\.(save|evaluate|act|generate|load_online)\(")
SOURCE = re.compile(r"\b(Paper|Repository|telos|TRL|d3rlpy|AISteer360): ")
"""Whose default an option has; "telos" is a choice of ours."""

each_paper = pytest.mark.parametrize(
    "entry", [entry for entry in entries().values() if not entry.baseline], ids=lambda entry: entry.slug
)


@each_entry
def test_the_header_is_complete(entry: Entry):
    header = entry.header
    needed = HEADER | {"reference"} if entry.baseline else PAPER
    assert set(header) == needed
    for key, value in header.items():
        assert value or key in MAY_BE_EMPTY, f"{key} is empty"
        if key in LISTS:
            assert isinstance(value, list) and all(isinstance(item, str) and item for item in value), key
        elif key == "paper_claim":
            assert set(value) == PAPER_CLAIM
            assert all(isinstance(text, str) and text and not set("\\${}") & set(text) for text in value.values())
        else:
            assert isinstance(value, int if key == "year" else str), key
    if not entry.baseline:
        assert header["url"].endswith(header["arxiv"]) or not header["arxiv"]
        assert header["at_scale"].startswith(f"telos fit {entry.slug}")


@each_paper
def test_usage_is_for_the_shell_and_then_for_python(entry: Entry):
    # That the lines run is for tests/test_usage.py.
    usage = entry.header["usage"]
    shell = [line for line in usage if line.startswith("telos ")]
    python = usage[len(shell) :]
    assert shell == usage[: len(shell)] and shell[0].startswith(f"telos fit {entry.slug}") and "--out " in shell[0]
    assert any(USEFUL.search(line) for line in python)
    for line in python:
        ast.parse(line)


@each_paper
def test_search_terms_say_what_the_other_texts_do_not(entry: Entry):
    code = ("terms", "equations", "usage", "at_scale")
    others = json.dumps([value for key, value in entry.header.items() if key not in code]).casefold()
    terms = entry.header["terms"]
    assert 3 <= len(terms) <= 8 and len({term.casefold() for term in terms}) == len(terms)
    assert [term for term in terms if term.casefold() in others] == []


@each_entry
def test_equations_become_mathml(entry: Entry):
    mathml = pytest.importorskip("telos.site.equations").mathml
    for equation in entry.header["equations"]:
        # It refuses what its converter does not know.
        assert "".join(ElementTree.fromstring(mathml(equation)).itertext()).strip(), equation


@each_paper
def test_every_option_names_the_source_of_its_default(entry: Entry):
    for name, fields in hyperparameters(entry).items():
        assert [f"{name}.{field['name']}" for field in fields if not SOURCE.search(field["doc"])] == []


@each_entry
def test_a_paper_has_its_claim(entry: Entry):
    assert entry.baseline or entry.claim_module, f"src/telos/claims/{entry.slug}.py is missing"


@each
def test_the_product_is_of_the_kind_that_the_header_says(case: Case):
    entry = entries()[class_slug(case.cls).split(".")[0]]
    if case.cls.__name__ == entry.classes[0]:
        assert fitted(case).kind == entry.header["product"]  # type: ignore[attr-defined]


@each_class
def test_the_options_are_frozen_documented_and_survive_json(cls: type[Method]):
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    entry = entries()[class_slug(cls).split(".")[0]]
    documented = {f["name"]: f["doc"] for f in hyperparameters(entry)[cls.__name__]}
    assert set(documented) == {f.name for f in dataclasses.fields(cls)}
    assert [name for name, doc in documented.items() if not doc] == []
    method = cls()
    assert cls.from_options(json.loads(json.dumps(method.options()))) == method
    with pytest.raises(TelosError, match="no_such_option"):
        cls.from_options({"no_such_option": 1})


def part(node: ast.stmt) -> int | None:
    """Where a statement belongs: 1 header, 2 methods, 3 losses, 4 learner, 5 product; None for anything else."""
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("PAPER", "BASELINE"):
        return 1
    if isinstance(node, ast.FunctionDef):
        return 3
    if not isinstance(node, ast.ClassDef):
        return None
    bases = [ast.unparse(base) for base in node.bases]
    if "Method" in bases:
        return 2
    if any(base.endswith("Learner") for base in bases):
        return 4
    return 5 if set(bases) & {"Product", "Policy", "Generator", "Scorer", "Density", "Recogniser", "Report"} else None


@each_entry
def test_the_parts_of_the_file_are_in_order(entry: Entry):
    file = PACKAGE.joinpath(*entry.module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree)
    parts = [place for node in tree.body if (place := part(node)) is not None]
    assert parts == sorted(parts) and parts[0] == 1 and 2 in parts


OVER = {
    "rloo": {"files": 11}, "online_dpo": {"files": 11}, "ppo": {"files": 13}, "inpo": {"files": 13, "lines": 2250},
    "f_dpg": {"files": 12, "lines": 2200}, "dno": {"files": 13, "lines": 2350}, "rso": {"files": 14, "lines": 2450},
    "nash_md": {"files": 13, "lines": 2350}, "deal": {"lines": 2100}, "cql": {"files": 11}, "bcq": {"files": 11},
    "tscac": {"files": 11},
}  # fmt: skip
"""Methods that need more than the design grants, with what they need: sampling, which has two ways, and losses shared
in ops are each a file more to read, PPO's critic and hooks two, CQL's and BCQ's two policies, TSCAC's comparators."""


@each_entry
def test_it_can_be_read_in_one_sitting(entry: Entry):
    counted = budget(entry)
    allowed = {"own": MOST_OWN, "files": MOST_FILES, "lines": MOST_LINES, **OVER.get(entry.slug, {})}
    assert counted.own <= allowed["own"]
    assert len(counted.files) <= allowed["files"], sorted(counted.files)
    assert counted.lines <= allowed["lines"], counted.files


# Devices.


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@each_trained
def test_it_trains_on_a_gpu_and_acts_on_a_cpu(case: Case, scorer: RewardScorer, tmp_path: Path):
    product = case.fit(device="cuda", out=tmp_path / "run")
    assert {tensor.device.type for tensor in product.state_dict().values()} == {"cuda"}
    loaded = telos.load_product(tmp_path / "run")
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cpu"}
    assert differing({k: v.cpu() for k, v in state(product).items()}, state(loaded)) == []
