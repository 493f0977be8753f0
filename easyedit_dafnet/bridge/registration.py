"""Makes DAFNet one of EasyEdit's methods, and takes it away again."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from ..dafnet_main import apply_dafnet_to_model
from . import release, tokenizers
from .host import HostInfo, host_info
from .loading import load_easyeditor
from .release import NAME

LOG = logging.getLogger(__name__)

# What `register` did, to be undone in reverse order; None while DAFNet is not registered.
_changes: ExitStack | None = None


def register() -> HostInfo:
    """See `easyedit_dafnet.bridge.register`."""
    global _changes
    load_easyeditor()
    host = host_info()
    if _changes is not None:
        return host
    parts = _parts_of(host)
    parts.check(host)
    with ExitStack() as changes:
        if host.kind == "release":
            parts.alg_dict[NAME] = release.apply_dafnet_to_model
            for own in (release.batch_edit, release.edit_dataset):
                wrap = release.only_for_dafnet(own)
                _replace(changes, parts.base_editor, own.__name__, wrap)
            changes.callback(tokenizers.uninstall)
        else:
            parts.alg_dict[NAME] = apply_dafnet_to_model
        changes.callback(parts.alg_dict.pop, NAME, None)
        _replace(changes, parts.batch_editor, "is_batchable_method", _also_batchable)
        _replace(changes, parts.base_trainer, "__init__", _refuse_training)
        _changes = changes.pop_all()
    LOG.info("%s is registered with %s", NAME, host)
    return host


def unregister() -> None:
    """See `easyedit_dafnet.bridge.unregister`."""
    global _changes
    if _changes is not None:
        _changes.close()
        _changes = None


@dataclass(frozen=True)
class _Parts:
    """The parts of EasyEdit that registering needs."""

    alg_dict: Any
    alg_train_dict: Any
    editors_alg_dict: Any
    base_editor: Any
    batch_editor: Any
    base_trainer: Any

    def check(self, host: HostInfo) -> None:
        """Raise RuntimeError when a part is not what is expected, or DAFNet is already there."""
        wanted = {
            "ALG_DICT has no ROME, FT and MEND": isinstance(self.alg_dict, dict)
            and {"ROME", "FT", "MEND"} <= self.alg_dict.keys(),
            "BaseEditor does not use ALG_DICT": self.editors_alg_dict is self.alg_dict,
            "BaseEditor lacks edit, batch_edit or edit_requests": all(
                hasattr(self.base_editor, name) for name in ("edit", "batch_edit", "edit_requests")
            ),
            "BatchEditor.is_batchable_method is not a static method": isinstance(
                vars(self.batch_editor).get("is_batchable_method"), staticmethod
            ),
            "BaseTrainer does not take a config first": list(
                inspect.signature(self.base_trainer).parameters
            )[:1]
            == ["config"],
        }
        unmet = [complaint for complaint, is_met in wanted.items() if not is_met]
        if unmet:
            raise RuntimeError(
                f"{host} is not built as {NAME} expects ({'; '.join(unmet)}), so nothing was "
                "registered: use easyeditor 0.0.1.dev0 or a recent checkout of EasyEdit."
            )
        if NAME in self.alg_dict or NAME.upper() in self.alg_train_dict:
            raise RuntimeError(
                f"{host} already has a method called {NAME}, so nothing was registered: remove it "
                "from ALG_DICT and ALG_TRAIN_DICT to use the one of easyedit_dafnet."
            )


def _parts_of(host: HostInfo) -> _Parts:
    try:
        # Not `import easyeditor.x as y`: the release's star imports shadow some of these names.
        editor = importlib.import_module("easyeditor.editors.editor")
        alg_train_dict = importlib.import_module("easyeditor.util.alg_train_dict")
        trainer = importlib.import_module("easyeditor.trainer.BaseTrainer")
        return _Parts(
            alg_dict=importlib.import_module("easyeditor.util.alg_dict").ALG_DICT,
            alg_train_dict=alg_train_dict.ALG_TRAIN_DICT,
            editors_alg_dict=editor.ALG_DICT,
            base_editor=editor.BaseEditor,
            batch_editor=editor.BatchEditor,
            base_trainer=trainer.BaseTrainer,
        )
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"{host} is not an EasyEdit that {NAME} knows ({error}), so nothing was registered: "
            "use easyeditor 0.0.1.dev0 or a recent checkout of EasyEdit."
        ) from error


def _replace(
    changes: ExitStack, owner: type, name: str, wrap: Callable[[Callable[..., Any]], Any]
) -> None:
    """Wrap a function of a class and note how to undo it."""
    original = vars(owner)[name]  # not getattr, which would lose that it is a static method
    changes.callback(setattr, owner, name, original)
    setattr(owner, name, wrap(getattr(owner, name)))


def _also_batchable(original: Callable[[str], bool]) -> staticmethod[[str], bool]:
    @functools.wraps(original)
    def is_batchable_method(alg_name: str) -> bool:
        return alg_name == NAME or original(alg_name)

    return staticmethod(is_batchable_method)


def _refuse_training(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        if str(getattr(config, "alg", "")).upper() == NAME.upper():
            raise ValueError(
                f"EasyEdit's {type(self).__name__} does not train {NAME}: use "
                "easyedit_dafnet.DAFNetTrainer with the same config, train_set and val_set."
            )
        original(self, config, *args, **kwargs)

    return __init__
