"""From texts to tokens, with a boundary that is fixed once: the index of the first completion token.

Two ways to find it. *Implicit prompt*: both texts are tokenised whole, the prompt is their common beginning in
token space. *Explicit prompt*: prompt and prompt+completion are tokenised, and the first must be a prefix of the
second; a boundary inside a token is an error, not a guess (`boundary="separate"` tokenises the two apart). A third
way, `boundary="inside"`, is for readers to whom the place says nothing: what has white space at the boundary is
tokenised whole, and a token across it counts to the completion; the rest apart, for decoded samples may have lost it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.data.records import Demonstrations, Preferences, Prompts, Rankings, Record, Text
from telos.lm.model import LanguageModel

Ids = np.ndarray


@dataclass(frozen=True)
class Sequences(Record):
    """Right-padded token sequences.

    Args:
        tokens: (B, T) or (B, K, T) int64; what lies beyond `lengths` is arbitrary and never looked at.
        lengths: (B,) or (B, K): tokens of prompt and completion.
        boundaries: like `lengths`: index of the first completion token, at least 1.
    """

    tokens: Tensor
    lengths: Tensor
    boundaries: Tensor

    @property
    def mask(self) -> Tensor:
        """(..., T) bool: completion tokens, the end token included."""
        place = torch.arange(self.tokens.shape[-1], device=self.tokens.device)
        return (place >= self.boundaries[..., None]) & (place < self.lengths[..., None])

    def flat(self) -> Sequences:
        """(B, K, T) as (B K, T)."""
        return Sequences(self.tokens.flatten(0, -2), self.lengths.flatten(), self.boundaries.flatten())


def pad(prompts: Sequence[Ids], completions: Sequence[Ids]) -> Sequences:
    """Joins prompts with completions and pads on the right to the longest."""
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    tokens = np.zeros((len(lengths), max(lengths)), np.int64)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + len(completion)] = completion
    return Sequences(
        torch.from_numpy(tokens), torch.tensor(lengths), torch.tensor([len(p) for p in prompts], dtype=torch.int64)
    )


@dataclass(frozen=True)
class Ranked(Record):
    """A batch of prompts with K completions each, best first (K = 2: chosen, rejected).

    Args:
        sequences: tokens (B, K, T), lengths and boundaries (B, K).
        reference: (B, K) summed log-probs of the completions under the reference.
    """

    sequences: Sequences
    reference: Tensor


@dataclass(frozen=True)
class TokenReport:
    """What tokenising did to a data set; shown to the user and kept with the product."""

    records: int
    used: int
    prompts_truncated: int = 0
    completions_truncated: int = 0
    refused: int = 0
    degenerate: int = 0

    def __str__(self) -> str:
        return (
            f"{self.records} records: {self.used} used, {self.prompts_truncated} with the prompt truncated (its end is "
            f"kept), {self.completions_truncated} with a completion truncated, {self.refused} refused (completion "
            f"longer than the context), {self.degenerate} degenerate (nothing to tell apart)"
        )


@dataclass(frozen=True)
class TokenGroups:
    """N prompts with K completions each, as arrays of token ids.

    Args:
        reference: (N, K) summed reference log-probs, once they are known.
        rows: N numbers of the records that the groups come from, for what the record says besides texts.
    """

    prompts: list[Ids]
    completions: list[tuple[Ids, ...]]
    report: TokenReport
    reference: Tensor | None = None
    device: torch.device = field(default=torch.device("cpu"))
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) the longest sequence of each group."""
        return np.array(
            [len(p) + max(map(len, group)) for p, group in zip(self.prompts, self.completions, strict=True)]
        )

    def sequences(self, index: Sequence[int] | np.ndarray) -> Sequences:
        """Padded (B, K, T) sequences of the groups at `index`."""
        width = len(self.completions[0])
        flat = pad(
            [self.prompts[i] for i in index for _ in range(width)],
            [completion for i in index for completion in self.completions[i]],
        )
        shape = (len(index), width)
        return Sequences(
            flat.tokens.unflatten(0, shape), flat.lengths.unflatten(0, shape), flat.boundaries.unflatten(0, shape)
        ).to(self.device)

    def batch(self, index: Sequence[int] | np.ndarray) -> Ranked:
        """The training batch at `index`; reference log-probs are zero where none are kept."""
        sequences = self.sequences(index)
        if self.reference is None:
            return Ranked(sequences, torch.zeros(sequences.lengths.shape, device=self.device))
        return Ranked(sequences, self.reference[torch.as_tensor(index)].to(self.device))

    def with_reference(self, reference: Tensor) -> TokenGroups:
        return replace(self, reference=reference)


