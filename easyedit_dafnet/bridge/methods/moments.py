"""Second moments of the inputs of modules, E[x xᵀ] over the tokens of plain text.

MEMIT and its kin protect what a matrix does to these inputs. EasyEdit reads them from files, which
it makes from a download of Wikipedia when they are not there; here they are made from local text.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ...bench.method import Need, Workbench
from ...second_moments import pieces_of, sums_of_inputs
from ..host import host_info

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
        return pieces_of(self.bench.tok, self.bench.text, self.tokens)

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
                began = time.perf_counter()
                sums = self._sums(missing)
                each = (time.perf_counter() - began) / len(missing)
                for module, moments in sums.items():
                    self._write(module, moments, each)

    def seconds(self) -> float | None:
        """What making the files took, whichever method had it done; None where one does not say."""
        total = 0.0
        for module in self.modules:
            with np.load(self.path(module)) as file:
                if "seconds" not in file:
                    return None
                total += float(file["seconds"])
        return total

    def _too_short(self) -> str:
        return (
            f"the plain text has {self.found:,} tokens and {self.tokens:,} are asked for: give a "
            "longer text, or a smaller mom2_n_samples"
        )

    def _sums(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Sums of x xᵀ over all tokens, [inputs, inputs] by module name."""
        model = self.bench.load_model()
        sums = sums_of_inputs(model, names, self._pieces, getattr(torch, self.dtype))
        for name, moments in sums.items():
            if self.tokens < TOKENS_PER_INPUT * (width := len(moments)):
                raise ValueError(
                    f"{self.tokens:,} tokens are too few for second moments of the {width:,} "
                    f"inputs of {name}: set mom2_n_samples to at least {TOKENS_PER_INPUT * width:,}"
                )
        return sums

    def _write(self, module: str, moments: Tensor, seconds: float) -> None:
        path = self.path(module)
        arrays: dict[str, Any] = {
            "mom2.constructor": "easyeditor.util.runningstats.SecondMoment()",
            "mom2.count": self.tokens,
            "mom2.mom2": moments.cpu().numpy(),
            "sample_size": self.tokens,
            "seconds": seconds,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez(file, **arrays)
        Path(file.name).replace(path)
