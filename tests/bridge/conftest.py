from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import easyedit_dafnet
from easyedit_dafnet.bridge import HostInfo, register, unregister
from easyedit_dafnet.checkpoint import describe_base_model, save_dafnet
from easyedit_dafnet.dafnet import DAFNet
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams
from easyedit_dafnet.networks import NetworkSizes
from easyedit_dafnet.signals import find_modules
from tests.tiny import LLAMA_MODULES, tiny_llama

SIZES: dict[str, Any] = {
    "layer_n": 1,
    "inner_att_dim": 16,
    "ffn_dim": 24,
    "outer_att_dim": 16,
    "outer_score_att_dim": 8,
}


@pytest.fixture(autouse=True)
def _in_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EasyEdit writes logs/ and results/ into the working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def archive(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DAFNet for the tiny Llama whose steps are long enough to be seen."""
    model = AutoModelForCausalLM.from_pretrained(llama)
    modules = find_modules(model, LLAMA_MODULES)
    torch.manual_seed(0)
    dafnet = DAFNet(modules, NetworkSizes(**SIZES), edit_lr=0.1)
    base_model = describe_base_model(model, "tiny-llama", modules)
    return save_dafnet(dafnet, tmp_path_factory.mktemp("archives") / "tiny", base_model)


@pytest.fixture
def hparams(llama: Path, archive: Path) -> Callable[..., DAFNetHyperParams]:
    def make(**settings: Any) -> DAFNetHyperParams:
        return DAFNetHyperParams(
            model_name=str(llama),
            archive=str(archive),
            inner_params=LLAMA_MODULES,
            device="cpu",
            **{**SIZES, **settings},
        )

    return make


@pytest.fixture
def host() -> Iterator[HostInfo]:
    """The EasyEdit that the tests run with, with DAFNet registered."""
    yield register()
    unregister()


@pytest.fixture
def python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh interpreter, for what an interpreter does only once."""
    project = str(Path(easyedit_dafnet.__file__).parents[1])

    def run(code: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
        wanted = {**os.environ, "PYTHONPATH": path, **environment}
        return subprocess.run(
            [sys.executable, "-W", "default", "-c", code],
            env={name: value for name, value in wanted.items() if value is not None},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run
