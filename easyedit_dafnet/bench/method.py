"""What a method of the benchmark is, and how the benchmark finds it by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..edit_records import EditRecord

Request = Mapping[str, str]


@dataclass(frozen=True)
class Need:
    """A row of the preflight table: something that a method needs before its first edit.

    detail: how it will be made and about how long that takes, or how the user can provide it.
    """

    what: str
    state: Literal["ready", "to prepare", "missing"]
    detail: str = ""


@dataclass(frozen=True)
class Workbench:
    """What a method has to work with; the same for every method.

    model_name: folder or hub name of the unedited model, which `load_model` loads afresh, in
    evaluation mode, on `device` in `dtype` (a torch dtype's name). tok pads on the left.
    text: passages of plain text. train: records to train on; none of them is evaluated.
    folder: the method's own, kept between runs: what `prepare` makes goes there.
    """

    model_name: str
    tok: Any
    load_model: Callable[[], Any]
    device: str
    dtype: str
    seed: int
    text: Sequence[str]
    train: Sequence[EditRecord]
    folder: Path


class Method(ABC):
    """One way to edit a language model.

    The benchmark makes one object a method, asks `needs`, calls `prepare` once, and then for every
    stream `start`, `edit` for each edit (or batch), reads `model` for the scores, and `stop`.
    """

    name: ClassVar[str]
    #: Mean scores that single edits must reach, by what the method's paper reports; the report
    #: marks a method that does not.
    expects: ClassVar[Mapping[str, float]] = {"reliability": 0.9}
    #: What whoever reads the scores must know of this form of the method; reports say it.
    note: str = ""
    #: Whether texts must be scored one at a time, because padding or company changes the answer.
    one_by_one: ClassVar[bool] = False
    #: Whether the method takes all edits of a stream at once, in one call of `edit`.
    whole_stream: ClassVar[bool] = False
    #: Whose code edits, where several hosts have a method of this name; their results never mix.
    host: str = ""

    model: Any  #: The model as edited so far; called and generated from as transformers' are.

    def __init__(self, bench: Workbench, settings: Mapping[str, Any]) -> None:
        """settings: of this method alone, from the suite's file; unknown ones are an error."""
        self.bench = bench
        self.settings = dict(settings)

    @property
    def effective_settings(self) -> Mapping[str, Any]:
        """All that decides how the method edits; written into every result."""
        return self.settings

    def needs(self) -> list[Need]:
        """What must be there before the first edit. Quick, and changes nothing."""
        return []

    def prepare(self) -> None:  # noqa: B027 (most methods need no preparation)
        """Make what is "to prepare" in `bench.folder`; returns at once when it is there."""

    def preparation_seconds(self) -> float | None:
        """What the preparation took, where the method knows better than the clock around it.

        None: what that clock says, which misses a part whose process was killed.
        """
        return None

    def start(self, model: Any) -> None:
        """Begin a stream on an unedited model, which the method may change in place.

        The benchmark has seeded the random numbers of Python, numpy and torch.
        """
        self.model = model

    @abstractmethod
    def edit(self, requests: Sequence[Request]) -> None:
        """Apply the requests together, after all those before; `model` then holds them."""

    def state_bytes(self) -> int:
        """Bytes kept for the edits so far beside the model's own weights."""
        return 0

    def ask(self, prompt: str) -> str:
        """The text that asks the edited model the prompt, for methods that edit by context."""
        return prompt

    def stop(self) -> None:
        """Forget the stream. The benchmark puts the unedited weights back itself."""
        del self.model


Factory = Callable[[Workbench, Mapping[str, Any]], Method]
REGISTERED: dict[str, Factory] = {}


def register_method(name: str, factory: Factory) -> None:
    """Make a method known by name; the last registration of a name counts."""
    REGISTERED[name] = factory
