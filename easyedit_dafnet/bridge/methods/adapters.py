"""EasyEdit's methods that keep their edits in a module put in the place of one of the model's."""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...bench.method import Request
from ...dafnet_hparams import SettingsError
from .host_method import HostMethod
from .state import tensors_in


class AdapterMethod(HostMethod):
    """Puts an adapter in the place of one module, and edits by training the adapter.

    EasyEdit returns the model in a wrapper, and goes on with the adapter that it finds in the
    model: `model` stays the language model itself, with the adapter in it. The adapters decide for
    a batch as a whole, or at one position for all its texts; here each text is asked alone.
    """

    one_by_one: ClassVar[bool] = True  # padding counts as text for some
    one_request_a_call: ClassVar[bool] = True
    #: Attributes of the adapter with tensors that are neither parameters nor buffers.
    remembers: ClassVar[tuple[str, ...]] = ()

    def start(self, model: Any) -> None:
        super().start(model)
        name = str(self.hparams.inner_params[0])  # EasyEdit's files say model.layers[27].mlp...
        self.module_name = name.replace("[", ".").replace("]", "").removesuffix(".weight")
        self.replaced = model.get_submodule(self.module_name)

    @property
    def adapter(self) -> Any:
        return self.model.get_submodule(self.module_name)

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        is_first = self.adapter is self.replaced
        super().apply(tok, requests)
        if is_first:
            self.ask_one_by_one()
        return self.model

    def ask_one_by_one(self) -> None:
        adapter, forward = self.adapter, self.adapter.forward

        def apart(x: Tensor) -> Tensor:
            """x: [texts, tokens, inputs]."""
            if adapter.training:
                return forward(x)
            answers = []
            for text in x.split(1):
                self.before_asking(text)
                answers.append(forward(text))
            return torch.cat(answers)

        adapter.forward = apart

    def before_asking(self, x: Tensor) -> None:
        """Set the adapter up for one text, x: [1, tokens, inputs]."""

    def state_bytes(self) -> int:
        kept = [vars(self.adapter).get(name) for name in self.remembers]
        return super().state_bytes() + sum(t.numel() * t.element_size() for t in tensors_in(kept))

    def stop(self) -> None:
        self.model.set_submodule(self.module_name, self.replaced)
        del self.replaced
        super().stop()


class MELO(HostMethod):
    """LoRA blocks that a database of clusters switches on, arXiv 2312.11795.

    EasyEdit replaces modules and returns the model in a wrapper that it wants back for the next
    edit. It looks up the last token of a text, when it edits that of the target.
    """

    name = "MELO"
    note = (
        "EasyEdit looks an edit up by the last token of its target, which no prompt has: only "
        "teacher forcing, told the target, can find it"
    )
    one_by_one: ClassVar[bool] = True
    one_request_a_call: ClassVar[bool] = True

    def settings_from(self, values: dict[str, Any]) -> dict[str, Any]:
        kinds = typing.get_type_hints(self.hparams_class())
        for part in ("grace", "model", "lora"):
            values[part] = kinds[part](**values[part])
        values["model"].name = values["model"].tokenizer_name = self.bench.model_name
        # The tokenizer of a classifier that EasyEdit loads and does not use.
        values["lora"].cls_name = self.bench.model_name
        return values

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        """Without the folder's name, of the machine, in the parts either."""
        settings = {**super().effective_settings}
        for part, names in (("model", ("name", "tokenizer_name")), ("lora", ("cls_name",))):
            settings[part] = {n: v for n, v in settings[part].items() if n not in names}
        return settings

    def start(self, model: Any) -> None:
        super().start(model)
        self.modules = dict(model.named_modules())
        self.wrapper = model

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        model, self.model = self.model, self.wrapper
        self.wrapper = super().apply(tok, requests)
        return model

    def state_bytes(self) -> int:
        clusters = self.wrapper.model.get_submodule(self.wrapper.grace_layer).VecDB.table
        return super().state_bytes() + sum(
            t.numel() * t.element_size()
            for t in tensors_in([vars(c) if hasattr(c, "__dict__") else c for c in clusters])
        )

    def stop(self) -> None:
        for name, module in self.modules.items():
            if name and self.model.get_submodule(name) is not module:
                self.model.set_submodule(name, module)
        del self.modules, self.wrapper
        super().stop()


class GRACE(AdapterMethod):
    """A codebook of keys, values and radii, arXiv 2211.11031.

    EasyEdit looks up one position of a text, and must be told that the prompt ends there. A text
    with an answer in it does not say where its prompt ends: looked up is the first position whose
    key is in the codebook, as in reading from left to right.
    """

    name = "GRACE"
    remembers = ("keys", "epsilons", "key_labels")

    @torch.no_grad()
    def before_asking(self, x: Tensor) -> None:
        adapter = self.adapter
        distance, key = torch.cdist(x[0].float(), adapter.keys.float()).min(dim=1)
        within = distance <= adapter.epsilons.view(-1)[key]
        adapter.key_id = int(within.int().argmax()) if within.any() else len(within) - 1


class DEFER(AdapterMethod):
    """A layer that answers where a gate says so, a baseline of GRACE's paper."""

    name = "DEFER"
    note = (
        "EasyEdit's gate reads the last token of the edited text, the target's, which no prompt "
        "has, and is given no text to stay shut for"
    )


class WISE(AdapterMethod):
    """A second copy of a matrix, used where it answers differently enough, arXiv 2405.14768.

    An edit also trains on a text that has nothing to do with it: a training record's unrelated
    prompt and its answer, else plain text. It is cut to the prompt's length, because EasyEdit takes
    what the longest text has more than the longest prompt for the target.
    """

    name = "WISE"
    remembers = ("memory_weight", "weight_mask")
    carries = frozenset({"edit_history", "merge_group_edit_history"})

    def settings_from(self, values: dict[str, Any]) -> dict[str, Any]:
        """EasyEdit's files have the three margins in one setting."""
        margins = dict(zip(("alpha", "beta", "gamma"), values.get("act_margin", ()), strict=False))
        return margins | values

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        if not self.hparams.retrieve:
            raise SettingsError(
                "WISE without `retrieve` merges its memories while it answers, so that scores "
                "depend on how often it was asked: set retrieve to true."
            )

    def start(self, model: Any) -> None:
        super().start(model)
        self.hparams.sequential_edit = True  # go on with the adapter that is there
        self.unrelated = itertools.cycle(self.unrelated_texts())

    def unrelated_texts(self) -> Iterator[str]:
        kinds = (kinds for record in self.bench.train for kinds in record.locality.values())
        probes = [f"{probe.prompt} {probe.answers[0]}" for kind in kinds for probe in kind]
        return iter(probes or self.bench.text)

    def as_asked(self, request: Request) -> dict[str, Any]:
        tok = self.bench.tok
        length = len(tok(request["prompt"])["input_ids"])
        unrelated = tok(next(self.unrelated))["input_ids"][:length]
        return {**request, "loc_prompt": tok.decode(unrelated)}
