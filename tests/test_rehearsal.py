from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from easyedit_dafnet.records import IGNORE, TokenBatch
from easyedit_dafnet.rehearsal import Rehearsal


def edit(prompt: int, target: int, length: int = 3) -> tuple[list[TokenBatch], list[Tensor]]:
    """A prompt of `length` tokens `prompt` with one target, and its keys at two modules."""
    ids = torch.tensor([[prompt] * length + [target]])
    labels = torch.tensor([[IGNORE] * (length - 1) + [target, IGNORE]])
    text = TokenBatch(ids, torch.ones_like(ids), labels, torch.tensor([length - 1]))
    return [text], [torch.full([1, 4], prompt + 0.1), torch.full([1, 2], -prompt - 0.1)]


def asked(rehearsal: Rehearsal, *of: int) -> list[int]:
    """The prompts that are asked, the new edit's last."""
    _, texts, old = rehearsal.turn(*edit(*of))
    assert [round(k[0].item()) for k in old[0]] == texts.input_ids[:, 0].tolist()
    assert [round(-k[0].item()) for k in old[1]] == texts.input_ids[:, 0].tolist()
    return texts.input_ids[:, 0].tolist()


def test_those_not_asked_for_the_longest_come_first_and_the_new_one_last() -> None:
    rehearsal = Rehearsal(2)
    assert asked(rehearsal, 1, 50) == [1]
    assert asked(rehearsal, 2, 50) == [1, 2]
    assert asked(rehearsal, 3, 50) == [1, 2, 3]
    assert asked(rehearsal, 4, 50) == [1, 2, 4]
    assert asked(rehearsal, 5, 50) == [3, 1, 5]
    assert len(rehearsal.edits) == 5


def test_an_edit_of_the_same_prompt_takes_the_place_of_the_former_one() -> None:
    rehearsal = Rehearsal(5)
    for of in ((1, 50), (2, 50), (1, 60)):
        asked(rehearsal, *of)
    _, texts, _ = rehearsal.turn(*edit(3, 50))
    assert texts.input_ids[:, [0, -1]].tolist() == [[2, 50], [1, 60], [3, 50]]


def test_editing_a_fact_again_and_again_takes_no_more_room() -> None:
    rehearsal = Rehearsal(2)
    for target in range(50, 60):
        assert asked(rehearsal, 1, target) == [1]
    assert rehearsal.keys[0].count == 1
    texts, keys = edit(1, 50)
    later = [replace(texts[0], at=torch.tensor([1]))]  # of another subject, so another key
    rehearsal.turn(later, keys)
    assert rehearsal.keys[0].count == 2


def test_texts_of_several_lengths_are_padded() -> None:
    rehearsal = Rehearsal(1)
    rehearsal.turn(*edit(1, 50, 5))
    _, texts, _ = rehearsal.turn(*edit(2, 60, 2))
    assert texts.input_ids.tolist() == [[1, 1, 1, 1, 1, 50], [2, 2, 60, 0, 0, 0]]
    assert texts.attention_mask.sum(1).tolist() == [6, 3]
    assert texts.targets.nonzero().tolist() == [[0, 4], [1, 1]]
    assert texts.at is not None and texts.at.tolist() == [4, 1]


def test_every_other_time_an_edit_is_asked_after_a_context() -> None:
    rehearsal = Rehearsal(1, contexts=("7", "9 9"))
    seen = []
    for prompt in (1, 2):
        ((alone,), keys) = edit(prompt, 50)
        (one,), _ = edit(prompt, 50, 4)
        (two,), _ = edit(prompt, 50, 5)
        one.input_ids[:, 0], two.input_ids[:, :2] = 7, 9
        _, texts, _ = rehearsal.turn([alone, one, two], keys)
        seen += [texts]
    for _ in range(4):
        _, texts, old = rehearsal.turn([alone, one, two], keys)  # the second one, edited again
        seen += [texts]
        assert old[0][:, 0].round().tolist() == [1, 2]  # where a fact is written stays
    of_first = [texts.input_ids[0].tolist() for texts in seen]
    assert of_first[0][:4] == [1, 1, 1, 50]
    assert of_first[1][:5] == [7, 1, 1, 1, 50]
    assert of_first[2][:4] == [1, 1, 1, 50]
    assert of_first[3][:6] == [9, 9, 1, 1, 1, 50]
    assert [int(texts.at[0]) for texts in seen if texts.at is not None] == [2, 3, 2, 4, 2, 3]
    assert all(texts.input_ids[-1, :4].tolist() == [2, 2, 2, 50] for texts in seen[1:])


def test_a_copy_leaves_the_original_alone() -> None:
    rehearsal = Rehearsal(1)
    asked(rehearsal, 1, 50)
    asked(rehearsal.copy(), 2, 50)  # as by a call that fails afterwards
    assert len(rehearsal.edits) == 1
    assert asked(rehearsal, 3, 50) == [1, 3]


def test_there_is_room_for_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyedit_dafnet.rehearsal.ROOM", 2)
    rehearsal = Rehearsal(9)
    for prompt in range(1, 10):
        assert asked(rehearsal, prompt, 50) == [*range(1, prompt), prompt]


def test_keys_may_be_kept_in_lower_precision() -> None:
    full, half = Rehearsal(1), Rehearsal(1, dtype=torch.bfloat16)
    for rehearsal in (full, half):
        texts, keys = edit(3, 50)
        _, _, old = rehearsal.turn(texts, keys)
        assert all(key.dtype == torch.float32 for key in old)
        assert (old[0] == keys[0]).all() == (rehearsal is full)
    assert (full.bytes_per_edit, half.bytes_per_edit) == (6 * 4, 6 * 2)


def test_as_written_each_further_target_token_has_steps_of_its_own() -> None:
    rehearsal = Rehearsal(1, steps=3)
    (one,), _ = edit(1, 50)
    labels = torch.tensor([[IGNORE, 50, 51, 52, IGNORE]])
    three = replace(one, input_ids=labels.abs(), attention_mask=torch.ones(1, 5), labels=labels)
    assert [rehearsal.steps_for(one, as_written).item() for as_written in (False, True)] == [3, 0]
    assert [rehearsal.steps_for(three, as_written).item() for as_written in (False, True)] == [3, 6]
