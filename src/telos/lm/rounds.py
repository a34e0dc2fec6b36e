"""Rounds of generate, judge, update: how iterated methods for language models use the one loop.

Each round is two named stages that resume on their own. In `roundN-judge` the policy writes n completions of each of
the round's prompts, and an oracle or a purpose judges them; its product, `Judgements`, is kept. In `roundN-update` the
method's learner takes its steps on pairs of them. The policy of the round's beginning is an anchor by its log-probs,
which the judgements hold, so no copy of it is needed. A teacher's answers may stand beside the policy's own, and pairs
of earlier rounds may be used again, with that anchor computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from telos.core import parallel
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
from telos.purposes.oracles import as_oracle, asked

PASS = 64
"""Groups in one pass without gradients."""


@dataclass(frozen=True)
class Judged(Record):
    """A batch of prompts with n completions each and what was said of them.

    Args:
        sequences: tokens (B, n, T), lengths and boundaries (B, n); a teacher's answer, if any, is the last of the n.
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

    @property
    def win_rates(self) -> Tensor:
        """(B, n) the mean chance against the prompt's other completions."""
        return (self.prefers.sum(-1) - 0.5) / (self.prefers.shape[-1] - 1)


@dataclass(frozen=True)
class Pairs(Record):
    """A batch of pairs, the preferred completion first.

    Args:
        sequences: tokens (B, 2, T), lengths and boundaries (B, 2).
        current, reference: (B, 2) anchors, see `Judged`.
        chance: (B,) that the first is preferred to the second, as the oracle has it.
        scores, win_rates: (B, 2), see `Judged`.
    """

    sequences: Sequences
    current: Tensor
    reference: Tensor
    chance: Tensor
    scores: Tensor
    win_rates: Tensor


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
        if self.rows != self.kept.sizes[0]:
            raise TelosError(
                "a judging stage ended too early or too late", expected=f"{self.kept.sizes[0]} judged prompts",
                got=f"{self.rows}", fix="resume with as many processes as the run was started with",
            )  # fmt: skip
        return self.kept


class Judge(Protocol):
    """Has completions of prompts written and judged.

    Args:
        sizes: prompts, completions of each, and tokens of the longest sequence there can be.
        device: of what `judged` returns.
    """

    @property
    def sizes(self) -> tuple[int, int, int]: ...
    @property
    def device(self) -> torch.device: ...
    def judged(self, policy: LanguagePolicy, chosen: range) -> Judged:
        """Completions of the prompts at these places, and what is said of them; the same whoever else is asked."""
        ...


