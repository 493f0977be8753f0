from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dafnet.bench.unedited_model import UneditedModel, load_model, model_fingerprint
from tests.conftest import Subject


@pytest.fixture
def folder(subjects: Callable[[str], Subject]) -> Path:
    return subjects("llama").folder


@pytest.fixture
def unedited(folder: Path) -> UneditedModel:
    return UneditedModel(lambda: load_model(str(folder), "cpu", "float32"))


def bits(model: Any) -> dict[str, torch.Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: t.detach().clone() for name, t in tensors}


def check(unedited: UneditedModel, expected: dict[str, torch.Tensor], same: bool) -> None:
    before = unedited.model
    model = unedited.put_back()
    assert (model is before) is same
    assert not model.training and not hasattr(model, "extra")
    found = bits(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@torch.no_grad()
def change_weights(model: Any) -> None:
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.add_(1)


def train(model: Any) -> None:
    model.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" not in name)
    model(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.sum().backward()


def add_a_hook(model: Any) -> None:
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 0)


def add_a_module(model: Any) -> None:
    model.extra = torch.nn.Linear(2, 2)


def replace_forward(model: Any) -> None:
    model.model.norm.forward = torch.zeros_like


def replace_a_module(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()


def change_settings(model: Any) -> None:
    model.config.use_cache = False


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (change_weights, True),
        (train, True),
        (add_a_hook, False),
        (add_a_module, False),
        (replace_forward, False),
        (replace_a_module, False),
        (change_settings, False),
    ],
)
def test_the_model_comes_back_bit_by_bit(
    unedited: UneditedModel, edit: Callable[[Any], None], same: bool
) -> None:
    expected = bits(unedited.model)
    ids = torch.ones(1, 4, dtype=torch.long)
    with torch.no_grad():
        logits = unedited.model(input_ids=ids).logits
    edit(unedited.model)
    check(unedited, expected, same)
    with torch.no_grad():
        assert torch.equal(unedited.model(input_ids=ids).logits, logits)
    unedited.model.lm_head.weight.data.zero_()
    check(unedited, expected, True)


def test_a_fingerprint_tells_models_apart(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    assert model_fingerprint(str(other)) == model_fingerprint(str(folder))
    with (other / "model.safetensors").open("r+b") as weights:  # trained on, in its place
        weights.seek(-4, 2)
        weights.write(b"mine")
    trained = model_fingerprint(str(other))
    assert trained != model_fingerprint(str(folder))
    config = other / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    assert model_fingerprint(str(other)) not in (trained, model_fingerprint(str(folder)))
    assert model_fingerprint("gpt2") == "gpt2"
