"""Joins the processes that `accelerate launch` or `torchrun` started into one group."""

from __future__ import annotations

import os

import torch

from telos.core.errors import TelosError
from telos.data.extras import extra


def launched() -> int:
    """How many processes were started together; 1 for a plain start."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str) -> torch.device:
    """Makes the process group (gloo on CPUs, nccl on GPUs) and returns this process's device.

    Args:
        device: as `fit` has it: auto, cpu or cuda.

    Raises:
        TelosError: a device that cannot be shared out, or accelerate is missing.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise TelosError(
            f"{launched()} processes cannot share '{device}'", expected="auto, cpu or cuda", fix="leave --device out"
        )
    with extra("lm", "several processes"):
        from accelerate import PartialState
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return torch.device(str(state.device))
