from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from easyedit_dafnet.bench.report.markdown import to_markdown
from easyedit_dafnet.bench.report.summary import Summary, summarise
from easyedit_dafnet.bench.report.tables import cells_csv, edits_csv, kinds_csv, to_csv
from tests.bench.report.runs import lifelike_run, small_run


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarise([small_run(tmp_path_factory.mktemp("runs") / "run")])


def section(text: str, title: str) -> list[list[str]]:
    """The cells of the table below a title, without the header's rule."""
    lines = text.split(f"### {title}\n", 1)[1].split("\n#", 1)[0].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return [rows[0], *rows[2:]]


def test_the_table_of_scores(summary: Summary) -> None:
    header, *rows = section(to_markdown(summary), "Teacher-forced")
    assert header[:9] == [
        *("method", "N", "score", "reliability", "generality", "locality", "same subject"),
        *("leaks", "portability"),
    ]
    by_method = {(row[0], row[1]): row[2:] for row in rows}
    shown = [value.split(" (")[0] for value in by_method["FT", "2"]]
    assert shown == ["0.48", "0.75", "0.50", "0.50", "0.33", "0.25", "0.50", "4", "2"]
    # The same subject is asked in three of the four edits, portability in two.
    edits = [value.split("n=")[-1][0] for value in by_method["FT", "2"][:7] if "n=" in value]
    assert edits == ["3", "3", "3", "2"]
    assert by_method["ROME†", "2"][4:7] == ["–"] * 3
    assert by_method["MEND‡", "2"][0] == "failed"
    assert by_method["IKE", "2"][0] == "not run, about 0.01 h"
    assert by_method["FT", "1,000"][0] == "not run, about 0.17 h"


def test_leaks_are_shown_teacher_forced_alone(summary: Summary) -> None:
    header, *_ = section(to_markdown(summary), "Generation: exact match")
    assert "same subject" in header and "leaks" not in header


def test_a_score_over_fewer_parts_is_marked(summary: Summary) -> None:
    text = to_markdown(summary)
    _, *rows = section(text, "Teacher-forced")
    marked = {row[0]: row[2] for row in rows if row[1] == "2"}
    assert marked["ROME†"].startswith("0.75 (") and marked["ROME†"].endswith(") §")
    assert "§" not in marked["FT"]
    assert (
        "- § zsre, ROME: the score is over reliability, generality and locality alone; not asked: "
        "same subject.\n"
    ) in text


def test_the_notes_say_what_is_asked_of_the_same_subject(tmp_path: Path) -> None:
    run = lifelike_run(tmp_path / "run", ["zsre"], ["FT"], [10])
    text = to_markdown(summarise([run]))
    assert "- Questions of the same subject on zsre: Own questions.\n" in text
    assert "Numbers of Own questions and of Relation_Specificity cannot be compared." in text
    assert "Locality is that of other subjects" in text


def test_the_table_of_costs(summary: Summary) -> None:
    rows = section(to_markdown(summary), "Cost")
    ft = next(row for row in rows if row[:2] == ["FT", "2"])
    assert ft[2:] == ["0.500 s", "2.50 GB", "500 B", "1.00 KB", "20.0 → 60.0", "10 min"]


def test_tables_of_kinds_and_of_capability(tmp_path: Path) -> None:
    run = lifelike_run(tmp_path / "run", ["zsre"], ["FT", "ROME"], [10])
    for path in run.glob("cells/zsre/FT/n10-s1.json"):
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "capability": {"hellaswag": {"acc": 0.25}}}))
    summary = summarise([run])
    text = to_markdown(summary)
    header, *rows = section(text, "Teacher-forced, by kind of probe")
    assert header[2:] == ["portability: one-hop", "portability: subject aliasing"]
    assert [row[0].rstrip("†") for row in rows] == ["FT", "ROME"]
    found = summary.of("zsre")[0].kinds["portability"]["one-hop"]["teacher_forced"]
    assert found is not None and rows[0][2].startswith(f"{found.mean:.2f} (")
    assert section(text, "Capability")[1] == ["FT", "10", "1", "hellaswag: acc: 0.25"]


def test_notes_and_setup(summary: Summary) -> None:
    text = to_markdown(summary)
    assert "ROME (reliability expected at least 0.90, found 0.52)" in text
    assert "‡ MEND on zsre, N = 2, stream 0: RuntimeError: out of memory | <b>" in text
    assert "- Not run: KN: needs a package that is missing" in text
    assert "- data: zsre: zsre.json, 5,000 records, 4,890 of them usable, digest 77aa" in text
    assert "what they presuppose, on zsre, N = 2: 7 of portability, 2 of same subject\n" in text
    assert "- model: SmolLM2-135M-Instruct\n" in text
    assert "- torch: 2.13.0\n" in text
    assert "- command: easyedit-dafnet bench --suite test.yaml --out run\n" in text


