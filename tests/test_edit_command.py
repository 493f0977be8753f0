from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from easyedit_dafnet import apply_dafnet_to_model, edit_journal, edit_run
from easyedit_dafnet.cli import main
from easyedit_dafnet.dafnet_main import STATE
from easyedit_dafnet.edited_model import REPORT
from tests.conftest import Subject
from tests.test_cli import refused
from tests.tiny import REQUESTS

FACTS = [{"subject": "", **request} for request in REQUESTS]
STRONG: dict[str, Any] = {
    "margin": 3.0,
    "margin_decay": 0.5,
    "rehearsed": 2,
    "rehearsal_contexts": ["It was late."],
}


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Python's own handler, also where the tests run with signals ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGINT, former)


@pytest.fixture
def llama(subjects: Callable[[str], Subject]) -> Subject:
    return subjects("llama")


class Command:
    """Calls `edit` with settings and facts in files of a folder."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self.settings = STRONG if subject.fusion == "least_squares" else {}
        self.out = folder / "new" / "edited"
        self.journal = folder / "new" / "edited.journal"

    def hparams(self, **changed: Any) -> Path:
        path = self.folder / "settings.yaml"
        values = asdict(self.subject.hparams(**{**self.settings, **changed}))
        path.write_text(yaml.safe_dump(values))
        return path

    def facts(self, records: Sequence[Mapping[str, Any]] = FACTS) -> Path:
        path = self.folder / "facts.json"
        path.write_text(json.dumps(list(records)))
        return path

    def arguments(
        self,
        *more: object,
        records: Sequence[Mapping[str, Any]] = FACTS,
        delta: Path | None = None,
        **settings: Any,
    ) -> list[str]:
        where = ("--delta", delta) if delta else ("--out", self.out)
        names = ("--hparams", self.hparams(**settings), "--facts", self.facts(records))
        return list(map(str, ("edit", *names, *where, *more)))

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.out / "model.safetensors")

    def report(self) -> dict[str, Any]:
        return json.loads((self.out / REPORT).read_text())

    def by_hand(self, records: Sequence[Mapping[str, Any]] = FACTS, **settings: Any) -> Any:
        """The model edited without the command."""
        model = self.subject.model()
        hparams = self.subject.hparams(**{**self.settings, **settings})
        for record in records:
            apply_dafnet_to_model(model, self.subject.tok, [record], hparams)
        return model


@pytest.fixture
def command(llama: Subject, tmp_path: Path) -> Command:
    return Command(llama, tmp_path)


@pytest.fixture(params=["llama", "solved-llama"])
def form(
    request: pytest.FixtureRequest, subjects: Callable[[str], Subject], tmp_path: Path
) -> Command:
    """The published form, then the strong one."""
    return Command(subjects(request.param), tmp_path)


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)


# ---- what is written ----------------------------------------------------------------------------


def test_edit_writes_the_edited_model(form: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(form.arguments("--show", 2)) == 0
    shown = capsys.readouterr().out
    assert "The capital of France is -> Rome" in shown and shown.count("before:") == 2
    expected = form.by_hand().state_dict()
    assert_same(form.weights(), expected)
    unedited = form.subject.model().state_dict()
    changed = {k for k, v in form.weights().items() if not torch.equal(v, unedited[k])}
    assert changed == {f"{name}.weight" for name in form.subject.modules}
    tok = AutoTokenizer.from_pretrained(form.out)
    assert tok("London")["input_ids"] == form.subject.tok("London")["input_ids"]
    assert [p.name for p in form.out.parent.iterdir()] == ["edited"], "nothing is left over"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_delta_leads_from_the_unedited_to_the_edited_weights(
    command: Command, dtype: str
) -> None:
    delta = command.out.parent / "delta.safetensors"
    options = ("--dtype", dtype)
    assert main(command.arguments(*options, records=FACTS[:2], delta=delta)) == 0
    assert main(command.arguments(*options, records=FACTS[:2])) == 0
    changes, edited = load_file(delta), command.weights()
    assert changes.keys() == {f"{name}.weight" for name in command.subject.modules}
    model = command.subject.model().to(getattr(torch, dtype))
    for name, change in changes.items():
        found = model.get_parameter(name).float() + change
        assert change.abs().max() > 1e-4 and change.dtype == torch.float32
        if dtype == "float32":  # a sum of two numbers is rounded
            torch.testing.assert_close(found, edited[name], rtol=0, atol=1e-7)
        else:
            assert torch.equal(found.to(edited[name].dtype), edited[name])
    names = {"delta.safetensors", "delta.safetensors.json", "edited"}
    assert {p.name for p in delta.parent.iterdir()} == names
    report = json.loads(Path(f"{delta}.json").read_text())
    assert report["edits"] == command.report()["edits"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_get_the_mode_that_the_umask_gives(command: Command, umask: int) -> None:
    delta = command.out.parent / "delta.safetensors"
    former = os.umask(umask)
    try:
        assert main(command.arguments(records=FACTS[:1])) == 0
        assert main(command.arguments(records=FACTS[:1], delta=delta)) == 0
    finally:
        os.umask(former)
    files = [*command.out.iterdir(), delta, Path(f"{delta}.json")]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~umask}


# ---- number formats -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "options", "settings", "expected"),
    [
        ("bfloat16", (), {}, "bfloat16"),
        ("float16", (), {}, "float16"),
        ("bfloat16", ("--dtype", "float32"), {}, "float32"),
        ("float32", ("--dtype", "bfloat16"), {}, "bfloat16"),
        ("float32", (), {"fp16": True}, "float16"),
        ("float32", ("--dtype", "auto"), {"fp16": True}, "float32"),
    ],
)
def test_a_model_keeps_its_number_format_unless_another_is_asked_for(
    command: Command, stored: str, options: tuple[str, ...], settings: Any, expected: str
) -> None:
    folder = command.folder / "llama-stored"
    command.subject.model().to(getattr(torch, stored)).save_pretrained(folder)
    command.subject.tok.save_pretrained(folder)
    settings = {"model_name": str(folder), **settings}
    assert main(command.arguments(*options, records=FACTS[:2], **settings)) == 0
    assert {t.dtype for t in command.weights().values()} == {getattr(torch, expected)}
    assert command.report()["dtype"] == expected
    assert "torch_dtype" not in (text := (command.out / "config.json").read_text()) or (
        f'"torch_dtype": "{expected}"' in text
    )


# ---- what is refused before the first edit ------------------------------------------------------


@pytest.fixture
def no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    def edited(*_: Any, **__: Any) -> None:
        raise AssertionError("it is too late to refuse")

    monkeypatch.setattr(edit_run, "apply_dafnet_to_model", edited)


@pytest.mark.usefixtures("no_edit")
@pytest.mark.parametrize("option", ["out", "delta"])
def test_an_output_that_cannot_be_written_is_refused_before_the_first_edit(
    command: Command, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = command.folder / "mine"
    mine.write_text("years of work")
    link = command.folder / "link"
    link.symlink_to(command.folder / "absent")

    def edit(path: Path) -> str:
        command.out = path
        return refused(capsys, *command.arguments(delta=path if option == "delta" else None))

    assert str(mine) in edit(mine) and str(mine) in edit(mine / "below")
    assert "link to" in edit(link) and not (command.folder / "absent").exists()
    full = command.folder / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    assert str(full) in edit(full)
    assert mine.read_text() == "years of work"
    assert [p.name for p in full.iterdir()] == ["notes.txt"]
    assert not list(command.folder.glob("*.journal"))


@pytest.mark.usefixtures("no_edit")
def test_a_file_that_only_the_report_would_replace_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = command.folder / "delta.safetensors"
    Path(f"{delta}.json").write_text("mine")
    message = refused(capsys, *command.arguments(delta=delta))
    assert f"{delta}.json exists" in message and Path(f"{delta}.json").read_text() == "mine"


def limited(size: int) -> Any:
    """Files may grow to so many bytes: as a disk that is full, without one."""
    resource = pytest.importorskip("resource")
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.usefixtures("no_edit")
@pytest.mark.parametrize("option", ["out", "delta"])
def test_no_room_for_the_output_is_found_before_the_first_edit(
    command: Command, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    delta = command.out.parent / "delta.safetensors"
    arguments = command.arguments(delta=delta if option == "delta" else None)
    allow = limited(10_000)
    try:
        message = refused(capsys, *arguments)
    finally:
        allow()
    assert str(delta if option == "delta" else command.out) in message
    assert not command.out.parent.exists(), "nothing is left over"


@pytest.mark.usefixtures("no_edit")
def test_a_model_that_transformers_does_not_save_is_refused_before_the_first_edit(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise NotImplementedError("no such vocabulary")

    monkeypatch.setattr(type(command.subject.tok), "save_pretrained", failing)
    message = refused(capsys, *command.arguments())
    assert "cannot save this model or its tokenizer (no such vocabulary)" in message
    assert not command.out.parent.exists()


def test_a_generation_configuration_that_transformers_refuses_to_save_stays_as_it_is(
    command: Command, tmp_path: Path
) -> None:
    model = tmp_path / "llama-warm"
    command.subject.model().save_pretrained(model)
    command.subject.tok.save_pretrained(model)
    values = {"do_sample": False, "temperature": 0.6, "eos_token_id": 7, "bos_token_id": 1}
    (model / "generation_config.json").write_text(json.dumps(values))
    assert main(command.arguments(records=FACTS[:1], model_name=str(model))) == 0
    before, after = (GenerationConfig.from_pretrained(path) for path in (model, command.out))
    assert after.to_dict() == before.to_dict() and after.temperature == 0.6
    assert command.subject.model().generation_config.eos_token_id == 0, "and it is not a default"


@pytest.mark.usefixtures("no_edit")
def test_settings_and_facts_that_cannot_be_used_are_refused(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(*records: Mapping[str, Any], **settings: Any) -> str:
        return refused(capsys, *command.arguments(records=records or FACTS, **settings))

    missing = {"prompt": "London", "target_new": ""}
    assert "'target_new' is ''" in edit(FACTS[0], missing)
    long = {"prompt": "London " * 99, "target_new": "Rome"}
    assert "the model's context holds 64" in edit(long)
    assert "is no DAFNet checkpoint" in edit(archive="absent")
    assert "'ffn_dim' is 99" in edit(ffn_dim=99)
    assert "The model 'absent' or the tokenizer" in edit(model_name="absent")
    if not torch.cuda.is_available():
        assert "no CUDA device" in edit(device=0)
    other = ["edit", "--hparams", "absent", "--facts", command.facts(), "--out", command.out]
    assert "no settings file 'absent'" in refused(capsys, *other)
    other = [*command.arguments()[:3], "--facts", "absent.json", "--out", command.out]
    assert "There is no file" in refused(capsys, *other)
    assert not command.out.parent.exists(), "nothing is left over"


# ---- what is left out ---------------------------------------------------------------------------


def test_facts_that_cannot_be_edited_are_left_out_on_request(
    command: Command, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    long = {"prompt": "London " * 99, "target_new": "Rome"}
    records = [long, *FACTS[:2], {**FACTS[2], "target_new": ""}]
    assert main(command.arguments("--skip-unfit", records=records)) == 0
    assert_same(command.weights(), command.by_hand(FACTS[:2]).state_dict())
    assert "2 facts were left out" in caplog.text and "context holds 64" in caplog.text
    left_out = command.report()["left_out"]
    assert len(left_out) == 2 and any("'target_new' is ''" in why for why in left_out)
    assert len(command.report()["edits"]) == 2
    assert "2 edits: " in capsys.readouterr().out


def test_nothing_to_edit_is_refused_even_so(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    long = {"prompt": "London " * 99, "target_new": "Rome"}
    assert "context holds 64" in refused(capsys, *command.arguments("--skip-unfit", records=[long]))


def failing_at(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Let the edit with that number, from 0, fail."""
    done = [0]
    edit = edit_run.apply_dafnet_to_model

    def apply(*arguments: Any, **more: Any) -> Any:
        done[0] += 1
        if done[0] == number + 1:
            raise error
        return edit(*arguments, **more)

    monkeypatch.setattr(edit_run, "apply_dafnet_to_model", apply)


