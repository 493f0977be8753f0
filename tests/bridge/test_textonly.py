from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from easyedit_dafnet.bridge import HostInfo, textonly

Python = Callable[..., subprocess.CompletedProcess[str]]
MISSING = textonly.missing_packages("easyeditor.trainer.blip2_models.blip2_opt")
pytestmark = pytest.mark.skipif(not MISSING, reason="the multimodal packages are installed")


def test_blip2_names_what_is_missing(host: HostInfo) -> None:
    import easyeditor

    with pytest.raises(ImportError, match=f"Blip2OPT .* not installed: {', '.join(MISSING)}"):
        easyeditor.Blip2OPT(vit_model="eva_clip_g")
    module = importlib.import_module("easyeditor.trainer.blip2_models.mini_gpt4")
    assert not isinstance(host, module.MiniGPTOutput)
    with pytest.raises(ImportError, match=r"mini_gpt4\.MiniGPT4 .* not installed"):
        module.MiniGPT4.from_config({})


def test_image_processor_names_what_is_missing(host: HostInfo) -> None:
    module = importlib.import_module("easyeditor.dataset.processor.blip_processors")
    with pytest.raises(ImportError, match=r"BlipImageEvalProcessor .* torchvision"):
        module.BlipImageEvalProcessor(image_size=364, mean=None, std=None)


class AnyHparams(SimpleNamespace):
    """Settings in which every name is set."""

    def __getattr__(self, name: str) -> str:
        return ""


@pytest.mark.parametrize("model_name", ["blip2", "minigpt4"])
def test_multimodal_editor_names_what_is_missing(host: HostInfo, model_name: str) -> None:
    import easyeditor

    with pytest.raises(ImportError, match="timm"):
        easyeditor.MultimodalEditor.from_hparams(
            AnyHparams(model_name=model_name, alg_name="MEND", name="a")
        )


def test_modules_without_missing_packages_are_the_hosts_own(host: HostInfo) -> None:
    module = importlib.import_module("easyeditor.dataset.processor.base_dataset")
    assert module.__file__ and Path(module.__file__).resolve().is_relative_to(host.path)


def test_nothing_is_replaced_where_the_packages_are_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finder = textonly.TextOnlyFinder()
    for module in textonly.MULTIMODAL_MODULES:
        assert finder.find_spec(module, None) is not None
    installed = {"timm", "torchvision", "fairscale", "iopath", "cv2", "av", "qwen_vl_utils"}
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: find_spec("json") if name in installed else find_spec(name),
    )
    for module in textonly.MULTIMODAL_MODULES:
        assert finder.find_spec(module, None) is None


def test_only_modules_with_a_missing_package_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name == "av" else find_spec("json"),
    )
    finder = textonly.TextOnlyFinder()
    replaced = [m for m in textonly.MULTIMODAL_MODULES if finder.find_spec(m, None)]
    assert [m.rpartition(".")[2] for m in replaced] == ["llavaov_processors", "qwen2vl_processors"]


def test_plain_import_works_after_register(python: Python) -> None:
    run = python(
        "import easyedit_dafnet; easyedit_dafnet.register(); easyedit_dafnet.register()\n"
        "from easyeditor import BaseEditor, CounterFactDataset, EditTrainer; print(BaseEditor)\n"
        "import sys; from easyedit_dafnet.bridge.textonly import TextOnlyFinder\n"
        "print(sum(isinstance(f, TextOnlyFinder) for f in sys.meta_path))"
    )
    assert run.stdout.splitlines()[-2:] == ["<class 'easyeditor.editors.editor.BaseEditor'>", "1"]
    assert "UserWarning" not in run.stderr


def test_import_without_the_bridge_fails(python: Python) -> None:
    """What the stand-ins are for: remove them when this is no longer so."""
    code = f"import sys; sys.path.insert(0, {str(host_folder())!r}); import easyeditor"
    assert "ModuleNotFoundError" in python(code).stderr


def host_folder() -> str:
    from easyedit_dafnet.bridge import host_info

    assert "easyeditor" in sys.modules
    return str(host_info().path.parent)
