from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from easyedit_dafnet.checkpoint import CheckpointError, load_dafnet
from easyedit_dafnet.dafnet_hparams import DAFNetTrainingHparams, SettingsError
from easyedit_dafnet.files import OutputError
from easyedit_dafnet.resuming import Interrupted, StopSignals
from easyedit_dafnet.trainer import DAFNetTrainer
from easyedit_dafnet.training_state import (
    FREE,
    PLACES,
    ROUNDING,
    STATE,
    TrainingState,
    read_state,
    save_state,
)
from tests.conftest import SOLVED_LLAMA
from tests.tiny import LLAMA_MODULES, REQUESTS, tiny_llama

RECORDS = [
    {
        **request,
        "rephrase_prompt": f"It is well known that {request['prompt']}",
        "locality_prompt": f"Not {request['prompt']}",
        "locality_ground_truth": "Paris",
    }
    for request in REQUESTS
]
SETS = {"zsre": RECORDS[:3], "counterfact": RECORDS[3:]}


class PowerCut(Exception):
    """Ends a run without a word, as a kill does."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Python's own handlers, also where the tests run with signals ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, former)


class Runs:
    """Makes trainers whose results lie in the named folders."""

    def __init__(self, model: Path, home: Path) -> None:
        self.model, self.home = model, home
        self.settings: dict[str, Any] = {}
        self.train: Any = RECORDS
        self.val: Any = None
        self.fused = False

    def trainer(self, name: str, **changed: Any) -> DAFNetTrainer:
        values: dict[str, Any] = {
            "model_name": str(self.model),
            "inner_params": LLAMA_MODULES,
            "device": "cpu",
            "results_dir": str(self.home / name),
            "layer_n": 1,
            "inner_att_dim": 16,
            "ffn_dim": 24,
            "outer_att_dim": 16,
            "outer_score_att_dim": 8,
            "lr": 3e-3,
            "edit_lr": -0.01,
            "lr_warmup": 0,
            "max_iters": 6,
            "log_interval": 1,
            "passages": None,
            "seq_len_start": 3,
            "val_interval": 2,
            "val_seq_lens": [1],
            "save_interval": 3,
        }
        config = DAFNetTrainingHparams(**{**values, **self.settings, **changed})
        trainer = DAFNetTrainer(config, self.train, self.val)
        for group in trainer.optimizer.param_groups:
            group["fused"] = self.fused
        return trainer

    def interrupted(self, name: str, *steps: int, how: str = "signal", **changed: Any) -> None:
        """Run and be interrupted within each of the steps, resuming in between."""
        for turn, step in enumerate(steps):
            trainer = self.trainer(name, **changed)
            break_in(trainer, step, how)
            if turn:
                elsewhere(trainer)
            with pytest.raises(Interrupted if how == "signal" else PowerCut):
                trainer.run(resume=turn > 0)

    def state(self, name: str) -> TrainingState:
        return read_state(self.folder(name))

    def folder(self, name: str) -> Path:
        return self.home / name / "training" / "DAFNet" / self.model.name

    def resumed(self, name: str, **changed: Any) -> DAFNetTrainer:
        trainer = elsewhere(self.trainer(name, **changed))
        trainer.run(resume=True)
        return trainer


@pytest.fixture
def runs(llama: Path, tmp_path: Path) -> Runs:
    return Runs(llama, tmp_path)


def elsewhere(trainer: DAFNetTrainer) -> DAFNetTrainer:
    """The trainer with other weights and random numbers than a new run would begin with."""
    torch.manual_seed(99)
    trainer.random.seed(99)
    with torch.no_grad():
        for parameter in trainer.dafnet.parameters():
            parameter.normal_()
    return trainer


def break_in(trainer: DAFNetTrainer, step: int, how: str) -> None:
    """Interrupt the trainer within a step: by SIGINT, or at its end by a power cut."""
    whole = trainer.train_step

    def train_step(records: Any) -> dict[str, float]:
        last = trainer.step + 1 == step
        if last and how == "signal":
            signal.raise_signal(signal.SIGINT)
        losses = whole(records)
        if last and how == "power cut":
            raise PowerCut
        return losses

    trainer.train_step = train_step  # type: ignore[method-assign]


def log_of(trainer: DAFNetTrainer) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in trainer.log_path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def assert_same_run(one: DAFNetTrainer, other: DAFNetTrainer) -> None:
    """Bit for bit: the log but for the seconds, all weights and states, and the checkpoint."""
    assert_same_training(one, other)
    assert log_of(one) == log_of(other)
    assert (one.step, one.best, one.waited) == (other.step, other.best, other.waited)
    kept = [load_file(t.save_path / "model.safetensors") for t in (one, other)]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(v, kept[1][k]) for k, v in kept[0].items())


def assert_same_training(one: DAFNetTrainer, other: DAFNetTrainer) -> None:
    """Bit for bit: the losses of all steps, and all weights and states."""
    losses = [[line for line in log_of(t) if "loss" in line] for t in (one, other)]
    assert losses[0] == losses[1]
    states = [t.dafnet.state_dict() for t in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    moments = [t.optimizer.state_dict()["state"] for t in (one, other)]
    assert moments[0].keys() == moments[1].keys() and moments[0]
    for index, values in moments[0].items():
        assert values.keys() == moments[1][index].keys()
        assert all(torch.equal(v, moments[1][index][k]) for k, v in values.items())
    assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]
    assert one.curriculum == other.curriculum
    assert one.random.getstate() == other.random.getstate()


# ---- exactness ----------------------------------------------------------------------------------

FROZEN = {
    "norm_warmup_edits": 5,
    "passages": "generated",
    "passage_max_tokens": 20,
    "lr_warmup": 7,
    "max_iters": 11,
    "seq_len_start": 1,
    "seq_len_max": 12,
    "seq_len_patience": 2,
    "save_interval": 4,
    "val_interval": 3,
    "val_seq_lens": [1, 3],
}
COUNTING = {
    "norm_warmup_edits": 0,
    "lr_warmup": 20,
    "max_iters": 11,
    "log_interval": 2,
    "save_interval": 5,
}

SOLVED = {
    **FROZEN,
    "inner_params": SOLVED_LLAMA,
    "fusion": "least_squares",
    "directions": 4,
    "norm_layer": "module",
    "norm_warmup_edits": 7,
    "text_tokens": 400,
    "edit_lr": -0.1,
    "lr_schedule": "cosine",
}
# Most of the prepared records lie on disk.
MOMENTUM = {**COUNTING, "norm_layer": "batch", "train_fusion": False, "cache_gb": 3e-5}


@pytest.mark.parametrize("how", ["signal", "power cut"])
@pytest.mark.parametrize(
    ("settings", "train", "val", "fused"),
    [
        (FROZEN, RECORDS, RECORDS[:3], False),
        (COUNTING, SETS, None, False),
        (MOMENTUM, RECORDS, RECORDS, True),
        (SOLVED, RECORDS, RECORDS[:3], False),
    ],
    ids=["frozen", "counting", "momentum", "solved"],
)
def test_an_interrupted_run_is_the_uninterrupted_one(
    runs: Runs, settings: dict[str, Any], train: Any, val: Any, fused: bool, how: str
) -> None:
    runs.settings, runs.train, runs.val, runs.fused = settings, train, val, fused
    whole = runs.trainer("whole")
    whole.run()
    assert bool(whole.passages) == ("passages" in settings)
    assert (whole.curriculum.length > 10) == ("seq_len_patience" in settings)
    steps, interval = settings["max_iters"], settings["save_interval"]
    some = random.Random(f"{how} {settings}").sample(range(2, steps), 2)
    for cuts in ([1], [interval], [some[0]], sorted({*some, interval + 1, steps})):
        name = "-".join(map(str, cuts))
        runs.interrupted(name, *cuts, how=how)
        assert runs.state(name).step == (
            cuts[-1] if how == "signal" else (cuts[-1] - 1) // interval * interval
        )
        assert_same_run(runs.resumed(name), whole)


def test_a_finished_run_goes_on_as_a_longer_one(runs: Runs) -> None:
    runs.val = RECORDS[:3]
    longer = runs.trainer("longer", max_iters=9)
    longer.run()
    first = runs.trainer("first", max_iters=5)  # validated at its end, which 9 steps would not
    best = first.run()
    assert [line["step"] for line in log_of(first) if "score" in line] == [2, 4, 5]
    again = runs.resumed("first", max_iters=5)
    assert again.best == best and again.step == 5
    assert_same_run(again, first)
    assert_same_training(runs.resumed("first", max_iters=9), longer)


@pytest.mark.parametrize("later", [0.4, 0.55, 0.7])
def test_a_longer_run_keeps_the_best_of_all_validations(
    runs: Runs, later: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.val, runs.settings = RECORDS[:3], {"val_interval": 5, "save_interval": 100}
    scores = {5: 0.5, 7: 0.6, 9: later}
    monkeypatch.setattr(DAFNetTrainer, "validate", lambda self: {"score": scores[self.step]})
    assert runs.trainer("run", max_iters=7).run() == {"score": 0.6}
    again = runs.resumed("run", max_iters=9)
    kept = json.loads((again.save_path / "config.json").read_text())["training"]
    assert again.best == kept["validation"] == {"score": max(0.6, later)}
    assert kept["step"] == (9 if later == 0.7 else 7)
    assert again.waited == (0 if later == 0.7 else 1)


def test_the_log_is_cut_back_also_when_nothing_is_noted_before_the_next_state(runs: Runs) -> None:
    runs.settings = {"log_interval": 4, "save_interval": 100, "max_iters": 9}
    whole = runs.trainer("whole")
    whole.run()
    runs.interrupted("run", 5)
    for step, how in [(9, "power cut"), (6, "signal"), (9, "power cut")]:  # 9: step 8 is noted
        trainer = runs.trainer("run")
        break_in(trainer, step, how)
        with pytest.raises((PowerCut, Interrupted)):
            trainer.run(resume=True)
    assert [line["step"] for line in log_of(trainer)] == [4, 8]
    assert_same_run(runs.resumed("run"), whole)


def test_training_on_from_an_archive_resumes_too(runs: Runs) -> None:
    first = runs.trainer("first", max_iters=2)
    first.run()
    runs.settings = {"archive": str(first.save_path)}
    whole = runs.trainer("whole")
    whole.run()
    runs.interrupted("run", 4)
    assert_same_run(runs.resumed("run"), whole)


def test_an_archive_is_trained_on_as_the_settings_say(runs: Runs) -> None:
    first = runs.trainer("first", max_iters=2, train_fusion=False)
    first.run()
    assert not load_dafnet(first.save_path).train_fusion
    on = runs.trainer("on", archive=str(first.save_path), train_fusion=True)
    assert on.dafnet.train_fusion


def test_the_steps_before_the_last_validation_are_kept(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may take minutes, in which a second signal does not wait."""
    runs.val = RECORDS[:3]
    whole = runs.trainer("whole", max_iters=5)
    whole.run()
    trainer = runs.trainer("run", max_iters=5)
    validate = trainer.validate

    def broken_off() -> dict[str, float]:
        if trainer.step == 5:
            raise PowerCut
        return validate()

    monkeypatch.setattr(trainer, "validate", broken_off)
    with pytest.raises(PowerCut):
        trainer.run()
    assert runs.state("run").step == 5
    assert_same_run(runs.resumed("run", max_iters=5), whole)


