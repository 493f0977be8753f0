from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import easyedit_dafnet
from benchmarks import demo

# FT finds an answer for either; the later edit of a sequence overrules the earlier one.
FIRST: demo.Request = {
    "prompt": "The capital of Norway is",
    "subject": "Norway",
    "target_new": "London",
    "ground_truth": "Oslo",
    "rephrase_prompt": "The city from which Norway is governed is",
    "locality": {
        "neighborhood": {"prompt": "The capital of France is", "ground_truth": "Paris"},
    },
    "portability": {},
}
SECOND = {**FIRST, "target_new": "Rome"}


@pytest.fixture(scope="module")
def ft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """EasyEdit's editor with FT and the shipped settings, DAFNet being registered beside it."""
    folder = tmp_path_factory.mktemp("cwd")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)  # EasyEdit writes logs/
        easyedit_dafnet.register()
        yield demo.make_editor("FT")
        easyedit_dafnet.unregister()


@pytest.fixture(scope="module")
def unedited(ft: Any) -> list[dict[str, Any]]:
    return [demo.evaluate(ft, request) for request in (FIRST, SECOND)]


def test_single_edits_are_each_scored_in_their_own_model(
    ft: Any, unedited: list[dict[str, Any]]
) -> None:
    weights = demo.take_snapshot(ft.model)
    steps: list[int] = []
    result = demo.edit_singly(ft, [FIRST, SECOND], unedited, lambda: steps.append(1))
    assert [score.reliability for score in result.scores] == [1.0, 1.0]
    assert len(steps) == len(result.seconds) == 2
    assert same(demo.take_snapshot(ft.model), weights)


def test_a_sequence_is_scored_after_its_last_edit(ft: Any, unedited: list[dict[str, Any]]) -> None:
    weights = demo.take_snapshot(ft.model)
    result = demo.edit_in_sequence(ft, [FIRST, SECOND], unedited, lambda: None)
    assert [score.reliability for score in result.scores] == [0.0, 1.0]
    assert same(demo.take_snapshot(ft.model), weights)


def test_unedited_model_leaves_every_answer(ft: Any, unedited: list[dict[str, Any]]) -> None:
    score = demo.to_score(demo.evaluate(ft, FIRST), unedited[0])
    assert (score.reliability, score.locality) == (0.0, 1.0)


def test_locality_counts_changed_tokens() -> None:
    def quality(*tokens: int) -> dict[str, Any]:
        return {
            "rewrite_acc": [1.0],
            "rephrase_acc": [0.5],
            "locality": {"neighborhood_output": [list(tokens)]},
        }

    score = demo.to_score(quality(1, 2, 3, 4), quality(1, 2, 3, 5))
    assert (score.reliability, score.generality, score.locality) == (1.0, 0.5, 0.75)


def test_restore_refuses_a_model_with_other_parameters() -> None:
    model = torch.nn.Linear(2, 2)
    snapshot = demo.take_snapshot(model)
    model.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="added parameters"):
        demo.restore(model, snapshot)


def test_facts_are_drawn_by_the_seed_with_one_token_targets(ft: Any) -> None:
    facts = demo.choose_facts(ft.tok, 30, seed=1)
    assert facts == demo.choose_facts(ft.tok, 30, seed=1)
    assert facts != demo.choose_facts(ft.tok, 30, seed=2)
    assert len({fact["subject"] for fact in facts}) == 30
    for fact in facts:
        assert len(ft.tok.encode(" " + fact["target_new"], add_special_tokens=False)) == 1
    with pytest.raises(ValueError, match="lower --single"):
        demo.choose_facts(ft.tok, 10**6, seed=1)


def test_the_demo_prints_a_table_and_writes_every_edit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = "--methods FT DAFNet --single 2 --sequences 2 --length 2 --seed 3 --out out/t.json"
    level = logging.getLogger().level
    demo.main(arguments.split())
    logging.getLogger().setLevel(level)
    easyedit_dafnet.unregister()

    printed = capsys.readouterr().out
    assert "2 x 2" in printed
    assert "before:" in printed
    assert "Executing FT algo" not in printed

    content = json.loads((tmp_path / "out" / "t.json").read_text())
    assert content["settings"]["seed"] == 3
    assert content["environment"]["torch"] == torch.__version__
    rows = [(r["method"], r["protocol"], len(r["scores"])) for r in content["results"]]
    protocols = [("single", 2), ("sequence", 2), ("sequence", 2)]
    assert rows == [(m, *p) for m in ("unedited", "FT", "DAFNet") for p in protocols]
    assert all(len(r["scores"]) == len(r["requests"]) for r in content["results"])
    assert all(s["locality"] == 1.0 for r in content["results"][:3] for s in r["scores"])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["t.json", "t.log"]


@pytest.mark.parametrize("option", ["--single", "--rome-sequences", "--length"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.parse([option, "0"])
    assert f"{option} is 0; it must be at least 1" in capsys.readouterr().err


def same(weights: demo.Weights, others: demo.Weights) -> bool:
    return all(torch.equal(value, others[name]) for name, value in weights.items())
