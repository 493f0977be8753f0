from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet.bench import EditRecord, Probe, Workbench
from tests.tiny import REQUESTS, tiny_llama

RECORDS = [
    EditRecord(
        id=str(i),
        prompt=request["prompt"],
        target_new=request["target_new"],
        subject=request["prompt"].split()[-1],
        rephrases=(f"It is well known that {request['prompt']}",),
        locality={"neighborhood": (Probe("The capital of Italy is", ("Rome",)),)},
    )
    for i, request in enumerate(REQUESTS)
]


@pytest.fixture(scope="session")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Workbench]:
    """A tiny random Llama to be edited; the argument is the method's own folder."""
    model = tiny_llama(tmp_path_factory.mktemp("bench") / "tiny-llama")
    tok: Any = AutoTokenizer.from_pretrained(model)
    tok.padding_side = "left"

    def make(folder: Path) -> Workbench:
        return Workbench(
            model_name=str(model),
            tok=tok,
            load_model=lambda: AutoModelForCausalLM.from_pretrained(model).eval(),
            device="cpu",
            dtype="float32",
            seed=0,
            text=[record.prompt for record in RECORDS],
            train=RECORDS,
            folder=folder,
        )

    return make
