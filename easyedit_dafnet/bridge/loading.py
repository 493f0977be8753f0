"""Imports EasyEdit with what it takes to edit text on any device."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from . import devices, textonly, tokenizers
from .host import host_info, installed_package


def load_easyeditor() -> ModuleType:
    """See `easyedit_dafnet.bridge.load_easyeditor`."""
    host = host_info()
    if "easyeditor" not in sys.modules:
        if installed_package() != host.path:
            sys.path.insert(0, str(host.path.parent))
        if host.kind == "release":
            devices.install()
        textonly.install()  # after devices: the last one installed is asked first
    try:
        easyeditor = importlib.import_module("easyeditor")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("easyeditor"):
            raise
        raise ImportError(
            f"{host} needs the package {error.name}, which is not installed: "
            "pip install 'easyedit_dafnet[host]'.",
            name=error.name,
        ) from error
    if host.kind == "release":
        devices.check(host)
        tokenizers.install()
    return easyeditor
