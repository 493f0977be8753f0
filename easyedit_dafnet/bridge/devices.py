"""Lets the PyPI release of EasyEdit run on any device.

The release writes its devices as `f"cuda:{device}"`. While its modules are imported, exactly this
expression is replaced by a call to `device_name`; lines keep their numbers, and nothing is written
to the release's files or to `__pycache__`.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

from .host import RELEASE, HostInfo

# Places in easyeditor 0.0.1.dev0; all are in modules that `import easyeditor` loads.
PLACES_IN_RELEASE = 52
_RESOLVER = "__easyedit_dafnet_device__"


def device_name(device: object) -> str:
    """Return the name of a device: "cuda:1" for 1 or "1"; "cpu", "mps", "cuda:0" stay as is."""
    name = str(device).strip()
    return f"cuda:{name}" if name.isdigit() else name


class DeviceRewriter(ast.NodeTransformer):
    """Replaces `f"cuda:{x}"` by `device_name(x)` and counts the places."""

    def __init__(self) -> None:
        self.count = 0

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        match node.values:
            case [ast.Constant(value="cuda:"), ast.FormattedValue(value=device)]:
                self.count += 1
                call = ast.Call(ast.Name(_RESOLVER, ast.Load()), [device], [])
                return ast.fix_missing_locations(ast.copy_location(call, node))
        return node


class DeviceLoader(SourceFileLoader):
    """Loads a module from its source with its devices rewritten, past any byte-code cache."""

    count = 0

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        rewriter = DeviceRewriter()
        tree = rewriter.visit(ast.parse(data, path))
        self.count = rewriter.count
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[_RESOLVER] = device_name
        super().exec_module(module)


class DeviceFinder(MetaPathFinder):
    """Finds the release's own modules as Python would, but has them loaded by DeviceLoader."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "easyeditor" and not fullname.startswith("easyeditor."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = DeviceLoader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Put the finder at the front of `sys.meta_path`, once."""
    if not any(isinstance(finder, DeviceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, DeviceFinder())


def check(host: HostInfo) -> None:
    """Warn when the imported release's devices were not all rewritten as expected."""
    package = sys.modules["easyeditor"]
    if not isinstance(package.__spec__ and package.__spec__.loader, DeviceLoader):
        warnings.warn(
            "easyeditor was imported before easyedit_dafnet, so it runs on CUDA devices only; "
            "for other devices call easyedit_dafnet.register() before the first import of it.",
            stacklevel=3,
        )
        return
    loaders = [
        module.__spec__.loader
        for name, module in list(sys.modules.items())
        if name.startswith("easyeditor.") and module.__spec__ is not None
    ]
    count = sum(loader.count for loader in loaders if isinstance(loader, DeviceLoader))
    if count != PLACES_IN_RELEASE:
        warnings.warn(
            f"{host} names a CUDA device in {count} places, where release {RELEASE} has "
            f"{PLACES_IN_RELEASE}; devices other than CUDA may not work with it.",
            stacklevel=3,
        )
