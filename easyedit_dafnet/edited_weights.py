"""The weights that edits lead to, in a form that losses can be traced back from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .dafnet import Update
from .signals import EditedModule


def factors_are_cheaper(edit_tokens: int, text_tokens: int, d_in: int, d_out: int) -> bool:
    """Whether y + (x x̂ᵀ) δ̂ takes less work than W + x̂ᵀ δ̂, forward and backward.

    Multiplications: the two thin products, each with two products of its backward pass; or the
    product x̂ᵀ δ̂ with its two, and the gradient of the dense weight, summed over the texts.
    """
    as_factors = 3 * text_tokens * edit_tokens * (d_in + d_out)
    dense = (3 * edit_tokens + text_tokens) * d_in * d_out
    return as_factors < dense


class EditedWeights:
    """The edited modules' weights as leaves: all losses leave their gradients there.

    One backward pass through the auxiliary networks then serves all losses. text_tokens: how
    many tokens the losses will send through each module.
    """

    def __init__(
        self,
        model: Any,
        modules: Sequence[EditedModule],
        updates: Sequence[Update],
        text_tokens: Sequence[int],
    ) -> None:
        self.model = model
        self.outputs: list[Tensor] = []  # what the networks gave, with its graph
        self.leaves: list[Tensor] = []  # the same values, without
        self.parameters: dict[str, Tensor] = {}
        self.factors: list[tuple[EditedModule, Tensor, Tensor, bool]] = []
        for module, update, tokens in zip(modules, updates, text_tokens, strict=True):
            if factors_are_cheaper(len(update.x_hat), tokens, module.d_in, module.d_out):
                at = model.get_parameter(module.weight_name).device
                x_hat, delta_hat = self._leaf(update.x_hat, at), self._leaf(update.delta_hat, at)
                self.factors.append((module, x_hat, delta_hat, update.edit_bias))
                continue
            for name, step in update.steps(module).items():
                original = model.get_parameter(name).detach()
                value = (original.float() + step.to(original.device)).to(original.dtype)
                self.parameters[name] = self._leaf(value, original.device)

    def _leaf(self, output: Tensor, device: torch.device) -> Tensor:
        leaf = output.detach().to(device).requires_grad_(output.requires_grad)
        self.outputs.append(output)
        self.leaves.append(leaf)
        return leaf

    @contextmanager
    def applied(self) -> Iterator[dict[str, Tensor]]:
        """The model with the edits that are kept as factors; gives the other ones by name."""
        with ExitStack() as stack:
            for module, x_hat, delta_hat, bias in self.factors:
                hook = _adding(x_hat, delta_hat, bias)
                handle = self.model.get_submodule(module.name).register_forward_hook(hook)
                stack.callback(handle.remove)
            yield self.parameters

    def backward(self, penalty: Tensor | None = None) -> None:
        """Send the gradients that the leaves have collected back through the networks.

        penalty: a loss on the networks' outputs themselves, which is added.
        """
        traced = [
            (output, leaf.grad.to(output.device))
            for output, leaf in zip(self.outputs, self.leaves, strict=True)
            if leaf.grad is not None
        ]
        tensors: list[Tensor] = [output for output, _ in traced]
        gradients: list[Tensor | None] = [gradient for _, gradient in traced]
        if penalty is not None:
            tensors.append(penalty)
            gradients.append(None)
        torch.autograd.backward(tensors, gradients)


def _adding(x_hat: Tensor, delta_hat: Tensor, bias: bool) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        change = (args[0].float() @ x_hat.T) @ delta_hat
        if bias:
            change = change + delta_hat.sum(0)
        return y + change.to(y.dtype)

    return hook
