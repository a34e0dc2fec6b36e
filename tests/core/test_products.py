from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import telos
from telos.core.errors import TelosError
from telos.core.products import Report
from telos.core.rng import Rng
from telos.nets.policies import DeterministicPolicy


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return DeterministicPolicy(3, (-1.0,), (1.0,), (4,), rng=Rng(0).torch()).save(tmp_path / "policy")


def test_a_run_stands_for_its_product(saved: Path):
    inside = saved.parent / "run" / "product"
    inside.parent.mkdir()
    saved.rename(inside)
    assert isinstance(telos.load_product(inside.parent), DeterministicPolicy)


def test_what_is_no_product_is_refused(saved: Path, tmp_path: Path):
    with pytest.raises(TelosError, match="is not a product"):
        telos.load_product(tmp_path / "nothing")
    with pytest.raises(TelosError, match="is not a product"):
        telos.load_product(tmp_path)
    header = json.loads((saved / "config.json").read_text())
    for changes, says in (({"kind": "os.system"}, "no product of kind"), ({"kind": "Nonsense"}, "Nonsense")):
        (saved / "config.json").write_text(json.dumps({**header, **changes}))
        with pytest.raises(TelosError, match=says):
            telos.load_product(saved)
    (saved / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(TelosError, match="not written by telos"):
        telos.load_product(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(TelosError, match="not JSON"):
        telos.load_product(saved)


def test_weights_that_do_not_fit_are_refused(saved: Path):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "weight" in name and not name.startswith("probe."))
    for changed in (
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "further": torch.zeros(1)},
        {**tensors, name: torch.zeros(9, 9)},
    ):
        save_file(changed, file)
        with pytest.raises(TelosError, match="do not fit"):
            telos.load_product(saved)
    save_file({**tensors, name: tensors[name] + 1}, file)
    with pytest.raises(TelosError, match="probe"):
        telos.load_product(saved)
    save_file(tensors, file)
    telos.load_product(saved)
    file.unlink()
    with pytest.raises(TelosError, match="cannot be read"):
        telos.load_product(saved)


def test_saving_again_replaces_the_whole_folder(saved: Path):
    (saved / "left_over.txt").write_text("old")
    other = DeterministicPolicy(3, (-1.0,), (1.0,), (4,), rng=Rng(1).torch())
    other.save(saved)
    assert not (saved / "left_over.txt").exists()
    loaded = telos.load_product(saved).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in other.state_dict().items())


def test_a_report_is_its_values(tmp_path: Path):
    Report({"accuracy": 0.5, "rows": [1, 2]}).save(tmp_path / "report")
    assert telos.load_product(tmp_path / "report").values == {"accuracy": 0.5, "rows": [1, 2]}
