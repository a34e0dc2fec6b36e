"""Log-probs of completions against the full softmax, in chunks, under padding, and within the memory promised."""

import numpy as np
import pytest
import torch
from lm_toys import bpe_model, llama
from torch.utils._python_dispatch import TorchDispatchMode

from telos.core.rng import Rng
from telos.lm import log_probs as module
from telos.lm.log_probs import reference_log_probs, sequence_log_probs, token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.soup import GeometricMixture
from telos.lm.tokens import Sequences, TokenGroups, TokenReport


@pytest.fixture(scope="module")
def model():
    return bpe_model()


def random_sequences(vocabulary, shape=(3, 20), seed=0):
    rng = Rng(seed).numpy()
    lengths = rng.integers(10, shape[-1] + 1, shape[:-1])
    lengths.flat[0] = shape[-1]
    tokens = torch.from_numpy(rng.integers(0, vocabulary, shape))
    return Sequences(tokens, torch.from_numpy(lengths), torch.from_numpy(rng.integers(1, 9, shape[:-1])))


def naive(network, sequences):
    """The full (B, T, V) softmax, one loop a token."""
    log_softmax = network(input_ids=sequences.tokens).logits.float().log_softmax(-1)
    result = torch.zeros(sequences.tokens.shape)
    for row in range(len(result)):
        for place in range(int(sequences.boundaries[row]), int(sequences.lengths[row])):
            result[row, place] = log_softmax[row, place - 1, sequences.tokens[row, place]]
    return result


def test_equals_the_full_softmax(model):
    sequences = random_sequences(330)
    values = token_log_probs(model, sequences)
    expected = naive(model.network, sequences)
    assert values.dtype == torch.float32 and values.std() > 1
    assert (values - expected).abs().max() < 1e-5
    sums = sequence_log_probs(model, sequences)
    assert torch.allclose(sums, expected.sum(-1), atol=1e-4)
    counts = sequences.lengths - sequences.boundaries
    assert torch.allclose(sequence_log_probs(model, sequences, average=True), expected.sum(-1) / counts, atol=1e-5)


def test_probabilities_of_all_next_tokens_sum_to_one(model):
    prompt = [1, 40, 41]
    tokens = torch.tensor([[*prompt, token] for token in range(330)])
    sequences = Sequences(tokens, torch.full((330,), 4), torch.full((330,), 3))
    assert sequence_log_probs(model, sequences).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_chunks_change_neither_values_nor_gradients(model, monkeypatch):
    sequences = random_sequences(330)
    weights = torch.linspace(-1, 1, 60).view(3, 20)

    def values_and_gradients():
        model.network.zero_grad()
        values = token_log_probs(model, sequences)
        (values * weights).sum().backward()
        return values.detach(), [p.grad.clone() for p in model.network.parameters()]

    whole, gradients = values_and_gradients()
    monkeypatch.setattr(module, "CHUNK_LOGITS", 330 * 7)
    parts, chunked = values_and_gradients()
    assert torch.allclose(whole, parts, atol=1e-5)
    assert max(g.abs().max() for g in gradients) > 0.1
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(gradients, chunked, strict=True))
    with torch.no_grad():
        assert torch.allclose(token_log_probs(model, sequences), whole, atol=1e-5)
    model.network.zero_grad()


@pytest.mark.parametrize("head", ["scaled", "capped", "bias", "frozen", "half"])
def test_every_head_has_the_same_gradients_in_chunks(head, monkeypatch):
    model = LanguageModel(llama(), bpe_model().tokenizer)
    last = model.causal.get_output_embeddings()
    if head == "scaled":
        model.causal.config.logit_scale, model.causal.config.logits_scaling = 3.0, 2.0
    elif head == "capped":
        model.causal.config.final_logit_softcapping = 2.0
    elif head == "bias":
        last.bias = torch.nn.Parameter(torch.linspace(-1, 1, 330))
    elif head == "frozen":
        last.weight.requires_grad_(False)
    else:
        model.network.to(torch.bfloat16)
    sequences = random_sequences(330)
    weights = torch.linspace(-1, 1, 60).view(3, 20)
    found = []
    for logits in (1 << 22, 330 * 7):
        monkeypatch.setattr(module, "CHUNK_LOGITS", logits)
        values = token_log_probs(model, sequences)
        (values * weights).sum().backward()
        found.append((values.detach(), [p.grad for p in model.network.parameters() if p.grad is not None]))
        model.network.zero_grad()
    (whole, expected), (parts, gradients) = found
    assert torch.allclose(whole, parts, atol=1e-5) and len(gradients) == len(expected)
    assert (last.weight.grad is None) and len(gradients) == len(model.trainable())
    tolerance = 2e-2 if head == "half" else 1e-5
    for one, other in zip(expected, gradients, strict=True):
        assert (one - other).abs().max() <= tolerance * one.abs().max()


def test_a_mixture_is_chunked_by_its_own_head(monkeypatch):
    models = [LanguageModel(llama(seed=seed), bpe_model().tokenizer) for seed in (0, 1)]
    mixture, sequences = GeometricMixture(models, [0.3, 0.7]), random_sequences(330)
    whole = token_log_probs(mixture, sequences)
    monkeypatch.setattr(module, "CHUNK_LOGITS", 330 * 7)
    assert torch.allclose(token_log_probs(mixture, sequences), whole, atol=1e-5)
    assert not torch.allclose(token_log_probs(models[0], sequences), whole, atol=0.1)


def peak_bytes(work):
    """The most that torch's allocator holds during `work`, above what it held before."""
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        work()
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]))


