"""Compiled steps are torch's, within rounding; what cannot be compiled is torch's."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from core_toys import Killed, transitions
from torch import Tensor, nn

import telos
from telos.core import compiled, compiler, programs
from telos.core.compiled import CompiledStep, close, step_of, traced
from telos.core.numerics import LONG, PLAIN, Numerics, preset, using
from telos.core.programs import Uncompiled
from telos.core.together import Descent
from telos.data.formats import save_npz

COMPILED = Numerics(update="compiled")


class Line:
    """A learner: y = w x + b, of which one parameter is not used."""

    def __init__(self, **options: Any):
        self.net, self.unused = nn.Linear(3, 1), nn.Parameter(torch.ones(2))
        self.weight = torch.full((), 2.0)
        parameters = [{"params": list(self.net.parameters()), "lr": 0.1}, {"params": [self.unused]}]
        self.optimiser = torch.optim.Adam(parameters, **{"fused": True, **options})

    def loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        errors = self.net(x).squeeze(-1) - y
        return self.weight * errors.square().sum(), {"error": errors.sum(), "size": errors.abs().sum()}

    def request(self, loss: Callable[..., Any] | None = None, rows: int = 8, seed: int = 0, **given: Any) -> Descent:
        draw = torch.Generator().manual_seed(seed)
        part = torch.randn(rows, 3, generator=draw), torch.randn(rows, generator=draw)
        options: dict[str, Any] = {"trained": None, "grad_norm": False, **given}
        return Descent(self, self.optimiser, loss or self.loss, [part], rows, **options)


def alike() -> tuple[Line, Line]:
    one, other = Line(), Line()
    other.net.load_state_dict(one.net.state_dict())
    return one, other


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program as it is given to the compiler, run operator by operator: what is tested is all but the compiler."""

    def program(code: str, tensors: Sequence[Tensor], *, step: dict[str, Any]) -> Any:
        made = compiler.Step(code, **json.loads(json.dumps(step)))
        return lambda tensors: made(*tensors)

    monkeypatch.setattr(compiled, "program", program)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.9), "eps": 0.1}], ids=str)
def test_many_steps_are_those_of_torch_s_adam(make: Any, options: dict[str, Any], eager: None):
    one, other = alike()
    for line in (one, other):
        line.optimiser = make(line.net.parameters(), lr=0.1, weight_decay=0.0, fused=True, **options)
    for step in range(20):
        for line in (one, other):
            line.optimiser.param_groups[0]["lr"] = 0.1 / (1 + step)
        with using(COMPILED):
            found = one.request(seed=step, grad_norm=True).alone()
        expected = other.request(seed=step, grad_norm=True).alone()
        assert list(found) == list(expected) == ["error", "size", "grad_norm"]
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
        for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for own, theirs in zip(one.optimiser.state.values(), other.optimiser.state.values(), strict=True):
        assert float(own["step"]) == float(theirs["step"]) == 20
        for name in compiled.MOMENTS:
            torch.testing.assert_close(own[name], theirs[name], rtol=1e-5, atol=1e-7)


def test_what_the_loss_does_not_use_is_left_alone(eager: None):
    line = Line()
    with using(COMPILED):
        line.request().alone()
    assert line.unused not in line.optimiser.state and line.unused.tolist() == [1, 1]
    assert all(parameter.grad is None for parameter in line.net.parameters())


def test_only_what_is_named_is_trained(eager: None):
    line = Line()
    bias = line.net.bias.detach().clone()
    with using(COMPILED):
        line.request(trained=[line.net.weight]).alone()
    assert torch.equal(line.net.bias, bias) and line.net.bias not in line.optimiser.state


def test_the_learner_s_tensors_are_read_anew(eager: None):
    line = Line()
    with using(COMPILED):
        step = step_of(line.request())
    assert step is not None
    line.weight.fill_(0.0)  # no error counts any more
    step(line.request(seed=1))
    assert float(line.optimiser.state[line.net.weight]["exp_avg"].abs().max()) == 0


def test_another_kind_of_step_is_torch_s(eager: None):
    line = Line()
    with using(COMPILED):
        assert step_of(line.request()) is not None
        assert step_of(line.request(rows=5)) is None
        assert step_of(line.request(lambda x, y: line.loss(x, y))) is None
        for number, rows in enumerate((8, 5, 8)):
            line.request(rows=rows).alone()
            assert float(line.optimiser.state[line.net.bias]["step"]) == number + 1
    assert step_of(line.request()) is not None