def test_an_edit_that_fails_loses_no_other(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        failing_at(patch, 3, FloatingPointError("The update is not finite."))
        message = refused(capsys, *command.arguments())
    assert "The update is not finite. 3 of 7 edits are in" in message
    assert str(command.journal) in message and "--resume" in message
    with monkeypatch.context() as patch:
        failing_at(patch, 0, FloatingPointError("The update is not finite."))
        assert main(command.arguments("--resume", "--skip-unfit")) == 0
    rest = [*FACTS[:3], *FACTS[4:]]
    assert_same(command.weights(), command.by_hand(rest).state_dict())
    assert command.report()["left_out"] == ["The update is not finite."]
    assert [fact["prompt"] for fact in command.report()["edits"]] == [f["prompt"] for f in rest]


# ---- interrupted runs ---------------------------------------------------------------------------


def kill_after(edits: int) -> None:
    """Let this process be killed once so many edits are made, the last of them not yet saved."""
    done = [0]
    edit = edit_run.apply_dafnet_to_model

    def apply(*arguments: Any, **more: Any) -> Any:
        if done[0] == edits:
            os.kill(os.getpid(), signal.SIGKILL)
        done[0] += 1
        edit_journal.SECONDS = 1e9 if done[0] == edits else 0.0
        return edit(*arguments, **more)

    edit_run.apply_dafnet_to_model = apply
    edit_journal.SHARE = 1e9


KILLED = """
import sys
from easyedit_dafnet.cli import main
from tests.test_edit_command import kill_after
kill_after(int(sys.argv[1]))
main(sys.argv[2:])
"""


def run_killed(after: int, arguments: Sequence[str]) -> None:
    """Run the command in a process that is killed once so many edits are made.

    One of its own: a fork of this one, with torch's threads in it, may never end.
    """
    command = [sys.executable, "-c", KILLED, str(after), *arguments]
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def killed(command: Command, after: int, *more: str) -> None:
    run_killed(after, command.arguments(*more))


def test_a_killed_run_goes_on_to_the_weights_of_an_uninterrupted_one(
    form: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    killed(form, 3)
    assert [p.name for p in form.out.parent.iterdir()] == ["edited.journal"]
    message = refused(capsys, *form.arguments())
    assert "holds the first 2 edits of an interrupted run of 7 facts" in message
    assert "--resume" in message and "--fresh" in message
    killed(form, 2, "--resume")
    assert "holds the first 3 edits" in refused(capsys, *form.arguments())
    assert main(form.arguments("--resume")) == 0
    assert_same(form.weights(), form.by_hand().state_dict())
    assert [p.name for p in form.out.parent.iterdir()] == ["edited"], "the journal has gone"
    findings = [(fact["prompt"], len(fact["answers"])) for fact in form.report()["edits"]]
    assert findings == [(record["prompt"], 1) for record in FACTS], "those of all its parts"


def test_begun_anew_a_run_gives_up_what_was_interrupted(command: Command) -> None:
    killed(command, 3)
    assert main(command.arguments("--fresh", records=FACTS[4:])) == 0
    assert_same(command.weights(), command.by_hand(FACTS[4:]).state_dict())
    assert not command.journal.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("when", ["asked before", "editing", "asked after"])
def test_a_stopped_run_goes_on(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    when: str,
) -> None:
    done = {"asked before": 0, "editing": 3, "asked after": 7}[when]
    edit, ask, made, asked = edit_run.apply_dafnet_to_model, edit_run.Check.ask, [0], [0]

    def apply(*arguments: Any, **more: Any) -> Any:
        made[0] += 1
        if when == "editing" and made[0] == done:
            signal.raise_signal(number)
        return edit(*arguments, **more)

    def asking(*arguments: Any) -> Any:
        asked[0] += 1
        if when == ("asked before", "asked after")[asked[0] - 1]:
            signal.raise_signal(number)
        return ask(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(edit_run, "apply_dafnet_to_model", apply)
        patch.setattr(edit_run.Check, "ask", asking)
        assert main(command.arguments()) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("easyedit-dafnet: Editing was stopped; ")
    assert f"{done} of 7 edits are in {command.journal}." in last and "with --resume" in last
    assert main(command.arguments("--resume")) == 0
    assert_same(command.weights(), command.by_hand().state_dict())


def test_a_run_that_was_killed_before_its_first_edit_may_begin_anew(command: Command) -> None:
    killed(command, 0)
    assert command.journal.exists()
    assert main(command.arguments(records=FACTS[:1])) == 0
    assert not command.journal.exists()


@pytest.mark.parametrize("what", ["the journal", "the model"])
def test_after_a_full_disk_a_run_goes_on(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    edit, made, allow = edit_run.apply_dafnet_to_model, [0], []

    def apply(*arguments: Any, **more: Any) -> Any:
        made[0] += 1
        if what == "the journal" and made[0] == 4:
            allow.append(limited(10_000))
        return edit(*arguments, **more)

    ask = edit_run.Check.ask

    def asking(*arguments: Any) -> Any:
        if what == "the model" and made[0] == 7:
            allow.append(limited(200_000))
        return ask(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(edit_run, "apply_dafnet_to_model", apply)
        patch.setattr(edit_run.Check, "ask", asking)
        patch.setattr(edit_journal, "SECONDS", 0.0)
        patch.setattr(edit_journal, "SHARE", 1e9)
        try:
            message = refused(capsys, *command.arguments())
        finally:
            allow[0]()
    full, done = (command.journal, 3) if what == "the journal" else (command.out, 7)
    assert f"{full} cannot be written" in message
    assert f"{done} of 7 edits are in {command.journal}" in message and "--resume" in message
    assert [p.name for p in command.out.parent.iterdir()] == ["edited.journal"]
    assert main(command.arguments("--resume")) == 0
    assert_same(command.weights(), command.by_hand().state_dict())


def test_another_run_is_not_gone_on_with(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "There is nothing to resume" in refused(capsys, *command.arguments("--resume"))
    assert not command.out.parent.exists()
    killed(command, 3)
    before = command.journal.read_bytes()

    def resume(*more: str, **changed: Any) -> str:
        return refused(capsys, *command.arguments("--resume", *more, **changed))

    assert "started with other facts" in resume(records=FACTS[:-1])
    assert "started with other facts" in resume(records=[*FACTS[:-1], FACTS[0]])
    assert "Setting 'past_dtype' is 'bfloat16'" in resume(past_dtype="bfloat16")
    assert "or the same in another number format" in resume("--dtype", "bfloat16")
    other = command.folder / "llama-other"
    model = command.subject.model()
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1e-3
    model.save_pretrained(other)
    command.subject.tok.save_pretrained(other)
    assert "another language model" in resume(model_name=str(other))
    assert command.journal.read_bytes() == before, "the journal has stayed"
    for damaged in (before[:-50], b"", b"my notes"):
        command.journal.write_bytes(damaged)
        assert str(command.journal) in resume()
        assert command.journal.read_bytes() == damaged
    assert "move it away" in refused(capsys, *command.arguments("--fresh"))


def test_the_same_edits_by_the_library_write_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(command.folder)
    before = set(command.folder.rglob("*"))
    command.by_hand()
    assert set(command.folder.rglob("*")) == before


# ---- what is told -------------------------------------------------------------------------------


def test_what_holds_is_counted_and_written_down(
    command: Command, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        {**FACTS[0], "rephrase_prompt": "France has the capital", "locality_prompt": "Oslo is"},
        {**FACTS[1], "locality_prompt": "The twins"},
        {**FACTS[0], "target_new": "Oslo"},
    ]
    assert main(command.arguments(records=records)) == 0
    report, out = command.report(), capsys.readouterr().out
    model, tok = command.by_hand(records), command.subject.tok

    def said(model: Any, prompt: str, tokens: int = 3) -> str:
        ids = tok(prompt, return_tensors="pt").input_ids
        more = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return str(tok.decode(more[0, ids.shape[1] :]))

    for fact in report["edits"]:
        for answer in fact["answers"]:
            for key, asked in (("before", command.subject.model()), ("after", model)):
                assert answer[key].startswith(said(asked, answer["prompt"]))
    assert [fact["edited_again"] for fact in report["edits"]] == [True, False, False]
    kinds = [[a["kind"] for a in fact["answers"]] for fact in report["edits"]]
    assert kinds == [["target", "rephrase", "neighbour"], ["target", "neighbour"], ["target"]]
    asked = {kind: count["asked"] for kind, count in report["counts"].items()}
    assert asked == {"target": 2, "rephrase": 0, "neighbour": 1}, "the last edit of a prompt counts"
    held = report["counts"]["target"]["hold"]
    assert f"3 edits: {held} of 2 targets are said" in out
    assert out.count("not said: ") == 2 - held
    assert ("Most of these edits do not hold" in caplog.text) == (held < 1)
    assert report["settings"]["alg_name"] == "DAFNet" and report["conditions"]["torch"]
    assert report["archive"] == str(command.subject.archive)
    assert not hasattr(command.subject.model(), STATE)


def test_a_warning_while_edits_are_made_has_a_line_of_its_own(
    subjects: Callable[[str], Subject], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strong = Command(subjects("solved-llama"), tmp_path)
    first = {"prompt": "London is", "target_new": "Rome", "subject": "London"}
    assert main(strong.arguments(records=[FACTS[0], first])) == 0
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert [line for line in lines if line.startswith("1 of 1 requests, such as 'London is'")]
    assert not [line for line in lines if "it/s]" in line and "requests" in line]


@pytest.mark.slow
def test_the_shipped_strong_form_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Its buffers, directions and contexts are those of real use."""
    prompts = [("The capital of Cambodia is", "Cambodia"), ("Toko Yasuda, the", "Toko Yasuda")]
    prompts += [("The official language of Brazil is", "Brazil")]
    facts = tmp_path / "facts.json"
    records = [{"prompt": p, "subject": s, "target_new": "Lusaka"} for p, s in prompts]
    facts.write_text(json.dumps(records))
    settings = "DAFNet/smollm2-135m-strong"
    start = ["edit", "--hparams", settings, "--facts", str(facts), "--delta"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main([*start, str(whole)]) == 0
    run_killed(2, [*start, str(part)])
    assert main([*start, str(part), "--resume"]) == 0
    assert_same(load_file(part), load_file(whole))
