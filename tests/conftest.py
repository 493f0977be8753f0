from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet.checkpoint import describe_base_model, save_dafnet
from easyedit_dafnet.dafnet import DAFNet, Fusion
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams, NetworkSizes
from easyedit_dafnet.language_model import answer_width
from easyedit_dafnet.records import encode_requests
from easyedit_dafnet.signals import edit_signals, find_modules
from tests.tiny import GPT2_MODULES, LLAMA_MODULES, REQUESTS, tiny_gpt2, tiny_llama

SMALL: dict[str, Any] = {
    "layer_n": 2,
    "inner_att_dim": 16,
    "ffn_dim": 24,
    "outer_att_dim": 16,
    "outer_score_att_dim": 8,
}


DIRECTIONS = 4
# Where edits by least squares are written: the last layer does not see the subject any more.
SOLVED_LLAMA = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)]
SOLVED_GPT2 = [f"transformer.h.{layer}.mlp.c_proj" for layer in (0, 1)]


class Subject:
    """A tiny language model with a DAFNet for it, whose edits join as `fusion` says."""

    def __init__(
        self,
        folder: Path,
        modules: list[str],
        archive: Path,
        edit_bias: bool = False,
        fusion: Fusion = "mean",
    ) -> None:
        self.folder, self.modules, self.edit_bias = folder, modules, edit_bias
        self.fusion = fusion
        self.tok = AutoTokenizer.from_pretrained(folder)
        model = self.model()
        self.edited = find_modules(model, modules)
        torch.manual_seed(0)
        solved = fusion == "least_squares"
        self.sizes = {**SMALL, "norm_layer": "module" if solved else "exact"}
        dafnet = DAFNet(
            self.edited,
            NetworkSizes(**self.sizes),
            edit_lr=-0.05,
            edit_bias=edit_bias,
            fusion=fusion,
            directions=DIRECTIONS,
            d_answer=answer_width(model) if solved else 0,
        )
        signals = edit_signals(
            model, self.edited, encode_requests(self.tok, REQUESTS, model, at_subject=solved)
        )
        dafnet.update_statistics(signals)
        if dafnet.least_squares is not None:
            for m, s in enumerate(signals):
                dafnet.least_squares.protect(m, s.x.T @ s.x)
                dafnet.least_squares.scale_to(m, s.x)
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
                "fusion": self.fusion,
                "directions": DIRECTIONS,
                **self.sizes,
                **settings,
            }
        )


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    home = tmp_path_factory.mktemp("subjects")
    return {
        "llama": Subject(tiny_llama(home / "llama"), LLAMA_MODULES, home / "dafnet-llama", False),
        "gpt2": Subject(tiny_gpt2(home / "gpt2"), GPT2_MODULES, home / "dafnet-gpt2", True),
        "solved-llama": Subject(
            home / "llama", SOLVED_LLAMA, home / "solved-llama", fusion="least_squares"
        ),
        "solved-gpt2": Subject(
            home / "gpt2", SOLVED_GPT2, home / "solved-gpt2", fusion="least_squares"
        ),
    }.__getitem__


@pytest.fixture(params=["llama", "gpt2"])
def subject(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    """Llama (torch.nn.Linear, weights only), then GPT-2 (Conv1D, weights and biases)."""
    return subjects(request.param)


@pytest.fixture(params=["solved-llama", "solved-gpt2"])
def solved(request: pytest.FixtureRequest, subjects: Callable[[str], Subject]) -> Subject:
    """A tiny model whose DAFNet fuses by least squares."""
    return subjects(request.param)
