from __future__ import annotations

import json
from pathlib import Path

import pytest

from easyedit_dafnet.cli import main
from tests.bench.report.runs import small_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


def test_the_command_writes_and_names_the_files(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    names = ["report.md", "report.html", "cells.csv", "reliability-locality.svg"]
    *shown, last = capsys.readouterr().out.split("\n", -1)[-1 - len(names) :]
    assert (shown, last) == ([str(run / "report" / name) for name in names], "")
    assert sorted(p.name for p in (run / "report").iterdir()) == sorted(names)


def test_another_folder_and_every_edit(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "to" / "there"), "--edits"]) == 0
    assert (tmp_path / "to" / "there" / "edits.csv").is_file()
    assert not (run / "report").exists()


def test_what_cannot_be_read_is_named_and_the_rest_reported(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "cells" / "zsre" / "FT" / "n2-s0.json"
    path.write_text("{")
    assert main(["report", str(run)]) == 0
    assert str(path) in capsys.readouterr().err
    assert "1 of 2" in (run / "report" / "report.md").read_text()


def test_a_folder_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "has no results that can be read" in capsys.readouterr().err


def test_the_scores_are_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run)])
    printed = capsys.readouterr().out
    rows = [[c.strip() for c in line.split("│")[1:-1]] for line in printed.splitlines()]
    scored = [" | ".join(row[:3]) for row in rows if len(row) > 3 and "(" in row[2]]
    assert len(scored) == 2  # the small run has two cells that are done
    table = (run / "report" / "report.md").read_text()
    for row in scored:
        assert f"| {row} |" in table
    (header,) = (line for line in printed.splitlines() if "reliability" in line and "┃" in line)
    assert "same subject" in header and "leaks" in header
    assert "§ zsre, ROME: the score is over reliability, generality and locality" in printed


def test_what_is_published_has_no_paths_of_this_machine_and_can_be_reported(
    run: Path, tmp_path: Path
) -> None:
    file = run / "cells" / "zsre" / "FT" / "n2-s0.json"
    body = json.loads(file.read_text())
    body["settings"] = {"archive": "/home/someone/nets/dafnet", "stats_dir": "./data/stats"}
    body["error"] = {"traceback": 'File "/usr/lib/python3/site-packages/x/y.py", line 3'}
    body["environment"]["home"] = "https://example.org/a/b"
    file.write_text(json.dumps(body))
    out = tmp_path / "results"
    assert main(["report", str(run), "--publish", str(out)]) == 0
    published = json.loads((out / "cells" / "zsre" / "FT" / "n2-s0.json").read_text())
    assert published["settings"] == {"archive": "dafnet", "stats_dir": "./data/stats"}
    assert published["error"] == {"traceback": 'File "y.py", line 3'}
    assert published["environment"]["home"] == "https://example.org/a/b"
    assert published["scores"] == body["scores"]
    assert not (out / "texts").exists()
    assert main(["report", str(out)]) == 0
    ours, theirs = (run / "report" / "cells.csv", out / "report" / "cells.csv")
    assert ours.read_text() == theirs.read_text()


def test_results_of_an_older_protocol_are_reported_and_not_mixed_with_newer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = tmp_path / "older"
    assert main(["report", str(run), "--publish", str(older)]) == 0
    suite = json.loads((older / "suite.json").read_text())
    (older / "suite.json").write_text(json.dumps({**suite, "protocol": "score-after-stream/1"}))
    assert main(["report", str(older), "--out", str(older)]) == 0
    assert (older / "report.md").is_file()
    again = ["report", str(older), "--publish", str(tmp_path / "again")]
    assert main(again) == 0 and main(again) == 0
    capsys.readouterr()
    assert main(["report", str(run), "--publish", str(older)]) == 1
    assert "holds another run (of another protocol," in capsys.readouterr().err


def test_a_folder_with_other_content_is_left_as_it_is(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "report.md").write_text("mine")
    for option in ("--out", "--publish"):
        assert main(["report", str(run), option, str(mine)]) == 1
        assert "is not empty (it holds report.md)" in capsys.readouterr().err
    assert [p.name for p in mine.iterdir()] == ["report.md"]
    assert (mine / "report.md").read_text() == "mine"
    assert not (run / "report").exists(), "nothing is begun"


def test_reports_and_published_runs_are_written_again(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    arguments = ["report", str(run), "--out", str(out), "--publish", str(out)]
    assert main(arguments) == 0 and main(arguments) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "other")]) == 0
    assert main(["report", str(run), "--out", str(tmp_path / "other")]) == 0


def test_two_runs_are_not_mixed_in_one_published_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--publish", str(tmp_path / "results")]) == 0
    suite = json.loads((run / "suite.json").read_text())
    (run / "suite.json").write_text(json.dumps({**suite, "common": {"seed": 7}}))
    capsys.readouterr()
    assert main(["report", str(run), "--publish", str(tmp_path / "results")]) == 1
    assert "holds another run" in capsys.readouterr().err
