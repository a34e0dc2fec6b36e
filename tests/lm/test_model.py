"""Loading, copying, adapters, and the head: hidden states times head are the network's own logits."""

import numpy as np
import pytest
import torch
import transformers
from lm_toys import STORIES, bpe, bpe_model, llama, tiny
from safetensors.torch import load_file

from telos.core.errors import HealthError, TelosError
from telos.core.method import Spec
from telos.core.products import load_product
from telos.core.rng import Rng
from telos.data.records import Demonstrations
from telos.lm.log_probs import sequence_log_probs, token_log_probs
from telos.lm.model import TINY, LanguageModel, add_lora, load_model, seeded
from telos.lm.products import LanguagePolicy, RewardScorer, probe_tokens
from telos.lm.rollouts import first_ratio
from telos.lm.sample import sample
from telos.lm.setup import policy_and_reference, policy_model, step_optimizer
from telos.lm.tokens import Sequences, tokenise

COMMON = {"vocab_size": 330, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LLAMA_LIKE = {
    **COMMON, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT2_LIKE = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "gpt2": lambda: transformers.GPT2Config(**GPT2_LIKE),  # learned positions, dropout 0.1
    "neox": lambda: transformers.GPTNeoXConfig(**{**LLAMA_LIKE, "num_key_value_heads": None}),
    "gemma2": lambda: transformers.Gemma2Config(
        **LLAMA_LIKE, head_dim=8, final_logit_softcapping=2.0, sliding_window=5
    ),
    "cohere": lambda: transformers.CohereConfig(**LLAMA_LIKE, logit_scale=0.25),
    "granite": lambda: transformers.GraniteConfig(**LLAMA_LIKE, logits_scaling=8.0),
}


def network(config, scale=4.0):
    """A random network with logits of some size."""
    with seeded(Rng(3)):
        made = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    return made


def sequences():
    tokens = torch.from_numpy(Rng(1).numpy().integers(3, 330, (2, 14)))
    return Sequences(tokens, torch.tensor([14, 11]), torch.tensor([3, 5]))


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_and_head_are_the_networks_logits(name):
    model = load_model((network(CONFIGS[name]()), bpe()))
    batch = sequences()
    with torch.no_grad():
        own = model.network(input_ids=batch.tokens).logits.float()
        ours = model.head(model.hidden(batch.tokens))
    assert own.std() > 0.05 and (ours - own).abs().max() < 1e-4 * own.abs().max()
    with torch.no_grad():
        drawn = sample(model, [np.array([1, 40, 41, 50]), np.array([1, 99])], rng=Rng(2).torch(), max_new_tokens=12)
        values = token_log_probs(model, Sequences(drawn.tokens, drawn.lengths, drawn.boundaries))
    assert (values - drawn.log_probs).abs().max() < 1e-4  # unequal prompts, through the cache


def test_scaling_and_capping_matter_here():
    for name in ("gemma2", "cohere", "granite"):
        model = load_model((network(CONFIGS[name]()), bpe()))
        with torch.no_grad():
            hidden = model.hidden(sequences().tokens)
            plain = model.network.get_output_embeddings()(hidden)
            assert (plain - model.head(hidden)).abs().max() > 0.05 * plain.abs().max()


def test_networks_with_another_head_or_that_look_ahead_are_refused():
    masked = transformers.BertConfig(**LLAMA_LIKE, is_decoder=True)
    with pytest.raises(TelosError, match="BertLMHeadModel"):  # a transform between hidden states and head
        load_model((network(masked, 1.0), bpe()))

    class LooksAhead(transformers.LlamaModel):
        def forward(self, input_ids=None, **kwargs):
            out = super().forward(input_ids=input_ids, **kwargs)
            out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.flip(1)
            return out

    ahead = llama()
    ahead.model.__class__ = LooksAhead
    with pytest.raises(TelosError, match="later tokens"):
        load_model((ahead, bpe()))


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(TelosError, match="no such model"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TelosError, match=r"empty.* does not load as a causal language model"):
        load_model(tmp_path / "empty")
    folder = tmp_path / "weightless"
    tiny().network.config.save_pretrained(folder)
    tiny().tokenizer.save_pretrained(folder)
    with pytest.raises(TelosError, match=r"weightless.* does not load"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(TelosError, match=r"weightless.* does not load"):
        load_model(folder)
    with pytest.raises(TelosError, match="neither a path nor a model"):
        load_model(3)
    endless = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe()._tokenizer, bos_token="<s>")
    with pytest.raises(TelosError, match="no end token"):
        load_model((llama(), endless))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260k model is not here")
def test_a_folder_loads():
    model = load_model(str(STORIES))
    assert model.context == 512 and model.origin == str(STORIES) and not model.adapted
    assert model.network.dtype == torch.float32 and all(p.requires_grad for p in model.network.parameters())


def test_objects_are_copied_and_training_leaves_them_alone():
    original, tokenizer = llama(), bpe()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    model = LanguageModel(original, tokenizer)
    for source in ((original, tokenizer), model, LanguagePolicy(model)):
        model = load_model(source)
        optimizer = torch.optim.SGD(model.trainable(), 0.1)
        sequence_log_probs(model, sequences()).sum().backward()
        optimizer.step()
        assert any(not torch.equal(v, before[k]) for k, v in model.network.state_dict().items())
        assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())
        assert all(p.grad is None for p in original.parameters())


