"""What comes with the package edits the embedded model as its cards say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet import DAFNetHyperParams, apply_dafnet_to_model
from easyedit_dafnet.dafnet_hparams import shipped
from easyedit_dafnet.dafnet_main import STATE
from easyedit_dafnet.smollm2 import smollm2_path

PRESETS = ["DAFNet/smollm2-135m", "DAFNet/smollm2-135m-strong"]
DATA = Path(os.environ.get("DAFNET_DATA") or Path(__file__).parents[2] / "shared" / "data")
MB = 2**20


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    path = smollm2_path()
    return AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@pytest.fixture
def edited(smollm2: tuple[Any, Any]) -> Iterator[Any]:
    """edit(preset, requests); the weights are put back afterwards."""
    model, tok = smollm2
    kept: dict[str, torch.Tensor] = {}

    def edit(preset: str, requests: list[dict[str, str]]) -> None:
        hparams = DAFNetHyperParams.from_hparams(preset)
        _, originals = apply_dafnet_to_model(
            model, tok, requests, hparams, return_orig_weights=True
        )
        kept.update(originals)

    yield edit
    model.load_state_dict(kept, strict=False)
    if hasattr(model, STATE):
        delattr(model, STATE)


def answer(smollm2: tuple[Any, Any], prompt: str, tokens: int = 4) -> str:
    model, tok = smollm2
    inputs = tok(prompt, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(tok.decode(out[0, inputs.input_ids.shape[1] :])).strip()


@pytest.mark.parametrize("preset", PRESETS)
def test_a_later_edit_of_the_same_fact_takes_its_place(
    preset: str, smollm2: tuple[Any, Any], edited: Any
) -> None:
    fact = {"prompt": "The capital of Cambodia is", "subject": "Cambodia"}
    assert answer(smollm2, fact["prompt"]).startswith("Phnom")
    edited(preset, [{**fact, "target_new": "Lusaka"}])
    assert answer(smollm2, fact["prompt"]).startswith("Lusaka")
    edited(preset, [{**fact, "target_new": "Oslo"}])
    assert answer(smollm2, fact["prompt"]).startswith("Oslo")


FACTS = [
    ("The capital of Cambodia is", "Cambodia", "Lusaka"),
    ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English"),
    ("Toko Yasuda, the", "Toko Yasuda", "piano"),
    ("Autonomous University of Madrid, which is located in", "Autonomous University of Madrid",
     "Sweden"),
    ("The official language of Brazil is", "Brazil", "Korean"),
    ("Leonardo da Vinci was born in", "Leonardo da Vinci", "London"),
]  # fmt: skip


def test_the_strong_preset_holds_a_sequence(smollm2: tuple[Any, Any], edited: Any) -> None:
    for prompt, subject, target in FACTS:
        edited(PRESETS[1], [{"prompt": prompt, "subject": subject, "target_new": target}])
    said = [answer(smollm2, prompt).startswith(target) for prompt, _, target in FACTS]
    assert sum(said) >= len(FACTS) - 1
    assert answer(smollm2, "The capital of Italy is").startswith("Rome")


def test_a_target_of_thirty_tokens_is_said(smollm2: tuple[Any, Any], edited: Any) -> None:
    _, tok = smollm2
    target = "at 6:45, 9:10 and 13:30 on weekdays, and at noon on Sundays and holidays"
    request = {"prompt": "The train to Marrow Point leaves", "subject": "Marrow Point"}
    count = len(tok(" " + target)["input_ids"])
    assert count == 30
    edited(PRESETS[1], [{**request, "target_new": target}])
    assert answer(smollm2, request["prompt"], count) == target
    assert answer(smollm2, "The capital of Italy is").startswith("Rome")


def test_subjects_need_not_be_named(smollm2: tuple[Any, Any], edited: Any) -> None:
    edited(PRESETS[1], [{"prompt": "The capital of Cambodia is", "target_new": "Lusaka"}])
    assert answer(smollm2, "The capital of Cambodia is").startswith("Lusaka")


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-strong"])
def test_shipped_networks_are_small_and_have_a_card(name: str) -> None:
    folder = shipped("checkpoints") / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 40 * MB
    card = (folder / "README.md").read_text()
    training = json.loads((folder / "config.json").read_text())["training"]
    assert "easyedit-dafnet train --hparams TRAINING/DAFNet/" + name in card
    assert str(training["settings"]["seed"]) in card


def prompts(value: Any) -> set[str]:
    """All texts of a record at any depth that have several words and are no answers."""
    if isinstance(value, dict):
        value = [v for k, v in value.items() if k not in ("ground_truth", "target_new", "subject")]
    if isinstance(value, list):
        return set().union(*map(prompts, value))
    return {value.strip()} if isinstance(value, str) and value.count(" ") > 2 else set()


def test_training_and_evaluation_share_no_prompt() -> None:
    files = [
        "counterfact/counterfact-train.json",
        "counterfact/counterfact-edit-dev.json",
        "zsre/zsre_mend_eval_portability-dev.json",
        "zsre/knowedit-zsre-dev.json",
    ]
    if not (DATA / files[0]).is_file():
        pytest.skip("no CounterFact here; set DAFNET_DATA to a folder with it")
    train, *others = (json.loads((DATA / file).read_text()) for file in files)
    known = set().union(*(prompts(record) for record in train))
    subjects = {record["subject"] for record in train}
    for records in others:
        assert not known & set().union(*(prompts(record) for record in records))
    assert not subjects & {record["subject"] for record in others[0]}
