"""EasyEdit's methods that change weights and need no training, as far as the PyPI release has them.

The same names in EasyEdit's git main are called in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...bench.method import Workbench
from ..host import host_info
from .host_method import HostMethod


class FT(HostMethod):
    """Fine-tuning of a few matrices (the baseline of arXiv 2012.00363)."""

    name = "FT"

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        # The release has no such setting, and no other way.
        if getattr(self.hparams, "objective_optimization", "prompt_last") == "prompt_last":
            self.note = (
                "learns all tokens of a target as the prompt's next one, so that targets of "
                "several tokens cannot be learned"
            )


class LoRA(HostMethod):
    """Low-rank adapters (arXiv 2106.09685), AdaLoRA's in the release.

    The release's function starts its adapter afresh at every call, which would undo the edits
    before: here each edit's adapter is merged into the weights, and the next starts on top. Git
    main trains the same adapter on.
    """

    name = "LoRA"

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        self.merges = host_info().kind == "release"
        if self.merges:
            self.note = "each edit's adapter is merged into the weights before the next edit"

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        if self.merges:
            # The release ends targets with the end token and takes pad tokens from the prompt's
            # length: were they the same, it would not learn the target's first token.
            tok.pad_token = _unused_token(tok, requests)
        for name, module in self.model.named_modules():
            if ".lora_dropout." in name:
                module.train()  # as in the first edit
        model = super().apply(tok, requests)
        self.model_state.model.gradient_checkpointing_disable()
        self.model_state.stop_training()
        return _unwrapped(model.merge_and_unload()) if self.merges else model

    def stop(self) -> None:
        if hasattr(self.model, "unload"):
            _unwrapped(self.model.unload())
        super().stop()


def _unused_token(tok: Any, requests: Sequence[Mapping[str, Any]]) -> str:
    """A token, other than the end token, that stands in none of the requests."""
    texts = [f"{request['prompt']} {request['target_new']} " for request in requests]
    used = {tok.eos_token_id}.union(*tok(texts)["input_ids"])
    return tok.convert_ids_to_tokens(next(i for i in range(len(tok)) if i not in used))


def _unwrapped(model: Any) -> Any:
    """The model, with what peft left on it taken off."""
    if hasattr(model, "peft_config"):  # older releases of peft leave it there
        del model.peft_config
    return model


class KN(HostMethod):
    """Knowledge neurons, arXiv 2104.08696."""

    name = "KN"
    one_request_a_call = True
    # EasyEdit's authors report 0.29 for it on ZsRE with Llama-2-7B (arXiv 2308.07269).
    expects: ClassVar[Mapping[str, float]] = {"reliability": 0.29}
