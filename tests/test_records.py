from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from easyedit_dafnet.edit_requests import RequestError, check_requests, hold_out
from easyedit_dafnet.record_files import read_records
from easyedit_dafnet.records import (
    IGNORE,
    encode_passages,
    encode_requests,
    encode_targets,
    in_context,
    prompt_numbers,
    subject_positions,
)
from tests.conftest import Subject
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


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ({"prompt": "a", "target_new": "b"}, "must be a list"),
        ([], "no requests"),
        (["a"], "Request 0 is a str"),
        ([REQUESTS[0], {"target_new": "b"}], "Request 1: 'prompt' is missing"),
        ([{"prompt": "a"}], "Request 0: 'target_new' is missing"),
        ([{"prompt": " ", "target_new": "b"}], "Request 0: 'prompt' is ' '"),
        ([{"prompt": "a", "target_new": ""}], "Request 0: 'target_new' is ''"),
        ([{"prompt": "a", "target_new": 3}], "Request 0: 'target_new' is 3"),
    ],
)
def test_unusable_requests_are_named(requests: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message) as error:
        check_requests(requests)
    assert "\n" not in str(error.value)


def test_requests_from_an_iterator_are_all_kept() -> None:
    assert check_requests(iter(REQUESTS)) == REQUESTS


def test_a_request_longer_than_the_context_is_refused() -> None:
    length = len(TOK("London London London Rome")["input_ids"])
    request = [REQUESTS[3], {"prompt": "London London London", "target_new": "Rome"}]
    assert len(encode_requests(TOK, request, model_with_context(length))) == 2
    assert len(encode_requests(TOK, request, model_with_context(None))) == 2
    with pytest.raises(RequestError, match=f"Request 1: .* {length} tokens.* holds {length - 1}"):
        encode_requests(TOK, request, model_with_context(length - 1))


def test_the_three_kinds_of_file_give_the_same_records(tmp_path: Path) -> None:
    records = [{"prompt": "Łódź, a town", "target_new": 'in "Poland"'}, dict(REQUESTS[1])]
    (tmp_path / "a.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    lines = "\n\n".join(json.dumps(r) for r in records)
    (tmp_path / "a.jsonl").write_text(lines + "\n", encoding="utf-8")
    table = 'prompt,target_new\n"Łódź, a town","in ""Poland"""\n'
    table += f"{records[1]['prompt']},{records[1]['target_new']}\n"
    (tmp_path / "a.csv").write_text(table, encoding="utf-8")
    for ending in ("json", "jsonl", "csv"):
        assert read_records(tmp_path / f"a.{ending}") == records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[{", "a.json is damaged or not json"),
        ("a.jsonl", b'{"prompt": "a", "target_new": "b"}\n{"prompt', "a.jsonl is damaged"),
        ("a.csv", b"prompt,target_new\n\xff\xfe,b\n", "a.csv is damaged or not csv"),
        (
            "a.json",
            b'{"prompt": "a", "target_new": "b"}',
            "must hold a list of records, not a dict",
        ),
        ("a.json", b"[]", "no requests"),
        ("a.csv", b"question,answer\na,b\n", "'prompt' is missing.*keys: question, answer"),
        ("a.csv", b"prompt,target_new\na,b\nc,Paris, France\n", "record 1 has more cells"),
        ("a.txt", b"prompt", r"must end in .json, .jsonl or .csv"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError, match=message) as error:
        read_records(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"There is no file '.*absent\.json'"):
        read_records(tmp_path / "absent.json")


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


def test_what_is_held_out_is_the_same_for_the_same_seed() -> None:
    records = [{"prompt": str(i)} for i in range(100)]
    held, others = hold_out(records, 1)
    assert len(held) == 5 and len(others) == 95
    assert sorted(r["prompt"] for r in held + others) == sorted(r["prompt"] for r in records)
    assert hold_out(records, 1) == (held, others) != hold_out(records, 2)
    assert len(hold_out(records * 100, 1)[0]) == 200
