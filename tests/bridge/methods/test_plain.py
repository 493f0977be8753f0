from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.bridge import host_info
from easyedit_dafnet.bridge.methods import host_methods
from easyedit_dafnet.dafnet_hparams import SettingsError
from easyedit_dafnet.smollm2 import SHORT_NAME

from .conftest import REQUESTS, SETTINGS, Maker, weights

PLAIN = list(SETTINGS)


def first_token_probability(model: Any, tok: Any, request: dict[str, str]) -> float:
    ids = tok(request["prompt"], return_tensors="pt")
    target = tok(" " + request["target_new"])["input_ids"][0]
    with torch.no_grad():
        return model(**ids).logits[0, -1].softmax(-1)[target].item()


def answers(model: Any, tok: Any) -> torch.Tensor:
    """Logits after each of the requests' prompts, [requests, vocabulary]."""
    with torch.no_grad():
        return torch.stack(
            [model(**tok(r["prompt"], return_tensors="pt")).logits[0, -1] for r in REQUESTS]
        )


@pytest.mark.parametrize("name", PLAIN)
def test_edits_accumulate(name: str, make: Maker, bench: Workbench) -> None:
    method = make(name)
    method.prepare()
    start_random_numbers(0)
    method.start(bench.load_model())
    unedited = answers(method.model, bench.tok)
    wanted = [first_token_probability(method.model, bench.tok, request) for request in REQUESTS]
    method.edit(REQUESTS[:1])
    first = answers(method.model, bench.tok)
    method.edit(REQUESTS[1:])
    both = answers(method.model, bench.tok)
    assert not torch.equal(first, unedited) and not torch.equal(both, first)
    if name != "KN":  # it writes the target's embedding somewhere, for better or worse
        for request, before in zip(REQUESTS, wanted, strict=True):
            assert first_token_probability(method.model, bench.tok, request) > 1.1 * before
    method.stop()
    start_random_numbers(0)
    method.start(bench.load_model())
    method.edit(REQUESTS[1:])
    assert not torch.equal(answers(method.model, bench.tok), both)
    method.stop()


@pytest.mark.parametrize("name", PLAIN)
def test_a_second_stream_gives_the_same_bits(name: str, make: Maker, bench: Workbench) -> None:
    method = make(name)
    method.prepare()
    model = bench.load_model()
    unedited = weights(model)
    before = outside_the_weights(model, bench.tok)
    edited = []
    for _ in range(2):
        start_random_numbers(0)
        method.start(model)
        for request in REQUESTS:
            method.edit([request])
        edited.append(answers(method.model, bench.tok))
        assert not method.model.training
        assert method.model.config.use_cache
        method.stop()
        assert outside_the_weights(model, bench.tok) == before
        model.load_state_dict(unedited)
    assert torch.equal(edited[0], edited[1])


@pytest.mark.parametrize("name", PLAIN)
def test_state_bytes(name: str, make: Maker, bench: Workbench) -> None:
    method = make(name)
    method.prepare()
    start_random_numbers(0)
    method.start(bench.load_model())
    assert method.state_bytes() == 0
    method.edit(REQUESTS[:1])
    once = method.state_bytes()
    method.edit(REQUESTS[1:])
    adapters = name == "LoRA" and host_info().kind == "main"  # which are kept, and trained on
    rank = SETTINGS["LoRA"]["rank"]
    expected = 3 * rank * ((32 + 32) + (48 + 32)) * 4 if adapters else 0
    assert once == method.state_bytes() == expected
    method.stop()


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
    start_random_numbers(0)
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
    start_random_numbers(0)
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


@pytest.mark.parametrize("name", PLAIN)
def test_shipped_settings(name: str, bench: Workbench) -> None:
    smollm2 = replace(bench, model_name=f"somewhere/{SHORT_NAME}")
    method = host_methods()[name](smollm2, {})
    assert method.hparams.alg_name == name
    assert method.hparams.model_name == smollm2.model_name
    assert method.hparams.device == "cpu"


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
