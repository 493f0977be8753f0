from __future__ import annotations

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
    assert capsys.readouterr().out.split() == [str(run / "report" / name) for name in names]
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