def test_parts_and_other_optimisers_are_torch_s(eager: None):
    line = Line()
    parts = line.request()
    parts.parts = [*parts.parts, *parts.parts]
    assert step_of(parts) is None
    line.optimiser = torch.optim.SGD(line.net.parameters())  # type: ignore[assignment]
    assert step_of(line.request()) is None


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True}], ids=str)
def test_options_that_are_not_compiled_are_torch_s(options: dict[str, Any], eager: None):
    line = Line(**options)
    assert step_of(line.request()) is None


def frozen(line: Line, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Part of it leaves torch: traced, it would stay what it was for the first batch."""
    offset = torch.from_numpy(x.detach().numpy().sum(1))
    return (line.net(x).squeeze(-1) - offset).square().sum(), {}


def looking(line: Line, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What happens depends on the batch."""
    return line.loss(x, y) if bool((x > 0).any()) else line.loss(-x, y)


def nothing(line: Line, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    return line.weight * x.sum(), {}


@pytest.mark.parametrize("loss", [frozen, looking, nothing])
def test_what_cannot_be_traced_is_refused(loss: Callable[..., Any], eager: None):
    line = Line()
    request = line.request(lambda *part: loss(line, *part))
    with pytest.raises(Uncompiled):
        traced(request)
    assert step_of(request) is None


def test_a_program_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch):
    def program(code: str, tensors: Sequence[Tensor], *, step: dict[str, Any]) -> Any:
        made = compiler.Step(code, **{**step, "betas": [(0.8, 0.999), (0.9, 0.999)]})
        return lambda tensors: made(*tensors)

    monkeypatch.setattr(compiled, "program", program)
    one, other = alike()
    with using(COMPILED):
        one.request().alone()
    other.request().alone()
    for a, b in zip(one.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_closeness_is_relative_to_the_largest_and_nan_is_not_close():
    expected = [torch.tensor([1.0, 1e-9]), torch.tensor(0.0)]
    assert close([torch.tensor([1.0 + 5e-6, 0.0]), torch.tensor(1e-7)], expected)
    assert not close([torch.tensor([1.0, 2e-5]), torch.tensor(0.0)], expected)
    assert not close([torch.tensor([math.nan, 0.0]), torch.tensor(0.0)], expected)


def test_no_compiler_means_torch_s(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(programs.sys, "executable", "/bin/false")
    line = Line()
    with using(COMPILED):
        assert step_of(line.request()) is None


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_a_compiled_run_is_torch_s_and_is_resumed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the compiler itself."""
    used: list[CompiledStep] = []
    monkeypatch.setattr(CompiledStep, "__call__", lambda self, request, own=CompiledStep.__call__: (
        used.append(self) or own(self, request)))  # fmt: skip
    method = telos.IQL(hidden=(24, 24), batch_size=16)
    whole, plain = (method.fit(transitions(), steps=40, numerics=path) for path in ("compiled", "plain"))
    assert len(used) == 41  # the first one is made twice, to be compared
    for own, expected in zip(whole.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    (program,) = (tmp_path / "cache" / "compiled").iterdir()  # and nothing is left beside it
    written = program.stat().st_mtime_ns

    def killed(step: int, product: Any) -> dict[str, float]:
        if step == 30:
            raise Killed
        return {}

    out = tmp_path / "run"
    file = save_npz(transitions(), tmp_path / "data.npz")
    with pytest.raises(Killed):
        method.fit(str(file), steps=40, numerics="compiled", out=out, checkpoint_every=20, evaluate=killed,
                   evaluate_every=10)  # fmt: skip
    assert json.loads((out / "run.json").read_text())["path"]["update"] == "compiled"
    resumed = telos.resume(out)
    for own, expected in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)
    one, two = method.fit(transitions(), steps=40, numerics="compiled", seeds=2)
    for own, expected in zip(one.parameters(), whole.parameters(), strict=True):
        assert torch.equal(own, expected)
    assert not torch.equal(next(two.parameters()), next(one.parameters()))
    assert program.stat().st_mtime_ns == written and len(list(program.parent.iterdir())) == 1


def test_long_runs_on_a_cpu_are_compiled_where_torch_s_layers_are_the_faster(monkeypatch: pytest.MonkeyPatch):
    cpu, auto = torch.device("cpu"), Numerics(update="auto")
    assert auto.settled(LONG, cpu) == COMPILED and auto.settled(LONG - 1, cpu) == PLAIN
    assert auto.settled(LONG, torch.device("cuda")) == PLAIN
    assert Numerics("fused", update="auto").settled(LONG, cpu) == Numerics("fused")
    assert COMPILED.settled(1, cpu) == COMPILED and PLAIN.settled(LONG, cpu) == PLAIN
    assert preset("compiled").settled(1, cpu).update == "compiled"
