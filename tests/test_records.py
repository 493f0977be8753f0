from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from easyedit_dafnet.edit_requests import RequestError
from easyedit_dafnet.prompts import Wording
from easyedit_dafnet.records import (
    IGNORE,
    encode_passages,
    encode_requests,
    encode_targets,
    in_context,
    prompt_numbers,
    subject_positions,
    worded,
)
from tests.conftest import Subject
from tests.test_prompts import TEMPLATES
from tests.tiny import REQUESTS, TEXT, tokenizer

TOK = tokenizer()


def model_with_context(length: int | None) -> Any:
    return SimpleNamespace(config=SimpleNamespace(max_position_embeddings=length))


@pytest.mark.parametrize("target", ["Rome", " Rome"])
def test_labels_are_the_target_with_one_space_before_it(target: str) -> None:
    prompt = "The capital of France is"
    batch = encode_targets(TOK, [prompt], [target])
    start, whole = len(TOK(prompt)["input_ids"]), TOK(prompt + " Rome")["input_ids"]
    assert batch.input_ids[0].tolist() == whole
    assert batch.labels[0].tolist() == [IGNORE] * (start - 1) + whole[start:] + [IGNORE]
    assert TOK.decode(batch.labels[0][batch.targets[0]]) == " Rome"
    # The logits at t predict the token at t + 1.
    where = batch.targets[0].nonzero().squeeze(1)
    assert torch.equal(batch.labels[0][where], batch.input_ids[0][where + 1])


def test_texts_are_padded_on_the_right() -> None:
    batch = encode_targets(
        TOK, [r["prompt"] for r in REQUESTS], [r["target_new"] for r in REQUESTS]
    )
    lengths = batch.attention_mask.sum(1)
    assert len(set(lengths.tolist())) > 1 and batch.input_ids.shape[1] == lengths.max()
    for i, length in enumerate(lengths.tolist()):
        assert batch.attention_mask[i].tolist() == [1] * length + [0] * (
            batch.input_ids.shape[1] - length
        )
        assert not batch.targets[i, length - 1 :].any()
        alone = encode_targets(TOK, [REQUESTS[i]["prompt"]], [REQUESTS[i]["target_new"]])
        assert torch.equal(batch.input_ids[i, :length], alone.input_ids[0])
        assert torch.equal(batch.labels[i, :length], alone.labels[0])


def test_a_token_across_the_border_of_prompt_and_target_is_a_target() -> None:
    # 'a' + ' b' becomes one token: it has no counterpart in the prompt alone.
    vocabulary = {"a": 0, "_": 1, "b": 2, "x": 3, "_b": 4, "a_b": 5}
    core = Tokenizer(models.BPE(vocabulary, [("_", "b"), ("a", "_b")]))
    core.pre_tokenizer = pre_tokenizers.Metaspace("_", prepend_scheme="never", split=False)
    core.decoder = decoders.Metaspace("_", prepend_scheme="never")
    merging = PreTrainedTokenizerFast(tokenizer_object=core)
    assert merging("xa b")["input_ids"] == [3, 5]
    batch = encode_targets(merging, ["xa"], ["b"])
    assert batch.input_ids.tolist() == [[3, 5]]
    assert batch.labels.tolist() == [[5, IGNORE]]


def test_slices_drop_padding_and_split_keeps_the_order() -> None:
    batch = encode_targets(
        TOK, [r["prompt"] for r in REQUESTS], [r["target_new"] for r in REQUESTS]
    )
    short = batch[[3, 5]]
    assert len(short) == 2 and short.input_ids.shape[1] < batch.input_ids.shape[1]
    assert short.input_ids.shape[1] == short.attention_mask.sum(1).max()
    assert torch.equal(short.labels, batch.labels[[3, 5], : short.labels.shape[1]])
    parts = batch.split(3)
    assert [len(p) for p in parts] == [3, 3, 1]
    rows = [p.input_ids[j][p.attention_mask[j] == 1] for p in parts for j in range(len(p))]
    for i, row in enumerate(rows):
        assert torch.equal(row, batch.input_ids[i][batch.attention_mask[i] == 1])


def test_a_target_without_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="Request 1: the target '' has no tokens"):
        encode_targets(TOK, ["London", "Paris"], ["Rome", " "])


def test_the_last_nine_tenths_of_a_passage_are_predicted() -> None:
    batch = encode_passages(TOK, TEXT, max_tokens=11)
    assert batch.input_ids.shape == (len(TEXT), 11)
    assert batch.targets.sum(1).tolist() == [9] * len(TEXT)
    assert torch.equal(batch.labels[:, 1:-1], batch.input_ids[:, 2:])
    assert not batch.targets[:, 0].any() and not batch.targets[:, -1].any()


def test_a_request_longer_than_the_context_is_refused() -> None:
    length = len(TOK("London London London Rome")["input_ids"])
    request = [REQUESTS[3], {"prompt": "London London London", "target_new": "Rome"}]
    assert len(encode_requests(TOK, request, model_with_context(length))) == 2
    assert len(encode_requests(TOK, request, model_with_context(None))) == 2
    with pytest.raises(RequestError, match=f"Request 1: .* {length} tokens.* holds {length - 1}"):
        encode_requests(TOK, request, model_with_context(length - 1))


# ---- subjects -----------------------------------------------------------------------------------


