"""Rounds of generate, judge, update: how iterated methods for language models use the one loop.

Each round is two named stages that resume on their own. In `roundN-judge` the policy writes n completions of each of
the round's prompts, and an oracle or a purpose judges them; its product, `Judgements`, is kept. In `roundN-update` the
method's learner takes its steps on pairs of them. The policy of the round's beginning is an anchor by its log-probs,
which the judgements hold, so no copy of it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Metrics, Source, Spec, Stage, Stages
from telos.core.products import Completions, Product
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Record
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import scores
from telos.lm.tokens import Ids, Sequences, tokenise_prompts
from telos.ops.pairs import bradley_terry
from telos.purposes.oracles import Oracle, asked

PASS = 64
"""Groups in one pass without gradients."""


@dataclass(frozen=True)
class Judged(Record):
    """A batch of prompts with n completions each and what was said of them.

    Args:
        sequences: tokens (B, n, T), lengths and boundaries (B, n).
        current: (B, n) summed log-probs under the policy that wrote them, whatever transform it sampled with.
        reference: (B, n) the same under the frozen reference.
        prefers: (B, n, n) the chance that i is preferred to j.
        scores: (B, n) the purpose's scores; for an oracle the mean chance against the prompt's other completions.
    """

    sequences: Sequences
    current: Tensor
    reference: Tensor
    prefers: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Pairs(Record):
    """A batch of pairs, the preferred completion first.

    Args:
        sequences: tokens (B, 2, T), lengths and boundaries (B, 2).
        current, reference: (B, 2) anchors, see `Judged`.
        chance: (B,) that the first is preferred to the second, as the oracle has it.
        scores: (B, 2).
    """

    sequences: Sequences
    current: Tensor
    reference: Tensor
    chance: Tensor
    scores: Tensor


class Judgements(Product):
    """The judged completions of one round, N prompts with n completions each: the product of a judging stage."""

    kind: ClassVar[str] = "Report"

    def __init__(self, prompts: int, samples: int, width: int):
        super().__init__()
        self.sizes = (prompts, samples, width)
        shape = (prompts, samples)
        self.register_buffer("tokens", torch.zeros((*shape, width), dtype=torch.int64))
        self.register_buffer("lengths", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("boundaries", torch.zeros(shape, dtype=torch.int64))
        for name in ("current", "reference", "scores"):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("prefers", torch.zeros((*shape, samples)))

    def config(self) -> dict[str, Any]:
        return dict(zip(("prompts", "samples", "width"), self.sizes, strict=True))

    def probe(self) -> dict[str, Tensor]:
        return {"lengths": self.get_buffer("lengths").double().mean()}

    def write_rows(self, start: int, batch: Judged) -> None:
        """Puts a batch at the rows from `start` on."""
        rows = slice(start, start + len(batch))
        self.get_buffer("tokens")[rows, :, : batch.sequences.tokens.shape[-1]] = batch.sequences.tokens
        for name, value in (("lengths", batch.sequences.lengths), ("boundaries", batch.sequences.boundaries)):
            self.get_buffer(name)[rows] = value
        for name in ("current", "reference", "scores", "prefers"):
            self.get_buffer(name)[rows] = getattr(batch, name)

    @property
    def judged(self) -> Judged:
        """All rows."""
        sequences = Sequences(*(self.get_buffer(name) for name in ("tokens", "lengths", "boundaries")))
        return Judged(sequences, *(self.get_buffer(name) for name in ("current", "reference", "prefers", "scores")))


class Collector(Learner):
    """Keeps what a judging stage brings; nothing is learnt."""

    constant: ClassVar[tuple[str, ...]] = ("policy",)

    def __init__(self, policy: LanguagePolicy, kept: Judgements):
        self.policy, self.kept, self.rows = policy, kept, 0

    def behaviour(self) -> LanguagePolicy:
        return self.policy

    def update(self, batch: Judged, rng: Rng, micro: int = 1) -> Metrics:
        self.kept.write_rows(self.rows, batch)
        self.rows += len(batch)
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        return {
            "score": batch.scores.mean(),
            "kl": (batch.current - batch.reference).mean(),
            "length": lengths.mean(),
        }

    def product(self) -> Judgements:
        return self.kept


class JudgeSource(Source):
    """Takes the next prompts, has the policy write n completions each, and asks what is preferred.

    Args:
        judge: an oracle, or a purpose whose scores become chances by Bradley-Terry.
        sampling: temperature, top_k, top_p of the writing; by default the policy as it is.
    """

    def __init__(
        self,
        prompts: Sequence[Ids],
        judge: Any,
        reference: LanguageModel,
        *,
        samples: int,
        batch: int,
        max_new_tokens: int,
        columns: Mapping[str, Sequence[Any]],
        sampling: Mapping[str, float],
    ):
        self.prompts, self.judge, self.reference, self.columns = prompts, judge, reference, columns
        self.samples, self.size, self.cursor = samples, batch, 0
        self.sampling = {**sampling, "max_new_tokens": max_new_tokens}

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Judged:
        policy = behaviour()
        assert isinstance(policy, LanguagePolicy)
        chosen = range(self.cursor, min(self.cursor + self.size, len(self.prompts)))
        self.cursor = chosen.stop
        completions = policy.generate(
            [self.prompts[i] for i in chosen], n=self.samples, rng=rng.torch(policy.model.device), **self.sampling
        )
        rows = [i for i in chosen for _ in range(self.samples)]
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        said, prefers = judgements(self.judge, completions, self.samples, policy.model, columns)
        shape, device = (len(chosen), self.samples), self.reference.device
        flat = Sequences(completions.tokens, completions.lengths, completions.boundaries).to(device)
        return Judged(
            Sequences(*(part.unflatten(0, shape) for part in (flat.tokens, flat.lengths, flat.boundaries))),
            log_probs(policy.model, flat).view(shape),
            log_probs(self.reference, flat).view(shape),
            prefers.to(device),
            said.to(device),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return {}, {"cursor": self.cursor}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.cursor = int(numbers["cursor"])


def judgements(
    judge: Any, completions: Completions, n: int, model: LanguageModel, columns: Mapping[str, Sequence[Any]]
) -> tuple[Tensor, Tensor]:
    """Scores (g, n) and the chances (g, n, n) that i is preferred to j, of n completions of each of g prompts."""
    g = len(completions.texts) // n
    if not isinstance(judge, Oracle):
        said = scores(judge, completions, model.tokenizer, columns).view(g, n)
        return said, bradley_terry(said)
    first, second = np.triu_indices(n, 1)
    left = (np.arange(g)[:, None] * n + first).ravel()
    right = (np.arange(g)[:, None] * n + second).ravel()
    texts, prompts = completions.texts, completions.prompts
    chances = asked(judge, [prompts[i] for i in left], [texts[i] for i in left], [texts[i] for i in right])
    prefers = torch.full((g, n, n), 0.5)
    upper = torch.from_numpy(chances).float().view(g, -1)
    prefers[:, first, second], prefers[:, second, first] = upper, 1 - upper
    return (prefers.sum(-1) - 0.5) / max(n - 1, 1), prefers


@torch.no_grad()
def log_probs(model: LanguageModel, sequences: Sequences) -> Tensor:
    """(N,) summed log-probs without gradient, a part at a time."""
    parts = [sequences[i : i + PASS] for i in range(0, len(sequences.lengths), PASS)]
    return torch.cat([sequence_log_probs(model, part) for part in parts])


@dataclass(frozen=True)
class PairSet:
    """Pairs of judged completions as a data set for `Epochs`.

    Args:
        pairs: (P, 3) prompt, preferred completion, other one, as the builders of `telos.ops.pairs` give them.
    """

    judged: Judged
    pairs: Tensor

    def __post_init__(self) -> None:
        if len(self.pairs) == 0:
            raise TelosError(
                "no pair is left to learn from", got=f"{len(self.judged)} judged prompts, all tied or filtered",
                fix="more samples a prompt, a finer purpose, or a smaller margin",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def lengths(self) -> np.ndarray:
        """(P,) the longer sequence of each pair."""
        return self.judged.sequences.lengths[self.pairs[:, :1], self.pairs[:, 1:]].amax(-1).cpu().numpy()

    def batch(self, index: Sequence[int] | np.ndarray) -> Pairs:
        rows = self.pairs[torch.as_tensor(np.asarray(index), device=self.pairs.device)]
        prompt, both = rows[:, :1], rows[:, 1:]
        whole, judged = self.judged.sequences, self.judged
        lengths = whole.lengths[prompt, both]
        return Pairs(
            Sequences(whole.tokens[prompt, both][..., : int(lengths.max())], lengths, whole.boundaries[prompt, both]),
            judged.current[prompt, both],
            judged.reference[prompt, both],
            judged.prefers[rows[:, 0], rows[:, 1], rows[:, 2]],
            judged.scores[prompt, both],
        )


@dataclass(frozen=True)
class Plan:
    """How rounds are cut.

    Args:
        rounds: how many; `fit`'s steps are shared equally among their updates, the last takes what is left over.
        prompts: prompts a round: each round takes the next ones, and begins again where they end.
        samples: completions of each prompt, n >= 2.
        batch_size: pairs an update.
        judge_batch: prompts written and judged at once.
    """

    rounds: int
    prompts: int
    samples: int
    batch_size: int
    max_new_tokens: int
    judge_batch: int = 64
    sampling: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = (self.rounds, self.prompts, self.batch_size, self.max_new_tokens, self.judge_batch)
        if min(counts) < 1 or self.samples < 2:
            raise TelosError(
                "a count of the rounds is out of range", expected="counts >= 1, samples >= 2",
                got=f"rounds, prompts, batch_size, max_new_tokens, judge_batch = {counts}, samples = {self.samples}",
            )  # fmt: skip


Build = Callable[[Judged, torch.Generator], Tensor]
"""(judged completions, generator) -> pairs (P, 3)."""


def rounds(spec: Spec, plan: Plan, learner: Callable[[LanguageModel], Learner], build: Build) -> Stages:
    """The stages of all rounds; the product is the last round's policy.

    Args:
        spec: with Prompts as data, and model, reference and purpose (or oracle) as given.
        learner: makes a round's learner, which starts from the weights of the model that it is handed.
        build: the method's choice of pairs.
    """
    if spec.steps < plan.rounds:
        raise TelosError("fewer steps than rounds", expected=f"--steps {plan.rounds} or more", got=f"{spec.steps}")
    model, reference = spec.given["model"], spec.given["reference"]
    ids = tokenise_prompts(model, spec.data, plan.max_new_tokens)
    width = max(map(len, ids)) + plan.max_new_tokens
    policy = LanguagePolicy(model)
    for number in range(1, plan.rounds + 1):
        name, rng = f"round{number}", spec.rng.at("round", number)
        chosen = round_prompts(len(ids), plan.prompts, number - 1, spec.rng)
        source = JudgeSource(
            [ids[i] for i in chosen], spec.given["purpose"], reference, samples=plan.samples, batch=plan.judge_batch,
            max_new_tokens=plan.max_new_tokens, sampling=plan.sampling,
            columns={key: [values[i] for i in chosen] for key, values in spec.data.columns.items()},
        )  # fmt: skip
        kept = Judgements(len(chosen), plan.samples, width).to(reference.device)
        judging = Stage(
            f"{name}-judge", Collector(policy, kept), source, -(-len(chosen) // plan.judge_batch), evaluated=False
        )
        found = yield judging
        assert isinstance(found, Judgements)
        judged = found.judged
        pairs = PairSet(judged, build(judged, rng.at("pairs").torch(reference.device)))
        done = (number - 1) * (spec.steps // plan.rounds)
        steps = spec.steps // plan.rounds if number < plan.rounds else spec.steps - done
        policy.model.network.requires_grad_(True)
        order = Epochs(pairs, plan.batch_size, rng.at("order"), pairs.lengths)
        written = yield Stage(f"{name}-update", learner(policy.model), order, steps, first=done)
        assert isinstance(written, LanguagePolicy)
        policy = written
    return policy


def round_prompts(count: int, size: int, number: int, rng: Rng) -> list[int]:
    """The prompts of a round: the next `size` of a shuffled order, which is shuffled anew where it ends."""
    chosen: list[int] = []
    place = number * size
    while len(chosen) < size:
        epoch, start = divmod(place + len(chosen), count)
        order = rng.at("prompts", epoch).numpy().permutation(count)
        chosen += order[start : start + size - len(chosen)].tolist()
    return chosen
