"""DAFNet itself: from the signals of a batch of edits to the change of each edited weight.

It knows neither EasyEdit nor the language model, only the names and shapes of the modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dafnet_hparams import NetworkSizes
from .least_squares import LeastSquares, gains
from .networks import AuxiliaryNetwork, PastEdits
from .signals import EditedModule, EditSignals

FusionOrder = Literal["paper", "released"]
Fusion = Literal["mean", "least_squares"]
# What the networks keep of all edits so far: by shape, one entry a layer.
Past = dict[str, list[PastEdits]]


@dataclass(frozen=True)
class Update:
    """What a batch of edits does to one module: change = past_weight * change + step.

    The step is kept as factors, its weight part being x_hatᵀ delta_hat.
    x_hat: [T, d_in]; delta_hat: [T, d_out], with the step size, the edits' weights and lengths in
    it; past_weight: scalar, w_past; edit_bias: whether the module's bias is edited too.
    """

    x_hat: Tensor
    delta_hat: Tensor
    past_weight: Tensor
    edit_bias: bool = False

    @property
    def step_weight(self) -> Tensor:
        """[d_in, d_out]"""
        return self.x_hat.T @ self.delta_hat

    @property
    def step_bias(self) -> Tensor | None:
        """[d_out], or None when biases are not edited."""
        return self.delta_hat.sum(0) if self.edit_bias else None

    def factors(self, module: EditedModule) -> tuple[Tensor, Tensor]:
        """Two matrices whose product is the step, in the layout of the module's weight."""
        first, second = self.x_hat, self.delta_hat
        return (second.T, first) if module.transposed else (first.T, second)

    def steps(self, module: EditedModule) -> dict[str, Tensor]:
        """The steps by parameter name, in the layout of the module's parameters."""
        left, right = self.factors(module)
        steps = {module.weight_name: left @ right}
        if (bias := self.step_bias) is not None:
            steps[module.bias_name] = bias
        return steps

    def changed(self, module: EditedModule, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's changes after these edits, by parameter name; `changes` stay as they are.

        changes: float32, by parameter name, in the layout of the parameters.
        """
        change, w_past = changes[module.weight_name], self.past_weight.item()
        left, right = (factor.to(change.device) for factor in self.factors(module))
        changed = {module.weight_name: torch.addmm(change, left, right, beta=w_past)}
        if (bias := self.step_bias) is not None:
            change = changes[module.bias_name]
            changed[module.bias_name] = w_past * change + bias.to(change.device)
        return changed


def fusion_weights(u: Tensor, order: FusionOrder = "paper") -> tuple[Tensor, Tensor]:
    """Weights of the n edits of a batch and of all that was before them.

    u: [layers, ..., n], the attention that each edit pays to itself; the weights are [..., n]
    and [...]. Applying edit after edit, each scaling what was there by 1 - u_i and adding itself
    with u_i, gives w_i = u_i * prod_{j>i} (1 - u_j) and w_past = prod_j (1 - u_j).
    The paper's u is the mean over the layers, so that any split of a sequence agrees; the
    released code multiplies in each layer and takes the mean of the products.
    """
    if order == "paper":
        u = u.mean(0, keepdim=True)
    after = (1 - u).flip(-1).cumprod(-1).flip(-1)  # prod_{j>=i} (1 - u_j)
    later = torch.cat([after[..., 1:], torch.ones_like(after[..., :1])], -1)
    return (u * later).mean(0), after[..., 0].mean(0)


class DAFNet(nn.Module):
    """The auxiliary networks, one per weight shape, and a step size per edited module.

    fusion: how edits join, as the paper's weighted mean or by least squares; the latter tells
    `directions` of the inputs to leave alone apart, weighs them with `text_weight` at first, and
    its networks see the answer's signal, of width d_answer, too.
    """

    def __init__(
        self,
        modules: Sequence[EditedModule],
        sizes: NetworkSizes,
        *,
        edit_lr: float = 1e-4,
        edit_bias: bool = False,
        train_fusion: bool = True,
        fusion_order: FusionOrder = "paper",
        fusion: Fusion = "mean",
        directions: int = 400,
        text_weight: float = 0.2,
        d_answer: int = 0,
    ) -> None:
        super().__init__()
        self.edited, self.sizes = list(modules), sizes
        self.edit_bias, self.train_fusion, self.fusion_order = edit_bias, train_fusion, fusion_order
        self.fusion, self.directions, self.d_answer = fusion, directions, d_answer
        # The modules of each shape, by index; a module's mode is its place among them.
        self.groups: dict[str, list[int]] = {}
        for m, module in enumerate(modules):
            self.groups.setdefault(module.shape, []).append(m)
        self.networks = nn.ModuleDict(
            {
                shape: AuxiliaryNetwork(
                    modules[group[0]].d_in, modules[group[0]].d_out, len(group), sizes, d_answer
                )
                for shape, group in self.groups.items()
            }
        )
        self.step_sizes = nn.Parameter(torch.full([len(modules)], edit_lr))  # eta
        self.least_squares: LeastSquares | None = None
        if fusion == "least_squares":
            self.least_squares = LeastSquares(modules, directions, text_weight)
        self.float()  # whatever torch's default is

        self.base_model: dict[str, Any] = {}  # what the checkpoint says of the language model
        self.written_at = 0  # when the checkpoint was, in nanoseconds

    def network(self, module: EditedModule) -> AuxiliaryNetwork:
        """The network of the module's shape."""
        return cast(AuxiliaryNetwork, self.networks[module.shape])

    def update_statistics(self, signals: Sequence[EditSignals]) -> None:
        """Add the edits' tokens to the running statistics. signals: one a module."""
        for shape, group in self.groups.items():
            s, lengths = self._inputs([signals[m] for m in group])
            cast(AuxiliaryNetwork, self.networks[shape]).update_statistics(s, lengths)

    def _inputs(self, parts: Sequence[EditSignals]) -> tuple[Tensor, Tensor]:
        """s [T, D] and lengths [M * n] of the modules of one shape, as their network takes them.

        Beside the answer's signal, gradients are taken as directions: least squares sees to sizes.
        """
        parts = [part.to(self.device) for part in parts]
        lengths = torch.cat([part.lengths for part in parts])
        if self.least_squares is None:
            return torch.cat([torch.cat([part.x, part.delta], -1) for part in parts]), lengths
        rows = []
        for part in parts:
            assert part.answer is not None
            gradients = (F.normalize(g, dim=-1, eps=1e-12) for g in (part.delta, part.answer))
            rows.append(torch.cat([part.x, *gradients], -1))
        return torch.cat(rows), lengths

    @property
    def device(self) -> torch.device:
        return self.step_sizes.device

    def new_past(self, dtype: torch.dtype = torch.float32) -> Past:
        """What is kept before the first edit. dtype: of what will be kept."""
        return {
            shape: cast(AuxiliaryNetwork, network).new_past(dtype, self.device)
            for shape, network in self.networks.items()
        }

    def forward(
        self, signals: Sequence[EditSignals], past: Past | None = None
    ) -> tuple[list[Update], Past | None]:
        """The updates of n edits (paper, 3.3, gradient fusion), one a module.

        signals: one a module, the same n edits in each. past: what is kept of the edits before
        them, `new_past()` where there are none; the new past comes back, and the old one stays
        valid until it is gone on from again. Without it nothing is kept, as in training.
        With fusion by least squares, the updates are those of edits that are the first ones.
        """
        if self.least_squares is not None:
            values, past = self.values(signals, past)
            updates = []
            for m, (part, value) in enumerate(zip(signals, values, strict=True)):
                keys = part.x.to(self.device)
                gain = gains(keys, self.least_squares.spread(m, keys))
                updates.append(Update(gain, value, value.new_ones(())))
            return updates, past
        fused: dict[int, Update] = {}
        now: Past = {}
        for shape, group in self.groups.items():
            s, lengths = self._inputs([signals[m] for m in group])
            x_hat, delta_hat, u, kept = self.networks[shape](s, lengths, past and past[shape])
            if not self.train_fusion:
                u = u.detach()
            w, w_past = fusion_weights(u, self.fusion_order)  # [M, n], [M]
            scale = self.step_sizes[group][:, None] * w / lengths.view_as(w).clamp(min=1)
            scale = scale.flatten().repeat_interleave(lengths, output_size=len(s))
            tokens = [len(signals[m].x) for m in group]
            each = zip(x_hat.split(tokens), (scale[:, None] * delta_hat).split(tokens), strict=True)
            for m, factors, weight in zip(group, each, w_past, strict=True):
                fused[m] = Update(*factors, weight, self.edit_bias)
            now[shape] = kept
        return [fused[m] for m in range(len(signals))], now if past else None

    def values(
        self, signals: Sequence[EditSignals], past: Past | None = None
    ) -> tuple[list[Tensor], Past | None]:
        """The values V [n, d_out] of n edits of one token each, one a module, and the new past."""
        values: dict[int, Tensor] = {}
        now: Past = {}
        for shape, group in self.groups.items():
            s, lengths = self._inputs([signals[m] for m in group])
            _, delta_hat, _, kept = self.networks[shape](s, lengths, past and past[shape])
            for m, part in zip(group, delta_hat.chunk(len(group)), strict=True):
                values[m] = self.step_sizes[m] * part
            now[shape] = kept
        return [values[m] for m in range(len(signals))], now if past else None
