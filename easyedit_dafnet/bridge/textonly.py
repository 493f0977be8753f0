"""Lets `import easyeditor` work where packages that only multimodal editing needs are missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

# EasyEdit's multimodal modules (their submodules included) and what each of them imports.
MULTIMODAL_MODULES = {
    "easyeditor.trainer.blip2_models": ("timm", "torchvision", "fairscale", "iopath"),
    "easyeditor.dataset.processor.blip_processors": ("torchvision", "cv2"),
    "easyeditor.dataset.processor.randaugment": ("cv2",),
    "easyeditor.dataset.processor.llavaov_processors": ("av", "cv2"),
    "easyeditor.dataset.processor.qwen2vl_processors": ("av", "cv2", "qwen_vl_utils"),
}
# EasyEdit takes these names by `import *`, which asks a module for its list of names.
STAR_IMPORTED = {"easyeditor.trainer.blip2_models": ["Blip2OPT", "MiniGPT4"]}


def missing_packages(module: str) -> list[str]:
    """Return the packages that EasyEdit's multimodal `module` needs and that are not installed."""
    for name, packages in MULTIMODAL_MODULES.items():
        if module == name or module.startswith(f"{name}."):
            return [p for p in packages if importlib.util.find_spec(p) is None]
    return []


class TextOnlyFinder(MetaPathFinder):
    """Finds a stand-in for each multimodal module whose packages are missing; nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        missing = missing_packages(fullname)
        if not missing:
            return None
        return ModuleSpec(fullname, StandInLoader(missing), is_package=True)


class StandInLoader(Loader):
    """Makes a module in which every name is a class that cannot be used."""

    def __init__(self, missing: list[str]):
        self.missing = missing

    def exec_module(self, module: ModuleType) -> None:
        def get_stand_in(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            namespace = {"__module__": module.__name__, "_missing": self.missing}
            stand_in = Unavailable(name, (), namespace)
            setattr(module, name, stand_in)
            return stand_in

        module.__dict__["__getattr__"] = get_stand_in
        module.__dict__["__all__"] = STAR_IMPORTED.get(module.__name__, [])


class Unavailable(type):
    """Type of the stand-in classes: they can be imported and subclassed, but not used."""

    _missing: list[str]

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        cls._refuse()

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        cls._refuse()

    def _refuse(cls) -> NoReturn:
        raise ImportError(
            f"{cls.__module__}.{cls.__name__} belongs to multimodal editing and needs packages "
            f"that are not installed: {', '.join(cls._missing)}.",
            name=cls._missing[0],
        )


def install() -> None:
    """Put the finder at the front of `sys.meta_path`, once."""
    if not any(isinstance(finder, TextOnlyFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TextOnlyFinder())
