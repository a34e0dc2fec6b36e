"""Search over a frozen language model: branches with a cache, look-ahead, beams, rewards by text, and the product.

A search grows answers token by token. What is tried out (a look-ahead) happens on a copy of the cache, so that the
committed answers never notice. One step with 5 candidates and 8 tokens of look-ahead, for 8 prefixes of 200 tokens on
one core with telos:stories260k: 0.13 s; reading the prefix again at every step 0.21 s; without any cache 3.4 s. For
prefixes of a dozen tokens the first two are level.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.files import write_json
from telos.core.method import Spec
from telos.core.products import Completions, Generator, Product, load_product
from telos.core.registry import class_slug, method_class
from telos.lm.model import LanguageModel, load_model, transformers
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.lm.tokens import Ids, pad, tokenise_prompts

ROWS = 1024
"""Most rows of one forward pass, unless generate is given a batch_size."""


@dataclass
class Cost:
    """What a search has used.

    Args:
        lm_tokens: tokens after the prompt that the network evaluated, one next-token distribution each; a prefix that
            is read again counts again. Sampling N tokens costs N.
        prompt_tokens: tokens of prompts that it read.
        reward_calls: texts that a purpose scored; reward_hits: texts whose score was known.
    """

    lm_tokens: int = 0
    prompt_tokens: int = 0
    reward_calls: int = 0
    reward_hits: int = 0


@dataclass(frozen=True)
class Node:
    """A partial answer to one prompt.

    Args:
        prompt: which one. tokens: the answer so far; log_probs: log P of each, given the prompt and those before.
        score: what the search ranks by. ended: its last token is the end token.
    """

    prompt: int
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    score: float = 0.0
    ended: bool = False

    @property
    def log_prob(self) -> float:
        """log P(tokens | prompt)."""
        return sum(self.log_probs)

    def scored(self, score: float) -> Node:
        """The same answer with another score."""
        return Node(self.prompt, self.tokens, self.log_probs, score, self.ended)


class Branches:
    """R token sequences that grow by one token at a time, with their cache. `branch` copies, `extend` is in place.

    Args:
        rows: R arrays of ids, of any lengths >= 1. boundaries: (R,) index of each first token after the prompt.
    """

    @torch.no_grad()
    def __init__(self, model: LanguageModel, rows: Sequence[Ids], boundaries: Sequence[int], cost: Cost):
        self.model, self.cost = model, cost
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        tokens = torch.zeros(len(rows), width, dtype=torch.int64)
        for place, row in enumerate(rows):
            tokens[place, width - len(row) :] = torch.from_numpy(np.asarray(row, np.int64))
        self.lengths = lengths.to(model.device)
        self.mask = torch.arange(width, device=model.device) >= (width - self.lengths)[:, None]
        self.cache = transformers().DynamicCache(config=model.causal.config)
        cost.prompt_tokens += sum(boundaries)
        cost.lm_tokens += int(lengths.sum()) - sum(boundaries) + len(rows)
        self._read(tokens.to(model.device), (self.mask.cumsum(-1) - 1).clamp(min=0))

    def _read(self, tokens: Tensor, positions: Tensor) -> None:
        # Without padding no mask is needed, and attention is quicker.
        extra: dict[str, Any] = {} if self.mask.all() else {"attention_mask": self.mask.long()}
        self.last = self.model.hidden(
            tokens, past_key_values=self.cache, use_cache=True, position_ids=positions, **extra
        )[:, -1]

    def __len__(self) -> int:
        return len(self.lengths)

    def logits(self) -> Tensor:
        """(R, V) float32 logits of the next token."""
        return self.model.head(self.last)

    def branch(self, rows: Tensor) -> Branches:
        """A copy that holds the sequences `rows` (M,) int64, in this order, each as often as it is named."""
        other = copy.copy(self)
        other.cache = copy.copy(self.cache)
        # Layers replace their tensors when they select or grow, they never write into them.
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        other.cache.batch_select_indices(rows)
        other.lengths, other.mask, other.last = self.lengths[rows], self.mask[rows], self.last[rows]
        return other

    @torch.no_grad()
    def extend(self, tokens: Tensor) -> Branches:
        """Appends a token (R,) to each sequence; itself."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self), 1)], dim=1)
        self._read(tokens[:, None], self.lengths[:, None])
        self.lengths = self.lengths + 1
        self.cost.lm_tokens += len(self)
        return self


