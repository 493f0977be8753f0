"""Whole runs on a tiny model with a third party's method, in processes as users have them."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock

from easyedit_dafnet.bench.cells import RUN, Cell, RunFolder, write_json
from easyedit_dafnet.bench.command import forget_killed_workers
from easyedit_dafnet.bench.worker import LONG, Job, fail
from easyedit_dafnet.cli import main
from easyedit_dafnet.files import mark_folder
from tests.bench import plugin
from tests.tiny import tiny_llama

SETTINGS = {"num_edits": [1, 4], "streams": 1, "single_edits": 2, "perplexity_passages": 1}
CELLS = ["n1-s0", "n4-s0"]
# The 4 edits of stream 0 are of the houses 30, 5, 2 and 10, the first two are edited alone as well.
IN_A_STREAM_ONLY, IN_BOTH = "house 10 ", "house 5 "
KINDS = ("whole", "killed")
STRONG = {"hparams": "DAFNet/smollm2-135m-strong"}


class Bench:
    """The command with a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[subprocess.Popen[str]] = []
        (home / "plugin").mkdir()
        self.plugin = plugin.install(home / "plugin")
        self.model = tiny_llama(home / "tiny-llama")
        self.data = plugin.write_records(home / "houses.json", 40)

    def suite(self, name: str, methods: list[Any], **settings: Any) -> Path:
        content = {
            "model": str(self.model),
            "data": {"houses": str(self.data)},
            "methods": methods,
            **SETTINGS,
            **settings,
        }
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    def run(self, suite: Path, *options: Any) -> int:
        out = self.home / suite.stem
        return main(["bench", "--suite", str(suite), "--out", str(out), *map(str, options)])

    def start(self, suite: Path, *options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "easyedit_dafnet.cli", "bench", "--suite", suite]
        command += ["--out", self.home / suite.stem, *options]
        # As most people's: logs must be complete without it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def folder(self, suite: Path) -> RunFolder:
        return RunFolder(self.home / suite.stem)

    def begun(self, suite: Path) -> RunFolder:
        """The run's folder, as a command has marked it that was here before."""
        folder = self.folder(suite)
        mark_folder(folder.path, RUN)
        return folder


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Bench(tmp_path_factory.mktemp("bench"))
    with pytest.MonkeyPatch.context() as patch:
        # For this process, and for those that it starts.
        patch.syspath_prepend(made.plugin)
        paths = [str(made.plugin), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield made
    for process in made.started:
        process.kill()
        process.wait()


def results(folder: RunFolder) -> dict[str, dict[str, Any]]:
    return {
        f"{path.parent.name}/{path.stem}": json.loads(path.read_text())
        for path in sorted((folder.path / "cells").glob("*/*/*.json"))
    }


def without_times(content: dict[str, Any]) -> dict[str, Any]:
    timed = {"seconds", "peak_memory_bytes", "started", "finished", "prepared", "environment"}
    return {name: value for name, value in content.items() if name not in timed}


def found(folder: RunFolder) -> dict[str, Any]:
    """All that must not depend on how often a run was interrupted, by file."""
    kept: dict[str, Any] = {}
    for kind in ("cells", "sanity"):
        for path in (folder.path / kind).rglob("*.json"):
            content = without_times(json.loads(path.read_text()))
            kept[str(path.relative_to(folder.path))] = content
    for kind in ("texts", "unedited"):
        for path in (folder.path / kind).rglob("*.json*"):
            kept[str(path.relative_to(folder.path))] = path.read_bytes()
    return kept


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def workers_of(folder: RunFolder) -> list[int]:
    """Processes of the folder that still run; /proc is Linux's."""
    pids = [int(path.stem.rsplit("-", 1)[1]) for path in folder.workers.glob("*.json")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# -- One run with all that can happen ------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(bench: Bench) -> tuple[RunFolder, str, int]:
    """Two workers, methods that work and methods that do not: the folder, the output, the exit."""
    log = bench.home / "nudge.log"
    suite = bench.suite(
        "mixed",
        [
            {"name": "nudge", "settings": {"log": str(log)}},
            "wrapper",
            {"name": "nudge", "label": "fails", "settings": {"fail_on": IN_A_STREAM_ONLY}},
            {"name": "nudge", "label": "dies", "settings": {"die_on": IN_A_STREAM_ONLY}},
            {
                "name": "nudge",
                "label": "dies-once",
                "settings": {"die_on": IN_BOTH, "once": str(bench.home / "died")},
            },
            {"name": "nudge", "label": "unprepared", "settings": {"prepare_fails": True}},
            {"name": "nudge", "label": "needy", "settings": {"needs": "a telescope"}},
            "absent",
            "unheard-of",
        ],
        data={"houses": str(bench.data), "castles": str(bench.home / "castles.json")},
    )
    process = bench.start(suite, "--jobs", 2)
    output, _ = process.communicate(timeout=600)
    return bench.folder(suite), output, process.returncode


def test_all_cells_have_a_result(mixed: tuple[RunFolder, str, int]) -> None:
    folder, output, code = mixed
    statuses = {name: result["status"] for name, result in results(folder).items()}
    done = {"nudge": 2, "wrapper": 2, "fails": 1, "dies": 1, "dies-once": 2, "unprepared": 0}
    assert statuses == {
        f"{label}/{cell}": "done" if i < count else "failed"
        for label, count in done.items()
        for i, cell in enumerate(CELLS)
    }
    assert code == 1
    assert "8 of 12 cells are done, 4 failed" in output
    assert list(folder.workers.iterdir()) == []


def test_a_result_says_what_it_rests_on(mixed: tuple[RunFolder, str, int]) -> None:
    folder, _, _ = mixed
    result = results(folder)["nudge/n4-s0"]
    assert result["protocol"] == "score-after-stream/2" and result["error"] is None
    assert result["cell"] | {"random_seed": 0} == {
        "data": "houses",
        "method": "nudge",
        "label": "nudge",
        "num_edits": 4,
        "stream": 0,
        "batch_size": 1,
        "seed": 0,
        "random_seed": 0,
    }
    assert len(set(result["edits"])) == 4
    for scoring in ("teacher_forced", "exact_match", "token_f1", "begins"):
        scores = result["scores"][scoring]
        asked = ("reliability", "generality", "locality", "same_subject")
        assert all(0 <= n <= 1 for metric in asked for n in scores[metric])
        assert scores["portability"] == [None] * 4
        assert len(result["kinds"]["locality"]["neighborhood"][scoring]) == 4
        assert result["kinds"]["same_subject"]["Own questions"][scoring] == scores["same_subject"]
    assert all(0 <= share <= 1 for share in result["leaks"]) and len(result["leaks"]) == 4
    assert result["perplexity"]["before"] != result["perplexity"]["after"]
    assert len(result["seconds"]["per_edit"]) == 4
    assert result["seconds"]["edit"] == pytest.approx(sum(result["seconds"]["per_edit"]))
    assert result["state_bytes"] == 8
    assert result["settings"] == {"log": str(folder.path.parent / "nudge.log")}
    assert result["prepared"]["seconds"] >= 0
    assert {"easyedit_dafnet", "commit", "host", "torch", "cpu", "threads"} <= set(
        result["environment"]
    )
    assert "bench --suite" in result["environment"]["command"]


def test_the_texts_are_those_of_the_edits(mixed: tuple[RunFolder, str, int]) -> None:
    folder, _, _ = mixed
    for cell in CELLS:
        lines = (folder.path / "texts/houses/nudge" / f"{cell}.jsonl").read_text().splitlines()
        texts = [json.loads(line) for line in lines]
        assert [t["id"] for t in texts] == results(folder)[f"nudge/{cell}"]["edits"]
        assert all(t["prompt"]["asked"].startswith("In house") for t in texts)


def test_a_failure_is_recorded_with_its_traceback(mixed: tuple[RunFolder, str, int]) -> None:
    folder, output, _ = mixed
    error = results(folder)["fails/n4-s0"]["error"]
    assert error["type"] == "RuntimeError" and "cannot edit" in error["message"]
    assert "in edit" in error["traceback"]
    assert "houses/fails/n4-s0 failed: RuntimeError: cannot edit" in output
    error = results(folder)["unprepared/n1-s0"]["error"]
    assert error["message"] == "the preparation went wrong"


def test_a_method_that_kills_its_process_fails_after_the_second_time(
    mixed: tuple[RunFolder, str, int],
) -> None:
    folder, _, _ = mixed
    error = results(folder)["dies/n4-s0"]["error"]
    assert error["type"] == "WorkerDied" and "killed by SIGKILL" in error["message"]
    assert IN_A_STREAM_ONLY in error["traceback"]  # what the method printed last


def test_what_cannot_run_is_named(mixed: tuple[RunFolder, str, int]) -> None:
    folder, output, _ = mixed
    left_out = json.loads(folder.suite.read_text())["left_out"]
    assert left_out["needy"] == "a telescope: ask its makers"
    assert left_out["absent"] == "it needs a moon"
    assert "has no method 'unheard-of'" in left_out["unheard-of"]
    assert "castles.json" in left_out["castles"]
    printed = re.sub(r"\W", "", output)  # without the table's lines and breaks
    for name in ("absent", "unheard-of", "castles"):
        assert re.sub(r"\W", "", left_out[name]) in printed
    assert "atelescopemissingleftoutaskitsmakers" in printed


def test_every_method_starts_from_the_unedited_model(mixed: tuple[RunFolder, str, int]) -> None:
    """Whatever ran before: a method that leaves a module, a death, another process."""
    folder, _, _ = mixed
    cells = results(folder)
    for cell in CELLS:
        expected = cells[f"nudge/{cell}"]
        for label in ("wrapper", "dies-once"):
            for part in ("edits", "scores", "leaks", "kinds", "perplexity"):
                assert cells[f"{label}/{cell}"][part] == expected[part]


def test_the_sanity_cell_marks_a_method(mixed: tuple[RunFolder, str, int]) -> None:
    folder, _, _ = mixed
    sanity = json.loads(folder.sanity("nudge").read_text())
    assert sanity["status"] == "done" and len(sanity["edits"]) == 8
    found = sum(sanity["scores"]["teacher_forced"]["reliability"]) / 8
    assert sanity["sanity"] == {
        "expected": {"reliability": 0.9},
        "found": {"reliability": pytest.approx(found)},
    }


def test_a_method_is_prepared_once(mixed: tuple[RunFolder, str, int], bench: Bench) -> None:
    lines = (bench.home / "nudge.log").read_text().splitlines()
    assert sum(line.startswith("prepare 0 ") for line in lines) == 1
    assert len(lines) == 1 + 8 + 2 + 4  # the sanity edits, two alone, a stream


def test_what_methods_print_goes_to_a_log(mixed: tuple[RunFolder, str, int]) -> None:
    folder, output, _ = mixed
    assert "editing" not in output
    assert "editing In house" in "".join(p.read_text() for p in folder.logs.glob("nudge-*.log"))


def test_a_command_waits_while_another_one_prepares_its_method(bench: Bench) -> None:
    suite = bench.suite("waiting", ["nudge"])
    folder = bench.begun(suite)
    with folder.lock("label/nudge"), folder.lock("prepared/nudge"):  # as its worker holds them
        process = bench.start(suite)
        wait_for(folder.logs.exists)
        time.sleep(4)  # it would have ended long ago
        assert process.poll() is None and not results(folder)
    assert process.wait() == 0
    assert len(results(folder)) == 2


# -- Going on --------------------------------------------------------------------------------------


def test_killed_three_times_it_ends_as_if_nothing_had_been(bench: Bench) -> None:
    methods = [{"name": "nudge", "settings": {"pause": 0.05}}]
    options = {"num_edits": [1, 5, 10], "streams": 2}
    assert_killed_as_whole(bench, methods, cells=6, patience=5, **options)


@pytest.mark.slow
def test_killed_three_times_with_smollm2_it_ends_as_if_nothing_had_been(bench: Bench) -> None:
    methods = ["FT", "BFT", {"name": "DAFNet", "settings": STRONG}]
    options = {"num_edits": [1, 5], "model": "smollm2", "data": ["facts"]}
    # About as long as one of its cells takes.
    assert_killed_as_whole(bench, methods, cells=6, patience=60, **options)


def assert_killed_as_whole(
    bench: Bench, methods: list[Any], cells: int, patience: float, **options: Any
) -> None:
    """A run killed three times within `patience` seconds of work has the files of one that was not.

    Each time it is let live until two more cells are there at most.
    """
    name = f"of-{options.get('model', 'tiny')}"
    whole, killed = (bench.suite(f"{kind}-{name}", methods, **options) for kind in KINDS)
    assert bench.run(whole, "--jobs", 2) == 0
    folder, rng = bench.folder(killed), random.Random()
    for _ in range(3):
        process = bench.start(killed, "--jobs", 2)
        wait_for(partial(is_at_work, process, folder))
        kill_at = time.monotonic() + rng.uniform(0, patience)
        finished = len(results(folder))
        while time.monotonic() < kill_at and len(results(folder)) < finished + 2:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        wait_for(lambda: not workers_of(folder))  # they end with their starter
    assert bench.run(killed, "--jobs", 2) == 0
    expected = found(bench.folder(whole))
    assert len([name for name in expected if name.startswith("cells")]) == cells
    assert found(folder) == expected


def is_at_work(process: subprocess.Popen[str], folder: RunFolder) -> bool:
    return process.poll() is not None or bool(workers_of(folder))


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_once(bench: Bench, stop: signal.Signals) -> None:
    suite = bench.suite(f"stopped-{stop.name}", [{"name": "nudge", "settings": {"pause": 300}}])
    folder = bench.folder(suite)
    process = bench.start(suite)
    wait_for(lambda: any(folder.logs.glob("nudge-*.log")) and "editing" in log_of(folder))
    start = time.monotonic()
    process.send_signal(stop)
    output, _ = process.communicate(timeout=120)
    assert time.monotonic() - start < 100
    assert process.returncode == 130
    assert f"stopped; to go on: easyedit-dafnet bench --out {folder.path}" in output
    assert workers_of(folder) == [] and results(folder) == {}


def log_of(folder: RunFolder) -> str:
    return "".join(path.read_text() for path in folder.logs.glob("nudge-*.log"))


def test_failed_cells_run_again_only_when_asked(bench: Bench) -> None:
    once = bench.home / "repaired"
    settings = {"fail_on": IN_A_STREAM_ONLY, "once": str(once)}
    suite = bench.suite("repair", [{"name": "nudge", "settings": settings}], num_edits=[4])
    folder = bench.folder(suite)
    assert bench.run(suite) == 1
    once.touch()
    failed = results(folder)
    assert bench.run(suite) == 1
    assert results(folder) == failed
    assert bench.run(suite, "--retry-failed") == 0
    assert results(folder)["nudge/n4-s0"]["status"] == "done"


def test_the_plan_grows_and_results_stay(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    suite = bench.suite("grows", ["nudge"])
    folder = bench.folder(suite)
    assert bench.run(suite, "--only", "method=nudge,num_edits=4") == 0
    first = results(folder)
    assert set(first) == {"nudge/n4-s0"}
    # The folder alone goes on with what it was asked for.
    assert main(["bench", "--out", str(folder.path), "--streams", "2"]) == 0
    assert set(results(folder)) == {f"nudge/n{n}-s{s}" for n in (1, 4) for s in (0, 1)}
    assert results(folder)["nudge/n4-s0"] == first["nudge/n4-s0"]
    assert main(["bench", "--out", str(folder.path), "--methods", "wrapper", "--dry-run"]) == 0

    capsys.readouterr()
    assert main(["bench", "--out", str(folder.path), "--single-edits", "3"]) == 1
    assert "made with another single_edits: 2, now 3" in capsys.readouterr().err
    bench.data.write_text(bench.data.read_text().replace("Ann", "Eve"))
    try:
        assert main(["bench", "--out", str(folder.path)]) == 1
        assert "made with another data set houses" in capsys.readouterr().err
    finally:
        plugin.write_records(bench.data, 40)


def test_a_data_set_that_is_gone_hinders_no_other(bench: Bench) -> None:
    first = plugin.write_records(bench.home / "first.json", 10)
    suite = bench.suite("gone", ["nudge"], num_edits=[4], data={"first": str(first)})
    assert bench.run(suite, "--max-hours", "1e-9") == 0
    first.unlink()
    assert bench.run(suite, "--data", f"houses={bench.data}") == 0
    assert set(results(bench.folder(suite))) == {"nudge/n4-s0"}


def test_a_data_set_that_is_gone_hinders_no_other_beside_records_to_train_on(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    train = plugin.write_records(bench.home / "train-60.json", 60)
    gone = plugin.write_records(bench.home / "gone.json", 10)
    data = {"gone": str(gone), "houses": str(bench.data)}
    learns = {"name": "nudge", "label": "learns", "settings": {"log": str(bench.home / "l.log")}}
    both: dict[str, Any] = {"methods": ["nudge", learns], "num_edits": [4], "train": str(train)}
    suite = bench.suite("gone-train", data=data, **both)
    assert bench.run(suite, "--max-hours", "1e-9") == 0
    gone.unlink()
    capsys.readouterr()
    assert bench.run(suite, "--only", "method=nudge") == 0
    assert set(results(bench.folder(suite))) == {"nudge/n4-s0"}
    shown = capsys.readouterr().out
    assert "training must leave out what is evaluated, and that is not at hand" in shown


def test_what_fails_beside_the_method_fails_its_cell_alone(bench: Bench) -> None:
    other = plugin.write_records(bench.home / "barns.json", 10)
    data = {"barns": str(other), "houses": str(bench.data)}
    suite = bench.suite("damaged", ["nudge"], num_edits=[4], data=data)
    folder = bench.begun(suite)
    folder.unedited("barns").parent.mkdir(parents=True)
    folder.unedited("barns").write_text("{")
    assert bench.run(suite) == 1
    (failed,) = [json.loads(p.read_text()) for p in folder.path.glob("cells/barns/nudge/*")]
    assert failed["status"] == "failed" and "is damaged" in failed["error"]["traceback"]
    assert results(folder)["nudge/n4-s0"]["status"] == "done"


def test_workers_that_are_alive_stay_in_view(tmp_path: Path) -> None:
    folder, (host, ended) = RunFolder(tmp_path), (platform.node(), subprocess.Popen(["true"]))
    ended.wait()
    folder.workers.mkdir()
    for name, pid in ((host, os.getpid()), (host, ended.pid), ("elsewhere", ended.pid)):
        (folder.workers / f"{name}-{pid}.json").write_text(json.dumps({"pid": pid}))
    forget_killed_workers(folder)
    left = {path.stem for path in folder.workers.iterdir()}
    assert left == {f"{host}-{os.getpid()}", f"elsewhere-{ended.pid}"}


def test_results_of_other_settings_are_not_mixed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """A settings file may change between two commands that are word for word the same."""
    file = bench.home / "bft.yaml"
    file.write_text("{module: model.layers.1.mlp.down_proj, lr: 0.001}")
    suite = bench.suite("other", [{"name": "BFT", "settings": {"hparams": str(file)}}])
    assert bench.run(suite, "--only", "num_edits=4") == 0
    file.write_text("{module: model.layers.1.mlp.down_proj, lr: 0.002}")
    capsys.readouterr()
    assert bench.run(suite) == 1
    assert "made with another method BFT: effective lr 0.001, now 0.002." in capsys.readouterr().err


def test_no_cell_starts_after_the_time_is_up(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = bench.suite("late", ["nudge"], num_edits=[4])
    assert bench.run(suite, "--max-hours", "0") == 0
    assert results(bench.folder(suite)) == {}
    assert "1 are left" in capsys.readouterr().out


def test_edits_are_applied_in_batches(bench: Bench) -> None:
    suite = bench.suite("batches", ["nudge"], num_edits=[1, 5], batch_size=2)
    assert bench.run(suite) == 0
    found = results(bench.folder(suite))
    assert [found[f"nudge/n{n}-s0"]["cell"]["batch_size"] for n in (1, 5)] == [1, 2]
    seconds = found["nudge/n5-s0"]["seconds"]["per_edit"]
    assert len(seconds) == 5 and seconds[0] == seconds[1] and seconds[2] == seconds[3]


def test_after_a_long_preparation_the_cells_have_a_process_of_their_own(bench: Bench) -> None:
    log = bench.home / "long.log"
    settings = {"log": str(log), "prepare_seconds": LONG + 1}
    suite = bench.suite("long", [{"name": "nudge", "settings": settings}], num_edits=[1])
    assert bench.run(suite) == 0
    (prepared, *edited) = [line.rsplit(" ", 1) for line in log.read_text().splitlines()]
    assert prepared[0] == "prepare 0" and edited
    assert {process for _, process in edited} != {prepared[1]}
    assert results(bench.folder(suite))["nudge/n1-s0"]["prepared"]["seconds"] > LONG


def test_a_cell_that_another_worker_is_on_does_not_fail_with_the_method(bench: Bench) -> None:
    suite = bench.suite("shared", [{"name": "nudge", "settings": {"prepare_fails": True}}])
    folder = bench.begun(suite)
    with folder.lock("houses/nudge/n4-s0"):
        process = bench.start(suite)
        wait_for(lambda: "nudge/n1-s0" in results(folder))
        time.sleep(1)
        assert results(folder).keys() == {"nudge/n1-s0"}
        process.kill()
        process.communicate()


def test_a_cell_that_another_worker_ended_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cells = RunFolder(tmp_path), [Cell(1, 0, "houses", "FT"), Cell(4, 0, "houses", "FT")]
    job = Job(str(tmp_path), {"methods": ["FT"]}, "FT", cells, None, "")
    acquire = FileLock.acquire

    def slow(lock: Any, *args: Any, **options: Any) -> Any:
        write_json(folder.result(cells[1]), {"status": "done"})  # while the first is recorded
        return acquire(lock, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", slow)
    fail(folder, job, {"type": "OSError", "message": "", "traceback": ""})
    assert [found["status"] for found in results(folder).values()] == ["failed", "done"]


def test_what_a_method_says_of_itself_is_in_the_plan(bench: Bench) -> None:
    suite = bench.suite("noted", ["nudge"], num_edits=[1])
    bench.run(suite, "--max-hours", "1e-9")
    plan = json.loads(bench.folder(suite).suite.read_text())
    assert plan["methods"]["nudge"]["note"] == "at random"


def test_the_time_to_prepare_other_settings_does_not_count(bench: Bench) -> None:
    suite = bench.suite("prepared-anew", ["nudge"], num_edits=[4])
    folder = bench.begun(suite)
    before = {"seconds": 1000.0, "done": True, "settings": {"steps": 5}}
    write_json(folder.path / "prepared" / "nudge.json", before)
    assert bench.run(suite) == 0
    assert results(folder)["nudge/n4-s0"]["prepared"]["seconds"] < 1000


def test_what_is_evaluated_is_not_trained_on(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    train = plugin.write_records(bench.home / "train.json", 50)
    suite = bench.suite("trained", ["nudge"], num_edits=[4], train=str(train))
    assert bench.run(suite, "--max-hours", "1e-9") == 0
    assert re.search(r"to train on │ 50 +│ 10 +│ left out: 40 that are", capsys.readouterr().out)
    # Data of earlier commands counts, too: the training set stays what it was.
    other = plugin.write_records(bench.home / "few.json", 10)
    options = ["--data", f"few={other}", "--max-hours", "1e-9"]
    assert bench.run(suite, *options) == 0
    assert re.search(r"to train on │ 50 +│ 10 ", capsys.readouterr().out)
    options[1] = f"more={plugin.write_records(bench.home / 'more.json', 45)}"
    assert bench.run(suite, *options) == 1
    assert "made with another train" in capsys.readouterr().err


def test_methods_can_be_trained_on_records_of_their_own(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bench.home / "known-sets"
    folder.mkdir()
    plugin.write_records(folder / "counterfact-train.json", 45)
    log = bench.home / "own-records.log"
    settings = {"log": str(log)}
    train = plugin.write_records(bench.home / "train-less.json", 42)
    methods = [
        {"name": "nudge", "settings": settings},
        {"name": "nudge", "label": "own", "settings": settings, "train": ["counterfact-train"]},
        {"name": "nudge", "label": "none", "settings": settings, "train": []},
        {"name": "nudge", "label": "lost", "settings": settings, "train": ["dafset-recent"]},
    ]
    options = {"num_edits": [1], "train": str(train), "data_dir": str(folder)}
    suite = bench.suite("own-records", methods, **options)
    assert bench.run(suite) == 0
    output = capsys.readouterr().out
    assert re.search(r"to train on +│ 42 +│ 2 +│ left out: 40 that are", output)
    assert re.search(r"to train own on +│ 45 +│ 5 +│ left out: 40 that are", output)
    assert re.search(r"lost +│ +│ left out +│ dafset-recent, to train on, has no file", output)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(line[1] for line in lines if line[0] == "prepare") == ["0", "2", "5"]
    plugin.write_records(folder / "counterfact-train.json", 46)
    assert bench.run(suite) == 1
    assert "made with another method own: trained_on" in capsys.readouterr().err


# -- What is asked -------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    suite = bench.suite(
        "dry", ["nudge", {"name": "nudge", "label": "needy", "settings": {"needs": "a telescope"}}]
    )
    assert bench.run(suite, "--dry-run") == 0
    output = capsys.readouterr().out
    assert "a telescope" in output and "missing: left out" in output
    assert "not known yet" in output
    folder = bench.folder(suite)
    assert not folder.suite.exists() and not (folder.path / "cells").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", 0], "--jobs is 0; it must be at least 1."),
        (["--only", "method"], "--only 'method' is not of the form KEY=VALUE."),
        (["--only", "N=1"], "--only N=...: choose by data, method, num_edits, stream."),
        (["--only", "method=nudg"], "--only method=nudg fits none of the 2 cells."),
        (["--methods", "nudg"], "There is no method 'nudg'; did you mean 'nudge'?"),
        (["--data", "castles=castles.json"], "Nothing can run: the tables say what is missing."),
        (["--data", "castles/castles.json"], "data: there is no file 'castles/castles.json'."),
        (["--data", "castles.json"], "data: there is no file 'castles.json'."),
        (["--data", "counterfac"], "no file was given; did you mean 'counterfact'?"),
        (["--device", "gpu"], "device is 'gpu'; it must be cpu, cuda or cuda:NUMBER."),
        (["--device", "mps"], "device is 'mps'; it must be cpu, cuda or cuda:NUMBER."),
        (["--device", "cuda:1"], "device is 'cuda:1', and PyTorch finds no such GPU here"),
        (["--num-edits", 1, "--only", "num_edits=4"], "fits none of the 1 cells"),
        (["--num-edits", 0], "num_edits is 0"),
        (["--text", "no.txt"], "no.txt"),
        (["--train", "no.json"], "no.json"),
        (["--engine", "slurm", "--slurm", "gpu"], "--slurm 'gpu' is not of the form KEY=VALUE."),
    ],
)
def test_wrong_options_are_one_sentence(
    bench: Bench,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[Any],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    suite = bench.suite("wrong", [{"name": "nudge", "num_edits": [1, 4]}])
    assert bench.run(suite, *options) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert results(bench.folder(suite)) == {}


def test_methods_must_be_named(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--out", str(bench.home / "none")]) == 1
    assert "Which methods?" in capsys.readouterr().err


# -- Slurm ---------------------------------------------------------------------------------------


def test_jobs_of_submitit_share_the_work(bench: Bench) -> None:
    """Submitit's jobs on this machine; on a cluster they are Slurm's."""
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    methods = ["nudge", {"name": "nudge", "label": "second"}]
    suite = bench.suite("slurm", methods)
    cluster = ["--slurm", "cluster=local", "timeout_min=60"]
    assert bench.run(suite, "--engine", "slurm", "--jobs", 2, *cluster) == 0
    found = results(bench.folder(suite))
    assert len(found) == 4
    for cell in CELLS:
        assert found[f"nudge/{cell}"]["scores"] == found[f"second/{cell}"]["scores"]


def test_a_machine_without_slurm_says_so(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="the extra `slurm` is not installed")
    monkeypatch.setenv("PATH", str(bench.home))
    assert bench.run(bench.suite("no-slurm", ["nudge"]), "--engine", "slurm") == 1
    assert "Slurm's srun is not on this machine" in capsys.readouterr().err


def test_a_worker_has_its_share_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from easyedit_dafnet.bench.engines import worker_environment

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "OMP_NUM_THREADS" not in worker_environment(0, 1, "cpu")
    share = worker_environment(1, 2, "cpu")["OMP_NUM_THREADS"]
    assert int(share) == max(1, torch.get_num_threads() // 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in worker_environment(0, 2, "cpu")


def test_a_worker_has_one_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from easyedit_dafnet.bench.engines import worker_environment

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    seen = [worker_environment(s, 3, "cuda")["CUDA_VISIBLE_DEVICES"] for s in range(3)]
    assert seen == ["4", "6", "4"]
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 3, "cuda:1")


def test_cells_are_chosen_by_their_names() -> None:
    from easyedit_dafnet.bench.command import fits

    cell = Cell(10, 0, "zsre", "FT")
    assert fits(cell, {"data": "zsre", "num_edits": 10})
    assert not fits(cell, {"data": "zsre", "label": "ROME"})
