"""The auxiliary network: normalisation and dynamic auxiliary fusion (paper, 3.2 and 3.3).

Shapes: n edits with T kept tokens together, p past edits, D = d_in + d_out, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ExactNorm(nn.Module):
    """Normalise with the mean and variance of every token ever seen in training.

    Chan, Golub and LeVeque's parallel update joins a batch to the running statistics, so the
    order and size of the batches do not matter. Frozen in evaluation mode.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, dim: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("count", torch.tensor(0))

    @torch.no_grad()
    def update(self, s: Tensor) -> None:
        """Add the tokens of s [T, D] to the statistics."""
        if not len(s):
            return
        s = s.double()
        total, old = int(self.count) + len(s), int(self.count)
        shift = s.mean(0) - self.mean
        squares = (s - s.mean(0)).square().sum(0) + shift.square() * (old * len(s) / total)
        squares += self.var.double() * max(old - 1, 0)
        self.mean.copy_(self.mean + shift * (len(s) / total))
        if total > 1:
            self.var.copy_(squares / (total - 1))
        self.count.fill_(total)

    def forward(self, s: Tensor) -> Tensor:
        if self.training:
            self.update(s)
        return (s - self.mean) / (self.var.sqrt() + self.eps)


class MomentumNorm(nn.Module):
    """Normalise with exponentially averaged batch statistics (momentum 0.1)."""

    mean: Tensor
    var: Tensor

    def __init__(self, dim: int, eps: float = 1e-8, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))

    @torch.no_grad()
    def update(self, s: Tensor) -> None:
        if len(s):
            self.mean.lerp_(s.mean(0), self.momentum)
            self.var.lerp_(s.var(0, unbiased=False), self.momentum)

    def forward(self, s: Tensor) -> Tensor:
        if self.training:
            self.update(s)
        return (s - self.mean) / (self.var.sqrt() + self.eps)


NORMS = {"exact": ExactNorm, "batch": MomentumNorm, "layer": nn.LayerNorm}


@dataclass(frozen=True)
class NetworkSizes:
    """Widths of an auxiliary network; the defaults are the published ones."""

    layer_n: int = 2
    inner_att_dim: int = 1024
    ffn_dim: int = 1536
    outer_att_dim: int = 1024  # per head
    outer_att_head_n: int = 2
    outer_score_att_dim: int = 256  # per head
    outer_score_att_head_n: int = 2
    norm_layer: Literal["exact", "batch", "layer"] = "exact"


@dataclass(frozen=True)
class PastEdits:
    """What a layer keeps of the p edits so far at one module, projected once.

    keys, values: [p, H * outer_att_dim]; score_keys: [p, H * outer_score_att_dim].
    """

    keys: Tensor
    values: Tensor
    score_keys: Tensor


class IntraEditingAttention(nn.Module):
    """Attention within each edit: which of its tokens carry it."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, width), nn.Linear(width, dim)
        self.v1, self.v2 = nn.Linear(dim, width), nn.Linear(width, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D], lengths [n] -> c [T, D] and the edits' representations r [n, D]."""
        a = self.w2(F.relu(self.w1(x)))
        scores = self.v2(F.relu(self.v1(a)))
        # A softmax over each edit's own tokens; the largest score is taken out for stability.
        largest = torch.segment_reduce(scores.detach(), "max", lengths=lengths)
        weights = (scores - largest.repeat_interleave(lengths, 0)).exp()
        sums = torch.segment_reduce(weights, "sum", lengths=lengths)
        c = weights / sums.repeat_interleave(lengths, 0) * a
        return c, torch.segment_reduce(c, "sum", lengths=lengths)


def _heads(x: Tensor, n: int) -> Tensor:
    """[m, H * d] -> [H, m, d]."""
    return x.unflatten(-1, (n, -1)).transpose(0, 1)


def _causal(n: int, p: int, device: torch.device) -> Tensor:
    """[n, p + n], true where edit i may look: at all past edits and at edits 1..i."""
    return torch.ones(n, p + n, dtype=torch.bool, device=device).tril(p)


