from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from easyedit_dafnet.bench.report.results import Numbers
from easyedit_dafnet.bench.report.summary import (
    SCORED,
    Row,
    Summary,
    retention,
    scored,
    summarise,
)
from tests.bench.report.runs import cell_body, lifelike_run, small_run, write_run


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarise([small_run(tmp_path_factory.mktemp("runs") / "run")])


def row(summary: Summary, label: str, num_edits: int = 2) -> Row:
    (found,) = (r for r in summary.of("zsre", num_edits) if r.label == label)
    return found


def means(row: Row, scoring: str) -> dict[str, float | None]:
    return {name: e.mean if e else None for name, e in row.scores[scoring].items()}


def test_means_over_all_edits_of_both_streams(summary: Summary) -> None:
    ft = row(summary, "FT")
    assert means(ft, "teacher_forced") == pytest.approx(
        {
            "reliability": 0.75,
            "generality": 0.5,
            "locality": 0.5,
            "portability": 0.5,
            "same_subject": 1 / 3,
            "leaks": 0.25,
            "score": 4 / (1 / 0.75 + 1 / 0.5 + 1 / 0.5 + 3),
        }
    )
    assert ft.scored("teacher_forced") == SCORED
    assert "leaks" not in ft.scores["exact_match"]
    leaks = ft.scores["teacher_forced"]["leaks"]
    assert leaks is not None and leaks.low < 0.25 < leaks.high and leaks.edits == 3
    assert means(ft, "exact_match")["reliability"] == 0.375
    assert (ft.edits, ft.planned, ft.status) == (4, 2, "done")


def test_costs(summary: Summary) -> None:
    ft = row(summary, "FT")
    assert ft.seconds_per_edit == pytest.approx(0.5)
    assert ft.peak_memory_bytes == 2.5e9
    assert (ft.constant_state_bytes, ft.state_bytes_per_edit) == (500, 1000)
    assert ft.perplexity == pytest.approx((20.0, 60.0))  # the geometric mean of 40 and 90
    assert ft.preparation_seconds == 600


def test_state_of_results_that_tell_its_sum_alone(tmp_path: Path) -> None:
    """As they were written before: what an edit adds is told by another length, or not at all."""
    scores: dict[str, dict[str, list[float | None]]]
    scores = {name: {"reliability": [1.0]} for name in ("teacher_forced", "exact_match")}
    totals = {
        "LoRA": {1: 480, 10: 480, 100: 480},  # does not grow
        "DAFNet": {1: 5011, 10: 5110, 100: 6100},
        "once": {10: 70},
        "none": {10: 0},
    }
    cells = [
        cell_body("zsre", label, n, 0, scores, state_bytes=total)
        for label, known in totals.items()
        for n, total in known.items()
    ]
    summary = summarise([write_run(tmp_path, cells)])
    found = {
        (row.label, row.num_edits): (row.constant_state_bytes, row.state_bytes_per_edit)
        for row in summary.rows
    }
    assert found == {
        **{("LoRA", n): (480, 0) for n in (1, 10, 100)},
        **{("DAFNet", n): (5000, 11) for n in (1, 10, 100)},
        ("once", 10): (None, None),
        ("none", 10): (0, 0),
    }


def test_no_portability_is_no_number(summary: Summary) -> None:
    assert row(summary, "ROME").scores["teacher_forced"]["portability"] is None
    assert means(row(summary, "ROME"), "teacher_forced")["score"] == pytest.approx(0.75)


def test_a_score_is_over_what_is_asked(summary: Summary) -> None:
    rome = row(summary, "ROME")
    assert rome.scored("teacher_forced") == ("reliability", "generality", "locality")
    assert rome.scored("token_f1") == ()
    assert scored(["same_subject", "reliability", "portability"]) == ("reliability", "same_subject")
    # Whoever changes nothing, or says the target everywhere, would be the best.
    assert scored(["generality", "locality", "same_subject"]) == ()
    assert scored(["reliability", "generality", "portability"]) == ()


def knowedit_cell(protocol: str) -> dict[str, Any]:
    """Two edits of KnowEdit; all locality is of the same subject."""
    specific, forgotten, others = [0.5, 1.0], [None, 0.25], [None, 0.75]
    aspects: dict[str, Any]
    if protocol.endswith("/1"):
        aspects = {"reliability": [1.0, 1.0], "locality": [0.5, 2 / 3]}
        kinds: dict[str, Any] = {
            "locality": {"Relation_Specificity": specific, "Forgetfulness": forgotten, "x": others}
        }
    else:
        aspects = {"reliability": [1.0, 1.0], "locality": others, "same_subject": specific}
        kinds = {
            "locality": {"Forgetfulness": forgotten, "x": others},
            "same_subject": {"Relation_Specificity": specific},
        }
    kinds = {
        aspect: {kind: {"teacher_forced": values} for kind, values in of.items()}
        for aspect, of in kinds.items()
    }
    scores: Any = {"teacher_forced": aspects}
    return cell_body("knowedit", "FT", 2, 0, scores, protocol=protocol, kinds=kinds)


