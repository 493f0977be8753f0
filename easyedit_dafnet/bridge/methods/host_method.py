"""A method of EasyEdit's ALG_DICT as a method of the benchmark."""

from __future__ import annotations

import functools
import importlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from ...bench.method import Method, Request, Workbench
from ...dafnet_hparams import SettingsError, nearest, read_settings, shipped
from ..host import host_info
from ..loading import load_easyeditor
from .state import HostState, ModelState, module_bytes


@functools.cache
def alg_dict() -> dict[str, Any]:
    """EasyEdit's functions by method name, those that its BaseEditor calls."""
    load_easyeditor()
    return importlib.import_module("easyeditor.util.alg_dict").ALG_DICT


@functools.cache
def clean_state() -> HostState:
    """The host's state before the first stream of this process."""
    return HostState(alg_dict())


class HostMethod(Method):
    """Edits through `ALG_DICT[name]`, called as EasyEdit's BaseEditor calls it.

    settings: `hparams`, a file in EasyEdit's layout (default: the shipped one for the model), and
    single settings that overrule the file's.
    """

    #: Where BaseEditor lets the tokenizer pad for this method.
    padding_side: ClassVar[Literal["left", "right"]] = "left"
    #: Whether the host's function looks at the first request of a call only.
    one_request_a_call: ClassVar[bool] = False
    #: Whether the host looks up the output embeddings by name: a model that ties them to the input
    #: embeddings has no parameter of that name, so it gets a copy for the stream.
    reads_output_embeddings: ClassVar[bool] = False
    #: Names in the host's modules under which the method keeps something of its edits.
    carries: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        super().__init__(bench, settings)
        self.function = alg_dict()[self.name]
        self.hparams = self.load_hparams()
        self.host = f"EasyEdit {host_info().kind}"

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the method cannot run with this host; None where it can."""
        return None

    @classmethod
    def hparams_class(cls) -> Any:
        """The host's settings class, by the type that its function asks for."""
        return typing.get_type_hints(alg_dict()[cls.name])["hparams"]

    def load_hparams(self) -> Any:
        """The host's settings object. What the file says and this host does not know is left out.

        Raises SettingsError when there is no file, a setting is unknown or one is missing.
        """
        given = dict(self.settings)
        file = Path(given.pop("hparams", None) or self.default_hparams())
        if not file.is_file():
            raise SettingsError(
                f"There is no settings file {str(file)!r} for {self.name}: give the path of a "
                "YAML file in EasyEdit's layout as `hparams`."
            )
        kind = self.hparams_class()
        known = {f.name: f for f in fields(kind)}
        if unknown := sorted(given.keys() - known.keys()):
            raise SettingsError(
                f"{self.name} of {host_info()} has no setting {unknown[0]!r}; "
                + nearest(unknown[0], known)
            )
        values = kind.construct_float_from_scientific_notation({**read_settings(file), **given})
        values = self.settings_from(values)
        values |= {"model_name": self.bench.model_name, "device": self.bench.device}
        if missing := sorted(n for n, f in known.items() if n not in values and _required(f)):
            raise SettingsError(f"{file} lacks {self.name}'s setting {missing[0]!r}: add it.")
        return kind(**{name: values[name] for name in known if name in values})

    def settings_from(self, values: dict[str, Any]) -> dict[str, Any]:
        """The settings by the names of the host's class, from those of the host's files."""
        return values

    def default_hparams(self) -> Path:
        """The shipped file for the bench's model."""
        folder = shipped("hparams") / self.name
        model = Path(self.bench.model_name).name.lower()
        for file in sorted(folder.glob("*.yaml")):
            if file.stem.lower() in model:
                return file
        raise SettingsError(
            f"No settings of {self.name} are shipped for the model {self.bench.model_name!r}: give "
            "the path of a YAML file in EasyEdit's layout as `hparams` (EasyEdit's own are in "
            f"hparams/{self.name} of its git repository)."
        )

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        where = {"model_name", "device", "stats_dir"}  # of the machine, not of the method
        return {name: value for name, value in asdict(self.hparams).items() if name not in where}

    def start(self, model: Any) -> None:
        super().start(model)
        clean_state().put_back()
        self.model_state = ModelState(model)
        if self.reads_output_embeddings:
            self.model_state.untie()
        self._bytes_at_start = module_bytes(model)

    def edit(self, requests: Sequence[Request]) -> None:
        asked = [self.as_asked(request) for request in requests]
        calls = [[request] for request in asked] if self.one_request_a_call else [asked]
        with self.tokenizer() as tok:
            for call in calls:
                self.model = self.apply(tok, call)
        self.model.eval()
        self.model.zero_grad(set_to_none=True)

    def as_asked(self, request: Request) -> dict[str, Any]:
        """The request as the host's function wants it."""
        return dict(request)

    def apply(self, tok: Any, requests: list[dict[str, Any]]) -> Any:
        """One call of the host's function; returns the edited model."""
        model, _ = self.function(
            self.model,
            tok,
            requests,
            self.hparams,
            copy=False,
            return_orig_weights=True,
            keep_original_weight=False,  # else the release's edits would not accumulate
            train_ds=None,
        )
        return model

    @contextmanager
    def tokenizer(self) -> Iterator[Any]:
        """The bench's tokenizer, set as BaseEditor sets it for this method; put back after."""
        tok = self.bench.tok
        before = tok.padding_side, tok.pad_token
        tok.padding_side, tok.pad_token = self.padding_side, tok.eos_token
        try:
            yield tok
        finally:
            tok.padding_side, tok.pad_token = before

    def state_bytes(self) -> int:
        grown = module_bytes(self.model) - self._bytes_at_start
        return grown + clean_state().tensor_bytes(self.carries)

    def stop(self) -> None:
        clean_state().put_back()
        self.model_state.put_back()
        super().stop()


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