class InterEditingAttention(nn.Module):
    """Causal attention from each edit to the past ones and itself."""

    def __init__(self, dim: int, width: int, head_n: int) -> None:
        super().__init__()
        self.head_n = head_n
        self.query, self.key, self.value = (nn.Linear(dim, head_n * width) for _ in range(3))
        self.out = nn.Linear(head_n * width, dim)

    def forward(
        self, r: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """r [n, D] -> [n, D], and the keys and values of all p + n edits."""
        keys, values = self.key(r), self.value(r)
        if past is not None:
            keys, values = torch.cat([past[0], keys]), torch.cat([past[1], values])
        mixed = F.scaled_dot_product_attention(
            _heads(self.query(r), self.head_n)[None],
            _heads(keys, self.head_n)[None],
            _heads(values, self.head_n)[None],
            attn_mask=_causal(len(r), len(keys) - len(r), r.device),
        )[0]
        return self.out(mixed.transpose(0, 1).flatten(1)), (keys, values)


class DiagonalFusion(nn.Module):
    """How much of the new edit goes in: the attention that each edit pays to itself."""

    def __init__(self, dim: int, width: int, head_n: int) -> None:
        super().__init__()
        self.head_n = head_n
        self.query, self.key = nn.Linear(dim, head_n * width), nn.Linear(dim, head_n * width)

    def forward(self, r: Tensor, past_keys: Tensor | None) -> tuple[Tensor, Tensor]:
        """r [n, D] -> u [n] in (0, 1], and the keys of all p + n edits."""
        keys = self.key(r)
        if past_keys is not None:
            keys = torch.cat([past_keys, keys])
        queries, p = _heads(self.query(r), self.head_n), len(keys) - len(r)
        scores = queries @ _heads(keys, self.head_n).mT / queries.shape[-1] ** 0.5
        scores = scores.masked_fill(~_causal(len(r), p, r.device), -torch.inf)
        return scores.softmax(-1).diagonal(p, 1, 2).mean(0), keys


class FusionLayer(nn.Module):
    """One layer of dynamic auxiliary fusion."""

    def __init__(self, dim: int, modes: int, sizes: NetworkSizes) -> None:
        super().__init__()
        self.intra = IntraEditingAttention(dim, sizes.inner_att_dim)
        self.inter = InterEditingAttention(dim, sizes.outer_att_dim, sizes.outer_att_head_n)
        self.fusion = DiagonalFusion(dim, sizes.outer_score_att_dim, sizes.outer_score_att_head_n)
        self.f1, self.f2 = nn.Linear(dim, sizes.ffn_dim), nn.Linear(sizes.ffn_dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.scale, self.shift = nn.Embedding(modes, dim), nn.Embedding(modes, dim)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(
        self, x: Tensor, lengths: Tensor, mode: Tensor, past: PastEdits | None
    ) -> tuple[Tensor, Tensor, PastEdits]:
        """x [T, D] -> x [T, D], u [n], and the past with these n edits in it."""
        c, r = self.intra(x, lengths)
        x = self.norm1(x + c)
        context, (keys, values) = self.inter(r, past and (past.keys, past.values))
        x = self.norm2(x + context.repeat_interleave(lengths, 0))
        u, score_keys = self.fusion(r, past and past.score_keys)
        x = self.norm3(x + self.f2(F.relu(self.f1(x))))
        z = x * self.scale(mode) + self.shift(mode)
        # clamp, not relu: its gradient at z = 0 is not 0.
        x = x + z.clamp(min=0)
        now = PastEdits(keys.detach(), values.detach(), score_keys.detach())
        return x, u, now


class AuxiliaryNetwork(nn.Module):
    """The network of one weight shape; its modules are told apart by their mode index."""

    def __init__(self, d_in: int, d_out: int, modes: int, sizes: NetworkSizes) -> None:
        super().__init__()
        dim = d_in + d_out
        self.d_in, self.d_out = d_in, d_out
        self.norm: nn.Module = NORMS[sizes.norm_layer](dim)
        self.layers = nn.ModuleList(FusionLayer(dim, modes, sizes) for _ in range(sizes.layer_n))

    def update_statistics(self, s: Tensor) -> None:
        """Add the tokens of s [T, D] to the running statistics, where the norm has some."""
        if isinstance(self.norm, ExactNorm | MomentumNorm):
            self.norm.update(s)

    def forward(
        self, s: Tensor, lengths: Tensor, mode: int, past: list[PastEdits] | None
    ) -> tuple[Tensor, Tensor, Tensor, list[PastEdits]]:
        """s [T, D] -> x̂ [T, d_in], deltâ [T, d_out], u [layers, n], and the new past."""
        x = self.norm(s)
        index = torch.tensor(mode, device=s.device)
        scores, now = [], []
        for i, layer in enumerate(self.layers):
            x, u, kept = layer(x, lengths, index, past[i] if past else None)
            scores.append(u)
            now.append(kept)
        x_hat, delta_hat = x.split([self.d_in, self.d_out], -1)
        return x_hat, delta_hat, torch.stack(scores), now
