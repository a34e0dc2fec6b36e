"""A language model shared out among the processes that train it (FSDP2), asked for by `accelerate launch --use_fsdp`.

While it trains, each process holds a part of the weights of every layer, of their gradients and of what the optimiser
keeps of them; a layer is put together when it is used. Embeddings and head stay whole. Before training the model is
loaded whole (where its reference log-probs are computed), and after it is put together again on the CPU.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from telos.core import parallel
from telos.core.errors import TelosError
from telos.core.method import Method, Spec
from telos.lm.model import LanguageModel


def wanted() -> bool:
    """Whether the launcher asks for it."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


class Shards:
    """The model of a run, shared out.

    Raises:
        TelosError: a method that trains something else than the model that it was given, or in several stages; a model
            without a list of layers.
    """

    def __init__(self, method: Method, spec: Spec):
        name = type(method).__name__
        model = spec.given.get("model")
        if not isinstance(model, LanguageModel) or type(method).stages is not Method.stages:
            raise TelosError(
                f"{name} cannot share out its model", expected="a method that trains one model in one stage",
                fix="leave out --use_fsdp: every process then holds the whole model",
            )  # fmt: skip
        self.model, self.plain = model, copy.deepcopy(model.network).cpu()
        mesh = init_device_mesh(spec.device.type, (parallel.size(),))
        for layer in layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        parallel.even = True

    @torch.no_grad()
    def gather(self) -> None:
        """Puts the model together again; every process must call it."""
        for parameter, plain in zip(self.model.network.parameters(), self.plain.parameters(), strict=True):
            plain.copy_(parallel.whole(parameter.detach()))
        self.model.network = self.plain
        parallel.even = False


def layers(model: LanguageModel) -> list[nn.Module]:
    """The model's blocks: its longest list of modules."""
    lists: list[Any] = [module for module in model.causal.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise TelosError(f"{model.origin or 'the model'} has no list of layers, so it cannot be shared out")
    return list(max(lists, key=len))
