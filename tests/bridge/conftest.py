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
from easyedit_dafnet.dafnet_hparams import DAFNetHyperParams, NetworkSizes
from easyedit_dafnet.signals import find_modules
from tests.tiny import GPT2_MODULES, LLAMA_MODULES, tiny_gpt2, tiny_llama

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


def untrained_archive(model_folder: Path, modules: list[str], archive: Path) -> Path:
    """An untrained DAFNet whose steps are long enough to be seen."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    edited = find_modules(model, modules)
    torch.manual_seed(0)
    dafnet = DAFNet(edited, NetworkSizes(**SIZES), edit_lr=0.1)
    return save_dafnet(dafnet, archive, describe_base_model(model, archive.name, edited))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def archive(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_archive(llama, LLAMA_MODULES, tmp_path_factory.mktemp("archives") / "llama")


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
def gpt2_hparams(tmp_path: Path) -> DAFNetHyperParams:
    model = tiny_gpt2(tmp_path / "tiny-gpt2")
    return DAFNetHyperParams(
        model_name=str(model),
        archive=str(untrained_archive(model, GPT2_MODULES, tmp_path / "archive")),
        inner_params=GPT2_MODULES,
        device="cpu",
        **SIZES,
    )


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