def template(model: LanguageModel, messages: list[dict[str, Any]], where: str, **kwargs: Any) -> str:
    """A conversation as text, by the tokenizer's own chat template."""
    if not getattr(model.tokenizer, "chat_template", None):
        raise TelosError(
            f"{where}: a conversation, but the tokenizer of {model.origin or 'the model'} has no chat template",
            expected="tokenizer.chat_template",
            fix="use an instruction-tuned model, or plain texts",
        )
    return model.tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)


def encode(model: LanguageModel, texts: list[str], special: bool = True) -> list[list[int]]:
    """Token ids of each text, without a closing end token."""
    if not texts:
        return []
    try:
        ids = model.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        specials = model.tokenizer("")["input_ids"] if special else []
    except Exception as error:  # tokenizers raise a bare Exception for words that they do not know
        raise TelosError(
            f"the tokenizer of {model.origin or 'the model'} cannot encode {unencodable(model, texts)!r}",
            expected="texts of words that it knows",
            got=str(error),
            fix="use another model, or texts of its language",
        ) from error
    # Some tokenizers close every text; one special token that is begin and end at once is taken for the begin.
    closes = specials[-1:] == [model.eos_id] and specials != [model.tokenizer.bos_token_id]
    return [row[:-1] if closes else row for row in ids]


def unencodable(model: LanguageModel, texts: list[str]) -> str:
    """The first text that the tokenizer refuses, shortened."""
    for text in texts:
        try:
            model.tokenizer(text, verbose=False)
        except Exception:
            return text if len(text) <= 80 else f"{text[:77]}..."
    return "the texts"


def close(ids: list[int], eos: int, templated: bool = False) -> list[int]:
    """The ids with one end token at the end; what a chat template writes after its own (a newline) is dropped."""
    if templated and ids[-2:-1] == [eos]:
        return ids[:-1]
    return ids if ids[-1:] == [eos] else [*ids, eos]


def cut_left(prompt: list[int], keep: int, begin: int | None) -> list[int]:
    """The last `keep` >= 1 ids of a prompt that is too long; its begin token stays where there is room."""
    if len(prompt) <= keep:
        return prompt
    opens = begin is not None and prompt[0] == begin and keep > 1
    return [prompt[0], *prompt[len(prompt) - keep + 1 :]] if opens else prompt[len(prompt) - keep :]


def check_one_form(texts: Iterable[Text | None], where: str) -> None:
    """Raises TelosError where plain texts and conversations are mixed: only the former get special tokens."""
    if len({isinstance(text, str) for text in texts if text is not None}) > 1:
        raise TelosError(
            f"{where}: plain texts and conversations are mixed",
            expected="all plain text, or all messages",
            fix="split the data, or turn the plain texts into messages",
        )


