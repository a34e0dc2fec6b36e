"""Worker: a large matrix product in float32, by the faster of torch's and oneDNN's kernel: what the machine can do."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from serve import Gate, serve

SIZE, PRODUCTS = 2048, 10


def onednn(a: Tensor, b: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The shortest of three, after one to warm up."""
    product(left, right)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(left, right)
        times.append(time.perf_counter() - start)
    return min(times)


def work() -> None:
    for _ in range(PRODUCTS):
        fastest(left, right)


left, right = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).unbind()
kernels = [torch.mm, onednn] if torch.backends.mkldnn.is_available() else [torch.mm]
fastest = min(kernels, key=seconds)
serve(work, Gate("torch", GFLOP=PRODUCTS * 2 * SIZE**3 / 1e9))
