from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet.checkpoint import describe_base_model, save_dafnet
from easyedit_dafnet.dafnet import DAFNet
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams
from easyedit_dafnet.networks import NetworkSizes
from easyedit_dafnet.records import encode_targets
from easyedit_dafnet.signals import edit_signals, find_modules
from tests.tiny import GPT2_MODULES, LLAMA_MODULES, REQUESTS, tiny_gpt2, tiny_llama

SMALL: dict[str, Any] = {
    "layer_n": 2,
    "inner_att_dim": 16,
    "ffn_dim": 24,
    "outer_att_dim": 16,
    "outer_score_att_dim": 8,
}


class Subject:
    """A tiny language model with a DAFNet for it."""

    def __init__(self, folder: Path, modules: list[str], archive: Path, edit_bias: bool) -> None:
        self.folder, self.modules, self.edit_bias = folder, modules, edit_bias
        self.tok = AutoTokenizer.from_pretrained(folder)
        model = self.model()
        self.edited = find_modules(model, modules)
        torch.manual_seed(0)
        dafnet = DAFNet(self.edited, NetworkSizes(**SMALL), edit_lr=-0.05, edit_bias=edit_bias)
        batch = encode_targets(
            self.tok, [r["prompt"] for r in REQUESTS], [r["target_new"] for r in REQUESTS]
        )
        dafnet.update_statistics(edit_signals(model, self.edited, batch))
        base = describe_base_model(model, folder.name, self.edited)
        self.archive = save_dafnet(dafnet, archive, base)

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder).eval()

    def hparams(self, **settings: Any) -> DAFNetHyperParams:
        return DAFNetHyperParams(
            **{
                "model_name": str(self.folder),
                "inner_params": list(self.modules),
                "archive": str(self.archive),
                "device": "cpu",
                "edit_bias": self.edit_bias,
                **SMALL,
                **settings,
            }
        )


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    home = tmp_path_factory.mktemp("subjects")
    return {
        "llama": Subject(tiny_llama(home / "llama"), LLAMA_MODULES, home / "dafnet-llama", False),
        "gpt2": Subject(tiny_gpt2(home / "gpt2"), GPT2_MODULES, home / "dafnet-gpt2", True),
    }.__getitem__


@pytest.fixture(params=["llama", "gpt2"])
def subject(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    """Llama (torch.nn.Linear, weights only), then GPT-2 (Conv1D, weights and biases)."""
    return subjects(request.param)
