"""The files that `telos new` writes: a learner that works (behaviour cloning) and that says what is left to do.

@NAME@ stands for what `telos.cli.new` fills in.
"""

METHOD = '''"""@METHOD@: TODO one sentence that says what it does.

@CITATION@

TODO the equations, numbered, as in the dossier; this skeleton clones behaviour:

    mean (pi(s) - a)^2                                                                              (1)

TODO what differs from the paper and why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Uniform
from telos.data.records import Transitions
from telos.nets.normaliser import Normaliser
from telos.nets.policies import DeterministicPolicy, box

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
@HEADER@
    "paper_claim": {
        "where": "TODO Table or Figure",
        "text": "TODO what the paper reports there, retold.",
        "value": "TODO its figures, each with (unverified) where it was not read in the paper; or: a plot, no number",
        "data": "TODO the paper's data sets or environments",
        "model": "TODO the paper's model or network, with its size",
        "mechanism": "TODO why the claim's small experiment tests the same mechanism, and what it cannot test.",
    },
    "equations": [r"\\mathcal L=\\mathbb E\\left[(\\pi(s)-a)^2\\right]"],  # TODO
    "deviations": ["TODO"],
    "traps": ["TODO"],
    "terms": ["TODO", "three to eight search terms", "that stand in no other text here"],
    "usage": [
        "telos fit @SLUG@ --data transitions.npz --steps 100 --out runs/@SLUG@",
        'policy = telos.@CLASS@().fit("transitions.npz", steps=100)',
        'policy.save("my-policy")',
    ],  # TODO run as written by tests/test_usage.py, which has the list of example files
    "at_scale": "telos fit @SLUG@ --data minari:mujoco/halfcheetah/medium-v0 --steps 1000000",  # TODO
}


@dataclass(frozen=True)
class @CLASS@(Method):
    """TODO what it learns from, and what it must be given."""

    data: ClassVar[type] = Transitions

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers. Paper: TODO (or "Repository: ...", or "telos: ..." for a choice of ours)."""
    learning_rate: float = 3e-4
    """Of Adam. Paper: TODO."""
    batch_size: int = 256
    """Transitions an update. Paper: TODO."""

    def prepare(self, spec: Spec) -> Spec:
        box(spec.data, "@CLASS@")
        return spec.replace(data=spec.data.to(spec.device))

    def source(self, spec: Spec) -> Uniform:
        return Uniform(spec.data, self.batch_size)

    def learner(self, spec: Spec, rng: Rng) -> @CLASS@Learner:
        return @CLASS@Learner(self, spec.data, rng)


def squared_error(actions: Float[Tensor, "B A"], targets: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
    """(1) for each row: the mean over dimensions. TODO the paper's loss."""
    return (actions - targets).square().mean(-1)


class @CLASS@Learner(Learner):
    """A policy and its optimiser."""

    def __init__(self, method: @CLASS@, data: Transitions, rng: Rng):
        bounds = box(data, "@CLASS@")
        size, weights = data.observations.shape[1], rng.at("policy").torch()
        policy = DeterministicPolicy(size, bounds.low, bounds.high, method.hidden, rng=weights)
        policy.normaliser = Normaliser.fitted(data.observations)
        self.policy = policy.to(data.observations.device)
        self.optimiser = torch.optim.Adam(self.policy.parameters(), method.learning_rate)

    def update(self, batch: Transitions, rng: Rng, micro: int = 1) -> Metrics:
        self.optimiser.zero_grad()
        sums = Accumulator()
        for part in split(batch, micro):
            actions = self.policy(self.policy.normaliser(part.observations))
            sums.add(squared_error(actions, part.actions).sum(), len(part))
        loss = sums.divide(self.policy.parameters())
        self.optimiser.step()
        return {"loss": loss}

    def product(self) -> Product:
        return self.policy
'''

CLAIM = '''"""@METHOD@'s claim: TODO what the paper says, as a small experiment.

World: TODO; this skeleton walks along Lineworld. Develop on seeds from 1000 up; the claim's own seeds run once.
"""

from __future__ import annotations

from telos.core.method import Method
from telos.core.registry import use
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.verdict import Better
from telos.worlds import lineworld


def train(trial: Trial, method: Method) -> Measures:
    """Fits `method` on the world's data and measures how often it reaches the goal. TODO the gold measure."""
    data = lineworld.dataset(1000, trial.rng.at("data"))
    policy = trial.fit(method, data, steps=300)
    return {"reached": lineworld.reach(policy)["reached"]}


CLAIMS = {
    "laptop": Claim(
        statement="TODO one sentence in our words about our world.",
        source="TODO Table or Figure",
        world="Lineworld: a line to walk along, 1,000 recorded steps",
        parts=(Better("ours", "bc", "reached", margin=0.1),),  # TODO the dossier's margin, before measuring
        arms={
            "ours": Arm(train, {"method": use("@SLUG@")}, label=@LABEL@),
            "bc": Arm(train, {"method": use("bc")}, label="BC"),
        },
        seeds=(0, 1, 2, 3, 4),
        refuted_if="TODO the outcome that would speak against the claim.",
        metrics={"reached": "1 where the goal is reached within 60 steps"},
        minutes=1,
    )
}
'''

TEST = '''"""@METHOD@: the checks of its dossier, with numbers."""

from pathlib import Path

import pytest
import torch

from telos.claims import @SLUG@ as claims
from telos.core.rng import Rng
from telos.methods.@FAMILY@ import @SLUG@ as methods
from telos.worlds import lineworld


def test_the_loss_by_hand():
    actions, targets = torch.tensor([[1.0, 0.0], [2.0, 2.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    assert methods.squared_error(actions, targets).tolist() == [2.5, 0.0]


def test_it_learns_what_a_closed_form_says():
    # A record of one action everywhere: the policy must end there.
    data = lineworld.dataset(200, Rng(1000))
    data = data[data.actions[:, 0] > 0]
    policy = methods.@CLASS@(hidden=(16,), learning_rate=1e-2).fit(data, steps=200, seed=1000, device="cpu")
    mean = policy.act(data.observations).action.mean()
    assert mean.item() == pytest.approx(data.actions.mean().item(), abs=0.1)


@pytest.mark.parametrize("module", [methods, claims])
def test_nothing_is_left_to_do(module):
    lines = Path(module.__file__).read_text().splitlines()
    left = [f"line {number}: {line.strip()}" for number, line in enumerate(lines, 1) if "TODO" in line]
    assert not left, "\\n".join(left)
'''