@torch.no_grad()
def look_ahead(
    branches: Branches,
    parents: Tensor,
    tokens: Tensor,
    limits: Tensor,
    *,
    temperature: float = 0.0,
    rng: torch.Generator | None = None,
) -> list[list[int]]:
    """What the model writes after each of M candidates; the branches themselves stay as they are.

    Args:
        parents: (M,) the branch that a candidate token (M,) follows.
        limits: (M,) most tokens to write; an end token stops earlier, and nothing follows a candidate that is one.
        temperature: 0 takes the likeliest token, > 0 samples with `rng`.

    Returns:
        M lists of ids, an end token included.
    """
    written: list[list[int]] = [[] for _ in range(len(tokens))]
    rows = ((tokens != branches.model.eos_id) & (limits > 0)).nonzero()[:, 0]
    if not len(rows):
        return written
    branch, current = branches.branch(parents[rows]), tokens[rows]
    while True:
        logits = branch.extend(current).logits()
        if temperature > 0:
            current = torch.multinomial((logits / temperature).softmax(-1), 1, generator=rng)[:, 0]
        else:
            current = logits.argmax(-1)
        for row, token in zip(rows.tolist(), current.tolist(), strict=True):
            written[row].append(token)
        limits = limits - 1
        going = ((current != branches.model.eos_id) & (limits[rows] > 0)).nonzero()[:, 0]
        if not len(going):
            return written
        if len(going) < len(rows):
            branch, rows, current = branch.branch(going), rows[going], current[going]


@torch.no_grad()
def expand(branches: Branches, nodes: Sequence[Node], k: int) -> tuple[list[Node], Tensor, Tensor]:
    """The k likeliest next tokens of each node, best first, equal ones in the order of their ids.

    Args:
        nodes: R, aligned with the branches.

    Returns:
        R k children whose score is their log P; parents (R k,) as rows of `nodes`; their last tokens (R k,).
    """
    ranked, order = branches.logits().log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    values, tokens = ranked[:, :k].tolist(), order[:, :k]
    eos = branches.model.eos_id
    children = []
    for node, row_values, row_tokens in zip(nodes, values, tokens.tolist(), strict=True):
        for value, token in zip(row_values, row_tokens, strict=True):
            log_probs = (*node.log_probs, value)
            children.append(Node(node.prompt, (*node.tokens, token), log_probs, sum(log_probs), token == eos))
    parents = torch.arange(len(nodes), device=tokens.device).repeat_interleave(tokens.shape[1])
    return children, parents, tokens.flatten()


Evaluate = Callable[[Branches, list[Node], Tensor, Tensor], list[float]]
"""(branches, children, parents, last tokens) -> the children's scores."""


def ranking(nodes: Sequence[Node]) -> list[int]:
    """Indices from the best score to the worst; ties by log P, then by order."""
    return sorted(range(len(nodes)), key=lambda i: (-nodes[i].score, -nodes[i].log_prob))


def beam_search(
    model: LanguageModel,
    heads: Sequence[Ids],
    *,
    boundaries: Sequence[int],
    width: int,
    k: int,
    steps: int,
    cost: Cost,
    evaluate: Evaluate | None = None,
) -> list[list[Node]]:
    """Up to `width` answers for each head, best first.

    At each step the best `width` of all k children of a head's beams are kept. One that ends leaves its place for
    good, so the search is over when all places have ended or after `steps` tokens.

    Args:
        heads: ids that are given, of any lengths. boundaries: where in each head the prompt ends.
        k: children of each beam, its likeliest next tokens.
        evaluate: scores children; their log P where None.
    """
    whole: list[list[Node]] = [[] for _ in heads]
    beams = [Node(i) for i in range(len(heads))]
    branches = Branches(model, heads, boundaries, cost)
    for step in range(steps):
        children, parents, tokens = expand(branches, beams, k)
        if evaluate is not None:
            values = evaluate(branches, children, parents, tokens)
            children = [child.scored(value) for child, value in zip(children, values, strict=True)]
        kept: list[int] = []
        places = [width - len(nodes) for nodes in whole]
        for i in ranking(children):
            head = children[i].prompt
            if places[head] > 0:
                places[head] -= 1
                if children[i].ended or step + 1 == steps:
                    whole[head].append(children[i])
                else:
                    kept.append(i)
        if not kept:
            break
        kept.sort(key=lambda i: children[i].prompt)
        rows = torch.tensor(kept, device=tokens.device)
        branches = branches.branch(parents[rows]).extend(tokens[rows])
        beams = [children[i] for i in kept]
    return [[nodes[i] for i in ranking(nodes)] for nodes in whole]


