from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.bridge.methods.ike import IKE
from easyedit_dafnet.bridge.methods.training import trainable
from easyedit_dafnet.dafnet_hparams import SettingsError, shipped

from .conftest import REQUESTS, weights
from .test_plain import outside_the_weights
from .test_trained import RECORDS

FILE = str(shipped("hparams") / "IKE/smollm2-135m.yaml")


@pytest.fixture
def bench(bench: Workbench) -> Workbench:
    return dataclasses.replace(bench, train=RECORDS)


def ike(bench: Workbench, **settings: Any) -> IKE:
    return IKE(bench, {"hparams": FILE, "k": 2, **settings})


def test_a_question_gets_the_context_of_the_nearest_edit(bench: Workbench) -> None:
    method = ike(bench)
    assert [need.state for need in method.needs()] == ["ready", "to prepare"]
    with pytest.raises(RuntimeError, match="not encoded yet"):
        start_random_numbers(0)
        method.start(bench.load_model())
    method.prepare()
    assert [need.state for need in method.needs()] == ["ready", "ready"]
    model = bench.load_model()
    unedited, before = weights(model), outside_the_weights(model, bench.tok)
    asked = []
    for _ in range(2):
        start_random_numbers(0)
        method.start(model)
        assert method.ask("Vienna is") == "Vienna is" and method.state_bytes() == 0
        held = []
        for request in REQUESTS:
            method.edit([request])
            held.append(method.state_bytes())
            assert method.ask(request["prompt"]).endswith(
                f"New Fact: {request['prompt']} {request['target_new']}\n"
                f"Prompt: {request['prompt']}"
            )
        assert 0 < held[0] < held[1]
        # Both edits are kept, and a question that is about neither gets the nearer one.
        asked.append([method.ask(r["prompt"]) for r in REQUESTS] + [method.ask("Vienna is")])
        assert asked[-1][0] != asked[-1][1] and asked[-1][0].count("New Fact: ") >= 3
        assert asked[-1][2].endswith("\nPrompt: Vienna is")
        method.stop()
    assert asked[0] == asked[1]
    assert outside_the_weights(model, bench.tok) == before
    assert all(torch.equal(tensor, unedited[name]) for name, tensor in weights(model).items())


def test_demonstrations_are_those_of_easyedit(bench: Workbench, tmp_path: Path) -> None:
    """As EasyEdit itself encodes and picks them, with an encoder from a folder."""
    folder = tmp_path / "encoder"
    SentenceTransformer(bench.model_name, device="cpu").save(str(folder))
    method = ike(bench, sentence_model_name=str(folder))
    method.prepare()
    start_random_numbers(0)
    method.start(bench.load_model())
    method.edit(REQUESTS)
    hparams = dataclasses.replace(method.hparams, results_dir=str(tmp_path))
    host = importlib.import_module("easyeditor.models.ike.util")
    host.encode_ike_facts(SentenceTransformer(str(folder), device="cpu"), method.facts, hparams)
    for request in REQUESTS:
        examples = method.function(None, None, dict(request), hparams, train_ds=method.facts)
        assert len(examples) >= 2
        assert method.ask(request["prompt"]).startswith("".join(examples) + "New Fact: ")
    method.stop()


def test_the_default_encoder_is_the_models_first_layers(bench: Workbench) -> None:
    text = RECORDS[0].prompt
    encoder = AutoModel.from_pretrained(bench.model_name, num_hidden_layers=IKE.LAYERS).eval()
    with torch.no_grad():
        hidden = encoder(**bench.tok(text, return_tensors="pt")).last_hidden_state
    mean = torch.nn.functional.normalize(hidden.mean(1), dim=-1)
    torch.testing.assert_close(ike(bench).encode(text), mean)
    assert "first 2 layers" in ike(bench).effective_settings["sentence_model_name"]


def test_demonstrations_are_encoded_once(bench: Workbench) -> None:
    ike(bench).prepare()
    names = sorted(file.name for file in bench.folder.iterdir())
    assert names == ["archive.safetensors", "prepared.json", "sentences.json"]  # no pickle
    note = json.loads((bench.folder / "prepared.json").read_text())
    assert note["records"] == len(trainable(RECORDS)) and note["seconds"] > 0
    written = (bench.folder / "archive.safetensors").stat().st_mtime_ns
    ike(bench).prepare()
    assert (bench.folder / "archive.safetensors").stat().st_mtime_ns == written
    fewer = ike(bench, demonstrations=2)
    assert fewer.needs()[1].state == "to prepare"
    assert len(fewer.facts) == 2
    fewer.prepare()
    assert ike(bench).needs()[1].state == "to prepare"


def test_bad_settings(bench: Workbench) -> None:
    with pytest.raises(SettingsError, match="'demonstrations' is 0"):
        ike(bench, demonstrations=0)
    with pytest.raises(SettingsError, match="no setting 'kk'"):
        ike(bench, kk=3)
    untrained = dataclasses.replace(bench, train=[])
    assert [need.state for need in ike(untrained).needs()] == ["ready", "missing"]
