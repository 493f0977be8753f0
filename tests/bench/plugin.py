"""A third party's method, found by its entry point as if its package were installed."""

from __future__ import annotations

import json
from pathlib import Path

MODULE = '''
import os
import time
from pathlib import Path

import torch
from easyedit_dafnet.bench import Method, Need


class Nudge(Method):
    """Steps of gradient descent on the output embeddings, a little at random.

    settings: pause, seconds of an edit; fail_on and die_on, a part of the prompt at which it
    raises or kills its process (only once where `once` names a file to leave); needs, what is
    missing; log, a file that gets a line for each preparation (with the number of training
    records) and edit, and the process's number; prepare_seconds and prepare_fails.
    """

    name = "nudge"
    note = "at random"

    def needs(self):
        missing = self.settings.get("needs")
        return [Need(missing, "missing", "ask its makers")] if missing else []

    def note_down(self, line):
        if "log" in self.settings:
            with open(self.settings["log"], "a") as log:
                print(line, os.getpid(), file=log)

    def prepare(self):
        marker = self.bench.folder / "ready"
        if not marker.exists():
            if self.settings.get("prepare_fails"):
                raise RuntimeError("the preparation went wrong")
            if "log" in self.settings:  # or else the records may not be at hand
                self.note_down(f"prepare {len(self.bench.train)}")
            time.sleep(self.settings.get("prepare_seconds", 0))
            marker.touch()

    def edit(self, requests):
        for request in requests:
            self.note_down(request["case_id"])
            print("editing", request["prompt"])
            time.sleep(self.settings.get("pause", 0))
            once = Path(self.settings.get("once", "/nonexistent"))
            if self.settings.get("fail_on", "\\0") in request["prompt"] and not once.exists():
                raise RuntimeError(f"cannot edit {request['prompt']!r}")
            if self.settings.get("die_on", "\\0") in request["prompt"] and not once.exists():
                if "once" in self.settings:
                    once.touch()
                os.kill(os.getpid(), 9)
            text = f"{request['prompt']} {request['target_new']}"
            ids = self.bench.tok(text, return_tensors="pt")["input_ids"]
            weight = self.model.lm_head.weight
            for _ in range(self.settings.get("steps", 1)):
                weight.grad = None
                self.model(input_ids=ids, labels=ids).loss.backward()
                with torch.no_grad():
                    weight -= 0.5 * weight.grad + 1e-3 * torch.randn_like(weight)

    def state_bytes(self):
        return 8


class Wrapper(Nudge):
    """Leaves a module in the model, which then has to be loaded afresh."""

    def edit(self, requests):
        super().edit(requests)
        self.model.extra = torch.nn.Identity()


def nothing_here():
    return "it needs a moon"


def absent(bench, settings):
    raise AssertionError("never made")


absent.unavailable = nothing_here
'''
ENTRY_POINTS = """\
[easyedit_dafnet.methods]
nudge = nudging:Nudge
wrapper = nudging:Wrapper
absent = nudging:absent
"""


def install(folder: Path) -> Path:
    """A folder for sys.path that holds what an installed package would."""
    (folder / "nudging.py").write_text(MODULE)
    metadata = folder / "nudging-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: nudging\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


def write_records(path: Path, count: int) -> Path:
    """Records whose prompts end in numbers, so that a test can name one."""
    records = [
        {
            "case_id": i,
            "subject": f"house {i}",
            "prompt": f"In house {i} lives",
            "target_new": ["Ann", "Bob", "Cleo"][i % 3],
            "ground_truth": "Dan",
            "rephrase_prompt": f"Who is in house {i}?",
            "locality_prompt": f"The town {i} lies in",
            "locality_ground_truth": "France",
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(records))
    return path
