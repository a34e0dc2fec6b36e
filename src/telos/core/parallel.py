"""Several processes that train one model: each takes its share of every batch, and their sums are added up.

All processes draw the same batches, since streams depend on the seed alone; `core.method.split` gives each its share,
and `Accumulator` adds gradients, losses and counts before it divides, so that the steps are those of one process up to
the order of additions. Without a process group everything here does nothing. `telos.scale.processes` makes the group.

A model may also be shared out itself (`telos.scale.sharding`): its tensors are then DTensors, of which each process
holds a part; their gradients come as means over the processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from telos.core.errors import HealthError

even = False
"""Whether every process must take part in every pass of the model, as those that hold it together do."""


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if size() > 1 else 0


def leads() -> bool:
    """Whether this process writes the files and speaks to the user."""
    return rank() == 0


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its sum over all processes, in place; all must call it, with the same shapes."""
    if size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


def added(*values: Tensor) -> tuple[Tensor, ...]:
    """The sums of these over all processes: for metrics that a learner sums over its share of a batch."""
    totals = tuple(value.detach().clone().float() for value in values)
    add_up(totals)
    return totals


def sharded(tensor: Tensor) -> bool:
    """Whether each process holds only a part of it."""
    return hasattr(tensor, "full_tensor")


def apart(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Those that each process has whole, then those that are sharded; kinds without a tensor are left out."""
    kinds: dict[bool, list[Tensor]] = {False: [], True: []}
    for tensor in tensors:
        kinds[sharded(tensor)].append(tensor)
    return [kind for kind in kinds.values() if kind]


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes, which must all call it."""
    return cast(Any, tensor).full_tensor() if sharded(tensor) else tensor


def held_like(tensor: Tensor, held: Tensor) -> Tensor:
    """A whole tensor as `held` is: this process's part of it where that is sharded."""
    if not sharded(held):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    placed = cast(Any, held)
    return distribute_tensor(tensor.to(held.device), placed.device_mesh, placed.placements)


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()


def agree(what: str, value: Tensor) -> None:
    """Stops unless all processes hold the same number.

    Raises:
        HealthError: they do not, so what they train would fall apart.
    """
    if size() == 1:
        return
    low, high = value.detach().double().clone(), value.detach().double().clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise HealthError(
            f"the processes disagree on {what}", expected="the same on each",
            got=f"{float(low)} to {float(high)}", fix="use the same kind of machine, versions and files everywhere",
        )  # fmt: skip
