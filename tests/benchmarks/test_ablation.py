from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.ablation import (
    VARIANTS,
    Moments,
    _sizes,
    long_answers,
    main,
    with_directions,
    without_memory,
    without_past,
)
from easyedit_dafnet.checkpoint import load_dafnet
from easyedit_dafnet.least_squares import LeastSquares, Overshoot, gains
from easyedit_dafnet.records import encode_requests
from easyedit_dafnet.signals import edit_signals
from tests.conftest import Subject
from tests.tiny import REQUESTS

RECORDS = [
    {
        "prompt": f"{request['prompt']} {name}",
        "subject": name,
        "target_new": request["target_new"],
        "rephrase_prompt": f"It is well known that {request['prompt']} {name}",
        "locality_prompt": f"Not {request['prompt']}",
        "locality_ground_truth": "Paris",
    }
    for name in ("London", "Oslo", "Berlin", "Madrid", "Vienna", "Tokyo")
    for request in REQUESTS
]


@pytest.fixture
def arguments(solved: Subject, tmp_path: Path) -> list[str]:
    settings, data = tmp_path / "solved.yaml", tmp_path / "records.json"
    settings.write_text(yaml.safe_dump(asdict(solved.hparams())))
    data.write_text(json.dumps(RECORDS))
    # Some words that the tiny tokenizer knows.
    text = tmp_path / "text.txt"
    text.write_text(
        "\n\n".join(" ".join(f"the capital {i} {j}" for j in range(12)) for i in range(9))
    )
    return ["--data", str(data), "--hparams", str(settings), "--text", str(text),
            "--num-edits", "1", "2", "--edits", "2", "--out", str(tmp_path / "out")]  # fmt: skip


def test_each_row_is_measured_and_differs_where_it_should(
    arguments: list[str], tmp_path: Path, solved: Subject
) -> None:
    main(arguments)
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert list(found["rows"]) == list(VARIANTS)
    # no folder of this machine
    assert not any(Path(value).is_absolute() for value in map(str, found["settings"].values()))
    for row in found["rows"].values():
        for scores in row.values():
            assert set(scores) == {"score", "reliability", "generality", "locality"}
            assert all(0 <= value <= 1 for value in scores.values())
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert "| no memory |" in table and "held out of training by seed 42" in table


def test_long_answers_are_asked_of_the_same_subjects(
    arguments: list[str], tmp_path: Path, solved: Subject
) -> None:
    made = long_answers(RECORDS)
    for record, question in zip(RECORDS, made, strict=True):
        for key in ("prompt", "rephrase_prompt"):
            assert record["subject"] in question[key] and question[key] != record[key]
        assert question["locality_prompt"] == record["locality_prompt"]
        answer = question["target_new"]
        assert answer.isdigit() or answer in {r["subject"] for r in RECORDS}
    assert made == long_answers(RECORDS)
    main([*arguments, "--long-answers", "--only", "as shipped"])
    found = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert found["records"].startswith("made-up questions about 2 of those held out")


def test_rows_leave_the_trained_network_alone(arguments: list[str], tmp_path: Path) -> None:
    scores = []
    for out in ("one", "two"):
        where = [*arguments[:-1], str(tmp_path / out)]
        rows = ["as shipped"] if out == "one" else ["no moments", "no memory", "as shipped"]
        main([*where, "--only", *rows])
        found = json.loads((tmp_path / out / "ablation.json").read_text())
        scores.append(found["rows"]["as shipped"])
    assert scores[0] == scores[1]


def test_a_later_call_adds_what_is_not_there(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*arguments, "--only", "as shipped"])
    written = tmp_path / "out" / "ablation.json"
    first = json.loads(written.read_text())
    first["rows"]["as shipped"]["1"]["score"] = 0.125  # so it shows whether it was measured again
    written.write_text(json.dumps(first))
    main([*arguments, "--only", "no decay", "as shipped"])
    rows = json.loads(written.read_text())["rows"]
    assert rows["as shipped"] == first["rows"]["as shipped"] and set(rows["no decay"]) == {"1", "2"}
    table = (tmp_path / "out" / "ablation.md").read_text()
    assert "0.12 |" in table and "| no decay |" in table

    with pytest.raises(SystemExit):
        main([*arguments, "--seed", "7"])
    assert "has rows with other records; choose another --out" in capsys.readouterr().err
    assert json.loads(written.read_text())["rows"] == rows


