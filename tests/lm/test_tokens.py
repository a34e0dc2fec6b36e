"""Texts to tokens: where the boundary lies, what is cut, and what is refused."""

import numpy as np
import pytest
from lm_toys import TEMPLATE, bpe_model, tiny

from telos.core.errors import TelosError
from telos.data.records import Demonstrations, Preferences, Prompts, Rankings
from telos.lm.tokens import tokenise, tokenise_prompts

BOS, EOS = 1, 2


def ids(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def group(groups, row=0):
    return groups.prompts[row].tolist(), [c.tolist() for c in groups.completions[row]]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_explicit_prompt_is_the_same_for_both_and_every_completion_ends_once():
    model = bpe_model()
    prompt, (chosen, rejected) = group(
        tokenise(model, Preferences(["what is the answer?"], [" the answer"], [" no idea, sat"]))
    )
    assert prompt == [BOS, *ids(model, "what is the answer?")]
    assert chosen == [*ids(model, " the answer"), EOS]
    assert rejected == [*ids(model, " no idea, sat"), EOS]


def test_padded_batch_has_identical_prompts_and_masks_the_completion_only():
    model = bpe_model()
    data = Preferences(["the cat", "no"], [" sat", ", this is bad"], [" sat on the mat", "!"])
    batch = tokenise(model, data).batch([0, 1])
    sequences = batch.sequences
    assert sequences.tokens.shape[:2] == (2, 2) and batch.reference.shape == (2, 2) and (batch.reference == 0).all()
    for row in range(2):
        cut = int(sequences.boundaries[row, 0])
        assert cut == sequences.boundaries[row, 1]
        assert (sequences.tokens[row, 0, :cut] == sequences.tokens[row, 1, :cut]).all()
        for k, text in enumerate((data.chosen[row], data.rejected[row])):
            assert sequences.tokens[row, k][sequences.mask[row, k]].tolist() == [*ids(model, text), EOS]
    assert (sequences.mask.sum(-1) == sequences.lengths - sequences.boundaries).all()


def test_a_boundary_inside_a_token_names_the_record_and_separate_goes_on():
    model = bpe_model()
    assert ids(model, "the cat") != ids(model, "the c") + ids(model, "at")
    data = Preferences(["the cat", "the c"], [" sat", "at"], [" on", "at sat"], origin="pairs.jsonl")
    with pytest.raises(TelosError, match=r"pairs\.jsonl, record 2: the boundary .* inside a token"):
        tokenise(model, data)
    prompt, (chosen, rejected) = group(tokenise(model, data, boundary="separate"), 1)
    assert prompt == [BOS, *ids(model, "the c")]
    assert chosen == [*ids(model, "at"), EOS] and rejected == [*ids(model, "at sat"), EOS]


def test_a_reader_of_whole_texts_counts_a_token_across_the_boundary_to_the_completion():
    model = bpe_model()
    assert ids(model, "the cat sat") != ids(model, "the cat ") + ids(model, "sat")
    data = Demonstrations(["the cat", "the cat ", "on the cat "], [" sat", "sat", "sat on"])
    groups = tokenise(model, data, boundary="inside")
    for row in range(3):
        prompt, (completion,) = group(groups, row)
        assert prompt + completion == [BOS, *ids(model, data.prompts[row] + data.completions[row]), EOS]
    assert group(groups, 0)[0] == group(groups, 1)[0] == [BOS, *ids(model, "the cat")]


def test_decoded_samples_that_lost_their_space_are_read_apart():
    model = tiny()
    found = tokenise(model, Demonstrations(["topic1", "topic1"], ["good1 bad2", " good1 bad2"]), boundary="inside")
    assert group(found, 0) == group(found, 1) and len(group(found, 0)[1][0]) == 3
    bpe = bpe_model()
    assert group(tokenise(bpe, Demonstrations(["the c"], ["at"]), boundary="inside"), 0) == (
        [BOS, *ids(bpe, "the c")], [[*ids(bpe, "at"), EOS]]
    )  # fmt: skip


def test_implicit_prompt_is_the_common_beginning_in_tokens():
    model = bpe_model()
    prompt, (chosen, rejected) = group(
        tokenise(model, Preferences([None], ["what is the answer? the cat"], ["what is the answer? sat"]))
    )
    assert prompt == [BOS, *ids(model, "what is the answer?")]
    assert (chosen, rejected) == ([*ids(model, " the cat"), EOS], [*ids(model, " sat"), EOS])


def test_implicit_where_one_text_begins_the_other():
    model = bpe_model()
    prompt, (chosen, rejected) = group(tokenise(model, Preferences([None], ["the cat sat"], ["the cat sat on"])))
    assert prompt == [BOS, *ids(model, "the cat sat")]
    assert (chosen, rejected) == ([EOS], [*ids(model, " on"), EOS])


def test_implicit_without_a_common_beginning_starts_at_the_begin_token():
    for bos, first in ((True, BOS), (False, EOS)):  # a tokenizer without a begin token opens with the end token
        prompt, (chosen, _) = group(tokenise(bpe_model(bos=bos), Preferences([None], ["yes"], ["no"])))
        assert prompt == [first] and chosen[-1] == EOS and EOS not in chosen[:-1]


def test_degenerate_pairs_are_dropped_and_counted():
    model = bpe_model()
    data = Preferences([None, "the", None], ["the cat", " cat", "yes sat"], ["the cat", " cat", "yes on"])
    groups = tokenise(model, data)
    assert (len(groups), groups.report.degenerate, groups.report.used, groups.report.records) == (1, 2, 1, 3)
    with pytest.raises(TelosError, match="no record is left"):
        tokenise(model, data[:2])


def test_prompt_is_cut_on_the_left_and_keeps_the_begin_token():
    model = bpe_model()
    text = " ".join(["the cat sat on the mat"] * 20)
    groups = tokenise(model, Preferences([text], [" yes"], [" no, no, no"]), max_length=20)
    prompt, (chosen, rejected) = group(groups)
    assert rejected == [*ids(model, " no, no, no"), EOS] and chosen == [*ids(model, " yes"), EOS]
    assert len(prompt) + len(rejected) == 20
    assert prompt == [BOS, *ids(model, text)[-(20 - len(rejected) - 1) :]]
    assert groups.report.prompts_truncated == 1 and groups.report.completions_truncated == 0


def test_prompt_without_begin_token_and_with_room_for_one_token():
    text = " ".join(["the cat sat on the mat"] * 20)
    model = bpe_model(bos=False)
    prompt, (answer,) = group(tokenise(model, Demonstrations([text], [" yes"]), max_length=8))
    assert prompt == ids(model, text)[-(8 - len(answer)) :]
    prompt, (answer,) = group(tokenise(bpe_model(), Demonstrations([text], [" yes"]), max_length=len(answer) + 1))
    assert len(prompt) == 1 and prompt != [BOS]


def test_overlong_completions_are_refused_or_cut():
    model = bpe_model()
    long = " ".join(["yes, it is a good day"] * 30)
    data = Preferences(["the", "the"], [" " + long, " cat"], [" sat", " mat"])
    groups = tokenise(model, data, max_length=16)
    assert (groups.report.refused, groups.report.used, len(groups)) == (1, 1, 1)
    groups = tokenise(model, data, max_length=16, overlong="truncate")
    prompt, (chosen, rejected) = group(groups)
    assert (groups.report.completions_truncated, groups.report.refused, len(groups)) == (1, 0, 2)
    assert len(prompt) == 1 and chosen == ids(model, " " + long)[:15] and rejected == [*ids(model, " sat"), EOS]
    assert "1 with a completion truncated" in str(groups.report)


def test_max_length_is_at_most_the_context_and_at_least_two():
    long = Demonstrations(["the"], [" " + " ".join(["cat sat"] * 60)])
    model = bpe_model(context=32)
    for limit in (None, 1000):
        groups = tokenise(model, long, max_length=limit, overlong="truncate")
        assert groups.lengths.tolist() == [32]
    for limit in (0, 1, -5):
        with pytest.raises(TelosError, match="max_length"):
            tokenise(model, long, max_length=limit)
    with pytest.raises(TelosError, match="overlong"):
        tokenise(model, long, overlong="cut")


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (True, True), (False, True), (False, False)])
def test_one_end_token_whatever_the_tokenizer_adds(bos, eos):
    model = bpe_model(bos=bos, eos=eos)
    for data in (Preferences(["the cat"], [" sat"], [" on"]), Preferences([None], ["the cat sat"], ["the cat on"])):
        prompt, completions = group(tokenise(model, data))
        assert prompt == [BOS] * bos + ids(model, "the cat")
        assert completions == [[*ids(model, " sat"), EOS], [*ids(model, " on"), EOS]]
    # A text that spells out its end token is not closed twice.
    _, (completion,) = group(tokenise(model, Demonstrations(["the cat"], [" sat</s>"])))
    assert completion[: len(ids(model, " sat")) + 1] == [*ids(model, " sat"), EOS]


