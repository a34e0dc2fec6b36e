"""Peak memory of one update with a vocabulary of 150,000, as a ratio to the model's own activations.

    python bench/memory.py [--device cuda] [--hidden 128] [--layers 8] [--tied]

A Llama in float32, two sequences (a pair) of 1,024 completion tokens each. Every row is a process of its own; the
optimiser's state is there before the measured update:

    body    forward and backward of the model's body alone, with a trivial loss of its hidden states: the yardstick
    dpo     telos: DPO, the reference's log-probs given ahead
    sft     telos: SFT on two texts of the same lengths
    reward  telos: a Bradley-Terry reward model
    plain   DPO in plain torch: full logits, log_softmax

What counts is the most that is held at once above weights, optimiser state and the gradients that exist at that
moment (one copy each; the head's from the start of its backward pass): activations and everything passing. On the CPU
it is measured twice, by the allocator's events and by the process's resident memory; on a GPU by torch's allocator.
Results go to results.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import telos
from pairs import model_folder
from report import HERE, about, record
from resident import status
from telos.core.method import Method, Spec
from telos.core.rng import Rng
from telos.lm.setup import OPTIMIZERS

VOCABULARY, PROMPT, COMPLETION = 150_000, 16, 1024
AIM = 1.3
ROWS = {
    "body": "forward and backward of the body alone",
    "dpo": "telos, DPO",
    "sft": "telos, SFT on two texts",
    "reward": "telos, reward model",
    "plain": "DPO in plain torch, all logits at once",
}


class Meter:
    """Most bytes held above the start, less the gradients that exist; peaks are taken between marks."""

    def __init__(self) -> None:
        self.gradients, self.held, self.most = 0, 0, 0

    def start(self) -> None:
        """Where the zero is."""
        self.zero = self.now()
        self.mark(0)

    def mark(self, gradients: int) -> None:
        """Takes the peak since the last mark; from now on there are `gradients` more bytes of gradients."""
        self.most = max(self.most, self.peak() - self.zero - self.gradients)
        self.gradients += gradients
        self.reset()

    def stop(self) -> int:
        self.mark(0)
        return self.most

    def now(self) -> int:
        raise NotImplementedError

    def peak(self) -> int:
        raise NotImplementedError

    def reset(self) -> None:
        raise NotImplementedError


class CudaMeter(Meter):
    """torch's allocator on the GPU"""

    def now(self) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats()


class ResidentMeter(Meter):
    """the process's resident memory"""

    # Linux only. The parent sets malloc to give memory back at once.

    def now(self) -> int:
        self.reset()
        return status("VmRSS")

    def peak(self) -> int:
        return status("VmHWM")

    def reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")


