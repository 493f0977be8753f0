"""The state that EasyEdit's methods keep in their modules: saved, and put back between streams.

Context templates, covariances, AlphaEdit's cache, the executors' "already initialised": all of it
is in module-level names, or in attributes of the objects whose methods are in ALG_DICT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import copy
from types import FunctionType, ModuleType
from typing import Any

import torch


class HostState:
    """A picture of the host's module-level state, to go back to.

    Containers are copied one level deep: what the host puts in or takes out is undone, the tensors
    themselves are shared.
    """

    def __init__(self, alg_dict: dict[str, Any]) -> None:
        self._alg_dict = alg_dict
        self._saved = {key: copy(value) for key, value in self._values()}
        self._names = {id(owner): set(owner) for owner in self._owners()}

    def _owners(self) -> Iterator[dict[str, Any]]:
        for name, module in list(sys.modules.items()):
            if name.startswith("easyeditor.models."):
                yield vars(module)
        for function in self._alg_dict.values():
            executor = getattr(function, "__self__", None)
            if executor is not None:
                yield vars(executor)

    def _values(self) -> Iterator[tuple[tuple[int, str], Any]]:
        for owner in self._owners():
            for name, value in owner.items():
                if not name.startswith("__") and not isinstance(
                    value, (FunctionType, ModuleType, type)
                ):
                    yield (id(owner), name), value

    def put_back(self) -> None:
        """Give every name the value it had, and remove names that are new."""
        for owner in self._owners():
            known = self._names.get(id(owner))
            if known is None:  # a module imported since
                continue
            for name in set(owner) - known:
                del owner[name]
            for name in known:
                if (id(owner), name) in self._saved:
                    owner[name] = copy(self._saved[id(owner), name])

    def tensor_bytes(self) -> int:
        """Bytes of the tensors that the state holds now and did not hold in the picture."""
        before = {t.data_ptr() for value in self._saved.values() for t in tensors_in(value)}
        now = {
            t.data_ptr(): t.numel() * t.element_size()
            for _, value in self._values()
            for t in tensors_in(value)
        }
        return sum(size for pointer, size in now.items() if pointer not in before)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value and in the lists, tuples and dicts that it is made of."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
