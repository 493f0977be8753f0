from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dafnet.dafset.likelihood import log_likelihoods, score
from tests.conftest import Subject
from tests.tiny import REQUESTS

PROMPTS = [r["prompt"] for r in REQUESTS]
TARGETS = [r["target_new"] for r in REQUESTS]


def plainly(subject: Subject, prompt: str, target: str) -> float:
    """Token by token, from a pass of this text alone."""
    model, tok = subject.model(), subject.tok
    start = len(tok(prompt)["input_ids"])
    ids = tok(f"{prompt} {target}")["input_ids"]
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    found = [log_probs[t - 1, ids[t]].item() for t in range(start, len(ids))]
    return sum(found) / len(found)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_it_is_the_mean_over_the_targets_tokens(subject: Subject, batch_size: int) -> None:
    found = log_likelihoods(subject.model(), subject.tok, PROMPTS, TARGETS, batch_size)
    expected = [plainly(subject, *pair) for pair in zip(PROMPTS, TARGETS, strict=True)]
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(value, 3) for value in expected}) == len(expected)


def test_nothing_to_read_is_nothing(subject: Subject) -> None:
    assert log_likelihoods(subject.model(), subject.tok, [], []) == []


def write_prompts(path: Path, count: int = 7, **changed: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {
        "head": pa.array(range(count), pa.int64()),
        "relation": pa.array([19] * count, pa.int32()),
        "tail": pa.array(range(100, 100 + count), pa.int64()),
        "prompt": PROMPTS[:count],
        "target": TARGETS[:count],
    }
    pq.write_table(pa.table({**table, **changed}), path, row_group_size=2)
    return path


def pieces(out: Path) -> dict[str, list[dict[str, Any]]]:
    import pyarrow.parquet as pq

    return {p.name: pq.read_table(p).to_pylist() for p in sorted(out.iterdir())}


def test_scores_are_written_in_pieces_with_the_facts(subject: Subject, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "likelihoods"
    prompts = write_prompts(tmp_path / "prompts.parquet")
    assert score(prompts, out, str(subject.folder), piece=3) == 7
    found = pieces(out)
    assert [(name, len(rows)) for name, rows in found.items()] == [
        ("likelihoods-00000.parquet", 3),
        ("likelihoods-00001.parquet", 3),
        ("likelihoods-00002.parquet", 1),
    ]
    facts = [row for rows in found.values() for row in rows]
    assert [(f["head"], f["relation"], f["tail"]) for f in facts] == [
        (i, 19, 100 + i) for i in range(7)
    ]
    expected = log_likelihoods(subject.model(), subject.tok, PROMPTS, TARGETS)
    assert [f["log_likelihood"] for f in facts] == pytest.approx(expected, abs=1e-4)


def test_a_stopped_run_goes_on_and_others_pieces_are_not_taken(
    subject: Subject, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    out, model = tmp_path / "likelihoods", str(subject.folder)
    prompts = write_prompts(tmp_path / "prompts.parquet")
    score(prompts, out, model, piece=3)
    first, second, third = sorted(out.iterdir())
    complete = pieces(out)
    second.unlink()
    kept = first.stat().st_mtime_ns
    score(prompts, out, model, piece=3)
    assert pieces(out) == complete and first.stat().st_mtime_ns == kept
    # With nothing left to do, no model is loaded; another one's pieces are not its own.
    score(prompts, out, model, piece=3)
    with pytest.raises(OSError, match="nowhere"):
        score(prompts, out, str(tmp_path / "nowhere"), piece=3)
    # Changed facts are scored again, and what is left over is removed.
    write_prompts(prompts, 4, prompt=["Vienna", *PROMPTS[1:4]])
    score(prompts, out, model, piece=3)
    assert not third.exists()
    changed = pieces(out)
    assert changed[first.name][0] != complete[first.name][0]
    assert changed[first.name][1:] == complete[first.name][1:]


def test_a_file_without_prompts_is_told(subject: Subject, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "candidates.parquet"
    pq.write_table(pa.table({"head": [1], "relation": [2], "tail": [3]}), path)
    with pytest.raises(ValueError, match=r"candidates\.parquet has no column 'prompt'"):
        score(path, tmp_path / "out", str(subject.folder))
