"""DAFNet, Dynamic Auxiliary Fusion for Sequential Model Editing, as a method of EasyEdit.

    import easyedit_dafnet
    easyedit_dafnet.register()          # afterwards `alg_name: DAFNet` works in EasyEdit

Paper: Zhang et al., Findings of ACL 2024, arXiv 2405.20588.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bridge import register, unregister
    from .dafnet_hparams import DAFNetHyperParams, DAFNetTrainingHparams
    from .dafnet_main import apply_dafnet_to_model
    from .trainer import DAFNetTrainer

__version__ = "0.1.0"

__all__ = [
    "DAFNetHyperParams",
    "DAFNetTrainer",
    "DAFNetTrainingHparams",
    "apply_dafnet_to_model",
    "register",
    "unregister",
]

# Loaded on first use, so that `import easyedit_dafnet` costs nothing.
_HOME = {
    "DAFNetHyperParams": "dafnet_hparams",
    "DAFNetTrainer": "trainer",
    "DAFNetTrainingHparams": "dafnet_hparams",
    "apply_dafnet_to_model": "dafnet_main",
    "register": "bridge",
    "unregister": "bridge",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
