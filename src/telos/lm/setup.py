"""What language methods do before and around training: models, tokens, reference log-probs, optimiser steps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from telos.core import parallel
from telos.core.errors import TelosError
from telos.core.method import Spec
from telos.lm.log_probs import reference_log_probs
from telos.lm.model import LanguageModel, add_lora, load_model
from telos.lm.tokens import tokenise


class TextOptions(Protocol):
    """The fields by which a method says how its texts become tokens."""

    @property
    def max_length(self) -> int | None: ...
    @property
    def overlong(self) -> Any: ...
    @property
    def boundary(self) -> Any: ...


class Updates(Protocol):
    """A learner with one optimiser over its parameters."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    updates: int


def policy_model(spec: Spec) -> LanguageModel:
    """A trainable copy of the given model, with LoRA adapters where `lora` says so."""
    model = load_model(spec.need("model", "a transformers folder, a hub name, or (model, tokenizer)"), spec.device)
    if not model.adapted:
        model.network.requires_grad_(True)
    rank = spec.given.get("lora")
    return add_lora(model.merged() if model.adapted else model, int(rank), spec.rng.at("lora")) if rank else model


def policy_and_reference(spec: Spec) -> Spec:
    """Loads the trainable model and a frozen reference (given, or a copy of the model as it is now)."""
    model = policy_model(spec)
    other = spec.given.get("reference")
    reference = (load_model(other, spec.device) if other is not None else model).frozen()
    return spec.replace(given={**spec.given, "model": model, "reference": reference})


def prepare_groups(spec: Spec, method: TextOptions, *, average: bool = False, reference: bool = True) -> Spec:
    """Loads the model, tokenises the records, and computes the reference's log-probs once.

    The reference is `given["reference"]`, or the model as it is before training.
    """
    model = policy_model(spec)
    groups = tokenise(
        model,
        spec.data,
        max_length=method.max_length,
        overlong=method.overlong,
        boundary=method.boundary,
        device=spec.device,
    )
    if reference:
        other = spec.given.get("reference")
        frozen = load_model(other, spec.device) if other is not None else model
        if frozen.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise TelosError(
                "the reference has another vocabulary than the model", fix="use a model of the same family"
            )
        groups = groups.with_reference(reference_log_probs(frozen, groups, average=average))
    note = str(groups.report)
    if groups.report.used < groups.report.records or groups.report.prompts_truncated:
        print(note, file=sys.stderr)
    return spec.replace(data=groups, given={**spec.given, "model": model}, notes={**spec.notes, "data": note})


def groups(parameters: Iterable[nn.Parameter]) -> list[dict[str, Any]]:
    """An optimiser's groups: tensors that are sharded among processes apart from whole ones."""
    return [{"params": kind} for kind in parallel.apart(parameters)]


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW without weight decay."""
    return torch.optim.AdamW(groups(parameters), lr=learning_rate, weight_decay=0.0, fused=True)


def rmsprop(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """RMSprop, as DPO's paper."""
    return torch.optim.RMSprop(groups(parameters), lr=learning_rate)


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "rmsprop": rmsprop,
}


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scales the gradients to a global norm of at most `largest`; returns the norm before that."""
    parameters = list(parameters)
    kinds = parallel.apart(p.grad for p in parameters if p.grad is not None)
    if not any(parallel.sharded(kind[0]) for kind in kinds):
        return nn.utils.clip_grad_norm_(parameters, largest)
    norm = torch.stack([parallel.whole(nn.utils.get_total_norm(kind)) for kind in kinds]).norm()
    for kind in kinds:
        torch._foreach_mul_(kind, min(1.0, largest / (float(norm) + 1e-6)))
    return norm


def step_optimizer(learner: Updates, warmup_steps: int, max_grad_norm: float) -> Tensor:
    """Clips, takes one step at the warmed-up rate, clears gradients; returns the norm before clipping."""
    norm = clip_gradients(learner.parameters, max_grad_norm)
    scale = min(1.0, (learner.updates + 1) / warmup_steps) if warmup_steps else 1.0
    for group in learner.optimizer.param_groups:
        group.setdefault("peak", group["lr"])
        group["lr"] = group["peak"] * scale
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    learner.updates += 1
    return norm
