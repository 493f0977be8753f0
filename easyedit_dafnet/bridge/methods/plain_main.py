"""Methods of EasyEdit's git main that change weights and do not look for the subject."""

from __future__ import annotations

from typing import Any

from ...bench.method import Request
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


class DPO(HostMethod):
    """Low-rank adapters that prefer the new answer to the old one, arXiv 2305.18290.

    EasyEdit starts another adapter with each call: the one before is merged into the weights.
    """

    name = "DPO"
    note = "each edit's adapter is merged into the weights before the next edit"

    def as_asked(self, request: Request) -> dict[str, Any]:
        if not request.get("ground_truth"):
            raise ValueError(
                f"DPO prefers a new answer to the old one, and the record with the prompt "
                f"{request['prompt']!r} has no ground_truth."
            )
        return {**request, "target_neg": request["ground_truth"]}

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        return super().apply(tok, requests).merge_and_unload()
