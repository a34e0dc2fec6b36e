"""TQ and SACo as a method: what `fit` returns is what `measure` counts (tests/data/test_measures.py)."""

import math

import pytest

import telos
from telos.core.errors import TelosError
from telos.core.registry import entries
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.measures import mean_return, measure
from telos.methods.offline_rl.dataset_perspective import DatasetPerspective
from telos.worlds.four_rooms_task import EXPERT_RETURN, dataset


@pytest.fixture(scope="module")
def schemes():
    return {scheme: dataset(scheme, 1500, Rng(1000)) for scheme in ("random", "expert", "replay")}


def test_fit_counts_and_saves(schemes, tmp_path):
    method = DatasetPerspective(random_return=mean_return(schemes["random"]), expert_return=EXPERT_RETURN)
    report = method.fit(schemes["expert"], reference=schemes["replay"], device="cpu")
    assert report.values["tq"] == pytest.approx(1, abs=1e-6) and report.values["saco"] < 0.15
    assert method.fit(schemes["random"], device="cpu").values["tq"] == pytest.approx(0, abs=1e-9)
    whole = measure(
        schemes["expert"], reference=schemes["replay"], random_return=method.random_return, expert_return=EXPERT_RETURN
    )
    assert report.values == whole.to_json()
    loaded = telos.load_product(report.save(tmp_path / "report"))
    assert loaded.values == report.values and loaded.kind == "Report"


def test_a_changed_number_is_noticed_when_a_report_is_loaded(schemes, tmp_path):
    folder = DatasetPerspective().fit(schemes["expert"], device="cpu").save(tmp_path / "report")
    file = folder / "config.json"
    file.write_text(file.read_text().replace('"unique": 12', '"unique": 13'))
    with pytest.raises(TelosError, match="probe"):
        telos.load_product(folder)


def test_references_by_name(schemes, tmp_path):
    path = save_npz(schemes["replay"], tmp_path / "replay.npz")
    named = DatasetPerspective().fit(schemes["random"], reference=str(path), device="cpu").values
    assert named["saco"] == DatasetPerspective().fit(schemes["random"], reference=schemes["replay"]).values["saco"]
    assert named["lsaco"] == pytest.approx(math.log(named["unique"]) / math.log(named["reference_unique"]))
    with pytest.raises(TelosError, match="no transitions"):
        DatasetPerspective().fit(schemes["random"], reference=3, device="cpu")


def test_nothing_is_trained(schemes):
    assert not DatasetPerspective.trains
    with pytest.raises(TelosError, match="trains nothing"):
        DatasetPerspective().learner(None, Rng(0))  # type: ignore[arg-type]


def test_bcq_covers_the_papers_last_check():
    # Threshold 0 is DQN and towards 1 cloning: held in tests/methods/test_bcq.py.
    assert "bcq" in entries() and entries()["bcq"].baseline
