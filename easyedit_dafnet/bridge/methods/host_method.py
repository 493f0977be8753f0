"""A method of EasyEdit's ALG_DICT as a method of the benchmark."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ...bench.method import Method, Request, Workbench
from ...dafnet_hparams import shipped
from ..loading import load_easyeditor
from .state import HostState


class HostMethod(Method):
    """Edits through `ALG_DICT[name]`, the function that EasyEdit's BaseEditor calls.

    settings: `hparams`, a file in EasyEdit's layout (default: the shipped one for the model), and
    single settings that overrule the file's.
    """

    hparams_class: ClassVar[str]

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        self.easyeditor = load_easyeditor()
        self.alg_dict = importlib.import_module("easyeditor.util.alg_dict").ALG_DICT
        self.hparams = self.load_hparams()

    def load_hparams(self) -> Any:
        """The host's settings object. Settings that this host does not know are left out."""
        given = dict(self.settings)
        file = Path(given.pop("hparams", self.default_hparams()))
        values = yaml.safe_load(file.read_text()) | given
        values |= {"model_name": self.bench.model_name, "device": self.bench.device}
        kind = getattr(self.easyeditor, self.hparams_class)
        return kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values})

    def default_hparams(self) -> Path:
        return shipped("hparams") / self.name / "smollm2-135m.yaml"

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        return asdict(self.hparams)

    def start(self, model: Any) -> None:
        super().start(model)
        self.state = HostState(self.alg_dict)

    def edit(self, requests: Sequence[Request]) -> None:
        self.model, _ = self.alg_dict[self.name](
            self.model,
            self.bench.tok,
            [dict(request) for request in requests],
            self.hparams,
            copy=False,
            return_orig_weights=True,
            keep_original_weight=False,
        )

    def state_bytes(self) -> int:
        return self.state.tensor_bytes()

    def stop(self) -> None:
        self.state.put_back()
        super().stop()