def test_dropout_is_off_in_training_too():
    config = transformers.GPT2Config(**GPT2_LIKE, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = load_model((network(config).train(), bpe()))
    first, second = (token_log_probs(model, sequences()) for _ in range(2))
    assert torch.equal(first, second) and first.requires_grad


def spec(**given):
    return Spec(None, given, 1, torch.device("cpu"), Rng(0))


def test_a_frozen_model_is_trainable_when_it_is_the_policy():
    assert len(policy_model(spec(model=tiny().frozen())).trainable()) == len(list(tiny().network.parameters()))


def test_lora_starts_at_the_base_and_only_adapters_change(tmp_path):
    pytest.importorskip("peft")
    prepared = policy_and_reference(spec(model=TINY, lora=4))
    policy, reference = prepared.given["model"], prepared.given["reference"]
    batch = probe_tokens(64)
    with torch.no_grad():
        base = token_log_probs(tiny(), batch)
    assert torch.equal(token_log_probs(policy, batch).detach(), base)
    names = {name for name, p in policy.network.named_parameters() if p.requires_grad}
    assert names and all("lora_" in name for name in names) and not reference.trainable()
    assert all(p.dim() == 2 and 4 in p.shape for p in policy.trainable())

    frozen = {k: v.clone() for k, v in policy.network.state_dict().items() if "lora_" not in k}
    optimizer = torch.optim.Adam(policy.trainable(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (-sequence_log_probs(policy, batch)).sum().backward()
        optimizer.step()
    after = policy.network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in frozen.items())
    with torch.no_grad():
        trained = token_log_probs(policy, batch)
        assert trained.sum() > base.sum() + 0.1
        assert torch.equal(token_log_probs(reference, batch), base)  # a copy, not the same adapters
        assert torch.allclose(token_log_probs(policy.merged(), batch), trained, atol=1e-5)
        drawn = sample(policy, [np.array([1, 4])], n=4, rng=Rng(0).torch(), max_new_tokens=8)
        values = token_log_probs(policy, Sequences(drawn.tokens, drawn.lengths, drawn.boundaries))
        assert (values - drawn.log_probs).abs().max() < 1e-4  # the sampler sees the adapters

    LanguagePolicy(policy).save(tmp_path / "adapters")
    assert "lora_" in next(iter(load_file(tmp_path / "adapters" / "adapter_model.safetensors")))
    loaded = load_product(tmp_path / "adapters").model
    assert torch.allclose(token_log_probs(loaded, batch).detach(), trained, atol=1e-6)
    assert len(loaded.trainable()) == len(policy.trainable())  # training can go on
    again = policy_model(spec(model=str(tmp_path / "adapters"), lora=2))  # new adapters on top of the old ones
    assert torch.allclose(token_log_probs(again, batch).detach(), trained, atol=1e-5)
    assert all(2 in p.shape for p in again.trainable())


@pytest.mark.parametrize("made", ["in memory", "trained"])
def test_adapters_whose_base_is_on_no_disk_are_saved_in_the_weights(tmp_path, made):
    pytest.importorskip("peft")
    if made == "in memory":
        source = (llama(), bpe())
    else:
        base = load_model(TINY)
        with torch.no_grad():
            for parameter in base.trainable():
                parameter.add_(0.01)
        source = LanguagePolicy(base)
    policy = policy_model(spec(model=source, lora=2))
    with torch.no_grad():
        for parameter in policy.trainable():
            parameter.add_(0.05)
        batch = probe_tokens(64)
        values = token_log_probs(policy, batch)
    LanguagePolicy(policy).save(tmp_path / "p")
    loaded = load_product(tmp_path / "p").model
    assert not loaded.adapted and torch.allclose(token_log_probs(loaded, batch).detach(), values, atol=1e-4)
    assert policy.adapted  # saving left the policy as it was


def test_saved_policies_are_transformers_folders(tmp_path):
    policy = LanguagePolicy(bpe_model())
    policy.save(tmp_path / "p")
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "p", local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "p", local_files_only=True)
    ids = tokenizer("the cat sat", return_tensors="pt")
    out = network.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=2)
    drawn = policy.generate(["the cat sat"], max_new_tokens=8, temperature=0)
    assert out[0].tolist() == drawn.tokens[0, : drawn.lengths[0]].tolist()
    with pytest.raises(TelosError, match="does not reproduce its probe"):
        weights = load_file(tmp_path / "p" / "model.safetensors")
        from safetensors.torch import save_file

        changed = {k: v * 1.1 for k, v in weights.items()}
        save_file(changed, tmp_path / "p" / "model.safetensors", metadata={"format": "pt"})
        load_product(tmp_path / "p")