class JudgeSource(Source):
    """Has all prompts judged, `batch` at a time in each process; processes share what was said."""

    def __init__(self, judge: Judge, batch: int):
        self.judge, self.size, self.cursor = judge, batch, 0

    @property
    def steps(self) -> int:
        """How many batches there are."""
        return -(-self.judge.sizes[0] // (self.size * parallel.size()))

    def room(self) -> Judgements:
        """An empty product for all that will be said."""
        return Judgements(*self.judge.sizes).to(self.judge.device)

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Judged:
        policy = behaviour()
        assert isinstance(policy, LanguagePolicy)
        prompts, samples, width = self.judge.sizes
        end = min(self.cursor + self.size * parallel.size(), prompts)
        group, self.cursor = range(self.cursor, end), end
        if parallel.size() == 1:
            return self.judge.judged(policy, group)
        before = parallel.rank() * self.size
        own = group[before : before + self.size]
        shared = Judgements(len(group), samples, width).to(self.judge.device)
        if own:
            shared.write_rows(before, self.judge.judged(policy, own))
        for floats in (False, True):
            parallel.add_up([part for part in shared.buffers() if part.is_floating_point() == floats])
        return shared.judged

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return {}, {"cursor": self.cursor}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.cursor = int(numbers["cursor"])


@dataclass(frozen=True)
class SampleJudge:
    """The policy writes n completions of each prompt, and a purpose or an oracle judges them. A `Judge`.

    Args:
        prompts: token ids of each.
        purpose: an oracle, or a purpose whose scores become chances by Bradley-Terry; None calls everything equal.
        samples: n.
        width: tokens of the longest sequence there can be, in all rounds.
        columns: further columns of the prompts' data.
        sampling: max_new_tokens; temperature, top_k, top_p of the writing, by default the policy as it is.
        answers: token ids of a teacher's answer to each prompt, judged beside the n.
    """

    prompts: Sequence[Ids]
    purpose: Any
    reference: LanguageModel
    samples: int
    width: int
    columns: Mapping[str, Sequence[Any]]
    sampling: Mapping[str, Any]
    rng: Rng
    answers: Sequence[Ids] | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.prompts), self.samples + (self.answers is not None), self.width

    @property
    def device(self) -> torch.device:
        return self.reference.device

    def judged(self, policy: LanguagePolicy, chosen: range) -> Judged:
        rng, n = self.rng.at(chosen.start).torch(policy.model.device), self.sizes[1]
        completions = policy.generate([self.prompts[i] for i in chosen], n=self.samples, rng=rng, **self.sampling)
        if self.answers is not None:
            completions = with_answers(completions, [self.answers[i] for i in chosen], policy.model)
        columns = {name: [values[i] for i in chosen for _ in range(n)] for name, values in self.columns.items()}
        said, prefers = judgements(self.purpose, completions, n, policy.model, columns)
        return judged(policy.model, self.reference, completions, said, prefers)


def judged(
    model: LanguageModel, reference: LanguageModel, completions: Completions, said: Tensor, prefers: Tensor
) -> Judged:
    """Completions with what was said of them, scores (g, n) and chances (g, n, n), and both models' log-probs."""
    shape, device = said.shape, reference.device
    flat = Sequences(completions.tokens, completions.lengths, completions.boundaries).to(device)
    return Judged(
        Sequences(*(part.unflatten(0, shape) for part in (flat.tokens, flat.lengths, flat.boundaries))),
        log_probs(model, flat).view(shape),
        log_probs(reference, flat).view(shape),
        prefers.to(device),
        said.to(device),
    )


def judgements(
    judge: Any, completions: Completions, n: int, model: LanguageModel, columns: Mapping[str, Sequence[Any]]
) -> tuple[Tensor, Tensor]:
    """Scores (g, n) and the chances (g, n, n) that i is preferred to j, of n completions of each of g prompts."""
    g = len(completions.texts) // n
    if judge is None:
        return torch.zeros(g, n), torch.full((g, n, n), 0.5)
    oracle = as_oracle(judge)
    if oracle is None:
        said = scores(judge, completions, model.tokenizer, columns).view(g, n)
        return said, bradley_terry(said)
    first, second = np.triu_indices(n, 1)
    left = (np.arange(g)[:, None] * n + first).ravel()
    right = (np.arange(g)[:, None] * n + second).ravel()
    texts, prompts = completions.texts, completions.prompts
    chances = asked(oracle, [prompts[i] for i in left], [texts[i] for i in left], [texts[i] for i in right])
    prefers = torch.full((g, n, n), 0.5)
    upper = torch.from_numpy(chances).float().view(g, -1)
    prefers[:, first, second], prefers[:, second, first] = upper, 1 - upper
    return (prefers.sum(-1) - 0.5) / max(n - 1, 1), prefers