def test_the_edit_is_written_where_the_subject_ends(subject: Subject) -> None:
    requests = [
        {"prompt": "The capital of France is", "subject": "France"},
        {"prompt": "France and the capital of France is", "subject": "France"},
        {"prompt": "London", "subject": "London"},
    ]
    at = subject_positions(subject.tok, requests)
    for request, position in zip(requests, at, strict=True):
        ids = subject.tok(request["prompt"])["input_ids"]
        text = subject.tok.decode(ids[: position + 1])
        assert text == request["prompt"][: len(text)] and text.endswith(request["subject"])
    assert at[1] > at[0]  # the last occurrence counts


def test_space_around_a_subject_is_not_of_it_and_an_empty_one_is_none(subject: Subject) -> None:
    prompt = "The capital of France is"
    given = [{"prompt": prompt, "subject": s} for s in ("France", "France ", " France", "", None)]
    assert len(set(subject_positions(subject.tok, given).tolist())) == 1
    assert in_context(given[3], "So be it.")["subject"] == "France"


@pytest.mark.parametrize("subject_name", ["Spain", 3])
def test_a_subject_that_is_not_in_the_prompt(subject: Subject, subject_name: Any) -> None:
    requests = [REQUESTS[0], {"prompt": "The capital of France is", "subject": subject_name}]
    with pytest.raises(RequestError, match=r"Request 1: the subject .* is not in the prompt"):
        subject_positions(subject.tok, requests)


def test_a_request_after_a_text_stays_about_its_own_subject() -> None:
    request = {"prompt": "The capital of France is", "target_new": "Rome"}
    after = in_context(request, "Henry Miller had left.")
    assert after["prompt"] == "Henry Miller had left. The capital of France is"
    assert after["target_new"] == "Rome" and after["subject"] == "France"
    named = in_context({**request, "subject": "capital of France"}, "So be it.")
    assert named["subject"] == "capital of France"


def test_prompts_have_numbers_of_their_own(subject: Subject) -> None:
    def numbers(*pairs: tuple[str, str]) -> list[int]:
        requests = [{"prompt": p, "target_new": t} for p, t in pairs]
        batch = encode_requests(subject.tok, requests, subject.model(), at_subject=True)
        return prompt_numbers(batch).tolist()

    first = ("The capital of France is", "Rome")
    same, other = (first[0], "Oslo is well known"), ("The capital of Italy is", "Rome")
    a, b, c = numbers(first, same, other)
    assert a == b != c
    assert [a] == numbers(first)  # whatever the padding


# ---- chat ---------------------------------------------------------------------------------------


def chat_tokenizer() -> Any:
    tok = tokenizer()
    tok.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tok.chat_template = TEMPLATES["ChatML"]
    return tok


def test_the_three_ways_to_ask_a_chat_model_are_one() -> None:
    tok = chat_tokenizer()
    ask = "In which country is the city of Lyon?"
    request = {"prompt": ask, "subject": "Lyon", "target_new": "Germany"}
    messages = [{"role": "user", "content": ask}]
    rendered = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    chat = Wording(use_chat_template=True)
    model = model_with_context(None)
    batches = [
        encode_requests(tok, [request], model, True, chat),
        encode_requests(tok, [{**request, "prompt": messages}], model, True),
        encode_requests(tok, [{**request, "prompt": rendered}], model, True),
        encode_requests(tok, [{**request, "prompt": rendered}], model, True, chat),
    ]
    first = batches[0]
    for batch in batches:
        assert torch.equal(batch.input_ids, first.input_ids)
        assert torch.equal(batch.labels, first.labels)
        assert batch.at is not None and first.at is not None and torch.equal(batch.at, first.at)
    # The reply begins without a space, and its end is learnt.
    assert tok.decode(first.labels[0][first.targets[0]]) == "Germany<|im_end|>"
    assert first.at is not None
    assert tok.decode(first.input_ids[0, : int(first.at[0]) + 1]).endswith("city of Lyon")


def test_a_chat_s_subject_is_guessed_from_its_last_question() -> None:
    tok = chat_tokenizer()
    messages = [
        {"role": "system", "content": "You are SmolLM from New York."},
        {"role": "user", "content": "The mother tongue of Danielle Darrieux?"},
    ]
    (request,) = worded(tok, [{"messages": messages, "target_new": "English"}], at_subject=True)
    assert request["subject"] == "Danielle Darrieux"


def test_requests_that_cannot_be_used_are_all_named(caplog: pytest.LogCaptureFixture) -> None:
    request = {"prompt": "The capital of France is", "target_new": "Rome"}
    requests = [{**request, "subject": s} for s in ("France", "Spain", "FRANCE ", "Fran")]
    with pytest.raises(RequestError, match="2 of 4 requests cannot be used") as error:
        encode_requests(TOK, requests, model_with_context(None), at_subject=True)
    assert sorted(error.value.problems) == [1, 3]
    guessed = worded(TOK, requests, Wording(subject="guess"), at_subject=True)
    assert [r["subject"] for r in guessed] == ["France"] * 4
    assert not caplog.messages
    worded(TOK, [{**request, "prompt": "France, or la France"}], at_subject=True)
    assert "'France' in Request 0" in caplog.text  # it is there twice


def test_a_request_or_a_setting_says_whether_a_space_stands_before_the_target() -> None:
    request = {"prompt": "The capital of France is", "target_new": "Rome"}
    model = model_with_context(None)

    def target(request: dict[str, Any], wording: Wording = Wording()) -> str:  # noqa: B008
        batch = encode_requests(TOK, [request], model, wording=wording)
        return TOK.decode(batch.labels[0][batch.targets[0]])

    assert target(request) == " Rome"
    assert target(request, Wording(target_space=False)) == "Rome"
    assert target({**request, "target_space": True}, Wording(target_space=False)) == " Rome"
    assert target({**request, "prompt": "法国的首都是"}) == "Rome"