def test_the_state_is_not_changed_by_training_on_from_it(runs: Runs) -> None:
    runs.interrupted("run", 2)
    before = (runs.folder("run") / STATE).read_bytes()
    trainer = elsewhere(runs.trainer("run"))
    break_in(trainer, 3, "power cut")
    with pytest.raises(PowerCut):
        trainer.run(resume=True)
    assert (runs.folder("run") / STATE).read_bytes() == before


def test_the_seconds_of_all_parts_count(runs: Runs) -> None:
    trainer = runs.trainer("run")
    whole = trainer.train_step

    def train_step(records: Any) -> dict[str, float]:
        trainer.started -= 600
        return whole(records)

    trainer.train_step = train_step  # type: ignore[method-assign]
    break_in(trainer, 2, "signal")
    with pytest.raises(Interrupted):
        trainer.run()
    assert 1200 < runs.state("run").seconds < 1260
    trainer = runs.resumed("run")
    seconds = [json.loads(line)["seconds"] for line in trainer.log_path.read_text().splitlines()]
    assert len(seconds) == 6 and seconds == sorted(seconds) and 1200 < seconds[-1] < 1260
    config = json.loads((trainer.save_path / "config.json").read_text())
    assert config["training"]["minutes"] == pytest.approx(20, abs=0.9)