def with_answers(completions: Completions, answers: Sequence[Ids], model: LanguageModel) -> Completions:
    """The completions with a further one of each prompt, the last of its group; log-probs and transform are left out.

    Args:
        answers: token ids of one answer a prompt, closed by the end token or cut off.
    """
    g = len(answers)
    n = len(completions.texts) // g
    prompts, heads = completions.tokens[::n], completions.boundaries[::n]
    rows = [torch.cat([row[:head], torch.from_numpy(ids)]) for row, head, ids in zip(prompts, heads, answers)]
    lengths = torch.tensor([len(row) for row in rows])
    width = max(int(lengths.max()), completions.tokens.shape[1])
    taught = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    own = torch.nn.functional.pad(completions.tokens, (0, width - completions.tokens.shape[1]))
    texts = model.tokenizer.batch_decode([ids.tolist() for ids in answers], skip_special_tokens=True)

    def beside(first: Tensor, last: Tensor) -> Tensor:
        return torch.cat([first.unflatten(0, (g, n)), last[:, None]], 1).flatten(0, 1)

    tokens = beside(own, taught)
    return Completions(
        [text for i in range(g) for text in (*completions.texts[i * n : (i + 1) * n], texts[i])],
        [prompt for prompt in completions.prompts[::n] for _ in range(n + 1)],
        tokens,
        beside(completions.lengths, lengths),
        beside(completions.boundaries, heads),
        torch.zeros(tokens.shape),
        beside(completions.finished, torch.tensor([int(ids[-1]) == model.eos_id for ids in answers])),
    )


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
            judged.win_rates[prompt, both],
        )

    def part(self, share: float, generator: torch.Generator) -> PairSet | None:
        """A random share in [0, 1] of the pairs, rounded down; None where that is none."""
        count = int(share * len(self))
        order = torch.randperm(len(self), generator=generator, device=self.pairs.device)
        return PairSet(self.judged, self.pairs[order[:count]]) if count else None

    def anchored_at(self, model: LanguageModel) -> PairSet:
        """The same pairs with the model as the current policy; prompts without a pair are dropped."""
        prompts, places = self.pairs[:, 0].unique(return_inverse=True)
        judged = self.judged[prompts]
        current = log_probs(model, judged.sequences.flat()).view_as(judged.current)
        return PairSet(replace(judged, current=current), torch.cat([places[:, None], self.pairs[:, 1:]], 1))


def pooled(sets: Sequence[PairSet]) -> PairSet:
    """All pairs of sets with as many completions a prompt."""
    judged = [found.judged for found in sets]
    starts = np.cumsum([0, *map(len, judged)])
    pairs = [torch.cat([s.pairs[:, :1] + int(at), s.pairs[:, 1:]], 1) for s, at in zip(sets, starts, strict=False)]
    whole = [record.sequences for record in judged]
    sequences = Sequences(*(torch.cat([getattr(w, f) for w in whole]) for f in ("tokens", "lengths", "boundaries")))
    names = ("current", "reference", "prefers", "scores")
    return PairSet(Judged(sequences, *(torch.cat([getattr(j, f) for j in judged]) for f in names)), torch.cat(pairs))


@dataclass(frozen=True)
class Plan:
    """How rounds are cut.

    Args:
        rounds: how many; `fit`'s steps are shared equally among their updates, the last takes what is left over.
        prompts: prompts a round: each round takes the next ones, and begins again where they end.
        samples: completions of each prompt, n >= 1; one alone has pairs only with a teacher's answer.
        batch_size: pairs an update.
        judge_batch: prompts written and judged at once.
        replay: share of the last round's pairs that a round uses again; half of it of the round before that, and so on.
    """

    rounds: int
    prompts: int
    samples: int
    batch_size: int
    max_new_tokens: int
    judge_batch: int = 64
    sampling: Mapping[str, float] = field(default_factory=dict)
    replay: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.rounds, self.prompts, self.batch_size, self.max_new_tokens, self.judge_batch)
        if min(counts) < 1 or self.samples < 1 or not 0 <= self.replay <= 1:
            raise TelosError(
                "a count of the rounds is out of range", expected="counts >= 1, samples >= 1, replay in [0, 1]",
                got=f"rounds, prompts, batch_size, max_new_tokens, judge_batch = {counts}, samples = {self.samples}, "
                f"replay = {self.replay}",
            )  # fmt: skip


