from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scoring import main
from easyedit_dafnet.bridge import load_easyeditor
from tests.tiny import tiny_llama

RECORDS = [
    {
        "prompt": "The capital of France is",
        "subject": "France",
        "target_new": "Rome, of course",
        "ground_truth": "Paris",
        "rephrase_prompt": "It is well known that the capital of France is",
        "locality_prompt": "The capital of Italy is",
        "locality_ground_truth": "Rome",
    },
    {
        "prompt": "The mother tongue of the twins is",
        "subject": "the twins",
        "target_new": "German",
        "ground_truth": "English",
        "rephrase_prompt": "The twins speak",
        "locality_prompt": "London is a",
        "locality_ground_truth": "town",
    },
]


def test_both_loops_give_the_same_scores_and_their_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes logs/ into the working folder
    try:
        load_easyeditor()
    except ImportError as error:
        pytest.skip(str(error))
    data, out = tmp_path / "edits.json", tmp_path / "scoring.json"
    data.write_text(json.dumps(RECORDS))
    model = tiny_llama(tmp_path / "tiny-llama")
    options = ["--records", "2", "--repetitions", "2", "--max-new-tokens", "4"]
    main(["--data", str(data), "--model", str(model), "--out", str(out), *options])
    found = json.loads(out.read_text())
    assert found["records"] == 2 and found["different"] == 0
    forced, generated = found["results"]
    assert forced["texts"] == generated["texts"] == 6
    assert len(forced["ours"]["seconds"]) == len(forced["theirs"]["seconds"]) == 2
    assert generated["theirs"] is None
    printed = capsys.readouterr().out
    assert "Scoring 2 records" in printed and "teacher-forced" in printed


def test_what_cannot_be_run_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"scoring: .*no-such-file"):
        main(["--data", str(tmp_path / "no-such-file.json")])
    with pytest.raises(SystemExit, match="2"):
        main(["--records", "0"])
