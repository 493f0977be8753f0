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
    return Unedited(language_model, subject.tok, subject.edited, Cache(budget, folder))


def equal(a: Prepared, b: Prepared) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_signals_are_those_of_a_plain_pass(subject: Subject, tmp_path: Path) -> None:
    source = unedited(subject, tmp_path)
    prepared = [source.record(r) for r in RECORDS]
    batch = encode_targets(
        subject.tok, [r["prompt"] for r in RECORDS], [r["target_new"] for r in RECORDS]
    )
    expected = edit_signals(subject.model(), subject.edited, batch)
    for found, wanted in zip(joined_signals(prepared), expected, strict=True):
        assert torch.equal(found.lengths, wanted.lengths)
        torch.testing.assert_close(found.x, wanted.x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.delta, wanted.delta, rtol=1e-4, atol=1e-5)


def test_a_record_does_not_depend_on_those_before_it(subject: Subject, tmp_path: Path) -> None:
    """Bit for bit: this is what resuming rests on."""
    forwards, backwards = unedited(subject, tmp_path), unedited(subject, tmp_path)
    first = [forwards.record(r) for r in RECORDS]
    second = [backwards.record(r) for r in reversed(RECORDS)][::-1]
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    assert not equal(first[0], first[1])


def test_a_record_passes_the_model_once(subject: Subject, tmp_path: Path) -> None:
    source = unedited(subject, tmp_path)
    first = source.record(RECORDS[0])
    source.model.model = None  # nothing could be computed any more
    assert source.record(dict(RECORDS[0])) is first
    with pytest.raises(AttributeError):
        source.record({**RECORDS[0], "target_new": "Vienna"})


@pytest.mark.parametrize("budget", [0, 20_000])
def test_what_memory_does_not_hold_lies_on_disk(
    subject: Subject, tmp_path: Path, budget: int
) -> None:
    in_memory, on_disk = unedited(subject, tmp_path), unedited(subject, tmp_path, budget)
    for record in RECORDS:
        assert equal(on_disk.record(record), in_memory.record(record))
    kept = [v for v in on_disk.cache.kept.values() if isinstance(v, Prepared)]
    assert len(kept) < len(RECORDS) and bool(kept) == (budget > 0)
    assert on_disk.cache.used <= budget
    file = on_disk.cache.file
    assert file is not None
    size = file.seek(0, 2)
    for record in reversed(RECORDS):  # read back
        assert equal(on_disk.record(record), in_memory.record(record))
    assert file.seek(0, 2) == size
    assert not list(tmp_path.iterdir()), "nothing can be left behind"


def test_passages_are_kept_by_their_tokens(subject: Subject, tmp_path: Path) -> None:
    source = unedited(subject, tmp_path)
    text: Any = source.record(RECORDS[0]).texts["reliability"]
    passage = source.passage(text)
    assert passage.log_probs is not None and len(passage.log_probs) == len(passage.target_labels)
    assert source.passage(text) is passage
