from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dafnet.language_model import LanguageModel
from easyedit_dafnet.records import encode_targets
from easyedit_dafnet.signals import edit_signals
from easyedit_dafnet.unedited import Cache, Prepared, Unedited, joined_signals
from tests.conftest import Subject
from tests.tiny import REQUESTS

RECORDS = [
    {
        **request,
        "rephrase_prompt": f"It is well known that {request['prompt']}",
        "locality_prompt": f"Not {request['prompt']}",
        "locality_ground_truth": "Paris",
    }
    for request in REQUESTS
]


def unedited(subject: Subject, folder: Path, budget: float = 1e9) -> Unedited:
    model = subject.model().requires_grad_(False)
    language_model = LanguageModel(model, subject.modules)
    cache = Cache(budget, folder)
    return Unedited(language_model, subject.tok, subject.edited, cache, RECORDS)


def equal(a: Prepared, b: Prepared) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_signals_are_those_of_a_plain_pass(subject: Subject, tmp_path: Path) -> None:
    source = unedited(subject, tmp_path)
    prepared = source.records(RECORDS)
    batch = encode_targets(
        subject.tok, [r["prompt"] for r in RECORDS], [r["target_new"] for r in RECORDS]
    )
    expected = edit_signals(subject.model(), subject.edited, batch)
    for found, wanted in zip(joined_signals(prepared), expected, strict=True):
        assert torch.equal(found.lengths, wanted.lengths)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.delta, wanted.delta, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_prepares_records_in_the_company_they_had(
    subject: Subject, tmp_path: Path
) -> None:
    """Bit for bit: this is what resuming rests on."""
    first, second = unedited(subject, tmp_path), unedited(subject, tmp_path)
    whole = [first.records(part) for part in (RECORDS[:4], RECORDS[2:], RECORDS[5:6])]
    assert first.groups == [[0, 1, 2, 3], [4, 5, 6]], "the first time counts"
    for group in first.groups:
        second.join(group)
    # Asked for one by one, in another order; what is new then is a company of its own.
    again = [second.records([record])[0] for record in reversed(RECORDS)][::-1]
    assert all(equal(a, b) for a, b in zip([*whole[0][:2], *whole[1]], again, strict=True))
    assert not equal(again[0], again[1])
    second.records([{**RECORDS[0], "target_new": "Vienna"}, RECORDS[0]])
    assert second.groups == [*first.groups, [7]]


def test_records_pass_the_model_once(subject: Subject, tmp_path: Path) -> None:
    source = unedited(subject, tmp_path)
    first = source.records([RECORDS[0], RECORDS[1], RECORDS[0]])
    assert first[0] is first[2]
    source.model.model = None  # nothing could be computed any more
    assert source.records([dict(RECORDS[1]), RECORDS[0]]) == [first[1], first[0]]
    with pytest.raises(AttributeError):
        source.records([{**RECORDS[0], "target_new": "Vienna"}])


def test_many_records_pass_in_several_companies(subject: Subject, tmp_path: Path) -> None:
    records = [{**RECORDS[i % 7], "prompt": f"{i} {RECORDS[i % 7]['prompt']}"} for i in range(40)]
    source = unedited(subject, tmp_path)
    prepared = source.records(records)
    assert [len(group) for group in source.groups] == [16, 16, 8]
    for record, found in list(zip(records, prepared, strict=True))[::13]:
        (alone,) = unedited(subject, tmp_path).records([record])
        for (name, value), other in zip(
            found.tensors().items(), alone.tensors().values(), strict=True
        ):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("budget", [0, 20_000])
def test_what_memory_does_not_hold_lies_on_disk(
    subject: Subject, tmp_path: Path, budget: int
) -> None:
    in_memory, on_disk = unedited(subject, tmp_path), unedited(subject, tmp_path, budget)

    def same() -> bool:
        pairs = zip(on_disk.records(RECORDS), in_memory.records(RECORDS), strict=True)
        return all(equal(a, b) for a, b in pairs)

    assert same()
    kept = [v for v in on_disk.cache.kept.values() if isinstance(v, Prepared)]
    assert len(kept) < len(RECORDS) and bool(kept) == (budget > 0)
    assert on_disk.cache.used <= budget
    file = on_disk.cache.file
    assert file is not None
    size = file.seek(0, 2)
    assert same(), "read back"
    assert file.seek(0, 2) == size
    assert not list(tmp_path.iterdir()), "nothing can be left behind"


def test_passages_are_kept_by_their_tokens(subject: Subject, tmp_path: Path) -> None:
    source = unedited(subject, tmp_path)
    text: Any = source.records(RECORDS[:1])[0].texts["reliability"]
    passage = source.passage(text)
    assert passage.log_probs is not None and len(passage.log_probs) == len(passage.target_labels)
    assert source.passage(text) is passage