def test_a_row_a_cell(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(cells_csv(summary))))
    assert [row["status"] for row in rows].count("not run") == 3
    first = rows[0]
    assert (first["label"], first["stream"], first["status"]) == ("FT", "0", "done")
    assert float(first["reliability_teacher_forced"]) == 1.0
    assert float(first["same_subject_teacher_forced"]) == 0.375
    assert float(first["leaks_teacher_forced"]) == 0.375
    assert "leaks_exact_match" not in first
    score = 4 / (1 + 4 + 1 / 0.75 + 1 / 0.375)
    assert float(first["score_teacher_forced"]) == pytest.approx(score)
    assert first["score_over_teacher_forced"] == "reliability generality locality same_subject"
    (rome,) = (row for row in rows if row["label"] == "ROME" and row["status"] == "done")
    assert float(rome["score_teacher_forced"]) == pytest.approx(0.75)
    assert rome["score_over_teacher_forced"] == "reliability generality locality"
    assert rome["same_subject_teacher_forced"] == rome["leaks_teacher_forced"] == ""
    assert rome["score_token_f1"] == rome["score_over_token_f1"] == "", "nothing is there"
    assert first["portability_exact_match"] == "0.125"
    state = [first[f"{name}_bytes"] for name in ("state", "constant_state")]
    assert [*state, first["state_bytes_per_edit"]] == ["2500", "500.0", "1000.0"]
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["error"] == "RuntimeError: out of memory | <b>"
    (absent,) = (row for row in rows if row["label"] == "FT" and row["num_edits"] == "1000")
    assert float(absent["estimated_hours"]) == pytest.approx(1 / 6)


def test_a_row_an_edit(summary: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(edits_csv(summary))))
    assert len(rows) == 6
    assert [row["reliability_teacher_forced"] for row in rows[:4]] == ["1.0", "1.0", "1.0", "0.0"]
    assert [row["position"] for row in rows[:4]] == ["1", "2", "1", "2"]
    assert rows[1]["portability_teacher_forced"] == ""
    assert [row["leaks_teacher_forced"] for row in rows] == ["0.5", "0.25", "0.0", "", "", ""]
    assert [row["same_subject_exact_match"] for row in rows[:2]] == ["0.25", "0.125"]


def test_no_text_in_a_table_is_a_formula(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    for path in run.glob("cells/zsre/*/*.json"):
        body = json.loads(path.read_text())
        body["edits"] = ["=cmd|' /C calc'!A0", "@SUM(A1)", "-1", "plain"][: len(body["edits"])]
        if body["error"]:
            body["error"] = {"type": "", "message": "+1 for this"}
        path.write_text(json.dumps(body))
    summary = summarise([run])
    ids = [row["id"] for row in csv.DictReader(io.StringIO(edits_csv(summary)))]
    assert set(ids) == {"'=cmd|' /C calc'!A0", "'@SUM(A1)"}
    errors = [row["error"] for row in csv.DictReader(io.StringIO(cells_csv(summary)))]
    assert "'+1 for this" in errors


def test_numbers_of_a_table_stay_numbers() -> None:
    signs = ["=a", "+a", "-a", "@a", "\ta", "\ra", "\na", "a=b", ""]
    text = to_csv(["-x", "y"], [signs, [-1, -0.5, None, 1e-7]])
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    assert header == ["'-x", "y"]
    assert rows[0] == [*(f"'{text}" for text in signs[:7]), "a=b", ""]
    assert rows[1] == ["-1", "-0.5", "", "1e-07"]


def test_a_row_a_kind_of_probe(tmp_path: Path) -> None:
    run = lifelike_run(tmp_path / "run", ["counterfact", "zsre"], ["FT"], [10])
    summary = summarise([run])
    rows = list(csv.DictReader(io.StringIO(kinds_csv(summary) or "")))
    assert {row["data"] for row in rows} == {"zsre"}  # counterfact names one kind of locality
    assert [row["kind"] for row in rows[:2]] == ["one-hop", "subject aliasing"]
    (cell,) = (row.cells[0] for row in summary.rows if row.data == "zsre")
    forced = cell.scores["teacher_forced"]["portability"]
    assert [row["asked"] for row in rows[:2]] == ["5", "5"]
    assert float(rows[0]["teacher_forced"]) == pytest.approx(forced[:5].mean())


def test_no_rows_where_no_data_set_names_several_kinds(summary: Summary) -> None:
    assert kinds_csv(summary) is None


def test_what_methods_say_of_themselves_is_told_once(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    plan = json.loads((run / "suite.json").read_text())
    plan["methods"] = {"FT": {"name": "FT", "note": "one token only"}, "MEND": {"name": "MEND"}}
    (run / "suite.json").write_text(json.dumps(plan))
    assert to_markdown(summarise([run])).count("FT: one token only.") == 1


def test_a_folder_of_committed_results_is_enough(tmp_path: Path) -> None:
    """Without texts, sanity cells and the plan."""
    run = small_run(tmp_path / "run")
    (run / "suite.json").unlink()
    for path in (run / "sanity").iterdir():
        path.unlink()
    text = to_markdown(summarise([run]))
    assert "| FT | 2 | 0.48" in text
    assert "†" not in text
    assert "has no suite.json; cells that were not run are unknown." in text