def tail_texts(model: LanguageModel, heads: Sequence[Ids], tails: Sequence[Sequence[int]]) -> list[str]:
    """The text of each tail as it reads after its head, without the end token.

    Both are decoded together and the head's text is cut off: a space or a piece of a word at the boundary stays.
    """
    decode = model.tokenizer.batch_decode
    tails = [tail[:-1] if len(tail) and tail[-1] == model.eos_id else tail for tail in tails]
    distinct = {id(head): head for head in heads}
    firsts = decode([head.tolist() for head in distinct.values()], skip_special_tokens=True)
    first = dict(zip(distinct, firsts, strict=True))
    wholes = decode([[*h.tolist(), *t] for h, t in zip(heads, tails, strict=True)], skip_special_tokens=True)
    alone = [i for i, whole in enumerate(wholes) if not whole.startswith(first[id(heads[i])])]
    texts = [whole[len(first[id(head)]) :] for head, whole in zip(heads, wholes, strict=True)]
    for i in alone:
        texts[i] = model.tokenizer.decode(list(tails[i]), skip_special_tokens=True)
    return texts


def answers(
    model: LanguageModel,
    heads: Sequence[Ids],
    tails: Sequence[Sequence[int]],
    prompts: Sequence[str],
    log_probs: Sequence[Sequence[float]] | None = None,
) -> Completions:
    """Prompts and answers (both ids) as Completions, with the model's own log-probs where they are given."""
    joined = pad(heads, [np.asarray(tail, np.int64) for tail in tails])
    values = torch.zeros(joined.tokens.shape)
    if log_probs is not None:
        values[joined.mask] = torch.tensor([value for row in log_probs for value in row])
    finished = torch.tensor([len(tail) > 0 and tail[-1] == model.eos_id for tail in tails])
    texts = tail_texts(model, heads, tails)
    return Completions(texts, list(prompts), joined.tokens, joined.lengths, joined.boundaries, values, finished)


class Rewards:
    """h of answers, whole or partial, asked once for each different one.

    Args:
        purpose: of texts, or of token ids where it is a reward model with the same vocabulary or a function that names
            `completion_ids`; a weighted sum is asked term by term.
        heads: ids of the prompts; prompts: their texts, as the purpose sees them.
    """

    def __init__(self, model: LanguageModel, purpose: Any, heads: Sequence[Ids], prompts: Sequence[str], cost: Cost):
        self.model, self.purpose, self.cost = model, purpose, cost
        self.heads, self.prompts = heads, prompts
        same = isinstance(purpose, RewardScorer) and purpose.tokenizer.get_vocab() == model.tokenizer.get_vocab()
        self.reads_tokens = same
        self.known: dict[Any, float] = {}

    def __call__(self, which: Sequence[int], tails: Sequence[Sequence[int]]) -> np.ndarray:
        """(N,) float64 h of answers `tails` (ids) to the prompts `which` (indices).

        Raises:
            TelosError: what `telos.purposes.score` raises.
        """
        bare = [tail[:-1] if len(tail) and tail[-1] == self.model.eos_id else tail for tail in tails]
        keys = [(self.prompts[i], tuple(tail)) for i, tail in zip(which, bare, strict=True)]
        known = self.known if getattr(self.purpose, "cache", True) else {}
        new = list({key: i for i, key in enumerate(keys) if key not in known}.values())
        self.cost.reward_calls += len(new)
        self.cost.reward_hits += len(keys) - len(new)
        if new:
            heads, prompts = [self.heads[which[i]] for i in new], [self.prompts[which[i]] for i in new]
            ids = [list(tails[i]) for i in new]
            asked = answers(self.model, heads, ids, prompts)
            values = (
                self.purpose.score_sampled(asked)
                if self.reads_tokens
                else purposes().score(self.purpose, prompts, asked.texts, completion_ids=ids)
            )
            known.update(zip([keys[i] for i in new], values.tolist(), strict=True))
        return np.array([known[key] for key in keys])


