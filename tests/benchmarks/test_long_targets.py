from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from benchmarks.long_targets import FACTS, LENGTHS, main
from easyedit_dafnet.smollm2 import smollm2_path
from tests.conftest import Subject


@pytest.fixture
def arguments(solved: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    facts = [FACTS[0], ("The capital of Italy is", "Italy", "well known towns", "Italy, with")]
    monkeypatch.setattr("benchmarks.long_targets.FACTS", facts)
    monkeypatch.setattr("benchmarks.long_targets.UNRELATED", ["Vienna is a", "London is a"])
    settings = tmp_path / "solved.yaml"
    hparams = solved.hparams(rehearsed=2, rehearsal_steps=4)
    settings.write_text(yaml.safe_dump(asdict(hparams)))
    return ["--model", str(solved.folder), "--hparams", str(settings),
            "--out", str(tmp_path / "out")]  # fmt: skip


def test_each_edit_is_measured_alone(arguments: list[str], tmp_path: Path) -> None:
    main([*arguments, "--methods", "DAFNet-strong", "unedited"])
    found = json.loads((tmp_path / "out" / "long-targets.json").read_text())
    edited, unedited = found["rows"]["DAFNet-strong"], found["rows"]["unedited"]
    assert len(edited) == len(unedited) == len(found["edits"]) == 2
    assert all(edit["passes"] == 0 and edit["locality"] == 1 for edit in unedited)
    for edit in edited:
        assert edit["passes"] > 2
        assert (edit["tokens"] == 1) == edit["said"]
    table = (tmp_path / "out" / "long-targets.md").read_text()
    assert "| DAFNet-strong | 1–5 |" in table and "| unedited | 1–5 |" in table


def test_a_later_call_adds_what_is_not_there(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*arguments, "--methods", "unedited"])
    file = tmp_path / "out" / "long-targets.json"
    first = json.loads(file.read_text())
    main([*arguments, "--methods", "unedited", "first steps alone"])
    rows = json.loads(file.read_text())["rows"]
    assert rows["unedited"] == first["rows"]["unedited"]  # its seconds too
    assert all(edit["passes"] > 2 for edit in rows["first steps alone"])
    with pytest.raises(SystemExit):
        main([*arguments, "--methods", "unedited", "--per-length", "1"])
    assert "has rows of other edits" in capsys.readouterr().err


def test_there_are_facts_of_all_lengths() -> None:
    tok = AutoTokenizer.from_pretrained(smollm2_path())
    counts = [len(tok(" " + target)["input_ids"]) for _, _, target, _ in FACTS]
    for shortest, longest in zip((1, *(n + 1 for n in LENGTHS)), LENGTHS, strict=False):
        assert sum(shortest <= count <= longest for count in counts) >= 6
    assert max(counts) == LENGTHS[-1]
    assert all(prompt.count(subject) == 1 for prompt, subject, _, _ in FACTS)