class EventMeter(Meter):
    """the events of torch's allocator, as its profiler records them"""

    def start(self) -> None:
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self.profile.start()

    def mark(self, gradients: int) -> None:
        with torch.profiler.record_function(f"gradients {gradients}"):
            pass

    def stop(self) -> int:
        self.profile.stop()
        results = self.profile.profiler.kineto_results  # type: ignore[union-attr]
        for event in sorted(results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                self.held += event.nbytes()
                self.most = max(self.most, self.held - self.gradients)
            elif event.name().startswith("gradients "):
                self.gradients += int(event.name().split()[1])
        return self.most


METERS = {"cuda": CudaMeter, "resident": ResidentMeter, "events": EventMeter}


def size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Plain:
    """What telos.DPO does, with all logits at once."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.parameters = list(network.parameters())
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, 1e-5)

    def loss(self, batch: Any) -> Tensor:
        sequences = batch.sequences.flat()
        log_probs = self.network(input_ids=sequences.tokens).logits[:, :-1].float().log_softmax(-1)
        tokens = log_probs.gather(-1, sequences.tokens[:, 1:, None])[..., 0] * sequences.mask[:, 1:]
        ratios = tokens.sum(-1).view(-1, 2) - batch.reference
        return -torch.nn.functional.logsigmoid(0.1 * (ratios[:, 0] - ratios[:, 1])).mean()

    def update(self, batch: Any, rng: Rng, micro: int = 1) -> dict:
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {}


class Body(Plain):
    """The body alone."""

    def loss(self, batch: Any) -> Tensor:
        return self.network.base_model(input_ids=batch.sequences.flat().tokens).last_hidden_state.square().mean()  # type: ignore[operator]


def ready(row: str, folder: str, device: str) -> tuple[Any, nn.Module, Any]:
    """The learner, its network and one batch."""
    rng = Rng(0)
    draw = rng.numpy()

    def text(words: int) -> str:
        return " ".join(f"w{i}" for i in draw.integers(3, VOCABULARY, words))

    prompts = [text(PROMPT)]
    chosen, rejected = [" " + text(COMPLETION - 1)], [" " + text(COMPLETION - 1)]
    data: Any = telos.Preferences(prompts, chosen, rejected)
    if row == "sft":
        data = telos.Demonstrations(prompts * 2, [*chosen, *rejected])
    # The yardsticks take their batch as a reward model does: without log-probs of a reference, which cost as much.
    method: Method = {"sft": telos.SFT, "dpo": telos.DPO}.get(row, telos.RewardModel)(batch_size=2)
    spec = method.prepare(Spec(data, {"model": folder}, 10, torch.device(device), rng))
    own = {"body": Body, "plain": Plain}.get(row)
    learner: Any = own(spec.given["model"].network) if own else method.learner(spec, rng)
    network = learner.scorer.network if row == "reward" else learner.network
    batch = method.source(spec).next(None, rng.at("source"))  # type: ignore[arg-type]
    # A reward model copied the body: the model that it came from goes.
    del spec.given["model"]
    return learner, network, batch


def worker(row: str, meter: Meter, folder: str, device: str) -> dict:
    """One row by one meter: bytes of weights, gradients and optimiser state, and the most above them."""
    learner, network, batch = ready(row, folder, device)
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    state = [t for s in learner.optimizer.state.values() for t in s.values() if torch.is_tensor(t) and t.dim()]  # type: ignore[attr-defined]
    head = [network.get_output_embeddings().weight] if row in ("dpo", "sft", "plain") else []  # type: ignore[operator]
    for parameter in parameters:
        if all(parameter is not weight for weight in head):
            parameter.register_post_accumulate_grad_hook(lambda p: meter.mark(size([p])))
    backward = torch.Tensor.backward

    def marked(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        meter.mark(size(head))
        backward(tensor, *args, **kwargs)

    torch.Tensor.backward = marked  # type: ignore[method-assign]
    meter.start()
    learner.update(batch, Rng(0))
    above = meter.stop()
    return {"weights": size(parameters), "optimiser": size(state), "gradients": meter.gradients, "above": above}


def measure(row: str, meter: str, options: argparse.Namespace, folder: str) -> dict:
    """The same in a process of its own."""
    variables = {**os.environ, "TELOS_PROGRESS": "0", "OMP_NUM_THREADS": str(options.threads)}
    if meter == "resident":
        variables |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, __file__, "--device", options.device, "--worker", row, meter, folder]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{row} by {meter} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tied", action="store_true", help="one matrix for embedding and head")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        row, meter, folder = options.worker
        print(json.dumps(worker(row, METERS[meter](), folder, options.device)))
        return
    folder = model_folder(
        VOCABULARY, hidden_size=options.hidden, intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers, max_position_embeddings=PROMPT + COMPLETION,
        tie_word_embeddings=options.tied,
    )  # fmt: skip
    meters = ("cuda",) if options.device == "cuda" else ("events", "resident")
    rows: dict[str, dict] = {}
    try:
        for row, work in ROWS.items():
            found = {meter: measure(row, meter, options, folder) for meter in meters}
            own = {meter: found[meter].pop("above") for meter in meters}
            ratio = own[meters[0]] / (rows["body"][meters[0]] if rows else own[meters[0]])
            rows[row] = {"work": work, **found[meters[0]], **own, "ratio": ratio, "ours": work.startswith("telos")}
            print(f"{row}: {ratio:.2f}", {meter: f"{bytes / 1e6:.0f} MB" for meter, bytes in own.items()}, flush=True)
    finally:
        shutil.rmtree(folder)
    size = f"{options.hidden} wide, {options.layers} layers, embedding and head {'' if options.tied else 'un'}tied"
    work = f"two texts of {COMPLETION:,} completion tokens, a Llama with {VOCABULARY:,} words, {size}, float32"
    result = {"work": work, "aim": AIM, "meters": {m: METERS[m].__doc__ for m in meters}, "rows": rows}
    print(record("memory", {**result, **about(options.threads, options.device)}, options.out))


if __name__ == "__main__":
    main()