@dataclass
class Problem:
    """What a strategy is asked to solve.

    Args:
        heads: ids of each prompt. room: most new tokens. rewards: None without a purpose.
    """

    model: LanguageModel
    heads: Sequence[Ids]
    room: int
    cost: Cost
    rewards: Rewards | None = None
    rng: torch.Generator | None = None

    @property
    def boundaries(self) -> list[int]:
        """Where each prompt ends."""
        return [len(head) for head in self.heads]


class Strategy(Protocol):
    """A method that answers by search: its options, and the search."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def rows(self) -> int:
        """Most sequences that it grows at once for one prompt."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers."""
        ...

    def search(self, problem: Problem) -> list[Node]:
        """One answer to each prompt."""
        ...

    def options(self) -> dict[str, Any]:
        """Its fields as JSON."""
        ...


def purposes() -> Any:
    """telos.purposes with all that is built in, loaded when it is needed."""
    return importlib.import_module("telos.purposes")


def reweighted(purpose: Any, weights: Sequence[float]) -> Any:
    """The weighted sum with other weights.

    Raises:
        TelosError: it is no sum of as many terms.
    """
    terms: tuple[Any, ...] = getattr(purpose, "terms", ())
    if len(terms) != len(weights):
        raise TelosError(
            "weights", expected=f"{len(terms)}, one for each term of the purpose", got=f"{len(weights)}",
            fix="fit(purpose=[first, second]) makes a sum",
        )  # fmt: skip
    return dataclasses.replace(purpose, terms=tuple((term, w) for (term, _), w in zip(terms, weights, strict=True)))


