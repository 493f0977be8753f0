"""What EasyEdit's methods leave behind, in their modules and on the model: undone between streams.

Context templates, covariances, AlphaEdit's cache, the executors' "already initialised": all of it
is in module-level names, or in attributes of the objects whose methods are in ALG_DICT.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from copy import copy
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import nn


class HostState:
    """A picture of the host's module-level state, to go back to.

    Lists, dicts and sets are copied one level deep: what the host puts in or takes out is undone,
    the tensors themselves are shared.
    """

    def __init__(self, alg_dict: Mapping[str, Any]) -> None:
        self._alg_dict = dict(alg_dict)
        self._saved = {
            id(owner): {name: _own(value) for name, value in _values(owner)}
            for owner in self._owners()
        }

    def _owners(self) -> Iterator[dict[str, Any]]:
        """The names of the host's modules of methods, and of the objects that edit."""
        for name, module in list(sys.modules.items()):
            if name.startswith("easyeditor.models."):
                yield vars(module)
        for function in self._alg_dict.values():
            executor = getattr(function, "__self__", None)
            if executor is not None:
                yield vars(executor)

    def put_back(self) -> None:
        """Give every name the value that it had, and remove names that are new."""
        for owner in self._owners():
            saved = self._saved.get(id(owner))
            if saved is None:  # a module imported since
                continue
            for name, _ in list(_values(owner)):
                if name not in saved:
                    del owner[name]
            owner.update({name: _own(value) for name, value in saved.items()})

    def tensor_bytes(self, names: frozenset[str]) -> int:
        """Bytes of the tensors that these names hold now and did not hold in the picture."""
        before = {
            t.data_ptr()
            for saved in self._saved.values()
            for name in names & saved.keys()
            for t in tensors_in(saved[name])
        }
        now = {
            t.data_ptr(): t.numel() * t.element_size()
            for owner in self._owners()
            for name in names & owner.keys()
            for t in tensors_in(owner[name])
        }
        return sum(size for pointer, size in now.items() if pointer not in before)


class ModelState:
    """How a model is set up beside its weights: what an edit may change and a stream must not."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._use_cache = getattr(model.config, "use_cache", None)
        self._hooks = {module: set(module._forward_hooks) for module in model.modules()}
        self._requires_grad = {n: p.requires_grad for n, p in model.named_parameters()}

        self._untied = False

    def untie(self) -> None:
        """Give the model output embeddings of its own, equal to those that it shares."""
        output = self.model.get_output_embeddings()
        if output.weight is self.model.get_input_embeddings().weight:
            output.weight = nn.Parameter(
                output.weight.detach().clone(), output.weight.requires_grad
            )
            self._untied = True

    def stop_training(self) -> None:
        """Evaluation mode, without gradients, and generating as fast as before."""
        self.model.eval()
        self.model.zero_grad(set_to_none=True)
        self.model.config.use_cache = self._use_cache
        for module, before in self._hooks.items():
            for hook in module._forward_hooks.keys() - before:
                del module._forward_hooks[hook]

    def put_back(self) -> None:
        """Back to what it was."""
        self.stop_training()
        if self._untied:
            self.model.get_output_embeddings().weight = self.model.get_input_embeddings().weight
            self._untied = False
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._requires_grad.get(name, True))


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


def module_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _values(owner: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in owner.items():
        if not name.startswith("__") and not isinstance(value, (FunctionType, ModuleType, type)):
            yield name, value


def _own(value: Any) -> Any:
    return copy(value) if isinstance(value, (list, dict, set)) else value