def test_an_empty_prompt_is_the_begin_token_also_where_begin_is_end():
    for bos in (True, False):
        model = bpe_model(bos=bos)
        prompt, (completion,) = group(tokenise(model, Demonstrations([""], ["the cat"])))
        assert prompt == [BOS if bos else EOS] and completion == [*ids(model, "the cat"), EOS]
    model = bpe_model(bos=False, eos=False)
    model.tokenizer.bos_token = "</s>"  # as OPT and GPT-2: one token for both
    model.tokenizer._tokenizer.post_processor = bpe_model(bos=True).tokenizer._tokenizer.post_processor.__class__(
        single="</s> $A", special_tokens=[("</s>", EOS)]
    )
    prompt, (completion,) = group(tokenise(model, Demonstrations([""], ["the cat"])))
    assert prompt == [EOS] and completion == [*ids(model, "the cat"), EOS]
    _, (chosen, rejected) = group(tokenise(model, Preferences([None], ["y"], ["n"])))
    assert (chosen, rejected) == ([*ids(model, "y"), EOS], [*ids(model, "n"), EOS])


def test_demonstrations_without_prompt_learn_the_whole_text():
    model = bpe_model()
    prompt, (completion,) = group(tokenise(model, Demonstrations([None], ["the cat sat"])))
    assert prompt == [BOS] and completion == [*ids(model, "the cat sat"), EOS]
    model = bpe_model(bos=False)
    prompt, (completion,) = group(tokenise(model, Demonstrations([None], ["the cat sat"])))
    assert prompt == [EOS] and completion == [*ids(model, "the cat sat"), EOS]


