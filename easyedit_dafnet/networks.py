"""The auxiliary network: normalisation and dynamic auxiliary fusion (paper, 3.2 and 3.3).

The M modules of a shape go through their network together. Shapes: n edits and p past ones at each
module, T kept tokens of all modules and edits together, D = d_in + d_out, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dafnet_hparams import NetworkSizes


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


class ModuleNorm(nn.Module):
    """ExactNorm for each module by itself: modules may differ in scale by orders of magnitude.

    What lies further than `LIMIT` deviations from the mean is brought there: few tokens set the
    statistics, and inputs of a language model have outliers.
    """

    LIMIT = 5.0

    def __init__(self, dim: int, modes: int) -> None:
        super().__init__()
        self.of_module = nn.ModuleList(ExactNorm(dim) for _ in range(modes))

    def split(self, s: Tensor, lengths: Tensor) -> list[Tensor]:
        """s [T, D] by module; lengths: [M * n], tokens per module and edit."""
        return list(s.split(lengths.unflatten(0, (len(self.of_module), -1)).sum(1).tolist()))

    def update(self, s: Tensor, lengths: Tensor) -> None:
        for norm, part in zip(self.of_module, self.split(s, lengths), strict=True):
            cast(ExactNorm, norm).update(part)

    def forward(self, s: Tensor, lengths: Tensor) -> Tensor:
        parts = zip(self.of_module, self.split(s, lengths), strict=True)
        return torch.cat([norm(part) for norm, part in parts]).clamp(-self.LIMIT, self.LIMIT)


NORMS = {"exact": ExactNorm, "batch": MomentumNorm, "layer": nn.LayerNorm}

# Numbers of lower precision that are widened to float32 at once: 2 MB, to stay in the cache.
WIDENED_AT_ONCE = 2**19


@dataclass(frozen=True)
class Rows:
    """Vectors of the p edits so far, in a larger buffer that takes the next ones in place.

    The buffer may be of lower precision than what is put in; it doubles when it is full.
    """

    buffer: Tensor  # [M, H, capacity, width]
    count: int  # p

    @property
    def filled(self) -> Tensor:
        """[M, H, p, width], a view."""
        return self.buffer[:, :, : self.count]

    @property
    def bytes_per_edit(self) -> int:
        modules, heads, _, width = self.buffer.shape
        return modules * heads * width * self.buffer.element_size()

    def append(self, new: Tensor) -> Rows:
        """These rows with new [M, H, n, width] behind them.

        What is in these stays as it was; a second append to the same rows undoes the first.
        """
        buffer, count = self.buffer, self.count + new.shape[2]
        modules, heads, capacity, width = buffer.shape
        if count > capacity:
            buffer = buffer.new_empty(modules, heads, max(2 * capacity, count), width)
            buffer[:, :, : self.count] = self.filled
        buffer[:, :, self.count : count] = new
        return Rows(buffer, count)


@dataclass(frozen=True)
class PastEdits:
    """What a layer keeps of the p edits so far at each of its modules, projected once.

    keys, values: [M, H, p, outer_att_dim]; score_keys: [M, H, p, outer_score_att_dim].
    """

    keys: Rows
    values: Rows
    score_keys: Rows

    @property
    def bytes_per_edit(self) -> int:
        return sum(rows.bytes_per_edit for rows in (self.keys, self.values, self.score_keys))


def _per_token(x: Tensor, lengths: Tensor, total: int) -> Tensor:
    """[M * n, ...], one a module and edit -> [T, ...], that of each token. total: T."""
    return x.repeat_interleave(lengths, 0, output_size=total)


class IntraEditingAttention(nn.Module):
    """Attention within each edit: which of its tokens carry it."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, width), nn.Linear(width, dim)
        self.v1, self.v2 = nn.Linear(dim, width), nn.Linear(width, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D], lengths [M * n] -> c [T, D] and the edits' representations r [M * n, D]."""
        a = self.w2(F.relu(self.w1(x)))
        scores = self.v2(F.relu(self.v1(a)))
        # A softmax over each edit's own tokens; the largest score is taken out for stability.
        largest = torch.segment_reduce(scores.detach(), "max", lengths=lengths)
        weights = (scores - _per_token(largest, lengths, len(x))).exp()
        sums = torch.segment_reduce(weights, "sum", lengths=lengths)
        c = weights / _per_token(sums, lengths, len(x)) * a
        return c, torch.segment_reduce(c, "sum", lengths=lengths)