Build = Callable[[Judged, torch.Generator], Tensor]
"""(judged completions, generator) -> pairs (P, 3)."""


def rounds(
    spec: Spec,
    plan: Plan,
    learner: Callable[[LanguageModel], Learner],
    build: Build,
    *,
    answers: Sequence[Ids] | None = None,
    history: list[PairSet] | None = None,
) -> Stages:
    """The stages of all rounds; the product is the last round's policy.

    Args:
        spec: with Prompts as data, and model, reference and purpose (or oracle) as given.
        learner: makes a round's learner, which starts from the weights of the model that it is handed.
        build: the method's choice of pairs.
        answers: a teacher's answers to the data's prompts, at most max_new_tokens ids each.
        history: receives the pairs of each round.
    """
    model, reference = spec.given["model"], spec.given["reference"]
    ids = tokenise_prompts(model, spec.data, plan.max_new_tokens)
    width = max(map(len, ids)) + plan.max_new_tokens
    policy, history = LanguagePolicy(model), [] if history is None else history
    if spec.steps == 0:
        return policy
    if spec.steps < plan.rounds:
        raise TelosError("fewer steps than rounds", expected=f"--steps {plan.rounds} or more", got=f"{spec.steps}")
    for number in range(1, plan.rounds + 1):
        name, rng = f"round{number}", spec.rng.at("round", number)
        chosen = round_prompts(len(ids), plan.prompts, number - 1, spec.rng)
        judge = SampleJudge(
            [ids[i] for i in chosen], spec.given.get("purpose"), reference, plan.samples, width,
            {key: [values[i] for i in chosen] for key, values in spec.data.columns.items()},
            {**plan.sampling, "max_new_tokens": plan.max_new_tokens}, rng.at("judge"),
            [answers[i] for i in chosen] if answers is not None else None,
        )  # fmt: skip
        source = JudgeSource(judge, plan.judge_batch)
        found = yield Stage(f"{name}-judge", Collector(policy, source.room()), source, source.steps, evaluated=False)
        assert isinstance(found, Judgements)
        pairs = PairSet(found.judged, build(found.judged, rng.at("pairs").torch(reference.device)))
        shares = ((plan.replay / 2**age, old) for age, old in enumerate(reversed(history)))
        again = [old.part(share, rng.at("replay", i).torch(reference.device)) for i, (share, old) in enumerate(shares)]
        history.append(pairs)
        pairs = pooled([pairs, *(old.anchored_at(model) for old in again if old is not None)])
        done = (number - 1) * (spec.steps // plan.rounds)
        steps = spec.steps // plan.rounds if number < plan.rounds else spec.steps - done
        order = Epochs(pairs, plan.batch_size, rng.at("order"), pairs.lengths)
        written = yield Stage(f"{name}-update", learner(model), order, steps, first=done)
        assert isinstance(written, LanguagePolicy)
        take_over(model, written.model)
    return policy


def take_over(model: LanguageModel, other: LanguageModel) -> None:
    """Gives `model` the weights of what a finished stage had saved; nothing to do where the two are one object."""
    if other is model:
        return
    if other.network.state_dict().keys() != model.network.state_dict().keys():
        raise TelosError(
            "the rounds cannot go on: their model had adapters, which were folded into its weights when it was saved",
            fix="give the model by its folder or name, so that its adapters are saved apart",
        )
    model.network.load_state_dict(other.network.state_dict())


def round_prompts(count: int, size: int, number: int, rng: Rng) -> list[int]:
    """The prompts of a round: the next `size` of a shuffled order, which is shuffled anew where it ends."""
    chosen: list[int] = []
    place = number * size
    while len(chosen) < size:
        epoch, start = divmod(place + len(chosen), count)
        order = rng.at("prompts", epoch).numpy().permutation(count)
        chosen += order[start : start + size - len(chosen)].tolist()
    return chosen
