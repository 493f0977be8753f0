"""Second moments of the inputs of modules, E[x xᵀ] over the tokens of plain text.

MEMIT and its kin protect what a matrix does to these inputs. EasyEdit reads them from files, which
it makes from a download of Wikipedia when they are not there; here they are made from local text.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from ...bench.method import Need, Workbench
from ..host import host_info

PIECE = 512
"""Tokens that are read together at most; longer passages are cut."""
BATCH = 4096
"""Tokens of a batch, with padding."""
TOKENS_PER_INPUT = 10
"""Fewer tokens for each input of a module give moments that are near to singular."""


class SecondMoments:
    """The files that EasyEdit's `layer_stats` looks for, shared by all methods of a benchmark.

    modules: names of the modules, all of one model. tokens: how many tokens of `bench.text` are
    read; the settings' `mom2_n_samples`. dtype: float32 or float64, of sums and files.
    """

    def __init__(
        self, bench: Workbench, modules: Sequence[str], tokens: int, dtype: str = "float32"
    ) -> None:
        self.bench = bench
        self.modules = list(modules)
        self.tokens = tokens
        self.dtype = dtype
        #: The settings' `stats_dir`.
        self.folder = bench.folder.parent / "second_moments"

    @cached_property
    def _pieces(self) -> list[Tensor]:
        """The text's first tokens, [length] each; fewer than wanted when the text is short."""
        limit = min(PIECE, getattr(self.bench.tok, "model_max_length", PIECE))
        pieces: list[Tensor] = []
        left = self.tokens
        for passage in self.bench.text:
            ids = torch.tensor(self.bench.tok(passage, verbose=False)["input_ids"][:left])
            pieces += [piece for piece in ids.split(limit) if len(piece)]
            left -= len(ids)
            if left == 0:
                break
        return pieces

    @property
    def found(self) -> int:
        """Tokens that the text has, `tokens` at most."""
        return sum(len(piece) for piece in self._pieces)

    @cached_property
    def dataset(self) -> str:
        """The settings' `mom2_dataset`: names the text by its tokens."""
        digest = hashlib.sha256()
        for piece in self._pieces:
            digest.update(piece.numpy().tobytes())
        return f"text-{digest.hexdigest()[:12]}"

    def path(self, module: str) -> Path:
        """Where this host looks for the moments of a module's input."""
        name = self.bench.model_name
        model = name.rsplit("/")[-1] if host_info().kind == "main" else name.replace("/", "_")
        file = f"{module}_{self.dtype}_mom2_{self.tokens}.npz"
        return self.folder / model / f"{self.dataset}_stats" / file

    def need(self) -> Need:
        """The row of the preflight table."""
        what = f"second moments of {len(self.modules)} modules' inputs"
        if self.found < self.tokens:
            return Need(what, "missing", self._too_short())
        if all(self.path(module).is_file() for module in self.modules):
            return Need(what, "ready", f"of {self.tokens:,} tokens")
        return Need(what, "to prepare", f"one pass over {self.tokens:,} tokens of the plain text")

    def prepare(self) -> None:
        """Make the files that are not there, in one pass over the text.

        Raises ValueError when the text is too short, or fewer tokens are asked for than ten for
        each of the modules' inputs.
        """
        if self.found < self.tokens:
            raise ValueError(self._too_short())
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "lock"):  # other methods may be making the same
            missing = [module for module in self.modules if not self.path(module).is_file()]
            if missing:
                for module, moments in self._sums(missing).items():
                    self._write(module, moments)

    def _too_short(self) -> str:
        return (
            f"the plain text has {self.found:,} tokens and {self.tokens:,} are asked for: give a "
            "longer text, or a smaller mom2_n_samples"
        )

    def _sums(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Sums of x xᵀ over all tokens, [inputs, inputs] by module name."""
        model = self.bench.load_model()
        modules = {name: model.get_submodule(name) for name in names}
        sums: dict[str, Tensor] = {}
        # Which positions of the batch are tokens, and whose inputs were seen in this pass.
        mask = torch.empty(0)
        seen: set[str] = set()

        def add(name: str, module: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0][mask].to(getattr(torch, self.dtype))
            width = x.shape[-1]
            if self.tokens < TOKENS_PER_INPUT * width:
                raise ValueError(
                    f"{self.tokens:,} tokens are too few for second moments of the {width:,} "
                    f"inputs of {name}: set mom2_n_samples to at least {TOKENS_PER_INPUT * width:,}"
                )
            sums[name] = sums.get(name, x.new_zeros(width, width)).addmm_(x.T, x)
            seen.add(name)
            if len(seen) == len(modules):
                raise _AllSeen  # what comes after it is not needed

        hooks = [m.register_forward_pre_hook(partial(add, name)) for name, m in modules.items()]
        try:
            with torch.no_grad(), tqdm(total=self.tokens, unit="tok", desc="second moments") as bar:
                for ids, mask in self._batches():
                    seen.clear()
                    with suppress(_AllSeen):
                        model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
                    bar.update(int(mask.sum()))
        finally:
            for hook in hooks:
                hook.remove()
        return sums

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Token ids and whether they are tokens, [pieces, length] each, longest pieces first."""
        pieces = sorted(self._pieces, key=len, reverse=True)
        while pieces:
            count = max(1, BATCH // len(pieces[0]))
            batch, pieces = pieces[:count], pieces[count:]
            mask = pad_sequence([torch.ones_like(p) for p in batch], batch_first=True).bool()
            yield (
                pad_sequence(batch, batch_first=True).to(self.bench.device),
                mask.to(self.bench.device),
            )

    def _write(self, module: str, moments: Tensor) -> None:
        path = self.path(module)
        arrays: dict[str, Any] = {
            "mom2.constructor": "easyeditor.util.runningstats.SecondMoment()",
            "mom2.count": self.tokens,
            "mom2.mom2": moments.cpu().numpy(),
            "sample_size": self.tokens,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, **arrays)
        Path(file.name).replace(path)


class _AllSeen(Exception):
    """The pass has gone far enough."""