def encode_pairs(
    model: LanguageModel, prompts: Sequence[Text], completions: Sequence[Text], where: str, boundary: str
) -> list[tuple[list[int], list[int]]]:
    """Explicit prompts: (prompt ids, completion ids with the end token) for each record."""
    chat = [not isinstance(prompt, str) for prompt in prompts]
    heads: list[str] = []
    wholes: list[str] = []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if isinstance(prompt, str) != isinstance(completion, str):
            raise TelosError(
                f"{where}, record {row + 1}: prompt and completion differ in form",
                expected="both plain text, or both messages",
            )
        if isinstance(prompt, str) and isinstance(completion, str):
            heads.append(prompt)
            wholes.append(prompt + completion)
        else:
            head = template(model, list(prompt), f"{where}, record {row + 1}", add_generation_prompt=True)  # type: ignore[arg-type]
            whole = template(model, [*prompt, *completion], f"{where}, record {row + 1}")  # type: ignore[misc]
            if not whole.startswith(head):
                raise TelosError(
                    f"{where}, record {row + 1}: the chat template rewrites the prompt when the answer follows",
                    expected="a template in which the prompt is a prefix",
                    fix="use a template for training (without stripping earlier turns)",
                )
            heads.append(head)
            wholes.append(whole)
    special = not any(chat)
    head_ids = encode(model, heads, special)
    ends = [whole[len(head) :] for head, whole in zip(heads, wholes, strict=True)]
    apart = [boundary == "separate" or (boundary == "inside" and glued(*row)) for row in zip(heads, ends, strict=True)]
    tails = encode(model, [end for end, alone in zip(ends, apart, strict=True) if alone], special=False)
    together = encode(model, [whole for whole, alone in zip(wholes, apart, strict=True) if not alone], special)
    rest, joined = iter(tails), iter(together)
    result = []
    for row, (head, alone) in enumerate(zip(head_ids, apart, strict=True)):
        if alone:
            result.append((head, close(next(rest), model.eos_id, not special)))
            continue
        whole = next(joined)
        if whole[: len(head)] != head and boundary == "inside":
            head = head[: common_prefix([head, whole])]
        if whole[: len(head)] != head:
            raise TelosError(
                f"{where}, record {row + 1}: the boundary between prompt and completion lies inside a token",
                expected="a prompt whose tokens begin those of prompt + completion",
                got=f"...{heads[row][-20:]!r} + {wholes[row][len(heads[row]) :][:20]!r}",
                fix="move a trailing space from the prompt to the completion, or set boundary='separate'",
            )
        result.append((head, close(whole[len(head) :], model.eos_id, not special)))
    return result


def glued(head: str, end: str) -> bool:
    """Whether two texts meet without white space."""
    return bool(head) and bool(end) and not head[-1].isspace() and not end[0].isspace()