def scorer():
    made = RewardScorer.from_language_model(bpe_model(), Rng(0))
    with torch.no_grad():
        made.network.score.weight.copy_(torch.randn(1, 32, generator=Rng(5).torch()))
    return made


def test_reward_scorers_start_at_zero_and_are_transformers_classifiers(tmp_path):
    fresh = RewardScorer.from_language_model(bpe_model(), Rng(0))
    texts = [" sat", " on the mat and", " no, this is a bad idea"]
    assert fresh.score(["the cat"] * 3, texts).tolist() == [0, 0, 0]

    made = scorer()
    scores = made.score(["the cat"] * 3, texts)
    made.save(tmp_path / "r")
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "r", local_files_only=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "r", local_files_only=True)
    assert classifier.num_labels == 1
    batch = tokenizer(["the cat" + text + "</s>" for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = classifier(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert scores.std() > 0.1 and torch.allclose(theirs, scores, atol=1e-5)
    loaded = load_product(tmp_path / "r")
    assert torch.allclose(loaded.score(["the cat"] * 3, texts), scores, atol=1e-6)


def test_a_reward_scorer_reads_texts_as_it_was_trained_to_also_after_loading(tmp_path):
    made = scorer()
    texts = ["sat", "sat on the mat"]
    made.save(tmp_path / "whole")
    whole = made.score(["the cat "] * 2, texts)
    assert torch.allclose(whole, made.score(["the cat"] * 2, [" " + text for text in texts]), atol=1e-6)
    assert torch.allclose(load_product(tmp_path / "whole").score(["the cat "] * 2, texts), whole, atol=1e-6)
    made.boundary = "separate"
    made.save(tmp_path / "apart")
    apart = made.score(["the cat "] * 2, texts)
    assert (apart - whole).abs().min() > 1e-3
    assert torch.allclose(load_product(tmp_path / "apart").score(["the cat "] * 2, texts), apart, atol=1e-6)
    made.boundary, made.max_length = "joint", 4
    made.save(tmp_path / "short")
    short = load_product(tmp_path / "short").score(["no no no no the cat"], [" sat"])
    kept = tokenise(made.language_model, Demonstrations(["no no no no the cat"], [" sat"]), max_length=4)
    assert kept.lengths.tolist() == [4] and torch.allclose(
        short, made.score_tokens(kept.sequences([0]))[:, 0].detach(), atol=1e-6
    )


def test_scores_do_not_depend_on_padding_or_order_and_sampled_tokens_score_like_their_texts():
    made = scorer()
    texts = [" sat", " on the mat and the other cat sat there", " no"]
    together = made.score(["the cat"] * 3, texts)
    alone = torch.cat([made.score(["the cat"], [text]) for text in texts])
    assert torch.allclose(together, alone, atol=1e-5)
    drawn = LanguagePolicy(bpe_model()).generate(["the cat", "no"], n=5, rng=Rng(0).torch(), max_new_tokens=6)
    before = drawn.tokens.clone()
    values = made.score_sampled(drawn)
    for row in range(10):
        ids = drawn.tokens[row, : drawn.lengths[row]].tolist()
        ids = ids if drawn.finished[row] else [*ids, 2]
        batch = Sequences(torch.tensor([ids]), torch.tensor([len(ids)]), torch.tensor([1]))
        assert made.score_tokens(batch).item() == pytest.approx(values[row].item(), abs=1e-5)
    assert torch.equal(drawn.tokens, before)


def test_a_cut_off_sample_that_fills_the_context_is_scored_within_it():
    config = transformers.GPT2Config(**{**GPT2_LIKE, "n_positions": 16})
    model = LanguageModel(network(config), bpe())
    made = RewardScorer.from_language_model(model, Rng(0))
    drawn = LanguagePolicy(model).generate(["the cat sat on the mat " * 9], rng=Rng(0).torch(), max_new_tokens=8)
    assert drawn.tokens.shape[1] == 16 and not drawn.finished[0]
    assert made.score_sampled(drawn).shape == (1,)


def test_reward_scorer_keeps_precision_folds_adapters_and_distrusts_a_pad_that_is_the_end():
    half = LanguageModel(llama().to(torch.bfloat16), bpe())
    assert {p.dtype for p in RewardScorer.from_language_model(half, Rng(0)).parameters()} == {torch.bfloat16}
    tokenizer = bpe()
    tokenizer.pad_token = tokenizer.eos_token
    same = llama(pad_token_id=2, eos_token_id=2)
    made = RewardScorer.from_language_model(LanguageModel(same, tokenizer), Rng(0))
    assert made.network.config.pad_token_id is None and same.config.pad_token_id == 2
    pytest.importorskip("peft")
    adapted = add_lora(bpe_model(), 2, Rng(0))
    with torch.no_grad():
        for parameter in adapted.trainable():
            parameter.add_(0.1)
    body = RewardScorer.from_language_model(adapted, Rng(0)).network.base_model
    tokens = sequences().tokens
    with torch.no_grad():
        hidden = adapted.hidden(tokens)
        assert torch.allclose(body(input_ids=tokens).last_hidden_state, hidden, atol=1e-4)


def test_first_ratio_allows_rounding_and_nothing_more():
    mask = torch.tensor([[False, True, True]])
    log_probs = torch.tensor([[9.0, -1.0, -2.0]])
    first_ratio(log_probs, torch.tensor([[0.0, -1.0005, -2.0]]), mask)
    for wrong in (-1.002, -0.9, float("nan")):
        with pytest.raises(HealthError, match="disagree"):
            first_ratio(log_probs, torch.tensor([[0.0, wrong, -2.0]]), mask)


def test_warm_up_and_clipping():
    class Toy:
        parameters = [torch.nn.Parameter(torch.zeros(2))]
        optimizer = torch.optim.SGD(parameters, 1.0)
        updates = 0

    rates = []
    for _ in range(6):
        before = Toy.parameters[0].detach().clone()
        Toy.parameters[0].grad = torch.tensor([3.0, 4.0])
        assert step_optimizer(Toy, 4, 1.0).item() == 5.0
        rates.append((before - Toy.parameters[0].detach()).norm().item())
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1], abs=1e-5)  # norm 5 clipped to 1
