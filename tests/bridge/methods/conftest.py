from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyedit_dafnet.bench.method import Workbench
from easyedit_dafnet.bridge.methods import HostMethod, host_methods
from tests.tiny import TEXT

TEMPLATES = {
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "lm_head",
    "model_parallel": False,
}
LOCATED = {
    **TEMPLATES,
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "fact_token": "subject_last",
    "v_num_grad_steps": 10,
    "v_lr": 0.5,
    "v_loss_layer": 2,
    "v_weight_decay": "1e-3",  # as EasyEdit's files write it, which YAML reads as a text
    "clamp_norm_factor": 4,
    "kl_factor": 0.0625,
    "mom2_adjustment": False,
    "mom2_dataset": "text",
    "mom2_n_samples": 600,
    "mom2_dtype": "float32",
    "stats_dir": "stats",
}
#: Settings for the tiny Llama, by method.
SETTINGS: dict[str, dict[str, Any]] = {
    "FT": {
        **TEMPLATES,
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight",
        "layers": [2],
        "num_steps": 10,
        "batch_size": 1,
        "lr": 0.01,
        "weight_decay": 0,
        "kl_factor": 0,
        "norm_constraint": False,
        "objective_optimization": "prompt_last",  # for EasyEdit's git main
    },
    "LoRA": {
        "lora_type": "lora",  # for EasyEdit's git main
        "layers": [],
        "num_steps": 10,
        "batch_size": 2,
        "lr": 0.02,
        "weight_decay": 0,
        "kl_factor": 0,
        "norm_constraint": False,
        "rank": 4,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "down_proj"],
    },
    "ROME": {**LOCATED, "layers": [1], "context_template_length_params": [[3, 5]]},
    "MEMIT": {
        **LOCATED,
        "layers": [0, 1],
        "layer_selection": "all",
        "mom2_adjustment": True,
        "mom2_update_weight": 0.1,
    },
    "KN": {
        "lr_scale": 1.0,
        "n_toks": 10,
        "refine": False,
        "batch_size": 2,
        "steps": 4,
        "adaptive_threshold": 0.2,
        "p": 0.4,
    },
}

REQUESTS = [
    {
        "prompt": "The capital of France is",
        "target_new": "Rome",
        "subject": "France",
        "ground_truth": "Paris",
    },
    {
        "prompt": "The mother tongue of Danielle Darrieux is",
        "target_new": "English",
        "subject": "Danielle Darrieux",
        "ground_truth": "French",
    },
]

Maker = Callable[..., HostMethod]


@pytest.fixture
def bench(llama: Path, tmp_path: Path) -> Workbench:
    """A workbench with a tiny random Llama."""
    return workbench(llama, tmp_path / "prepared" / "method")


def workbench(model: Path, folder: Path) -> Workbench:
    def load_model() -> Any:
        return AutoModelForCausalLM.from_pretrained(model).eval()

    tok = AutoTokenizer.from_pretrained(model, padding_side="left")
    return Workbench(str(model), tok, load_model, "cpu", "float32", 0, TEXT * 40, [], folder)


@pytest.fixture
def make(bench: Workbench, tmp_path: Path) -> Maker:
    """Make a method by name for the tiny Llama; keywords overrule single settings."""

    def make(name: str, bench: Workbench = bench, **settings: Any) -> HostMethod:
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"alg_name": name, **SETTINGS[name]}))
        return host_methods()[name](bench, {"hparams": str(file), **settings})

    return make


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