def test_what_a_row_changes_is_what_it_says(solved: Subject) -> None:
    torch.manual_seed(0)
    keys = [torch.randn(20, m.d_in) for m in solved.edited]
    moments = Moments([k.T @ k for k in keys], keys)
    shipped = load_dafnet(solved.archive)
    for name, row in VARIANTS.items():
        dafnet = deepcopy(shipped)
        if row.change is None:
            continue
        row.change(dafnet, moments)
        solver, before = dafnet.least_squares, shipped.least_squares
        assert solver is not None and before is not None
        if "moments" in name:  # what they weigh beside a key stays
            for m, k in enumerate(keys):
                size, former = (_sizes(x, m, k).log().mean().item() for x in (solver, before))
                assert size == pytest.approx(former, abs=1e-4)
        elif "lambda" in name:
            ratio = (solver.log_weights - before.log_weights).exp()
            assert ratio.tolist() == pytest.approx([4.0 if "*" in name else 0.25] * len(ratio))


def test_fewer_directions_are_those_that_a_smaller_network_would_keep(solved: Subject) -> None:
    torch.manual_seed(0)
    keys = [torch.randn(200, m.d_in, dtype=torch.float64) for m in solved.edited]
    dafnet = load_dafnet(solved.archive)
    solver = dafnet.least_squares
    assert solver is not None
    fewer = LeastSquares(solved.edited, 2, weight=1.0)
    with torch.no_grad():
        for m, k in enumerate(keys):
            solver.protect(m, k.T @ k)
            fewer.protect(m, k.T @ k)
    moments = Moments([], [k.float() for k in keys])
    before = [_sizes(solver, m, k).log().mean().item() for m, k in enumerate(moments.keys)]
    with_directions(2)(dafnet, moments)
    for m, k in enumerate(moments.keys):
        assert _sizes(solver, m, k).log().mean().item() == pytest.approx(before[m], abs=1e-4)
        expected = fewer.get_buffer(f"freedom_{m}")
        torch.testing.assert_close(solver.get_buffer(f"freedom_{m}")[:2], expected)
        assert (solver.get_buffer(f"freedom_{m}")[2:] == 1).all()


def test_more_edits_than_were_held_out_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--num-edits", "1", "3"])
    assert "--num-edits 3: there are 2 edits" in capsys.readouterr().err


def test_without_memory_edits_are_those_of_the_first_and_the_margin_falls(solved: Subject) -> None:
    dafnet = deepcopy(load_dafnet(solved.archive))
    without_memory(dafnet, Moments([], []))
    solver = dafnet.least_squares
    assert solver is not None
    torch.manual_seed(0)
    keys = [torch.randn(3, m.d_in) for m in solved.edited]
    values = [torch.randn(3, m.d_out) for m in solved.edited]
    changes = [torch.zeros(m.d_in, m.d_out) for m in solved.edited]
    first = solver.nothing_written(overshoot=Overshoot(4.0, 1.0, 0.5))
    steps, after = solver.write(keys, values, torch.arange(3), first, changes)
    for m, (gain, value) in enumerate(steps):
        torch.testing.assert_close(value, values[m])
        for i in range(3):
            alone = gains(keys[m][i : i + 1], solver.spread(m, keys[m][i : i + 1]))
            torch.testing.assert_close(gain[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert after.margin == pytest.approx(4.0 / 2)


def test_without_past_an_edit_is_as_if_it_were_alone(solved: Subject) -> None:
    model = solved.model()
    batch = encode_requests(solved.tok, REQUESTS[:3], model, at_subject=True)
    signals = edit_signals(model, solved.edited, batch)
    shipped = load_dafnet(solved.archive)
    dafnet = deepcopy(shipped)
    without_past(dafnet, Moments([], []))
    with torch.no_grad():
        together, _ = dafnet.values(signals, dafnet.new_past())
        seen, _ = shipped.values(signals, shipped.new_past())
        for m, (of_module, first) in enumerate(zip(together, seen, strict=True)):
            for i in range(3):
                alone, _ = shipped.values([s.split()[i] for s in signals])
                torch.testing.assert_close(of_module[i : i + 1], alone[m])
            assert not torch.allclose(of_module[1:], first[1:])
