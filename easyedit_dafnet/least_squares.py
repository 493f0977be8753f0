"""Gradient fusion by least squares, in place of the paper's weighted mean.

Each edit i asks of a module y = xW that its change dW turn one input, the key k_i, into the value
v_i; other inputs should not notice. With keys K [n, d_in] and values V [n, d_out], dW minimises

    |K dW - V|^2 + lambda tr(dWᵀ M dW),

where M are the second moments of inputs: of a plain text's tokens, and of the keys of subjects at
large, in equal parts (MEMIT, arXiv 2210.07229, has the text's only). The solution is dW = Gᵀ V,
with the gains

    G = (I + K S Kᵀ)^-1 K S,    S = M^-1 / lambda.

Of M its r principal directions are kept, U [d_in, r]; all others share their mean strength, which
is the unit. So M^-1 = I - U (I - F) Uᵀ, with F [r] how freely each direction is written, in (0, 1].

Edits that come later are added by recursive least squares: the residuals V - K dW take the place
of V, and S loses what is now known, S <- S - (K S)ᵀ G. The outcome is that of all edits at once,
and the cost of an edit does not depend on how many there were.

An edit whose key was written before is about the same subject, after the same words. Least squares
would settle between the two; here the former one gives way where the prompt is the same, and both
are kept, as a sum, where it is another: then it is noted what the later one adds, so that either
can give way alone. Either way what S knew along the key is forgotten first
(directional forgetting).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .signals import EditedModule

# Of two keys, from which on they are of one subject: the same words up to its end give 1. Of 3,320
# facts of CounterFact, no pair of different subjects reaches it in SmolLM2's layer 3, 25 reach 0.9.
SAME_KEY = 0.99


@dataclass(frozen=True)
class Overshoot:
    """What the values of n edits are multiplied by.

    More than 1 says a target louder than its own prompt needs. A single edit that is louder
    reaches its rephrases; of many, what is too loud of one is noise to the others, so the margin
    falls: margin / (1 + n / facts)^decay.
    """

    margin: float = 1.0
    facts: float = 25.0
    decay: float = 0.0

    def __call__(self, n: int) -> float:
        return self.margin / (1 + n / self.facts) ** self.decay


@dataclass(frozen=True)
class Known:
    """An edit whose key was written before. prompt: its own; prompts: of the edits at that key."""

    prompt: int
    prompts: frozenset[int]

    @property
    def again(self) -> bool:
        return self.prompt in self.prompts


@dataclass(frozen=True)
class Written:
    """What is kept of the p edits so far.

    inverses: S [d_in, d_in], one a module; constant in size.
    keys: [p, d_in], those of the first module, of unit length in its metric; prompts: [p], a number
    that tells prompts apart; an edit again of the same prompt adds none. protection: what lambda
    was multiplied by. overshoot: how loud the values are. added: by the prompts whose key another
    prompt had before, [d_out] a module: what their edits add to the value at that key; the rest of
    it is the first prompt's.
    """

    inverses: list[Tensor]
    keys: Tensor
    prompts: Tensor
    protection: float
    overshoot: Overshoot
    added: Mapping[int, list[Tensor]]

    @property
    def margin(self) -> float:
        """What all values are multiplied by now. A fact edited again counts once."""
        return self.overshoot(len(self.prompts.unique()))

    def corrected(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], prompts: Sequence[int]
    ) -> tuple[list[tuple[Tensor, Tensor]], Written]:
        """Two factors a module of what changes when edits that are written get further values, and
        the new state.

        keys [n, d_in]; values [n, d_out], as they are to count with the margin; prompts, their
        numbers. Of all edits so far
        dW = S Kᵀ V (unless a subject was edited again, of which S has forgotten a part), so it is
        S Kᵀ times what is added to V. What S knows stays the same.
        """
        margin, added = self.margin, {**self.added}
        steps = [
            (key @ inverse, value / margin)
            for key, value, inverse in zip(keys, values, self.inverses, strict=True)
        ]
        for i, prompt in enumerate(prompts):
            if prompt in added:
                added[prompt] = [
                    before + (spread[i] @ key[i]) * value[i]
                    for before, key, (spread, value) in zip(added[prompt], keys, steps, strict=True)
                ]
        return steps, replace(self, added=added)

    def spreads(self, keys: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """How further values are written, for `corrected`: KS and what of a value comes to its key.

        Returns [n, d_in], one a module, K S, and [n, 1], the mean over the modules of k·(kS), by
        which the former is divided: so a value adds as much as if it came to its key wholly.
        """
        spreads = [key @ inverse for key, inverse in zip(keys, self.inverses, strict=True)]
        shares = [(k * s).sum(-1, keepdim=True) for k, s in zip(keys, spreads, strict=True)]
        # Of a key written again and again S knows nearly all, and rounding what is left.
        share = torch.stack(shares).mean(0).clamp(min=0.01)
        return [spread / share for spread in spreads], share

    def former(self, known: Known, m: int, has: Tensor) -> Tensor:
        """What the edit that gives way put at its key in module m, of all that is there.

        has: [1, d_out]; so is what is returned, 0 where none gives way.
        """
        if not known.again:
            return torch.zeros_like(has)
        if known.prompt in self.added:
            return self.added[known.prompt][m][None]
        for prompt in known.prompts & self.added.keys():
            has = has - self.added[prompt][m]
        return has

    @property
    def bytes_per_edit(self) -> int:
        return self.keys.shape[1] * self.keys.element_size() + self.prompts.element_size()

    @property
    def constant_bytes(self) -> int:
        return sum(s.numel() * s.element_size() for s in self.inverses)


def gains(keys: Tensor, spread: Tensor) -> Tensor:
    """G [n, d_in] of keys K [n, d_in] and K S [n, d_in]."""
    eye = torch.eye(len(keys), device=keys.device, dtype=keys.dtype)
    return torch.linalg.solve(eye + spread @ keys.T, spread)


class LeastSquares(nn.Module):
    """How the edits of M modules are fused: what they should leave alone, and how much that weighs.

    directions: r, how many principal directions of the inputs are told apart.
    log_weights: [M], the logarithms of lambda, trained with the networks.
    """

    log_weights: nn.Parameter

    def __init__(self, modules: Sequence[EditedModule], directions: int, weight: float) -> None:
        super().__init__()
        self.first_weight = weight
        self.log_weights = nn.Parameter(torch.full([len(modules)], math.log(weight)))
        for m, module in enumerate(modules):
            rank = min(directions, module.d_in - 1)
            self.register_buffer(f"directions_{m}", torch.zeros(module.d_in, rank))
            self.register_buffer(f"freedom_{m}", torch.ones(rank))

    @torch.no_grad()
    def protect(self, m: int, *second_moments: Tensor) -> None:
        """Let module m leave alone inputs of these second moments, [d_in, d_in] each."""
        moments = torch.stack([c.double() / c.double().trace() for c in second_moments]).sum(0)
        strengths, directions = torch.linalg.eigh(moments)
        rank = len(self.get_buffer(f"freedom_{m}"))
        top = strengths[-rank:].flip(0)
        self.get_buffer(f"directions_{m}").copy_(directions[:, -rank:].flip(1))
        self.get_buffer(f"freedom_{m}").copy_(strengths[:-rank].mean().clamp(min=0) / top)

    @torch.no_grad()
    def scale_to(self, m: int, keys: Tensor) -> None:
        """Set lambda to its first value times the mean of k M^-1 kᵀ over keys [n, d_in]."""
        size = (self._freed(m, keys) * keys).sum(-1).mean()
        self.log_weights[m] = math.log(self.first_weight) + size.log()

    def _freed(self, m: int, keys: Tensor) -> Tensor:
        """K M^-1 [n, d_in]"""
        directions, freedom = (self.get_buffer(f"{n}_{m}") for n in ("directions", "freedom"))
        return keys - ((keys @ directions) * (1 - freedom)) @ directions.T

    def spread(self, m: int, keys: Tensor) -> Tensor:
        """K S [n, d_in] before any edit."""
        return self._freed(m, keys) / self.log_weights[m].exp()

    @torch.no_grad()
    def nothing_written(
        self, protection: float = 1.0, overshoot: Overshoot | None = None
    ) -> Written:
        """The state before the first edit, with lambda `protection` times the trained one."""
        device, inverses = self.log_weights.device, []
        for m in range(len(self.log_weights)):
            directions, freedom = (self.get_buffer(f"{n}_{m}") for n in ("directions", "freedom"))
            inverse = -(directions * (1 - freedom)) @ directions.T
            inverse.diagonal().add_(1)
            inverses.append(inverse / (self.log_weights[m].exp() * protection))
        none = torch.zeros(0, dtype=torch.long, device=device)
        keys = inverses[0].new_zeros(0, len(inverses[0]))
        return Written(inverses, keys, none, protection, overshoot or Overshoot(), {})

    @torch.no_grad()
    def write(
        self,
        keys: Sequence[Tensor],
        values: Sequence[Tensor],
        prompts: Tensor,
        written: Written,
        changes: Sequence[Tensor],
    ) -> tuple[list[tuple[Tensor, Tensor]], Written]:
        """Add n edits to those written.

        keys [n, d_in], values [n, d_out] and changes dW [d_in, d_out]: one a module. prompts: [n].
        Returns for each module two factors, [n, d_in] and [n, d_out], whose product AᵀB is what is
        added to its dW, and the new state.
        """
        steps: list[list[tuple[Tensor, Tensor]]] = [[] for _ in keys]
        for rows, known in self._groups(keys[0], prompts, written):
            inverses, given = [], []
            for m, (k, v) in enumerate(zip(keys, values, strict=True)):
                key, value, inverse = k[rows], v[rows], written.inverses[m]
                spread = key @ inverse
                if known is not None:
                    size = (spread @ key.T).item()
                    first = (self.spread(m, key) @ key.T).item() / written.protection
                    lost = spread * max(0.0, first - size) ** 0.5 / max(size, 1e-12)
                    inverse = inverse + lost.T @ lost
                    spread = key @ inverse
                gain = gains(key, spread)
                has = key @ changes[m]
                for before, step in steps[m]:
                    has = has + (key @ before.T) @ step
                if known is not None:
                    share = gain @ key.T
                    given.append((share @ value)[0])
                    # All of the former edit goes, not the share of it that the new one gets.
                    has = written.former(known, m, has) / share
                steps[m].append((gain, value - has))
                inverses.append(inverse - spread.T @ gain)
            added = written.added
            if known is not None and (not known.again or known.prompt in added):
                added = {**added, known.prompt: given}
            elif known is None:  # at a key of its own, whatever its prompt added at another
                elsewhere = added.keys() - set(prompts[rows].tolist())
                added = {prompt: added[prompt] for prompt in elsewhere}
            written = replace(written, inverses=inverses, added=added)
            if known is None or not known.again:  # else both are there
                written = replace(
                    written,
                    keys=torch.cat([written.keys, self._unit(keys[0][rows])]),
                    prompts=torch.cat([written.prompts, prompts[rows]]),
                )
        joined = [(torch.cat(a), torch.cat(b)) for a, b in (zip(*s, strict=True) for s in steps)]
        return joined, written

    def _unit(self, keys: Tensor) -> Tensor:
        """Keys [n, d_in] of the first module in its metric, of unit length."""
        directions, freedom = self.get_buffer("directions_0"), self.get_buffer("freedom_0")
        white = keys - ((keys @ directions) * (1 - freedom.sqrt())) @ directions.T
        return F.normalize(white, dim=-1)

    def _groups(
        self, keys: Tensor, prompts: Tensor, written: Written
    ) -> list[tuple[slice, Known | None]]:
        """The n edits in runs that are solved together, in order.

        An edit of a subject known before is a run of its own, and with it stands what is known;
        with all others stands None.
        """
        unit = self._unit(keys)
        numbers = torch.cat([written.prompts, prompts])
        alike = unit @ torch.cat([written.keys, unit]).T >= SAME_KEY
        alike = alike.tril(len(written.keys) - 1)  # with what came before
        groups: list[tuple[slice, Known | None]] = []
        for i, known in enumerate(alike.any(1).tolist()):
            if known:
                before = frozenset(numbers[alike[i]].tolist())
                groups.append((slice(i, i + 1), Known(int(prompts[i]), before)))
            elif groups and groups[-1][1] is None:
                groups[-1] = slice(groups[-1][0].start, i + 1), None
            else:
                groups.append((slice(i, i + 1), None))
        return groups
