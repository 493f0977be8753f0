from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from easyedit_dafnet.bench import Workbench, register_method
from easyedit_dafnet.bench.method import REGISTERED
from easyedit_dafnet.bench.own_methods import DAFNet, DAFNetStrong, Unedited
from easyedit_dafnet.bench.registry import (
    UnknownMethod,
    find_method,
    method_names,
    unavailable,
)
from tests.bench.conftest import RECORDS

# What a third party writes: one file, and one line of its packaging.
THIRD_PARTY = '''
    """Moves the output embeddings of the target a little towards each prompt's last state."""

    import torch
    from easyedit_dafnet.bench import Method


    class Nudge(Method):
        name = "Nudge"

        def __init__(self, bench, settings):
            super().__init__(bench, settings)
            self.step = settings.get("step", 0.1)

        @torch.no_grad()
        def edit(self, requests):
            tok = self.bench.tok
            for request in requests:
                prompt = tok(request["prompt"], return_tensors="pt")
                states = self.model(**prompt, output_hidden_states=True).hidden_states
                (target, *_) = tok(" " + request["target_new"])["input_ids"]
                self.model.lm_head.weight[target] += self.step * states[-1][0, -1]
'''


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a method, installed as pip would."""
    (tmp_path / "nudge_editing.py").write_text(textwrap.dedent(THIRD_PARTY))
    info = tmp_path / "nudge_editing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nudge-editing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[easyedit_dafnet.methods]\nNudge = nudge_editing:Nudge\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "Nudge"
    sys.modules.pop("nudge_editing", None)


def test_ours_and_the_hosts_methods_are_there() -> None:
    names = method_names()
    assert names[0] == "unedited" and names[-2:] == ["DAFNet", "DAFNet-strong"]
    assert {"FT", "ROME", "MEMIT", "BFT"} <= set(names)
    assert find_method("unedited") is Unedited and find_method("DAFNet") is DAFNet
    assert find_method("DAFNet-strong") is DAFNetStrong


def test_a_mistyped_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownMethod, match="no method 'MEMITT'; did you mean 'MEMIT'"):
        find_method("MEMITT")
    with pytest.raises(UnknownMethod, match="did you mean 'DAFNet-strong'"):
        find_method("DAFNet-stong")


def test_a_method_that_cannot_run_says_why() -> None:
    assert unavailable("unedited") is None and unavailable("FT") is None
    assert "API" in (unavailable("FT-Api") or "")


def test_a_third_party_adds_a_method_in_one_file(
    third_party: str, workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    assert third_party in method_names()
    bench = workbench(tmp_path)
    method = find_method(third_party)(bench, {"step": 50.0})
    method.start(bench.load_model())
    request = RECORDS[0].request()
    method.edit([request])
    prompt = bench.tok(request["prompt"], return_tensors="pt")
    best = int(method.model(**prompt).logits[0, -1].argmax())
    assert best == bench.tok(" " + request["target_new"])["input_ids"][0]


def test_a_script_adds_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTERED, "nothing", Unedited)  # gone again after the test

    class Nothing(Unedited):
        name = "nothing"

    register_method("nothing", Nothing)
    assert find_method("nothing") is Nothing and "nothing" in method_names()


def test_ours_work_without_easyedit(tmp_path: Path) -> None:
    code = """
        from easyedit_dafnet.bench.registry import find_method, method_names
        print(*method_names())
        find_method("ROME")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "EASYEDIT_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["unedited", "BFT", "DAFNet", "DAFNet-strong"]
    assert "no method 'ROME'" in run.stderr and "not a checkout of EasyEdit" in run.stderr
