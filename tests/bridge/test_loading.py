"""EasyEdit's own methods run on the CPU, on a model with a byte-level BPE tokenizer."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dafnet.bridge import HostInfo, load_easyeditor

MODULES = {
    "rewrite_module_tmp": "model.layers.{}.mlp.down_proj",
    "layer_module_tmp": "model.layers.{}",
    "mlp_module_tmp": "model.layers.{}.mlp",
    "attn_module_tmp": "model.layers.{}.self_attn",
    "ln_f_module": "model.norm",
    "lm_head_module": "lm_head",
}


def test_load_easyeditor_gives_the_module_that_import_gives(host: HostInfo) -> None:
    import easyeditor

    assert load_easyeditor() is easyeditor
    assert Path(str(easyeditor.__file__)).resolve().parent == host.path


def test_missing_package_is_one_sentence(
    python: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    run = python(
        "import sys; sys.modules['nltk'] = None\n"
        "from easyedit_dafnet.bridge import load_easyeditor; load_easyeditor()"
    )
    message = run.stderr.splitlines()[-1]
    assert message.startswith("ImportError: EasyEdit ")
    assert message.endswith(
        "needs the package nltk, which is not installed: pip install 'easyedit_dafnet[host]'."
    )


def edit(host: HostInfo, hparams: Any) -> float:
    """Edit one fact with the host and check that it restores; return the edit's reliability."""
    from easyeditor import BaseEditor

    editor = BaseEditor.from_hparams(hparams)
    before = editor.model.model.layers[1].mlp.down_proj.weight.clone()
    metrics, model, _ = editor.edit(
        prompts=["The capital of France is"],
        target_new=["Rome"],
        ground_truth=["Paris"],
        subject=["France"],
        locality_inputs={"other": {"prompt": ["Vienna is"], "ground_truth": ["a list"]}},
        verbose=False,
        **({"keep_original_weight": True} if host.kind == "release" else {}),
    )
    assert torch.equal(model.model.layers[1].mlp.down_proj.weight, before)
    assert 0 <= metrics[0]["post"]["locality"]["other_acc"][0] <= 1
    return float(metrics[0]["post"]["rewrite_acc"][0])


def test_ft_edits_on_the_cpu(host: HostInfo, llama: Path) -> None:
    from easyeditor import FTHyperParams

    settings = {
        **MODULES,
        "rewrite_module_tmp": "model.layers.{}.mlp.down_proj.weight",
        "alg_name": "FT",
        "model_name": str(llama),
        "device": "cpu",
        "layers": [1],
        "num_steps": 25,
        "lr": 1e-2,
        "weight_decay": 0,
        "kl_factor": 0,
        "norm_constraint": False,
        "batch_size": 1,
    }
    if host.kind == "main":
        settings["objective_optimization"] = "target_new"
    assert edit(host, FTHyperParams(**settings)) == 1


def test_rome_edits_on_the_cpu(
    host: HostInfo, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from easyeditor import ROMEHyperParams

    settings = {
        **MODULES,
        "alg_name": "ROME",
        "model_name": str(llama),
        "device": "cpu",
        "layers": [1],
        "fact_token": "subject_last",
        "v_num_grad_steps": 10,
        "v_lr": 0.5,
        "v_loss_layer": 2,
        "v_weight_decay": 0.0,
        "clamp_norm_factor": 100,
        "kl_factor": 0.0,
        "mom2_adjustment": False,
        "context_template_length_params": [[5, 10]],
        "mom2_dataset": "wikipedia",
        "mom2_n_samples": 10,
        "mom2_dtype": "float32",
        "stats_dir": "stats",
    }
    edit(host, ROMEHyperParams(**settings))
    # ROME tells the target's probability; a tiny random model is not moved far from one layer.
    told = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "prob of" in line]
    assert len(told) == 10
    assert float(told[-1]) > 2 * float(told[0])
