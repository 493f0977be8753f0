"""DAFNet itself: from the signals of a batch of edits to the change of each edited weight.

It knows neither EasyEdit nor the language model, only the names and shapes of the modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from .networks import AuxiliaryNetwork, NetworkSizes, PastEdits
from .signals import EditedModule, EditSignals

FusionOrder = Literal["paper", "released"]


@dataclass(frozen=True)
class Update:
    """What a batch of edits does to one module: change = past_weight * change + step.

    step_weight: [d_in, d_out]; step_bias: [d_out] or None; past_weight: scalar, w_past.
    past: what the module's network keeps of all edits so far, one entry a layer.
    """

    x_hat: Tensor
    delta_hat: Tensor
    edit_bias: bool
    past_weight: Tensor
    past: list[PastEdits]

    @property
    def step_weight(self) -> Tensor:
        return self.x_hat.T @ self.delta_hat

    @property
    def step_bias(self) -> Tensor | None:
        return self.delta_hat.sum(0) if self.edit_bias else None

    def steps(self, module: EditedModule) -> dict[str, Tensor]:
        """The steps by parameter name, in the layout of the module's parameters."""
        steps = {module.weight_name: self.step_weight.T if module.transposed else self.step_weight}
        if self.step_bias is not None:
            steps[module.bias_name] = self.step_bias
        return steps


def fusion_weights(u: Tensor, order: FusionOrder = "paper") -> tuple[Tensor, Tensor]:
    """Weights of the n edits of a batch and of all that was before them.

    u: [layers, n], the attention that each edit pays to itself. Applying edit after edit,
    each scaling what was there by 1 - u_i and adding itself with u_i, gives
    w_i = u_i * prod_{j>i} (1 - u_j) and w_past = prod_j (1 - u_j).
    The paper's u is the mean over the layers, so that any split of a sequence agrees; the
    released code multiplies in each layer and takes the mean of the products.
    """
    if order == "paper":
        u = u.mean(0, keepdim=True)
    after = (1 - u).flip(1).cumprod(1).flip(1)  # prod_{j>=i} (1 - u_j)
    later = torch.cat([after[:, 1:], torch.ones_like(after[:, :1])], 1)
    return (u * later).mean(0), after[:, 0].mean()


class DAFNet(nn.Module):
    """The auxiliary networks, one per weight shape, and a step size per edited module."""

    def __init__(
        self,
        modules: Sequence[EditedModule],
        sizes: NetworkSizes,
        *,
        edit_lr: float = 1e-4,
        edit_bias: bool = False,
        train_fusion: bool = True,
        fusion_order: FusionOrder = "paper",
    ) -> None:
        super().__init__()
        self.edited, self.sizes = list(modules), sizes
        self.edit_bias, self.train_fusion, self.fusion_order = edit_bias, train_fusion, fusion_order
        shapes: dict[str, list[EditedModule]] = {}
        for module in modules:
            shapes.setdefault(module.shape, []).append(module)
        self.networks = nn.ModuleDict(
            {
                shape: AuxiliaryNetwork(group[0].d_in, group[0].d_out, len(group), sizes)
                for shape, group in shapes.items()
            }
        )
        # A module's mode is its order among the modules of its shape.
        self.modes = [shapes[m.shape].index(m) for m in modules]
        self.step_sizes = nn.Parameter(torch.full([len(modules)], edit_lr))  # eta

        self.base_model: dict[str, Any] = {}  # what the checkpoint says of the language model

    def network(self, module: EditedModule) -> AuxiliaryNetwork:
        """The network of the module's shape."""
        return cast(AuxiliaryNetwork, self.networks[module.shape])

    def update_statistics(self, signals: Sequence[EditSignals]) -> None:
        """Add the edits' tokens to the running statistics. signals: one a module."""
        for module, s in zip(self.edited, signals, strict=True):
            self.network(module).update_statistics(torch.cat([s.x, s.delta], -1).to(self.device))

    @property
    def device(self) -> torch.device:
        return self.step_sizes.device

    def forward(
        self, signals: Sequence[EditSignals], past: Sequence[list[PastEdits]] | None = None
    ) -> list[Update]:
        """signals: one a module, the same n edits in each. Returns one Update a module."""
        return [self.update(m, s, past[m] if past else None) for m, s in enumerate(signals)]

    def update(self, m: int, signals: EditSignals, past: list[PastEdits] | None) -> Update:
        """The update of module m (paper, 3.3, gradient fusion)."""
        network = self.network(self.edited[m])
        signals = signals.to(self.device)
        lengths = signals.lengths
        x_hat, delta_hat, u, now = network(
            torch.cat([signals.x, signals.delta], -1), lengths, self.modes[m], past
        )
        if not self.train_fusion:
            u = u.detach()
        w, w_past = fusion_weights(u, self.fusion_order)
        scale = self.step_sizes[m] * w / lengths.clamp(min=1)
        scaled = delta_hat * scale.repeat_interleave(lengths)[:, None]
        return Update(x_hat, scaled, self.edit_bias, w_past, now)