def encode_implicit(model: LanguageModel, texts: Sequence[Sequence[Text]], where: str) -> list[list[list[int]]]:
    """Implicit prompts: for each record the ids of each whole text, with end token."""
    plain: list[str] = []
    chat = False
    for row, group in enumerate(texts):
        for text in group:
            chat = chat or not isinstance(text, str)
            plain.append(text if isinstance(text, str) else template(model, text, f"{where}, record {row + 1}"))
    ids = iter(encode(model, plain, special=not chat))
    return [[close(next(ids), model.eos_id, chat) for _ in group] for group in texts]


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning; shorter than each row, so that every completion has a token."""
    limit = min(map(len, rows)) - 1
    first = rows[0]
    for place in range(limit):
        if any(row[place] != first[place] for row in rows):
            return place
    return max(limit, 0)


def tokenise(
    model: LanguageModel,
    data: Preferences | Rankings | Demonstrations,
    *,
    max_length: int | None = None,
    overlong: str = "refuse",
    boundary: str = "joint",
    device: torch.device | str = "cpu",
) -> TokenGroups:
    """Tokens of every record, with the prompt's ids identical for all its completions, each closed by the end token
    (unless the record says that its texts were cut off).

    Args:
        max_length: tokens of prompt and completion; the model's context if None or longer. The prompt is cut first,
            its end (and the begin token) is kept.
        overlong: "refuse" drops a record whose completion alone does not fit; "truncate" cuts the completion.
        boundary: "joint", "separate" or "inside" (see the module's docstring).

    Raises:
        TelosError: a boundary inside a token, no chat template, nothing left to learn from.
    """
    where = data.origin or "data"
    limit = model.context if max_length is None else min(max_length, model.context)
    if limit < 2 or overlong not in ("refuse", "truncate") or boundary not in ("joint", "separate", "inside"):
        raise TelosError(
            "max_length, overlong or boundary is out of range",
            expected="max_length >= 2; overlong: refuse or truncate; boundary: joint, separate or inside",
            got=f"max_length={max_length}, overlong={overlong}, boundary={boundary}",
        )
    groups: list[tuple[list[int], list[list[int]]]] = []
    kept: list[int] = []
    if isinstance(data, Preferences):
        columns: list[Sequence[Text]] = [data.chosen, data.rejected]
    elif isinstance(data, Rankings):
        columns = [list(column) for column in zip(*data.completions, strict=True)]
    else:
        columns = [data.completions]
    check_one_form([text for column in columns for text in column], where)
    explicit = [row for row, prompt in enumerate(data.prompts) if prompt is not None]
    implicit = [row for row, prompt in enumerate(data.prompts) if prompt is None]
    found: dict[int, tuple[list[int], list[list[int]]]] = {}
    if explicit:
        prompts: list[Text] = [data.prompts[row] or "" for row in explicit]
        encoded = [encode_pairs(model, prompts, [c[row] for row in explicit], where, boundary) for c in columns]
        for place, row in enumerate(explicit):
            found[row] = encoded[0][place][0], [column[place][1] for column in encoded]
    if implicit:
        wholes = encode_implicit(model, [[c[row] for c in columns] for row in implicit], where)
        for row, rows in zip(implicit, wholes, strict=True):
            # One text alone has no common beginning: all of it is to be learnt, after the begin token.
            cut = common_prefix(rows) if len(rows) > 1 else int(rows[0][0] == model.tokenizer.bos_token_id)
            found[row] = rows[0][:cut], [ids[cut:] for ids in rows]
    begin = model.tokenizer.bos_token_id
    counts = dict.fromkeys(("prompts_truncated", "completions_truncated", "refused", "degenerate"), 0)
    for row in range(len(data)):
        prompt, completions = found[row]
        if not getattr(data, "closed", True):
            completions = [c[:-1] for c in completions if len(c) > 1]
        prompt = prompt or [begin if begin is not None else model.eos_id]
        if len(completions) > 1 and len({tuple(c) for c in completions}) < len(completions):
            counts["degenerate"] += 1
            continue
        longest = max(map(len, completions))
        if longest > limit - 1:
            if overlong == "refuse":
                counts["refused"] += 1
                continue
            counts["completions_truncated"] += 1
            completions = [c[: limit - 1] for c in completions]
            longest = limit - 1
            if len(completions) > 1 and len({tuple(c) for c in completions}) < len(completions):
                counts["degenerate"] += 1
                continue
        if len(prompt) + longest > limit:
            counts["prompts_truncated"] += 1
            prompt = cut_left(prompt, limit - longest, begin)
        groups.append((prompt, completions))
        kept.append(row)
    report = TokenReport(len(data), len(groups), **counts)
    if not groups:
        raise TelosError(
            f"{where}: no record is left to learn from", got=str(report), fix="raise max_length, or look at the data"
        )
    return TokenGroups(
        [np.array(p, np.int64) for p, _ in groups],
        [tuple(np.array(c, np.int64) for c in completions) for _, completions in groups],
        report,
        device=torch.device(device),
        rows=tuple(kept),
    )


def tokenise_prompts(model: LanguageModel, data: Prompts | Sequence[Text], room: int) -> list[Ids]:
    """Token ids of each prompt, cut at the beginning (after the begin token) so that `room` new ones fit."""
    prompts = data.prompts if isinstance(data, Prompts) else data
    check_one_form(prompts, "prompts")
    texts = [
        p if isinstance(p, str) else template(model, p, f"prompt {i}", add_generation_prompt=True)
        for i, p in enumerate(prompts)
    ]
    limit = model.context - room
    if limit < 1:
        raise TelosError(
            f"max_new_tokens={room} leaves no room for a prompt",
            expected=f"less than the context of {model.context} tokens",
            fix="lower max_new_tokens",
        )
    special = all(isinstance(p, str) for p in prompts)
    begin = model.tokenizer.bos_token_id if model.tokenizer.bos_token_id is not None else model.eos_id
    return [np.array(cut_left(row or [begin], limit, begin), np.int64) for row in encode(model, texts, special)]