def test_the_head_holds_one_gradient_and_few_logits():
    """With 30,000 words: never all logits (30 MB, autograd keeps several), never two gradients (15 MB each)."""
    vocabulary, width = 30_000, 128
    small = {"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = llama(vocabulary, 64, num_key_value_heads=1, **small)
    model = LanguageModel(network, bpe_model().tokenizer)
    full = torch.full((4,), 64)
    sequences = Sequences(random_sequences(vocabulary, (4, 64)).tokens, full, torch.ones_like(full))
    states = torch.randn(252, width, generator=Rng(0).torch(), requires_grad=True)
    targets = sequences.tokens[:, 1:].flatten()
    gradient, logits = 4 * vocabulary * width, 4 * module.CHUNK_LOGITS

    def of_head(size):
        module.chunked_log_probs(model, states, targets, size).sum().backward()
        network.zero_grad(set_to_none=True)

    assert gradient < peak_bytes(lambda: of_head(module.CHUNK_LOGITS // vocabulary)) < gradient + 1.3 * logits
    # What the limit would find: all logits at once.
    assert peak_bytes(lambda: of_head(252)) > gradient + 2 * logits
    whole = peak_bytes(lambda: token_log_probs(model, sequences).sum().backward())
    # The embedding's gradient comes when the logits are gone; activations of one narrow layer take little.
    assert whole < 2 * gradient + 1.3 * logits


def test_padding_makes_no_difference(model):
    sequences = random_sequences(330)
    values = token_log_probs(model, sequences)
    place = torch.arange(20)
    other = torch.where(place < sequences.lengths[:, None], sequences.tokens, (sequences.tokens + 100) % 330)
    assert not torch.equal(other, sequences.tokens)
    assert torch.allclose(token_log_probs(model, Sequences(other, sequences.lengths, sequences.boundaries)), values)
    wide = torch.nn.functional.pad(sequences.tokens, (0, 13), value=2)
    padded = token_log_probs(model, Sequences(wide, sequences.lengths, sequences.boundaries))
    assert torch.allclose(padded[:, :20], values, atol=1e-5) and (padded[:, 20:] == 0).all()
    for row in range(3):
        length = int(sequences.lengths[row])
        one = sequences[row : row + 1]
        alone = Sequences(one.tokens[:, :length], one.lengths, one.boundaries)
        assert torch.allclose(token_log_probs(model, alone)[0], values[row, :length], atol=1e-5)
    assert (values[~sequences.mask] == 0).all()


def test_no_gradient_from_tokens_that_are_not_read(model):
    """Embeddings of padding tokens get no gradient; those of the prompt do, as context."""
    tokens = torch.tensor([[1, 40, 41, 42, 50, 51]])
    sequences = Sequences(tokens, torch.tensor([4]), torch.tensor([2]))
    model.network.zero_grad()
    token_log_probs(model, sequences).sum().backward()
    gradient = model.network.get_input_embeddings().weight.grad
    assert gradient[[50, 51]].abs().max() == 0 and gradient[[1, 40, 41]].abs().min(-1).values.max() > 0
    model.network.zero_grad()


def test_groups_are_their_flat_rows(model):
    sequences = random_sequences(330, (2, 3, 16))
    grouped = sequence_log_probs(model, sequences)
    assert grouped.shape == (2, 3)
    assert torch.allclose(grouped.flatten(), sequence_log_probs(model, sequences.flat()), atol=1e-5)


def test_half_precision_networks_get_a_float32_softmax(model):
    half = LanguageModel(llama().to(torch.bfloat16), model.tokenizer)
    sequences = random_sequences(330)
    with torch.no_grad():
        values = token_log_probs(half, sequences)
        logits = half.network(input_ids=sequences.tokens).logits
    assert logits.dtype == torch.bfloat16 and values.dtype == torch.float32
    exact = logits.double().log_softmax(-1)
    rows, places = sequences.mask.nonzero(as_tuple=True)
    target = sequences.tokens[rows, places]
    assert (values[rows, places] - exact[rows, places - 1, target]).abs().max() < 1e-5
    rounded = logits.log_softmax(-1)[rows, places - 1, target]
    assert (rounded - exact[rows, places - 1, target]).abs().max() > 1e-3  # what a bf16 softmax would lose


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_a_large_vocabulary_never_makes_the_full_logits():
    vocabulary, rows, length = 50_000, 4, 64
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    network = llama(vocabulary, length, num_key_value_heads=1, **small)
    model = LanguageModel(network, bpe_model().tokenizer)
    sequences = random_sequences(vocabulary, (rows, length))
    assert int(sequences.mask.sum()) * vocabulary > 1.5 * module.CHUNK_LOGITS
    with Largest() as largest:
        token_log_probs(model, sequences).sum().backward()
    assert vocabulary * 8 <= largest.numel <= module.CHUNK_LOGITS < rows * length * vocabulary
    with torch.no_grad(), Largest() as largest:
        token_log_probs(model, sequences)
    assert largest.numel <= module.CHUNK_LOGITS


@pytest.mark.parametrize("average", [False, True])
def test_reference_log_probs_come_back_in_the_order_of_the_records(model, average):
    rng = Rng(1).numpy()
    prompts = [rng.integers(3, 330, rng.integers(1, 9)) for _ in range(11)]
    completions = [tuple(rng.integers(3, 330, rng.integers(1, 15)) for _ in range(2)) for _ in range(11)]
    groups = TokenGroups(prompts, completions, TokenReport(11, 11))
    values = reference_log_probs(model, groups, batch_size=3, average=average)
    assert values.shape == (11, 2) and not values.requires_grad
    for row in range(11):
        with torch.no_grad():
            alone = sequence_log_probs(model, groups.sequences(np.array([row])), average)[0]
        assert torch.allclose(values[row], alone, atol=1e-4)
    batch = groups.with_reference(values).batch([4, 2])
    assert torch.equal(batch.reference, values[[4, 2]])
