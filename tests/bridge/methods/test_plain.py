from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bridge.methods import host_methods
from easyedit_dafnet.dafnet_hparams import SettingsError

from .conftest import REQUESTS, SETTINGS, Maker, weights

PLAIN = list(SETTINGS)


def first_token_probability(model: Any, tok: Any, request: dict[str, str]) -> float:
    ids = tok(request["prompt"], return_tensors="pt")
    target = tok(" " + request["target_new"])["input_ids"][0]
    with torch.no_grad():
        return model(**ids).logits[0, -1].softmax(-1)[target].item()


@pytest.mark.parametrize("name", PLAIN)
def test_edits_accumulate(name: str, make: Maker, bench: Workbench) -> None:
    method = make(name)
    method.prepare()
    model = bench.load_model()
    method.start(model)
    seen = [weights(model)]
    for request in REQUESTS:
        before = first_token_probability(method.model, bench.tok, request)
        method.edit([request])
        if name != "KN":  # which neither paper nor host promises
            assert first_token_probability(method.model, bench.tok, request) > before
        seen.append(weights(method.model))
    changes = [
        {n for n in seen[0] if not torch.equal(old[n], new[n])}
        for old, new in itertools.pairwise(seen)
    ]
    assert changes[0] and changes[1]
    # The second edit keeps the first: going on from it is not the second edit alone.
    method.stop()
    alone = bench.load_model()
    method.start(alone)
    method.edit(REQUESTS[1:])
    assert any(not torch.equal(weights(method.model)[n], seen[2][n]) for n in seen[0])
    method.stop()


@pytest.mark.parametrize("name", PLAIN)
def test_a_second_stream_gives_the_same_bits(name: str, make: Maker, bench: Workbench) -> None:
    method = make(name)
    method.prepare()
    model = bench.load_model()
    unedited = weights(model)
    states: list[tuple[Any, ...]] = []
    edited = []
    for _ in range(2):
        states.append(outside_the_weights(model, bench.tok))
        method.start(model)
        for request in REQUESTS:
            method.edit([request])
        edited.append(weights(method.model))
        assert not method.model.training
        assert method.state_bytes() == 0
        method.stop()
        assert weights(model).keys() == unedited.keys()
        model.load_state_dict(unedited)
    states.append(outside_the_weights(model, bench.tok))
    assert states[0] == states[1] == states[2]
    assert all(torch.equal(edited[0][n], edited[1][n]) for n in edited[0])
    assert any(not torch.equal(edited[0][n], unedited[n]) for n in unedited)


def outside_the_weights(model: Any, tok: Any) -> tuple[Any, ...]:
    return (
        [(n, type(m), m.training, len(m._forward_hooks)) for n, m in model.named_modules()],
        [(n, p.requires_grad, p.grad) for n, p in model.named_parameters()],
        model.config.to_dict(),
        (tok.padding_side, tok.pad_token),
    )


@pytest.mark.parametrize("name", PLAIN)
def test_a_batch_is_applied_together_or_one_by_one(
    name: str, make: Maker, bench: Workbench
) -> None:
    method = make(name)
    method.prepare()
    before = {}
    method.start(bench.load_model())
    for request in REQUESTS:
        before[request["prompt"]] = first_token_probability(method.model, bench.tok, request)
    method.edit(REQUESTS)
    if name != "KN":
        for request in REQUESTS:
            now = first_token_probability(method.model, bench.tok, request)
            assert now > before[request["prompt"]]
    method.stop()


def test_rome_finds_the_last_mention_of_a_subject(make: Maker, bench: Workbench) -> None:
    method = make("ROME")
    request = {"prompt": "In France, the capital of France is", "target_new": "Oslo"}
    asked = method.as_asked({**request, "subject": "France"})
    assert asked["prompt"] == "In France, the capital of {} is"
    method.start(bench.load_model())
    method.edit([{**request, "subject": "France"}])
    with pytest.raises(ValueError, match=r"does not contain the subject 'Spain'"):
        method.edit([{**request, "subject": "Spain"}])
    method.stop()


def test_settings(make: Maker, bench: Workbench) -> None:
    assert make("FT", lr=0.5).effective_settings["lr"] == 0.5
    assert make("ROME").effective_settings["v_weight_decay"] == 0.001
    assert "model_name" not in make("FT").effective_settings
    with pytest.raises(SettingsError, match="no setting 'learning_rate'; did you mean"):
        make("FT", learning_rate=0.5)
    with pytest.raises(SettingsError, match=r"There is no settings file 'nowhere.yaml' for FT"):
        host_methods()["FT"](bench, {"hparams": "nowhere.yaml"})
    with pytest.raises(SettingsError, match=r"No settings of FT are shipped for the model"):
        host_methods()["FT"](bench, {})


def test_a_settings_file_that_lacks_a_setting(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "FT", {"layers": [2]})
    with pytest.raises(SettingsError, match=r"FT.yaml lacks FT's setting 'attn_module_tmp'"):
        make("FT")


def test_all_methods_of_the_host_are_named() -> None:
    methods = host_methods()
    assert {"FT", "LoRA", "ROME", "MEMIT", "KN", "MEND", "SERAC", "IKE"} <= methods.keys()
    assert "DAFNet" not in methods
    assert all(method.name == name for name, method in methods.items())
    assert "API" in str(methods["FT-Api"].unavailable())
    assert methods["FT"].unavailable() is None
