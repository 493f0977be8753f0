from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.speed import edits, steps
from benchmarks.speed.cli import main, parse
from benchmarks.speed.reference import AuthorsCodeError, Reference, load_package
from benchmarks.speed.report import Section, bytes_text, to_markdown
from benchmarks.speed.setting import Setting, forget
from benchmarks.speed.timing import Timing, show, take_turns
from easyedit_dafnet import trainer as trainer_module
from easyedit_dafnet.dafnet_main import STATE
from tests.conftest import SMALL
from tests.tiny import GPT2_MODULES, LLAMA_MODULES, tiny_gpt2, tiny_llama

REFERENCE = os.environ.get("DAFNET_REFERENCE")
needs_reference = pytest.mark.skipif(
    not REFERENCE, reason="needs the authors' code; set DAFNET_REFERENCE to its folder"
)
TOWNS = ["Paris", "Rome", "Oslo", "Lyon", "Athens", "Tokyo", "Madrid", "Vienna"]
RECORDS = [
    {
        "prompt": f"The town of {name} is in",
        "target_new": TOWNS[(i + 3) % 8] + " " * (i % 2) + "land" * (i % 2),
        "rephrase_prompt": f"Where is {name}? In",
        "locality_prompt": f"The capital of {name} is",
        "locality_ground_truth": TOWNS[i % 8],
    }
    for i, name in enumerate(a + b.lower() for a in TOWNS for b in TOWNS)
]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Command line arguments for a tiny model."""
    home = tmp_path_factory.mktemp("speed")
    kinds = {"llama": (tiny_llama, LLAMA_MODULES), "gpt2": (tiny_gpt2, GPT2_MODULES)}
    for name, (make, modules) in kinds.items():
        settings = {
            "model_name": str(make(home / name)),
            "inner_params": modules,
            "edit_bias": name == "gpt2",
            "edit_lr": -0.05,
            **SMALL,
        }
        (home / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    (home / "records.json").write_text(json.dumps(RECORDS))

    def build(what: str, *more: str, model: str = "llama") -> list[str]:
        settings = f"--hparams {home / model}.yaml --data {home / 'records.json'} --sizes hparams"
        counts = "--edits 1 3 --past 2 5 --repetitions 2"
        return [what, *settings.split(), *counts.split(), *more]

    return build


@pytest.fixture
def setting(arguments: Callable[..., list[str]], tmp_path: Path) -> Setting:
    return Setting(parse(arguments("steps")), tmp_path)


def test_all_is_measured_and_written(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tables = tmp_path / "out" / "speed.json", tmp_path / "speed.md"
    main(arguments("all", "--edits", "2", "--out", str(out), "--markdown", str(tables)))
    printed = capsys.readouterr().out
    for title in ("Training step", "Peak memory", "One edit", "after many", "Inference"):
        assert title in printed
        assert title in tables.read_text()

    content = json.loads(out.read_text())
    assert content["settings"]["reference"] is False
    assert content["environment"]["torch"] == torch.__version__
    results = content["results"]
    assert [(s["size"], s["setting"], s["edits"]) for s in results["steps"]] == [
        ("hparams", "product", 2)
    ]
    assert len(results["steps"][0]["cold"]["seconds"]) == 2
    (memory,) = results["memory"]
    assert 0 < memory["imported"] < memory["loaded"] <= memory["peak"]
    assert [row["sequence"] for row in results["edits"]] == ["first", "later"]
    past = [(row["past"], row["dtype"]) for row in results["past"]]
    assert past == [(2, "float32"), (2, "float16"), (5, "float32"), (5, "float16")]
    assert results["past"][0]["deviation"] is None
    assert 0 < results["past"][1]["deviation"] < 1e-2
    assert [row["task"] for row in results["inference"]] == ["forward", "generate"]
    assert results["past"][0]["theirs"] is None


def test_the_folder_runs_from_anywhere(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "speed"
    done = subprocess.run(
        [sys.executable, str(folder), "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--reference" in done.stdout


# -- Timing and tables ----------------------------------------------------------------------------


def test_runs_take_turns_until_patience_ends() -> None:
    calls: list[tuple[str, int]] = []

    def run(name: str, seconds: float) -> Callable[[int], float]:
        def call(i: int) -> float:
            calls.append((name, i))
            return seconds + i

        return call

    timings = take_turns({"ours": run("ours", 1.0), "theirs": run("theirs", 5.0)}, 3, 60)
    assert calls == [(name, i) for i in range(3) for name in ("ours", "theirs")]
    assert timings["theirs"].seconds == [5.0, 6.0, 7.0]
    assert str(timings["ours"]) == "2.00 (1.00..3.00)"
    assert len(take_turns({"ours": run("ours", 1.0)}, 3, 0)["ours"].seconds) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.001234, "0.00123"), (0.5, "0.500"), (12.34, "12.3"), (123.4, "123")]
)
def test_seconds_are_shown_with_three_digits(seconds: float, text: str) -> None:
    assert show(seconds) == str(Timing([seconds])) == text


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1500, "1.5 KB"), (3.318e9, "3.32 GB")]
)
def test_bytes_are_shown_with_their_unit(count: float, text: str) -> None:
    assert bytes_text(count) == text


def test_markdown_holds_every_cell() -> None:
    table = Section("Step", ["networks", "s"], [["small", "1.0"], ["published", "9.0"]], "Note.")
    assert to_markdown([table], "Caption.") == (
        "**Step**\n\n| networks | s |\n| --- | ---: |\n| small | 1.0 |\n| published | 9.0 |\n\n"
        "Note.\n\nCaption.\n"
    )


# -- What is measured -----------------------------------------------------------------------------


def test_no_fact_is_in_two_batches(setting: Setting) -> None:
    drawn = [record for batch in setting.batches(3, 4) for record in batch]
    assert len({id(record) for record in drawn}) == 12
    with pytest.raises(ValueError, match="give more with --data"):
        setting.batches(100, 2)


def test_a_batch_is_what_the_next_step_uses(setting: Setting) -> None:
    trainer = setting.trainer("hparams", "product")
    trainer.config.loss_sample_max_count = 2  # so that samples are drawn
    records = setting.batches(6, 1)[0]
    batch = setting.step_batch(trainer, records)
    assert not trainer.unedited.cache.kept
    again = trainer.loss_terms(trainer.unedited.records(records))
    for term, other in zip(batch.terms, again, strict=True):
        assert term.name == other.name
        for text, same in zip(term.texts, other.texts, strict=True):
            assert torch.equal(text.ids, same.ids)
    assert {t.name for t in batch.terms} == {"reliability", "rephrase", "locality", "passage"}
    assert len(batch.edits) == 6


def test_the_parts_of_a_step_are_clocked_and_left_as_they_were(setting: Setting) -> None:
    trainer = setting.trainer("hparams", "product")
    records = setting.batches(3, 1)[0]
    trainer.train_step(records)
    plain = trainer_module.backward_losses
    with steps.clocked(setting.device) as warm:
        trainer.train_step(records)
    forget(trainer)
    with steps.clocked(setting.device) as cold:
        trainer.train_step(records)
    assert all(cold.values())
    assert warm["unedited model"] < cold["unedited model"] / 3
    assert trainer_module.backward_losses is plain


def test_past_edits_are_as_many_as_asked_and_go_away(setting: Setting) -> None:
    hparams = setting.editing_hparams("hparams")
    before = {name: p.clone() for name, p in setting.model.named_parameters()}
    records = setting.records
    edits.edit(setting, records[0], hparams)
    sequence = getattr(setting.model, STATE)
    edits.fill_past(sequence, 300)
    edits.edit(setting, records[1], hparams)
    assert getattr(setting.model, STATE) is sequence  # the sequence went on
    assert sequence.count == 301
    for layers in sequence.held.past.values():
        for rows in (r for layer in layers for r in (layer.keys, layer.values, layer.score_keys)):
            assert rows.count == 301
            assert rows.filled.isfinite().all()
            assert rows.filled.std() > 0.1
    edits.restore(setting.model)
    assert all(torch.equal(p, before[name]) for name, p in setting.model.named_parameters())


def test_the_floor_leaves_the_model_alone(setting: Setting) -> None:
    names = setting.config.inner_params
    edits.forward_and_backward(setting, setting.records[0], names)
    modules = [setting.model.get_submodule(name) for name in names]
    assert all(p.grad is None for p in setting.model.parameters())
    assert not any(module._forward_hooks for module in modules)


# -- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--edits", "--past", "--repetitions"])
def test_counts_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["steps", option, "0"])
    assert f"{option} must be at least 1" in capsys.readouterr().err


def test_another_folder_is_not_the_authors_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is not the authors' code"):
        main(["steps", "--reference", str(tmp_path)])


def test_a_package_that_is_missing_is_named_and_modules_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("editors", "editors/dafnet", "utils"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "editors/dafnet/__init__.py").write_text("from . import dafnet\n")
    (tmp_path / "editors/dafnet/dafnet.py").write_text("import utils\nimport no_such_package\n")
    monkeypatch.setitem(sys.modules, "utils", pytest)  # a user's own module of that name
    path = list(sys.path)
    with pytest.raises(AuthorsCodeError, match="imports 'no_such_package'"):
        load_package(tmp_path)
    assert sys.modules["utils"] is pytest
    assert "editors" not in sys.modules
    assert sys.path == path
    assert not list(tmp_path.rglob("__pycache__"))


# -- Beside the authors' code ---------------------------------------------------------------------


@needs_reference
@pytest.mark.parametrize("model", ["llama", "gpt2"])
@pytest.mark.parametrize("count", [1, 5])
def test_losses_and_gradients_are_those_of_the_authors_code(
    arguments: Callable[..., list[str]], tmp_path: Path, model: str, count: int
) -> None:
    options = parse(arguments("steps", "--reference", str(REFERENCE), model=model))
    setting = Setting(options, tmp_path)
    trainer = setting.trainer("hparams", "parity")
    reference = Reference(setting, "hparams", trainer.dafnet)
    records, others = setting.batches(count, 2)
    batch = setting.step_batch(trainer, records)
    reference.start_training(batch, freeze=True)
    losses, gradient, largest = steps.differences(trainer, reference, batch, records)
    assert losses <= 1e-5
    assert max(gradient, largest) <= 1e-4
    # The measure sees what is not the same.
    losses, gradient, largest = steps.differences(
        trainer, reference, setting.step_batch(trainer, others), records
    )
    assert losses > 1e-3
    assert min(gradient, largest) > 1e-2


@needs_reference
def test_all_is_measured_beside_the_authors_code(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "speed.json"
    main(arguments("all", "--reference", str(REFERENCE), "--out", str(out)))
    results = json.loads(out.read_text())["results"]
    assert [(s["setting"], s["edits"]) for s in results["steps"]] == [
        ("parity", 1),
        ("parity", 3),
        ("product", 1),
        ("product", 3),
    ]
    assert all(s["largest_difference"] <= 1e-4 for s in results["steps"][:2])
    assert [m["side"] for m in results["memory"]] == ["ours", "authors"] * 2
    for kind in ("steps", "edits", "inference"):
        assert all(row["theirs"]["seconds"] for row in results[kind])
    assert all((row["dtype"] == "float32") == bool(row["theirs"]) for row in results["past"])


def test_timings_become_json() -> None:
    assert asdict(Timing([1.0, 2.0])) == {"seconds": [1.0, 2.0]}
