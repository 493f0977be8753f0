"""EasyEdit's methods whose edits build on statistics of the edits before: UltraEdit."""

from __future__ import annotations

from typing import Any

from .host_method import HostMethod


class UltraEdit(HostMethod):
    """Closed-form edits on features under running statistics, arXiv 2505.14679.

    The paper's statistics run over all edits. EasyEdit's executor never notes that it has made its
    editor, and makes another with each call; noting it in its place keeps the first.
    """

    name = "ULTRAEDIT"

    @property
    def executor(self) -> Any:
        return self.function.__self__

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        self.hparams.batch_size = len(requests)  # EasyEdit edits this many of a call's requests
        model = super().apply(tok, requests)
        self.executor.is_init = True
        return model

    def state_bytes(self) -> int:
        if not self.executor.is_init:
            return 0
        statistics = self.executor.alg.lifelong_normalizer.buffers()
        return sum(tensor.numel() * tensor.element_size() for tensor in statistics)