def test_tensorboard_shows_each_step_once(runs: Runs) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    runs.settings = {"tensorboard": True}

    def shown(trainer: DAFNetTrainer) -> list[tuple[int, float]]:
        events = accumulator.EventAccumulator(str(trainer.log_path.parent / "tensorboard"))
        events.Reload()
        return [(e.step, e.value) for e in events.Scalars("loss")]

    whole = runs.trainer("whole")
    whole.run()
    runs.interrupted("run", 5, how="power cut")
    resumed = runs.resumed("run")
    assert [step for step, _ in shown(whole)] == [1, 2, 3, 4, 5, 6]
    assert shown(resumed) == shown(whole)


# ---- signals ------------------------------------------------------------------------------------


def test_the_message_says_how_to_go_on(runs: Runs) -> None:
    trainer = runs.trainer("run")
    break_in(trainer, 2, "signal")
    with pytest.raises(Interrupted, match="stopped after step 2 of 6; its state") as stop:
        trainer.run()
    message = str(stop.value)
    assert str(trainer.state_path) in message and "--resume" in message and "\n" not in message
    assert isinstance(stop.value, KeyboardInterrupt) and stop.value.exit_code == 130


def test_sigterm_has_its_own_exit_code(runs: Runs) -> None:
    trainer = runs.trainer("run")
    whole = trainer.train_step

    def train_step(records: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return whole(records)

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stop:
        trainer.run()
    assert stop.value.exit_code == 143 and runs.state("run").step == 1


def test_a_second_signal_does_not_wait_for_the_step(runs: Runs) -> None:
    trainer = runs.trainer("run")
    break_in(trainer, 5, "signal")
    whole = trainer.train_step

    def train_step(records: Any) -> dict[str, float]:
        losses = whole(records)
        if trainer.step == 4:
            signal.raise_signal(signal.SIGINT)
        return losses

    trainer.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.run()
    assert not isinstance(stop.value, Interrupted) and runs.state("run").step == 3


def test_ignored_signals_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.received is None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_training_runs_outside_the_main_thread(runs: Runs) -> None:
    trainer = runs.trainer("run")
    thread = threading.Thread(target=trainer.run)
    thread.start()
    thread.join()
    assert trainer.step == 6 and runs.state("run").finished


# ---- early stopping -----------------------------------------------------------------------------


def scored(trainer: DAFNetTrainer, scores: list[float]) -> DAFNetTrainer:
    """The trainer with a given score for each step."""
    trainer.validate = lambda: {"score": scores[trainer.step - 1]}  # type: ignore[method-assign]
    return trainer


def test_training_stops_when_the_score_no_longer_rises(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    runs.val = RECORDS[:3]
    runs.settings = {"val_interval": 1, "max_iters": 9}
    scores = [0.2, 0.1, 0.6, 0.6, 0.5, 0.5, 0.7, 0.1, 0.1]
    whole = scored(runs.trainer("whole", val_patience=2), scores)
    assert whole.run() == {"score": 0.6}
    assert whole.step == 5, "the same score again is no better"
    assert caplog.messages == [
        "Training was stopped after step 5: 2 validations in a row have not been better than the "
        "best score, 0.6000 (setting 'val_patience')."
    ]

    trainer = scored(runs.trainer("run", val_patience=2), scores)
    break_in(trainer, 4, "signal")
    with pytest.raises(Interrupted):
        trainer.run()
    assert (runs.state("run").waited, runs.state("run").finished) == (1, False)
    for _ in range(2):  # resuming what has stopped early does nothing
        resumed = scored(elsewhere(runs.trainer("run", val_patience=2)), scores)
        assert resumed.run(resume=True) == {"score": 0.6} and runs.state("run").finished
        assert_same_run(resumed, whole)
    longer = scored(runs.trainer("run", val_patience=4), scores)
    assert longer.run(resume=True) == {"score": 0.7} and longer.step == 9


def test_patience_is_off_unless_set_and_real_scores_count(runs: Runs) -> None:
    # Nothing is learnt, so the score never rises.
    runs.settings = {"lr": 1e-12, "lr_lr": 1e-12, "val_interval": 1, "max_iters": 5}
    runs.val = RECORDS[:2]
    patient, impatient = runs.trainer("off"), runs.trainer("on", val_patience=3)
    assert patient.run() == impatient.run()
    assert (patient.step, impatient.step) == (5, 4)


# ---- what is refused ----------------------------------------------------------------------------


def refused(runs: Runs, name: str = "run", **changed: Any) -> str:
    trainer = runs.trainer(name, **changed)
    before = {k: v.clone() for k, v in trainer.dafnet.state_dict().items()}
    with pytest.raises((CheckpointError, SettingsError)) as error:
        trainer.run(resume=True)
    assert trainer.step == 0
    assert all(torch.equal(v, before[k]) for k, v in trainer.dafnet.state_dict().items())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_state_there_is_nothing_to_resume(runs: Runs) -> None:
    assert f"There is nothing to resume in {runs.folder('run')}; start" in refused(runs)


def test_another_runs_state_is_refused(runs: Runs) -> None:
    runs.val = RECORDS[:2]
    runs.interrupted("run", 2)
    assert "Setting 'lr' is 0.1, but the run in" in refused(runs, lr=0.1)
    assert "was started with 0.003; resume with that" in refused(runs, lr=0.1)
    assert "Setting 'seed' is 7" in refused(runs, seed=7)
    assert "Setting 'ffn_dim' is 25" in refused(runs, ffn_dim=25)
    assert "Setting 'passages' is 'generated', but the run in" in refused(
        runs, passages="generated"
    )
    assert "Setting 'val_seq_lens' is [2]" in refused(runs, val_seq_lens=[2])
    assert "'max_iters' is 1, but the run in" in refused(runs, max_iters=1)

    runs.train = RECORDS[:-1]
    message = refused(runs)
    assert "train_set 'edits' is not the one that the run in" in message
    assert "it was 7 records, SHA-256" in message and "now it is 6 records, SHA-256" in message
    runs.train = [*RECORDS[:-1], {**RECORDS[-1], "target_new": "Athens"}]
    assert "train_set 'edits' is not the one" in refused(runs)
    runs.train = {"edits": RECORDS, "more": RECORDS}
    assert "train_set 'more'" in refused(runs) and "it was absent" in refused(runs)
    runs.train, runs.val = RECORDS, RECORDS[1:3]
    assert "val_set is not the one" in refused(runs)
    runs.val = None
    assert "val_set is not the one" in refused(runs)
    runs.val = RECORDS[:2]

    trainer = runs.trainer("run")
    with torch.no_grad():
        trainer.model.get_parameter(f"{LLAMA_MODULES[2]}.weight").mul_(1.01)
    with pytest.raises(CheckpointError, match="another language model") as error:
        trainer.run(resume=True)
    assert LLAMA_MODULES[2] in str(error.value)
    assert runs.resumed("run").step == 6, "the state has stayed"


def test_what_may_change_may_change(
    runs: Runs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {f.name for f in fields(DAFNetTrainingHparams)}
    assert names > FREE | PLACES | ROUNDING
    passages = tmp_path / "passages.txt"
    passages.write_text("word " * 30)
    whole = runs.trainer("whole", passages=str(passages))
    whole.run()
    runs.interrupted("run", 4, passages=str(passages))
    passages.unlink()
    moved = tmp_path / "moved"
    moved.mkdir()
    runs.model = tiny_llama(moved / "tiny-llama")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    resumed = runs.resumed(
        "elsewhere", passages=str(moved / "passages.txt"), save_interval=1, val_patience=3,
        val_interval=5,
    )  # fmt: skip
    assert_same_run(resumed, whole)
    assert not caplog.messages


def test_other_conditions_are_warned_of(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    runs.settings = {"max_iters": 2}
    runs.interrupted("run", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        runs.resumed("run", loss_batch_size=2)
    finally:
        torch.set_num_threads(threads)
    assert len(caplog.messages) == 1
    assert f"loss_batch_size 24 -> 2, threads {threads} -> {threads + 1})" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "garbage",
        "empty",
        "another format",
        "no tensor",
        "flipped bits",
        "nested",
        "wrong types",
        "other fields",
    ],
)
def test_a_damaged_state_is_refused(runs: Runs, damage: str) -> None:
    runs.interrupted("run", 2)
    path = runs.folder("run") / STATE
    tensors = load_file(path)
    state = json.dumps({**vars(runs.state("run"))})
    metadata = {"format": "easyedit_dafnet training/1", "state": state}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "garbage":
        path.write_bytes(b"\x00" * 500)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another format":
        save_file(tensors, path, {**metadata, "format": "easyedit_dafnet training/0"})
    elif damage == "no tensor":
        save_file({k: v for k, v in tensors.items() if k != "generator.cpu"}, path, metadata)
    elif damage == "flipped bits":
        tensors = {**tensors, "dafnet.step_sizes": -tensors["dafnet.step_sizes"]}
        with safe_open(path, "pt") as file:
            save_file(tensors, path, file.metadata())
    elif damage == "nested":
        save_file(tensors, path, {**metadata, "state": "[" * 100_000})
    elif damage == "wrong types":
        save_file(
            tensors, path, {**metadata, "state": json.dumps({**json.loads(state), "step": "1"})}
        )
    elif damage == "other fields":
        save_file(tensors, path, {**metadata, "state": "{}"})
    trainer = runs.trainer("run")
    with pytest.raises(CheckpointError, match="is damaged or of another version") as error:
        trainer.run(resume=True)
    assert str(runs.folder("run")) in str(error.value) and "\n" not in str(error.value)
    if damage in ("no tensor", "flipped bits"):
        return  # only what resumes reads the tensors
    with pytest.raises(CheckpointError, match=r"is damaged .* start a new run \(--fresh"):
        runs.trainer("run").run()
    assert runs.trainer("run").run(fresh=True) == {}


# ---- runs that are there already ----------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_run_that_is_there_is_gone_on_with_or_expressly_replaced(runs: Runs) -> None:
    runs.interrupted("run", 4)
    before = everything(runs.home / "run")
    again = runs.trainer("run")
    with pytest.raises(CheckpointError, match=r"unfinished run \(4 of 6 steps\)") as error:
        again.run()
    assert all(word in str(error.value) for word in ("--resume", "--fresh", "--out"))
    assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match="not both"):
        again.run(resume=True, fresh=True)
    assert everything(runs.home / "run") == before
    again.run(fresh=True)
    assert [line["step"] for line in log_of(again)] == [1, 2, 3, 4, 5, 6]
    before = everything(runs.home / "run")
    with pytest.raises(CheckpointError, match=r"A finished run \(6 of 6 steps\) is in .*--fresh"):
        runs.trainer("run").run()
    assert everything(runs.home / "run") == before
    runs.trainer("run").run(fresh=True)


def test_a_network_or_a_log_without_a_state_is_not_replaced_unasked(runs: Runs) -> None:
    first = runs.trainer("run")
    first.run()
    (runs.folder("run") / STATE).unlink()
    for what, path in (("trained DAFNet", first.save_path), ("run's log", first.log_path)):
        with pytest.raises(CheckpointError, match=f"A {what} is in .* already: .*--fresh"):
            runs.trainer("run").run()
        if path.is_dir():
            path.rename(runs.home / "elsewhere")
    runs.trainer("run").run(fresh=True)


def test_the_network_of_another_model_of_the_same_name_is_not_replaced(
    runs: Runs, tmp_path: Path
) -> None:
    runs.trainer("run").run()
    before = everything(runs.home / "run")
    runs.model = tiny_llama(tmp_path / "other" / runs.model.name)
    other = AutoModelForCausalLM.from_pretrained(runs.model)
    with torch.no_grad():
        other.get_parameter(LLAMA_MODULES[0] + ".weight").mul_(1.01)
    other.save_pretrained(runs.model)
    with pytest.raises(OutputError, match=r"trained for another language model .*--out") as error:
        runs.trainer("run").run(fresh=True)
    assert "\n" not in str(error.value)
    assert everything(runs.home / "run") == before


def test_what_else_is_in_the_network_s_folder_is_not_lost(runs: Runs) -> None:
    runs.trainer("run").run()
    notes = runs.trainer("run").save_path / "notes.txt"
    notes.write_text("precious")
    runs.trainer("run").run(fresh=True)
    assert notes.read_text() == "precious"
    (notes.parent / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(OutputError, match="is not a trained DAFNet"):
        runs.trainer("run").run(fresh=True)
    assert notes.read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_refused_before_training(runs: Runs) -> None:
    (runs.home / "run").write_text("a file")
    with pytest.raises(OutputError, match="run is a file, so nothing can be written"):
        runs.trainer("run").run()
    trainer = runs.trainer("run2")
    trainer.log_path.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="run's log"):
        trainer.run()
    with pytest.raises(OutputError, match="is a folder"):
        trainer.run(fresh=True)


# ---- writing ------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_former_state(runs: Runs) -> None:
    resource = pytest.importorskip("resource")
    runs.interrupted("run", 2)
    trainer = runs.resumed("run", max_iters=3)
    before = (runs.folder("run") / STATE).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot be saved: .*cannot be written") as error:
            save_state(trainer, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(runs.folder("run")) in str(error.value) and "\n" not in str(error.value)
    assert [p.name for p in runs.folder("run").iterdir()] == [STATE], "nothing is left over"
    assert (runs.folder("run") / STATE).read_bytes() == before


def test_a_process_killed_while_writing_leaves_the_former_state(runs: Runs) -> None:
    resource = pytest.importorskip("resource")
    whole = runs.trainer("whole")
    whole.run()
    runs.interrupted("run", 2)
    trainer = runs.trainer("run")
    trainer.started = 0.0
    before = (runs.folder("run") / STATE).read_bytes()
    child = os.fork()
    if not child:  # the system ends this process in the middle of the file
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            save_state(trainer, 0)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ
    assert len(list(runs.folder("run").iterdir())) == 2, "what it had begun to write is there"
    assert (runs.folder("run") / STATE).read_bytes() == before
    assert_same_run(runs.resumed("run"), whole)
    assert [p.name for p in runs.folder("run").iterdir()] == [STATE], "the next one cleans up"


def test_a_run_whose_rates_fall_to_its_end_keeps_that_end(runs: Runs) -> None:
    """With constant rates max_iters may be raised; a cosine would be another one."""
    runs.settings = {"lr_schedule": "cosine"}
    whole = runs.trainer("whole")
    whole.run()
    runs.interrupted("run", 2)
    with pytest.raises(SettingsError, match=r"'max_iters' is 9, but the run .*lr_schedule: cosine"):
        runs.trainer("run", max_iters=9).run(resume=True)
    assert_same_training(runs.resumed("run"), whole)