def _heads(x: Tensor, n: int) -> Tensor:
    """[M, n, H * width] -> [M, H, n, width]."""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def _causal(n: int, total: int, device: torch.device) -> Tensor | None:
    """[n, total], true where edit i of the last n may look: at all before them and at 1..i.

    None where that is everywhere.
    """
    if n == 1:
        return None
    return torch.ones(n, total, dtype=torch.bool, device=device).tril(total - n)


def _widened(rows: Tensor) -> Iterator[Tensor]:
    """rows [p, width] in float32, block after block."""
    for block in rows.split(max(1, WIDENED_AT_ONCE // rows.shape[-1])):
        yield block.float()


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """[M, H, n, width], [M, H, p + n, width] -> [M, H, n, p + n] in float32, causally masked."""
    if keys.dtype == queries.dtype:
        scores = queries @ keys.mT
    else:
        pairs = zip(queries.flatten(0, 1), keys.flatten(0, 1), strict=True)
        each = [torch.cat([q @ block.mT for block in _widened(k)], -1) for q, k in pairs]
        scores = torch.stack(each).unflatten(0, queries.shape[:2])
    scores = scores / queries.shape[-1] ** 0.5
    mask = _causal(scores.shape[2], scores.shape[3], scores.device)
    return scores if mask is None else scores.masked_fill(~mask, -torch.inf)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[M, H, n, width], twice [M, H, p + n, width] -> [M, H, n, width], in float32 throughout."""
    if keys.dtype == queries.dtype:
        mask = _causal(queries.shape[2], keys.shape[2], queries.device)
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    weights = _scores(queries, keys).softmax(-1).flatten(0, 1)
    mixed = torch.zeros_like(queries).flatten(0, 1)
    for out, w, v in zip(mixed, weights, values.flatten(0, 1), strict=True):
        start = 0
        for block in _widened(v):
            out.addmm_(w[:, start : start + len(block)], block)
            start += len(block)
    return mixed.unflatten(0, queries.shape[:2])


class InterEditingAttention(nn.Module):
    """Causal attention from each edit to the past ones and itself, at each module by itself."""

    def __init__(self, dim: int, width: int, head_n: int) -> None:
        super().__init__()
        self.head_n = head_n
        self.query, self.key, self.value = (nn.Linear(dim, head_n * width) for _ in range(3))
        self.out = nn.Linear(head_n * width, dim)

    def forward(
        self, r: Tensor, past: tuple[Rows, Rows] | None = None
    ) -> tuple[Tensor, tuple[Rows, Rows] | None]:
        """r [M, n, D] -> [M, n, D], and `past`, where given, with these edits in it."""
        queries, keys, values = (
            _heads(project(r), self.head_n) for project in (self.query, self.key, self.value)
        )
        if past is not None:
            past = past[0].append(keys), past[1].append(values)
            keys, values = past[0].filled, past[1].filled
        return self.out(_attend(queries, keys, values).transpose(1, 2).flatten(2)), past


class DiagonalFusion(nn.Module):
    """How much of the new edit goes in: the attention that each edit pays to itself."""

    def __init__(self, dim: int, width: int, head_n: int) -> None:
        super().__init__()
        self.head_n = head_n
        self.query, self.key = nn.Linear(dim, head_n * width), nn.Linear(dim, head_n * width)

    def forward(self, r: Tensor, past: Rows | None = None) -> tuple[Tensor, Rows | None]:
        """r [M, n, D] -> u [M, n] in (0, 1], and `past`, where given, with these edits in it."""
        queries, keys = (_heads(project(r), self.head_n) for project in (self.query, self.key))
        if past is not None:
            past = past.append(keys)
            keys = past.filled
        attention, p = _scores(queries, keys).softmax(-1), keys.shape[2] - r.shape[1]
        return attention.diagonal(p, -2, -1).mean(1), past


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
    ) -> tuple[Tensor, Tensor, PastEdits | None]:
        """x [T, D], lengths [M * n], mode [T] -> x [T, D], u [M, n], and the new past."""
        c, r = self.intra(x, lengths)
        x = self.norm1(x + c)
        r = r.unflatten(0, (self.scale.num_embeddings, -1))
        context, kept = self.inter(r, past and (past.keys, past.values))
        x = self.norm2(x + _per_token(context.flatten(0, 1), lengths, len(x)))
        u, score_keys = self.fusion(r, past and past.score_keys)
        x = self.norm3(x + self.f2(F.relu(self.f1(x))))
        z = x * self.scale(mode) + self.shift(mode)
        # clamp, not relu: its gradient at z = 0 is not 0.
        x = x + z.clamp(min=0)
        return x, u, past and PastEdits(kept[0], kept[1], score_keys)


class AuxiliaryNetwork(nn.Module):
    """The network of one weight shape; its M modules are told apart by their mode index.

    d_answer: width of the answer's signal, where edits have one; then D = d_in + d_out + d_answer.
    """

    def __init__(
        self, d_in: int, d_out: int, modes: int, sizes: NetworkSizes, d_answer: int = 0
    ) -> None:
        super().__init__()
        dim = d_in + d_out + d_answer
        self.d_in, self.d_out, self.d_answer = d_in, d_out, d_answer
        self.modes, self.sizes = modes, sizes
        self.norm: nn.Module
        if sizes.norm_layer == "module":
            self.norm = ModuleNorm(dim, modes)
        else:
            self.norm = NORMS[sizes.norm_layer](dim)
        self.layers = nn.ModuleList(FusionLayer(dim, modes, sizes) for _ in range(sizes.layer_n))

    def update_statistics(self, s: Tensor, lengths: Tensor) -> None:
        """Add the tokens of s [T, D] to the running statistics, where the norm has some.

        lengths: [M * n], tokens per module and edit.
        """
        if isinstance(self.norm, ModuleNorm):
            self.norm.update(s, lengths)
        elif isinstance(self.norm, ExactNorm | MomentumNorm):
            for part in s.split(lengths.unflatten(0, (self.modes, -1)).sum(1).tolist()):
                self.norm.update(part)

    def new_past(self, dtype: torch.dtype, device: torch.device) -> list[PastEdits]:
        """What is kept before the first edit, one entry a layer; dtype: of what will be kept."""

        def none(heads: int, width: int) -> Rows:
            return Rows(torch.empty(self.modes, heads, 0, width, dtype=dtype, device=device), 0)

        sizes = self.sizes
        att = sizes.outer_att_head_n, sizes.outer_att_dim
        score = sizes.outer_score_att_head_n, sizes.outer_score_att_dim
        return [PastEdits(none(*att), none(*att), none(*score)) for _ in self.layers]

    def normalised(self, s: Tensor, lengths: Tensor) -> Tensor:
        """s [T, D] as the network takes it; in training, the statistics go on counting."""
        if isinstance(self.norm, ModuleNorm):
            return cast(Tensor, self.norm(s, lengths))
        if self.training and isinstance(self.norm, ExactNorm | MomentumNorm):
            # One module after another, each by the statistics up to it.
            parts = s.split(lengths.unflatten(0, (self.modes, -1)).sum(1).tolist())
            return torch.cat([self.norm(part) for part in parts])
        return self.norm(s)

    def forward(
        self, s: Tensor, lengths: Tensor, past: list[PastEdits] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, list[PastEdits] | None]:
        """The n edits at all M modules, the tokens of module 0 first, in it those of edit 0 first.

        s: [T, D]; lengths: [M * n], tokens per module and edit. past: one entry a layer; where
        given, the new edits attend to it and are added to it, without gradients.
        Returns x̂ [T, d_in], deltâ [T, d_out], u [layers, M, n], and the new past, if any.
        """
        x = self.normalised(s, lengths)
        edits = len(lengths) // self.modes
        of_edit = torch.arange(self.modes, device=s.device).repeat_interleave(edits)
        mode = _per_token(of_edit, lengths, len(s))
        scores, now = [], []
        for i, layer in enumerate(self.layers):
            x, u, kept = layer(x, lengths, mode, past[i] if past else None)
            scores.append(u)
            now.append(kept)
        x_hat, delta_hat, _ = x.split([self.d_in, self.d_out, self.d_answer], -1)
        return x_hat, delta_hat, torch.stack(scores), now if past else None
