"""Small models and tokenizers made in memory, for the tests of telos.lm."""

import functools
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from telos.core.rng import Rng
from telos.lm.model import TINY, LanguageModel, load_model, seeded

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"
HARMLESS = Path(__file__).parents[2].parent / "shared" / "data" / "hh_rlhf_harmless" / "test.jsonl.gz"

TEXT = [
    "the cat sat on the mat and the other cat sat there",
    "yes, it is a good day to walk in the park",
    "no, this is a bad idea, please think again",
    "what is the answer? the answer is forty two",
]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}</s>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@functools.cache
def tiny() -> LanguageModel:
    """The bundled model; not to be trained by a test."""
    return load_model(TINY)


def bpe(template: str | None = None, bos: bool = True, eos: bool = False):
    """A byte-level BPE tokenizer; `bos` and `eos` are added around every text. Ids: <pad> 0, <s> 1, </s> 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=("<s> " if bos else "") + "$A" + (" </s>" if eos else ""), special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=template,
    )


def llama(vocab_size: int = 330, context: int = 64, seed: int = 0, **options):
    """A random Llama whose next-token distributions are far from uniform."""
    config = transformers.LlamaConfig(
        **{
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": context,
            "initializer_range": 0.3,
            **options,
        }
    )
    with seeded(Rng(seed)):
        return transformers.LlamaForCausalLM(config)


def bpe_model(template: str | None = None, context: int = 64, **options) -> LanguageModel:
    """A random Llama with a BPE tokenizer."""
    return LanguageModel(llama(context=context), bpe(template, **options))