def test_rankings_keep_their_order():
    model = bpe_model()
    answers = (" yes", " no", " the cat")
    prompt, completions = group(tokenise(model, Rankings(["is it?", "is it?"], [answers, answers[::-1]])))
    assert prompt == [BOS, *ids(model, "is it?")]
    assert completions == [[*ids(model, a), EOS] for a in answers]
    prompt, completions = group(tokenise(model, Rankings([None], [tuple("is it?" + a for a in answers)])))
    assert prompt == [BOS, *ids(model, "is it?")] and completions == [[*ids(model, a), EOS] for a in answers]


def test_explicit_conversation_goes_through_the_template_and_ends_at_the_end_token():
    model = bpe_model(TEMPLATE)
    data = Preferences([[user("the cat")]], [[assistant("sat")]], [[assistant("on")]])
    prompt, completions = group(tokenise(model, data))
    assert prompt == ids(model, "<|user|>the cat<|assistant|>")  # the template has no begin token, none is added
    assert completions == [[*ids(model, "sat"), EOS], [*ids(model, "on"), EOS]]  # without the newline after it


def test_implicit_conversation_finds_the_same_boundary():
    model = bpe_model(TEMPLATE)
    turns = [user("the cat"), assistant("yes"), user("no")]
    explicit = tokenise(model, Preferences([turns], [[assistant("sat")]], [[assistant("on")]]))
    implicit = tokenise(model, Preferences([None], [[*turns, assistant("sat")]], [[*turns, assistant("on")]]))
    assert group(explicit) == group(implicit)
    assert ids(model, "yes</s>")[-1] == EOS and EOS in explicit.prompts[0]  # earlier turns end too, inside the prompt


def test_templates_that_rewrite_or_are_missing_and_mixed_forms_are_errors():
    rewriting = "{% for m in messages %}<{{ messages | length }}>{{ m['content'] }}{% endfor %}"
    data = Preferences([[user("the cat")]], [[assistant("sat")]], [[assistant("on")]], origin="chat.jsonl")
    with pytest.raises(TelosError, match=r"chat\.jsonl, record 1: the chat template rewrites the prompt"):
        tokenise(bpe_model(rewriting), data)
    with pytest.raises(TelosError, match="no chat template"):
        tokenise(bpe_model(), data)
    with pytest.raises(TelosError, match="no chat template"):
        tokenise_prompts(bpe_model(), [[user("the cat")]], 4)
    with pytest.raises(TelosError, match="record 1: prompt and completion differ in form"):
        tokenise(bpe_model(TEMPLATE), Demonstrations(["the cat"], [[assistant("sat")]]))
    with pytest.raises(TelosError, match="plain texts and conversations are mixed"):
        tokenise(bpe_model(TEMPLATE), Demonstrations(["a", [user("b")]], ["c", [assistant("d")]]))
    with pytest.raises(TelosError, match="plain texts and conversations are mixed"):
        tokenise_prompts(bpe_model(TEMPLATE), ["a", [user("b")]], 4)


def test_unknown_words_of_a_closed_vocabulary_are_named():
    with pytest.raises(TelosError, match="cannot encode 'topic1 banana'"):
        tokenise(tiny(), Demonstrations(["topic0", "topic1"], [" good1", " banana"]))
    with pytest.raises(TelosError, match="cannot encode 'hello'"):
        tokenise_prompts(tiny(), ["topic0", "hello"], 4)


def test_prompts_alone_equal_the_prompts_of_records_and_are_cut_alike():
    model = bpe_model()
    texts = ["the cat", "", "what is the answer?"]
    alone = tokenise_prompts(model, Prompts(texts), 16)
    records = tokenise(model, Demonstrations(texts, [" sat"] * 3))
    assert [a.tolist() for a in alone] == [p.tolist() for p in records.prompts]
    long = " ".join(["the cat sat on the mat"] * 20)
    (cut,) = tokenise_prompts(model, [long], 50)
    assert cut.tolist() == [BOS, *ids(model, long)[-13:]] and cut.dtype == np.int64
    with pytest.raises(TelosError, match="leaves no room for a prompt"):
        tokenise_prompts(model, ["the"], 64)
