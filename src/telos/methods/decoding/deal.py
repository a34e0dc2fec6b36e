r"""DeAL: decoding as search over a frozen model, guided by likelihood and the reward of a short look-ahead.

Huang et al. 2024, arXiv 2402.06147. States are token sequences, an action appends a token. At each step the k likeliest
next tokens are candidates; each is followed by l tokens of look-ahead, and scored by

    c(y_t) = log pi(y_{1:t} | x) + lambda h(y_{1:t+l}, x),    h = sum_m w_m R_m

The likelihood covers the answer up to and including the candidate, not the look-ahead; h sees the look-ahead too. Ties
keep the model's own ranking. The greedy agent commits the best candidate; the beam agent keeps the b best of all; the
best-first agent takes up the best unfinished answer of all that it has seen. Nothing is trained.

`BlockDeAL` searches by blocks: from each kept answer it proposes continuations of l tokens by beam search, scores them
by h alone, and keeps the best few.

Limits: weight 0 or k 1 is greedy decoding; lookahead 0 is guided decoding on the answer so far; one block of sampled
proposals of full length is best-of-n.

What differs from the paper and why:
- k, l, lambda and the widths of the paper could not be found: defaults are for small models.
- A look-ahead never reaches beyond max_new_tokens: the purpose sees what could really be the answer.
- BlockDeAL is how a third-party library (AISteer360) does it; sampled proposals are ours.
- After `expansions` steps the best-first agent only goes deeper, so that it always ends with a whole answer.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from collections.abc import Generator as Steps
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Source, Spec, Stage
from telos.core.products import Product
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.sample import sample_tokens
from telos.lm.search import (
    Branches,
    Evaluate,
    Node,
    Problem,
    Rewards,
    beam_search,
    expand,
    look_ahead,
    ranking,
    search_policy,
)

PAPER = {
    "method": "DeAL",
    "title": "Decoding-time Alignment for Large Language Models",
    "arxiv": "2402.06147",
    "year": 2024,
    "url": "https://arxiv.org/abs/2402.06147",
    "purpose": ["reward", "specification"],
    "product": "Generator",
    "data": "a model and a purpose",
    "summary": "Search-based decoding of a frozen model: likelihood plus the reward of a short greedy look-ahead picks "
    "the next token.",
    "claim": "At no more tokens of the frozen model, DeAL with look-ahead covers all required keywords more often than "
    "best-of-n and than DeAL without look-ahead.",
    "paper_claim": {
        "where": "CommonGen keyword coverage (table of the ACL version; read second-hand)",
        "text": "On top of a prompt that asks for the words, DeAL makes all three models use all of them more often.",
        "value": "share of sentences with all words, prompt alone and with DeAL: .62 and .80 (Falcon-7B), .71 and .85 "
        "(MPT-7B), .30 and .51 (Dolly-3B) (read second-hand)",
        "data": "CommonGen; other tables: length limits on XSum, harmlessness on HarmfulQ and Anthropic HH",
        "model": "Falcon-7B-Instruct, MPT-7B-Instruct and Dolly-v2-3B, frozen; reward models of OPT-125M",
        "mechanism": "Our model, too, follows its prompt only sometimes, and a word earns its reward once its last "
        "piece is written, so a search without look-ahead is blind where one with it is not. Best-of-n gets as many "
        "tokens as the search. Fluent large models, learned rewards and harmlessness are not tested.",
    },
    "equations": [
        r"\mathcal C_t=\operatorname{top}_k\,\pi(\cdot\mid x,y_{<t}),\quad "
        r"y_{t+j}=\operatorname{argmax}_v\pi(v\mid x,y_{<t+j}),\ j=1,\dots,l",
        r"c(y_t)=\log\pi(y_{1:t}\mid x)+\lambda\,h(y_{1:t+l},x)",
        r"h(y,x)=\sum_m w_m R_m(y,x)",
        r"y_t^*=\operatorname{argmax}_{y_t\in\mathcal C_t}c(y_t),\quad\text{or}\quad"
        r"\mathcal B_t=\operatorname{top}_b\left\{(y_{1:t-1},y_t):\ y_{1:t-1}\in\mathcal B_{t-1},\ "
        r"y_t\in\mathcal C_t\right\}\text{ by }c(y_t)",
    ],
    "deviations": [
        "The paper's k, look-ahead and lambda could not be found; defaults are for small models.",
        "A look-ahead never reaches beyond the longest answer.",
        "Block-level DeAL follows a third-party library; sampled proposals are ours.",
    ],
    "traps": [
        "The look-ahead's own log-probs are not part of the score: with them it prefers bland rollouts.",
        "Lambda depends on the scale of the purpose: bring it to about [0, 1], or tune.",
        "A purpose that cannot tell the candidates apart leaves the model's own ranking.",
        "Greedy look-aheads and beam proposals are deterministic: n answers are n copies.",
    ],
    "terms": [
        "inference-time",
        "test-time compute",
        "controlled generation",
        "guided decoding",
        "constrained",
        "lookahead",
        "A* search",
        "lexical constraints",
    ],
    "usage": [
        "telos fit deal --model telos:tiny --purpose keywords:good1,good2 --lookahead 8 --weight 5 --out runs/deal",
        "method = telos.DeAL(k=5, lookahead=8, weight=5.0)",
        'policy = method.fit(model="telos:tiny", purpose="keywords:good1,good2")',
        'print(policy.generate(["topic1", "topic2"]).texts)',
        'policy.save("my-search")',
    ],
    "at_scale": "telos fit deal --model tiiuae/falcon-7b-instruct --purpose keywords:dog,ball,catch --k 10 "
    "--lookahead 32 --weight 5 --out runs/deal",
}

GIVEN = "a reward model, a function of (prompts, completions), a name, or a list of these"


@dataclass(frozen=True)
class DeAL(Method):
    """Token-level search. Given: model, purpose (a reward model, a function, a name, or a weighted list)."""

    data: ClassVar[type | None] = None
    accepts: ClassVar[tuple[type, ...]] = (Prompts,)
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose")
    trains: ClassVar[bool] = False

    k: int = 5
    """Candidates at each step, the likeliest tokens, >= 1; cost grows with it. Paper: 10 (not verified)."""
    lookahead: int = 16
    """Tokens written after each candidate before the purpose looks; 0 for none. Paper: 32 (not verified)."""
    weight: float = 1.0
    """lambda >= 0: reward against log-likelihood in nats. telos: tune it, 0.5 to 10 for a purpose in [0, 1]."""
    agent: Literal["greedy", "beam", "best_first"] = "greedy"
    """Commit the best candidate, keep the `beams` best, or take up the best of all seen. telos: greedy."""
    beams: int = 4
    """beam only: answers that are kept. telos: not tuned."""
    expansions: int = 64
    """best_first only: answers taken up for each prompt; after these it only goes deeper. telos: not tuned."""
    rollout: Literal["greedy", "sample"] = "greedy"
    """How the look-ahead is written: the likeliest token, or samples. Paper: greedy."""
    samples: int = 4
    """sample only: look-aheads of each candidate. telos: not tuned."""
    reduce: Literal["mean", "max"] = "mean"
    """sample only: what counts of their rewards. telos: mean."""
    temperature: float = 1.0
    """sample only: of the look-ahead, > 0. telos: 1, the model itself."""
    template: str = "{prompt}"
    """What the model is shown, with {prompt} for the prompt: where an instruction goes. Paper: chosen by hand."""
    max_new_tokens: int = 64
    """Longest answer in tokens; half the context where that is less. telos: 64."""

    def __post_init__(self) -> None:
        counts = ("k", "beams", "expansions", "samples", "max_new_tokens")
        check_options(self, counts, self.lookahead >= 0 and 0 <= self.weight < np.inf and self.temperature > 0)

    @property
    def stochastic(self) -> bool:
        return self.rollout == "sample"

    @property
    def copies(self) -> int:
        """Look-aheads of each candidate."""
        return self.samples if self.stochastic else 1

    @property
    def width(self) -> int:
        return self.beams if self.agent == "beam" else 1

    @property
    def rows(self) -> int:
        return self.width * self.k * self.copies

    def search(self, problem: Problem) -> list[Node]:
        """One answer to each prompt."""
        return AGENTS[self.agent](self, problem)

    def stages(self, spec: Spec, rng: Rng) -> Steps[Stage, Product, Product]:
        yield from ()
        spec.need("purpose", GIVEN)
        return search_policy(self, spec, self.template)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        raise TelosError("deal trains nothing", fix="call fit without steps")

    def source(self, spec: Spec) -> Source:
        raise TelosError("deal trains nothing", fix="call fit without steps")


@dataclass(frozen=True)
class BlockDeAL(Method):
    """Block-level search: propose blocks of tokens, keep the best by reward alone. Given: model, purpose."""

    data: ClassVar[type | None] = None
    accepts: ClassVar[tuple[type, ...]] = (Prompts,)
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose")
    trains: ClassVar[bool] = False

    init_beams: int = 5
    """Continuations proposed from each kept answer. AISteer360: 5."""
    lookahead: int = 10
    """Tokens of a block. AISteer360: 10."""
    topk: int = 3
    """Answers kept after each block. AISteer360: 3."""
    max_iterations: int = 10
    """Most blocks. AISteer360: 10."""
    proposals: Literal["beam", "sample"] = "beam"
    """beam: the likeliest continuations; sample: drawn from the model. AISteer360: beam."""
    template: str = "{prompt}"
    """What the model is shown, with {prompt} for the prompt: where an instruction goes. Paper: chosen by hand."""
    max_new_tokens: int = 64
    """Longest answer in tokens; half the context where that is less. telos: 64."""

    def __post_init__(self) -> None:
        check_options(self, ("init_beams", "lookahead", "topk", "max_iterations", "max_new_tokens"), True)

    @property
    def stochastic(self) -> bool:
        return self.proposals == "sample"

    @property
    def rows(self) -> int:
        return self.topk * self.init_beams

    def search(self, problem: Problem) -> list[Node]:
        """One answer to each prompt: the best of the blocks kept last."""
        return [nodes[0] for nodes in block_search(self, problem)]

    def stages(self, spec: Spec, rng: Rng) -> Steps[Stage, Product, Product]:
        yield from ()
        spec.need("purpose", GIVEN)
        return search_policy(self, spec, self.template)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        raise TelosError("deal trains nothing", fix="call fit without steps")

    def source(self, spec: Spec) -> Source:
        raise TelosError("deal trains nothing", fix="call fit without steps")


def check_options(method: DeAL | BlockDeAL, counts: tuple[str, ...], other: bool) -> None:
    """Raises TelosError for an option out of range or a template without its place."""
    if min(getattr(method, name) for name in counts) < 1 or not other:
        raise TelosError(
            "an option is out of range",
            expected=f"{', '.join(counts)} >= 1; lookahead >= 0, weight >= 0 and finite, temperature > 0",
            got=str(method.options()),
        )
    if "{prompt}" not in method.template:
        raise TelosError("template", expected="text with {prompt} in it", got=repr(method.template))


def rewards_of(problem: Problem) -> Rewards:
    """The problem's purpose.

    Raises:
        TelosError: it has none.
    """
    if problem.rewards is None:
        raise TelosError("'purpose' is missing", expected=GIVEN, fix="product.purpose = ...")
    return problem.rewards


REDUCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda values: values.mean(axis=1),
    "max": lambda values: values.max(axis=1),
}


def guided(method: DeAL, problem: Problem) -> Evaluate:
    """c of each candidate: its log-likelihood and the reward of what could follow it."""
    rewards = rewards_of(problem)

    def evaluate(branches: Branches, children: list[Node], parents: torch.Tensor, tokens: torch.Tensor) -> list[float]:
        limits = [min(method.lookahead, problem.room - len(child.tokens)) for child in children]
        ahead = look_ahead(
            branches,
            parents.repeat_interleave(method.copies),
            tokens.repeat_interleave(method.copies),
            torch.tensor(limits, device=tokens.device).repeat_interleave(method.copies),
            temperature=method.temperature if method.stochastic else 0.0,
            rng=problem.rng,
        )
        rows = [child for child in children for _ in range(method.copies)]
        h = rewards(
            [child.prompt for child in rows], [(*child.tokens, *more) for child, more in zip(rows, ahead, strict=True)]
        )
        h = REDUCE[method.reduce](h.reshape(-1, method.copies))
        return [child.log_prob + method.weight * value for child, value in zip(children, h.tolist(), strict=True)]

    return evaluate


def beam_agent(method: DeAL, problem: Problem) -> list[Node]:
    """The best finished answer of a beam search by c; of width 1 it is the greedy agent."""
    found = beam_search(
        problem.model,
        problem.heads,
        boundaries=problem.boundaries,
        width=method.width,
        k=method.k,
        steps=problem.room,
        cost=problem.cost,
        evaluate=guided(method, problem),
    )
    return [nodes[0] for nodes in found]


def best_first_agent(method: DeAL, problem: Problem) -> list[Node]:
    """A queue of answers by c for each prompt: the best is taken up, its children join, until it is a whole one."""
    evaluate = guided(method, problem)
    queues: list[list[tuple[float, float, int, Node]]] = [[] for _ in problem.heads]
    answers: dict[int, Node] = {}
    taken, count = [Node(i) for i in range(len(problem.heads))], 0
    expansion = 0
    while taken:
        expansion += 1
        heads = [np.append(problem.heads[node.prompt], node.tokens).astype(np.int64) for node in taken]
        branches = Branches(problem.model, heads, [problem.boundaries[node.prompt] for node in taken], problem.cost)
        children, parents, tokens = expand(branches, taken, method.k)
        if expansion >= method.expansions:
            queues = [[] for _ in queues]
        for child, score in zip(children, evaluate(branches, children, parents, tokens), strict=True):
            count += 1  # equal ones leave in the order in which they came
            heapq.heappush(queues[child.prompt], (-score, -child.log_prob, count, child.scored(score)))
        best = [heapq.heappop(queues[node.prompt])[-1] for node in taken]
        whole = [node.ended or len(node.tokens) == problem.room for node in best]
        answers |= {node.prompt: node for node, ends in zip(best, whole, strict=True) if ends}
        taken = [node for node, ends in zip(best, whole, strict=True) if not ends]
    return [answers[i] for i in range(len(problem.heads))]


AGENTS: dict[str, Callable[[DeAL, Problem], list[Node]]] = {
    "greedy": beam_agent,
    "beam": beam_agent,
    "best_first": best_first_agent,
}


def beam_proposals(method: BlockDeAL, problem: Problem, kept: list[Node], steps: int) -> list[list[Node]]:
    """The likeliest continuations of each kept answer."""
    return beam_search(
        problem.model,
        [np.append(problem.heads[node.prompt], node.tokens).astype(np.int64) for node in kept],
        boundaries=[problem.boundaries[node.prompt] for node in kept],
        width=method.init_beams,
        k=method.init_beams,
        steps=steps,
        cost=problem.cost,
    )


def sampled_proposals(method: BlockDeAL, problem: Problem, kept: list[Node], steps: int) -> list[list[Node]]:
    """Continuations of each kept answer, drawn from the model."""
    assert problem.rng is not None
    heads = [np.append(problem.heads[node.prompt], node.tokens).astype(np.int64) for node in kept]
    rows = [head for head in heads for _ in range(method.init_beams)]
    tokens, log_probs, counts = sample_tokens(problem.model, rows, problem.rng, max_new_tokens=steps)
    problem.cost.lm_tokens += int(counts.sum()) + method.init_beams * sum(len(node.tokens) for node in kept)
    problem.cost.prompt_tokens += method.init_beams * sum(problem.boundaries[node.prompt] for node in kept)
    drawn = [
        Node(0, tuple(row[:n]), tuple(values[:n]), ended=row[n - 1] == problem.model.eos_id)
        for row, values, n in zip(tokens.tolist(), log_probs.tolist(), counts.tolist(), strict=True)
    ]
    return [drawn[i : i + method.init_beams] for i in range(0, len(drawn), method.init_beams)]


PROPOSALS: dict[str, Callable[[BlockDeAL, Problem, list[Node], int], list[list[Node]]]] = {
    "beam": beam_proposals,
    "sample": sampled_proposals,
}


def block_search(method: BlockDeAL, problem: Problem) -> list[list[Node]]:
    """The answers kept last for each prompt, best first; their score is h."""
    rewards = rewards_of(problem)
    kept = [[Node(i)] for i in range(len(problem.heads))]
    for block in range(method.max_iterations):
        # Unfinished answers are whole blocks, so all have the same length.
        steps = min(method.lookahead, problem.room - block * method.lookahead)
        open_ = [node for nodes in kept for node in nodes if not node.ended]
        if steps < 1 or not open_:
            break
        found = PROPOSALS[method.proposals](method, problem, open_, steps)
        grown = [
            Node(node.prompt, node.tokens + new.tokens, node.log_probs + new.log_probs, ended=new.ended)
            for node, news in zip(open_, found, strict=True)
            for new in news
        ]
        values = rewards([node.prompt for node in grown], [node.tokens for node in grown])
        pools = [[node for node in nodes if node.ended] for nodes in kept]
        for node, value in zip(grown, values.tolist(), strict=True):
            pools[node.prompt].append(node.scored(value))
        kept = [[pool[i] for i in ranking(pool)[: method.topk]] for pool in pools]
    return kept
