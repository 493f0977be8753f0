from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.curves import main, smoothed


def log(path: Path, scores: dict[int, float]) -> Path:
    lines = []
    for step in range(10, 410, 10):
        lines.append({"step": step, "loss": 3.0, "reliability": 100 / step, "rephrase": 2.0,
                      "locality": 0.1})  # fmt: skip
        if step in scores:
            lines.append({"step": step, "reliability@1": 0.5, "score": scores[step]})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_plot_and_the_table_hold_all_runs(tmp_path: Path) -> None:
    one = log(tmp_path / "one.jsonl", {200: 0.25, 400: 0.5})
    two = log(tmp_path / "two.jsonl", {400: 0.75})
    main([f"a={one}", f"b={two}", "--out", str(tmp_path / "out")])
    rows = (tmp_path / "out/curves.csv").read_text().splitlines()
    assert rows == [
        "run,step,reliability@1,score", "a,200,0.5,0.25", "a,400,0.5,0.5", "b,400,0.5,0.75",
    ]  # fmt: skip
    svg = (tmp_path / "out/learning-curves.svg").read_text()
    texts = {t.text for t in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {"a, reliability", "b, locality", "a", "b", "score"} <= texts
    main([f"a={one}", f"b={two}", "--out", str(tmp_path / "again")])
    assert (tmp_path / "again/learning-curves.svg").read_text() == svg


def test_a_run_may_lack_a_loss_here_and_there(tmp_path: Path) -> None:
    """Records without a locality prompt have no loss of that kind."""
    lines = [
        {"step": 10, "loss": 3.0, "reliability": 2.0, "locality": 0.1},
        {"step": 20, "loss": 2.0, "reliability": 1.0},
    ]
    one = tmp_path / "one.jsonl"
    one.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([f"a={one}", "--out", str(tmp_path / "out")])
    svg = (tmp_path / "out/learning-curves.svg").read_text()
    assert "a, locality" in svg and "a, rephrase" not in svg


def test_a_loss_is_smoothed_over_its_neighbours() -> None:
    assert smoothed([0.0] * 10 + [10.0]).tolist() == pytest.approx([0.0, 1.0])
    assert smoothed([2.0, 4.0]).tolist() == pytest.approx([3.0])


def test_a_file_that_is_no_log_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"step": 1}\n')
    with pytest.raises(SystemExit):
        main([f"a={bad}"])
    assert "bad.jsonl is not a training log: no line has a loss" in capsys.readouterr().err