class SearchPolicy(Generator):
    """A frozen language model that answers by a strategy's search, with what the last answers cost in `cost`.

    Saved with its reward models. Of a function in a user's file only the name is saved, and it is asked for again on
    load; any other function cannot be saved.

    Args:
        purpose: a reward model, a function of (prompts, completions), a weighted sum of these, or None.
        template: what the model is shown; {prompt} stands for the prompt. Purposes see the prompt itself.
    """

    def __init__(self, policy: LanguagePolicy, strategy: Strategy, purpose: Any = None, template: str = "{prompt}"):
        super().__init__()
        self.policy, self.strategy, self.purpose, self.template = policy, strategy, purpose, template
        self.cost = Cost()

    def config(self) -> dict[str, Any]:
        return {
            "strategy": {"use": class_slug(type(self.strategy)), **self.strategy.options()},
            "template": self.template,
        }

    def probe(self) -> dict[str, Tensor]:
        return self.policy.probe()

    def write(self, folder: Path) -> None:
        terms: list[dict[str, Any]] = []
        parts: dict[str, Product] = {"policy": self.policy}
        single = () if self.purpose is None else ((self.purpose, 1.0),)
        for number, (purpose, weight) in enumerate(getattr(self.purpose, "terms", single)):
            origin = getattr(purpose, "origin", None)
            if isinstance(purpose, RewardScorer):
                parts[f"scorer{number}"], origin = purpose, None
            elif origin is None:
                raise TelosError(
                    "this search uses a function as its purpose, which cannot be saved",
                    expected="a reward model, a purpose by name, or telos.purposes.resolve('file.py:function')",
                    fix="save the model alone and call fit(model=..., purpose=...) again",
                )
            terms.append({"origin": origin, "weight": weight})
        for name, part in parts.items():
            (folder / name).mkdir()
            part.write(folder / name)
        config = {**self.config(), "terms": terms, "sum": hasattr(self.purpose, "terms")}
        write_json(
            folder / "config.json",
            {"kind": type(self).__name__, "config": config, "provenance": self.provenance},
        )

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        config = header["config"]
        options = dict(config["strategy"])
        strategy = method_class(options.pop("use")).from_options(options)
        terms = [
            (
                load_product(folder / f"scorer{i}") if term["origin"] is None else purposes().again(term["origin"]),
                term["weight"],
            )
            for i, term in enumerate(config["terms"])
        ]
        purpose = purposes().resolve(terms) if config["sum"] else terms[0][0] if terms else None
        product = cls(load_product(folder / "policy"), strategy, purpose, config["template"])
        product.provenance = header["provenance"]
        return product

    def generate(
        self,
        prompts: list[Any],
        *,
        n: int = 1,
        rng: torch.Generator | None = None,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        weights: Sequence[float] | None = None,
        **unknown: Any,
    ) -> Completions:
        """`n` answers a prompt (texts, conversations, or arrays of ids): copies where the search draws nothing.

        The log-probs are the model's own. A text begins as it reads after its prompt, often with a space. What the
        search used is counted in `cost`, which starts anew here.

        Args:
            rng: needed where the strategy draws.
            max_new_tokens: the strategy's, or half the context where that is less.
            batch_size: prompts at a time. weights: one for each term of a weighted purpose, in this call.

        Raises:
            TelosError: an unknown option; no generator for a random search; a prompt that does not fit; weights for
                another number of terms; and what `Rewards` raises.
        """
        if unknown:
            known = "max_new_tokens, batch_size, weights"
            raise TelosError(f"generate has no option '{min(unknown)}'", expected=known)
        model, strategy = self.policy.model, self.strategy
        room = min(strategy.max_new_tokens, model.context // 2) if max_new_tokens is None else max_new_tokens
        size = max(1, ROWS // strategy.rows) if batch_size is None else batch_size
        if min(n, room, size) < 1:
            raise TelosError("n, max_new_tokens and batch_size must be positive", got=f"{n}, {room}, {size}")
        if strategy.stochastic and rng is None:
            raise TelosError("this search draws samples", fix="pass rng=torch.Generator().manual_seed(0)")
        purpose = self.purpose if weights is None else reweighted(self.purpose, weights)
        heads, texts = self._heads(prompts, room)
        copies = 1 if strategy.stochastic else n
        if strategy.stochastic:
            heads, texts = [h for h in heads for _ in range(n)], [t for t in texts for _ in range(n)]
        self.cost = Cost()
        nodes: list[Node] = []
        order = sorted(range(len(heads)), key=lambda i: len(heads[i]))
        for start in range(0, len(order), size):
            index = order[start : start + size]
            part, names = [heads[i] for i in index], [texts[i] for i in index]
            rewards = None if purpose is None else Rewards(model, purpose, part, names, self.cost)
            nodes += strategy.search(Problem(model, part, room, self.cost, rewards, rng))
        found = dict(zip(order, nodes, strict=True))
        rows = [i for i in range(len(heads)) for _ in range(copies)]
        return answers(
            model,
            [heads[i] for i in rows],
            [found[i].tokens for i in rows],
            [texts[i] for i in rows],
            [found[i].log_probs for i in rows],
        )

    def _heads(self, prompts: list[Any], room: int) -> tuple[list[Ids], list[str]]:
        """Ids of each prompt in its template, and the prompts' own texts."""
        model = self.policy.model
        if not prompts:
            raise TelosError("there are no prompts", expected="at least one")
        if isinstance(prompts[0], str):
            shown = [self.template.replace("{prompt}", prompt) for prompt in prompts]
            return tokenise_prompts(model, shown, room), list(prompts)
        if self.template != "{prompt}":
            raise TelosError("a template needs prompts that are texts", got=type(prompts[0]).__name__)
        tokenised = isinstance(prompts[0], np.ndarray)
        heads = list(prompts) if tokenised else tokenise_prompts(model, prompts, room)
        if min(map(len, heads)) < 1 or max(map(len, heads)) + room > model.context:
            raise TelosError(
                "a prompt is empty or too long",
                expected=f"1 to {model.context - room} tokens (context less max_new_tokens)",
                got=f"{max(map(len, heads))} tokens",
                fix="shorten the prompts, or lower max_new_tokens",
            )
        return heads, model.tokenizer.batch_decode([head.tolist() for head in heads], skip_special_tokens=True)


def search_policy(strategy: Strategy, spec: Spec, template: str = "{prompt}") -> SearchPolicy:
    """The product of a strategy that trains nothing: the given model, frozen, and the given purpose, if any."""
    model = load_model(spec.need("model", "a transformers folder, a hub name, or (model, tokenizer)"), spec.device)
    model.network.requires_grad_(False)
    given = spec.given.get("purpose")
    purpose = None if given is None else purposes().resolve(given)
    return SearchPolicy(LanguagePolicy(model), strategy, purpose, template)