def test_older_cells_tell_same_subject_by_their_kinds(tmp_path: Path) -> None:
    found = []
    for version in (1, 2):
        body = knowedit_cell(f"score-after-stream/{version}")
        summary = summarise([write_run(tmp_path / str(version), [body])])
        assert summary.problems == []
        found.append(summary)
    (older,), (newer,) = (summary.rows for summary in found)
    assert means(older, "teacher_forced") == pytest.approx(means(newer, "teacher_forced"))
    assert means(older, "teacher_forced")["same_subject"] == 0.75
    assert means(older, "teacher_forced")["locality"] == 0.75
    assert means(older, "teacher_forced")["leaks"] is None
    assert older.kinds == newer.kinds
    assert older.scored("teacher_forced") == ("reliability", "locality", "same_subject")
    names = [("locality", "Forgetfulness"), ("locality", "x")]
    assert [sorted(summary.kinds("knowedit")) for summary in found] == [names] * 2


def test_older_cells_without_such_kinds_have_no_same_subject(tmp_path: Path) -> None:
    scores: Any = {"teacher_forced": {"reliability": [1.0], "generality": [0.5], "locality": [0.5]}}
    kinds = {"locality": {"neighborhood": {"teacher_forced": [0.5]}}}
    body = cell_body("cf", "FT", 1, 0, scores, protocol="score-after-stream/1", kinds=kinds)
    (older,) = summarise([write_run(tmp_path, [body])]).rows
    assert means(older, "teacher_forced")["same_subject"] is None
    assert means(older, "teacher_forced")["score"] == pytest.approx(3 / (1 + 2 + 2))
    assert older.scored("teacher_forced") == ("reliability", "generality", "locality")


def test_forgetfulness_alone_is_no_locality_and_is_listed(tmp_path: Path) -> None:
    scores: Any = {"teacher_forced": {"reliability": [1.0], "locality": [0.25]}}
    kinds = {"locality": {"Forgetfulness": {"teacher_forced": [0.25]}}}
    body = cell_body("k", "FT", 1, 0, scores, protocol="score-after-stream/1", kinds=kinds)
    summary = summarise([write_run(tmp_path, [body])])
    assert means(summary.rows[0], "teacher_forced")["locality"] is None
    assert means(summary.rows[0], "teacher_forced")["score"] is None
    assert summary.kinds("k") == [("locality", "Forgetfulness")]


def test_failed_and_absent_cells(summary: Summary) -> None:
    assert row(summary, "MEND").status == "failed"
    ike = row(summary, "IKE")
    assert ike.status == "not run"
    assert ike.hours == pytest.approx(2 * 0.6 / 3600)  # from its sanity cell
    assert row(summary, "FT", 1000).hours == pytest.approx(1000 * 0.6 / 3600)
    assert row(summary, "ROME").doubtful
    assert not row(summary, "FT").doubtful


def test_the_main_length_is_the_largest_that_is_done(summary: Summary) -> None:
    assert summary.lengths("zsre") == [2, 1000]
    assert summary.main_length("zsre") == 2


def test_runs_of_two_models_and_other_records_stay_apart(tmp_path: Path) -> None:
    runs = [
        lifelike_run(tmp_path / "a", ["zsre", "cf"], ["FT", "ROME"], [10]),
        lifelike_run(tmp_path / "b", ["zsre", "cf"], ["FT", "MEND"], [10]),
    ]
    suite = json.loads((runs[1] / "suite.json").read_text())
    suite["asked"]["model"] = "models/llama"
    suite["data"]["cf"]["digest"] = "other"
    (runs[1] / "suite.json").write_text(json.dumps(suite))
    summary = summarise(runs)
    assert summary.data == ["zsre", "cf (a)", "cf (b)"]
    assert {row.label for row in summary.of("zsre")} == {
        "FT (SmolLM2-135M-Instruct)",
        "ROME (SmolLM2-135M-Instruct)",
        "FT (llama)",
        "MEND (llama)",
    }
    assert {row.label for row in summary.of("cf (b)")} == {"FT (llama)", "MEND (llama)"}


def test_labels_of_two_runs_carry_their_hosts(tmp_path: Path) -> None:
    runs = [
        lifelike_run(
            tmp_path / "a", ["zsre"], ["FT", "ROME"], [10], host="EasyEdit release (0.0.1.dev0)"
        ),
        lifelike_run(
            tmp_path / "b", ["zsre"], ["FT", "WISE"], [10], host="EasyEdit main (14cea82)"
        ),
    ]
    assert summarise(runs).labels == ["FT (release)", "ROME", "FT (main)", "WISE"]
    same = [
        runs[0],
        lifelike_run(tmp_path / "c", ["zsre"], ["FT"], [10], host="EasyEdit release (0.0.1.dev0)"),
    ]
    assert summarise(same).labels == ["FT (a)", "ROME", "FT (c)"]


def test_retention_is_a_running_mean_in_the_order_of_editing() -> None:
    scores: Numbers = np.arange(10, dtype=np.float64)
    kept = retention([scores, scores])
    assert list(kept.first) == list(range(1, 10))
    assert list(kept.last - kept.first) == [1] * 9
    np.testing.assert_allclose(kept.values, np.arange(9) + 0.5)
    long = retention([np.concatenate([np.zeros(500), np.ones(500)])])
    assert (long.first[0], long.last[-1]) == (1, 1000)
    assert (long.values[0], long.values[-1]) == (0.0, 1.0)
    assert math.isnan(retention([np.full(4, np.nan)]).values[0])
