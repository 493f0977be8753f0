"""Settings of DAFNet in EasyEdit's form: YAML files read by `from_hparams`."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from .files import DamagedFile, read_yaml
from .prompts import Wording
from .same_subject import QUESTIONS

if TYPE_CHECKING:
    import torch

S = TypeVar("S", bound="_Settings")


class SettingsError(ValueError):
    """A settings file that cannot be used; the message says where and what to write instead."""


@dataclass(frozen=True)
class NetworkSizes:
    """Widths of an auxiliary network; the defaults are the published ones."""

    layer_n: int = 2
    inner_att_dim: int = 1024
    ffn_dim: int = 1536
    outer_att_dim: int = 1024  # per head
    outer_att_head_n: int = 2
    outer_score_att_dim: int = 256  # per head
    outer_score_att_head_n: int = 2
    norm_layer: Literal["exact", "batch", "layer", "module"] = "exact"


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a mistyped name."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, 1, 0.3)
    return f"did you mean {close[0]!r}?" if close else f"it must be one of {', '.join(names)}."


def shipped(kind: Literal["hparams", "checkpoints", "suites"]) -> Path:
    """The folder of the files that come with the package."""
    inside = Path(str(resources.files(__package__))) / kind
    # In a checkout these lie beside the package; a wheel carries them inside.
    outside = inside.parents[1] / ("benchmarks/suites" if kind == "suites" else kind)
    return inside if inside.is_dir() else outside


def settings_file(name_or_path: str | Path, folder: str = "") -> Path:
    """A settings file by path (with or without .yaml) or by its shipped name."""
    path = Path(name_or_path)
    named = path if path.suffix in {".yaml", ".yml"} else path.with_name(path.name + ".yaml")
    home = shipped("hparams")
    for candidate in (named, home / named, home / folder / named):
        if candidate.is_file():
            return candidate
    known = [str(p.relative_to(home).with_suffix("")) for p in home.rglob("DAFNet/*.yaml")]
    raise SettingsError(
        f"There is no settings file {str(name_or_path)!r}, and none shipped by that name; "
        + nearest(str(name_or_path), known)
    )


def read_settings(path: Path) -> dict[str, Any]:
    """What a settings file holds. Raises SettingsError."""
    try:
        content = read_yaml(path)
    except DamagedFile as error:
        raise SettingsError(str(error)) from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold settings as `name: value` lines.")
    return content


def typed(settings: Any) -> dict[str, Any]:
    """A dataclass's values, each as its annotation says. Raises SettingsError."""
    kinds, values = typing.get_type_hints(type(settings)), {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        try:
            values[f.name] = _typed(value, kinds[f.name])
        except TypeError:
            raise SettingsError(
                f"Setting {f.name!r} is {value!r}; it must be {_wording(kinds[f.name])}."
            ) from None
    return values


def _typed(value: Any, kind: Any) -> Any:
    """The value as the type, or TypeError. YAML reads 1e-4 as a text, so texts become numbers."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        if value in args:
            return value
    elif origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _typed(value, option)
            except TypeError:
                continue
    elif origin is list:
        if isinstance(value, list):
            return [_typed(v, args[0]) for v in value]
    elif origin is dict:
        if isinstance(value, dict):
            return {_typed(k, args[0]): _typed(v, args[1]) for k, v in value.items()}
    elif kind is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
    elif kind is type(None):
        if value is None:
            return value
    elif type(value) is kind:
        return value
    raise TypeError


def _wording(kind: Any) -> str:
    args = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_wording(a) for a in args)
    if typing.get_origin(kind) is list:
        return f"a list of {_wording(args[0])}"
    if typing.get_origin(kind) is dict:
        return "an object"
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    return names.get(kind, "null")


@dataclass(kw_only=True)
class _Settings:
    """What editing and training share.

    model_name: folder or hub name of the language model (EasyEdit's loader goes by it).
    inner_params: the edited weights, as in MEND's files; a trailing ".weight" may be left out.
    archive: folder of a trained DAFNet, or the name of a shipped one.
    device: "cpu", "cuda:1", or a CUDA index.
    fp16: whether the command `edit` loads the model in float16, as EasyEdit's editor does.
    use_chat_template, target_space, subject: see `prompts.Wording`.
    """

    model_name: str
    inner_params: list[str]
    archive: str | None = None
    device: int | str = 0
    model_parallel: bool = False
    fp16: bool = False
    batch_size: int = 1
    max_length: int = 40
    model_class: str = "AutoModelForCausalLM"
    tokenizer_class: str = "AutoTokenizer"
    tokenizer_name: str | None = None

    # Auxiliary networks, one per weight shape (published sizes)
    layer_n: int = 2
    inner_att_dim: int = 1024
    ffn_dim: int = 1536
    outer_att_dim: int = 1024
    outer_att_head_n: int = 2
    outer_score_att_dim: int = 256
    outer_score_att_head_n: int = 2
    norm_layer: Literal["exact", "batch", "layer", "module"] = "exact"
    edit_bias: bool = False
    train_fusion: bool = True
    fusion_order: Literal["paper", "released"] = "paper"
    fusion: Literal["mean", "least_squares"] = "mean"
    # Templates with {} for a subject, whose answers edits should leave alone: see others_asked and
    # same_subject_weight.
    other_questions: list[str] = field(default_factory=lambda: list(QUESTIONS))
    directions: int = 400  # with least squares: the principal ones of M that are told apart
    signal_batch_size: int = 8

    # How requests are put to the model
    use_chat_template: bool = False
    target_space: bool | None = None
    subject: Literal["given", "guess"] = "given"

    # The key that names the method in a file, and its value.
    NAME_KEY: ClassVar[str]
    NAME: ClassVar[str]
    FOLDER: ClassVar[str]
    # What messages call such settings, and a shipped file of them.
    WHAT: ClassVar[str]
    EXAMPLE: ClassVar[str]

    def __post_init__(self) -> None:
        for name, value in typed(self).items():
            setattr(self, name, value)
        if (name := getattr(self, self.NAME_KEY)) != self.NAME:
            raise SettingsError(
                f"Setting {self.NAME_KEY!r} is {name!r}; for {type(self).__name__} it must be "
                f"{self.NAME!r}."
            )
        if not self.inner_params:
            raise SettingsError("Setting 'inner_params' is empty; name the modules to edit.")
        self.inner_params = [p.removesuffix(".weight") for p in self.inner_params]
        twice = {p for p in self.inner_params if self.inner_params.count(p) > 1}
        if twice:
            raise SettingsError(
                f"Setting 'inner_params' names {min(twice)!r} twice; once is enough."
            )
        check_sizes(self)
        if self.fusion == "least_squares" and self.edit_bias:
            raise SettingsError(
                "Setting 'edit_bias' is true, but least squares edits weights only; set it to "
                "false, or `fusion: mean`."
            )
        for question in self.other_questions:
            if question.count("{}") != 1:
                raise SettingsError(
                    f"Setting 'other_questions' has {question!r}; each must have {{}} once, in "
                    "place of a subject."
                )
        if self.tokenizer_name is None:
            self.tokenizer_name = self.model_name

    @property
    def network_sizes(self) -> NetworkSizes:
        return NetworkSizes(**{f.name: getattr(self, f.name) for f in fields(NetworkSizes)})

    @property
    def wording(self) -> Wording:
        return Wording(self.use_chat_template, self.target_space, self.subject)

    @property
    def torch_device(self) -> torch.device:
        """The device of this run, checked to be there."""
        import torch  # here, so that wrong settings are refused at once

        name = str(self.device)
        try:
            device = torch.device(f"cuda:{name}" if name.isdigit() else name)
        except RuntimeError:
            raise SettingsError(
                f"Setting 'device' is {self.device!r}; it must be 'cpu', 'cuda:1' or the index "
                "of a CUDA device."
            ) from None
        if device.type == "mps":
            raise SettingsError(
                f"Setting 'device' is {self.device!r}, where torch has no segment_reduce, which "
                "DAFNet's networks need; set `device: cpu`."
            )
        if device.type == "cuda" and not torch.cuda.is_available():
            raise SettingsError(
                f"Setting 'device' is {self.device!r}, but no CUDA device is here; "
                "set `device: cpu`."
            )
        return device

    @classmethod
    def from_hparams(cls: type[S], hparams_name_or_path: str | Path) -> S:
        """Read a settings file by path, or by shipped name such as DAFNet/smollm2-135m.

        A relative archive is looked for beside the file, then in the working folder, then among
        the shipped ones. Raises SettingsError, one sentence, for anything that is not right.
        """
        path = settings_file(hparams_name_or_path, cls.FOLDER)
        content = read_settings(path)
        known = {f.name: f for f in fields(cls)}
        if what := _other_kind(content, cls):
            raise SettingsError(f"{path}: these are {what}.")
        for key in content:
            if key not in known:
                raise SettingsError(f"{path}: unknown setting {key!r}; {nearest(str(key), known)}")
        for name, f in known.items():
            required = f.default is MISSING and f.default_factory is MISSING
            if required and name not in content:
                raise SettingsError(f"{path}: the setting {name!r} is missing.")
        try:
            settings = cls(**content)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from None
        settings._resolve(path)
        return settings

    def _resolve(self, path: Path) -> None:
        from .smollm2 import SHORT_NAME, smollm2_path

        if self.archive:
            beside = path.parent / self.archive
            inside = shipped("checkpoints") / self.archive
            here = Path(self.archive)
            for candidate in (beside, here, inside):
                if (candidate / "config.json").is_file():
                    self.archive = str(candidate.resolve())
                    break
        embedded = self.model_name == SHORT_NAME and not Path(self.model_name).exists()
        if embedded:
            same = self.tokenizer_name == self.model_name
            self.model_name = str(smollm2_path())
            if same:
                self.tokenizer_name = self.model_name


# Numbers and their limits. What is not named here is from zero to MOST.
MOST = 1e9
ABOVE_ZERO = {
    "batch_size",
    "directions",
    "ffn_dim",
    "grad_clip",
    "inner_att_dim",
    "layer_n",
    "log_interval",
    "loss_batch_size",
    "loss_sample_max_count",
    "lr",
    "lr_lr",
    "margin",
    "margin_facts",
    "max_iters",
    "max_length",
    "outer_att_dim",
    "outer_att_head_n",
    "outer_score_att_dim",
    "outer_score_att_head_n",
    "passage_max_tokens",
    "protection",
    "rehearsal_rate",
    "rehearsal_steps",
    "save_interval",
    "seq_len_max",
    "seq_len_patience",
    "seq_len_start",
    "signal_batch_size",
    "text_tokens",
    "text_weight",
    "val_edits",
    "val_interval",
    "val_seq_lens",
    "value_rate",
}
LIMITS: dict[str, tuple[float, float]] = {
    "device": (-MOST, MOST),  # `torch_device` knows which there are
    "edit_lr": (-1e3, 1e3),  # a step size, which may descend
    "ema_loss": (0, 1),
    "lr": (0, 1e3),
    "lr_lr": (0, 1e3),
    "margin": (0, 1e3),  # a multiple of values that are right as they are
    "margin_decay": (0, 1e3),
    "rehearsal_rate": (0, 1e3),
    "seed": (-(2**63), 2**63 - 1),
    "seq_len_growth": (0, 1e3),
    "value_rate": (0, 1e3),
}


def check_sizes(settings: Any) -> None:
    """Raise SettingsError for a number of a dataclass that is not finite or beyond its limits."""
    for f in fields(settings):
        value = getattr(settings, f.name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_size(f.name, number)


def _check_size(name: str, number: float) -> None:
    least, most = LIMITS.get(name, (0, MOST))
    if number != number or abs(number) == math.inf:
        must = "a finite number"
    elif name in ABOVE_ZERO and number <= 0:
        must = "above zero"
    elif number < least:
        must = "zero or above" if least == 0 else f"at least {least:g}"
    elif number > most:
        must = f"at most {most:g}"
    else:
        return
    raise SettingsError(f"Setting {name!r} is {number}; it must be {must}.")


def _other_kind(content: Mapping[Any, Any], wanted: type[_Settings]) -> str | None:
    """What the settings are where they are others than wanted; None where that cannot be told."""
    kinds: tuple[type[_Settings], ...] = (DAFNetHyperParams, DAFNetTrainingHparams)
    (other,) = (kind for kind in kinds if kind is not wanted)
    if wanted.NAME_KEY in content:
        name = content[wanted.NAME_KEY]
        same = isinstance(name, str) and name.casefold() == wanted.NAME.casefold()
        return None if same else f"settings of {name!r} ({wanted.NAME_KEY}), not of DAFNet"
    known, others = ({f.name for f in fields(kind)} for kind in (wanted, other))
    strange = {key for key in content if key not in known}
    if other.NAME_KEY in content:
        name = content[other.NAME_KEY]
        if not isinstance(name, str) or name.casefold() != other.NAME.casefold():
            return f"settings of {name!r} ({other.NAME_KEY}), not of DAFNet"
    elif not strange or not strange <= others:
        return None
    return f"{other.WHAT}; {wanted.WHAT} are needed here, such as {wanted.EXAMPLE}"


# Settings that only fusion by least squares reads.
OF_LEAST_SQUARES = {
    "directions",
    "margin",
    "margin_decay",
    "margin_facts",
    "other_questions",
    "others_asked",
    "others_weight",
    "protection",
    "rehearsal_contexts",
    "rehearsal_rate",
    "rehearsal_steps",
    "rehearsed",
    "text",
    "text_tokens",
    "text_weight",
    "value_rate",
    "value_steps",
    "value_weight",
}


@dataclass(kw_only=True)
class DAFNetHyperParams(_Settings):
    """Settings for editing, as `BaseEditor.from_hparams` takes them.

    past_dtype: precision of what is kept of each edit; a sequence goes on with its first one.
    With fusion by least squares: value_steps, value_rate: how many steps of what size the values
    go on from what the networks propose, see `values.improved`. protection: how much more than in
    training inputs that are to be left alone weigh. margin, margin_facts, margin_decay: what the
    values of n facts are multiplied by, see `least_squares.Overshoot`. rehearsed: how many earlier
    edits are asked again beside each new one, see `rehearsal`; 0 asks none, the new one neither.
    rehearsal_steps, rehearsal_rate: how many steps at most put them right, and their size in each
    component of a value.
    rehearsal_contexts: texts, one of which every other time stands before the prompt.
    others_asked: of how many of other_questions the answers are to stay while a value is found, see
    `values.Others`; others_weight: how much that counts.
    """

    alg_name: str = "DAFNet"
    past_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    value_steps: int = 5
    value_rate: float = 0.2
    protection: float = 1.0
    margin: float = 1.0
    margin_facts: float = 25.0
    margin_decay: float = 0.0
    rehearsed: int = 0
    rehearsal_steps: int = 1
    rehearsal_rate: float = 0.3
    rehearsal_contexts: list[str] = field(default_factory=list)
    others_asked: int = 0
    others_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.others_asked > (there := len(self.other_questions)):
            raise SettingsError(
                f"Setting 'others_asked' is {self.others_asked}, but 'other_questions' has "
                f"{there}; lower it, or give more."
            )

    NAME_KEY: ClassVar[str] = "alg_name"
    NAME: ClassVar[str] = "DAFNet"
    FOLDER: ClassVar[str] = "DAFNet"
    WHAT: ClassVar[str] = "editing settings (`edit` takes them)"
    EXAMPLE: ClassVar[str] = "DAFNet/smollm2-135m-strong"


@dataclass(kw_only=True)
class DAFNetTrainingHparams(_Settings):
    """Settings for training, as `DAFNetTrainer` takes them. The `published` values of the paper
    are: edit_lr 1e-4, lr 1e-6, norm_warmup_edits 0, lr_warmup 0.

    The update is *added* and delta is dL/dy, so a negative step size descends the loss.
    """

    alg: str = "DAFNET"

    # Optimisation
    lr: float = 3e-4  # Adam, networks
    lr_lr: float = 1e-4  # Adam, step sizes
    edit_lr: float = -5e-4  # first value of the step sizes
    lr_warmup: int = 20  # steps in which the rates rise to their values
    lr_schedule: Literal["constant", "cosine"] = "constant"  # cosine: down to 5 % at max_iters
    grad_clip: float = 100.0  # largest norm of the networks' gradient
    max_iters: int = 1000
    seed: int = 42
    # Edits whose signals set the statistics (0: all of training) and, with fusion by least squares,
    # whose keys are half of M and set the scale of lambda.
    norm_warmup_edits: int = 256

    # Losses (paper, 3.4)
    reliability_weight: float = 0.1
    generality_weight: float = 0.1
    locality_weight: float = 0.2
    # Of other questions about an edit's own subject, those of other records and of the setting
    # other_questions, see `same_subject`; with 0 none are asked.
    same_subject_weight: float = 0.0
    loss_batch_size: int = 24
    loss_sample_max_count: int = 48
    # With fusion by least squares: weight of the mean squared length of the values, ...
    value_weight: float = 1e-4
    # ... lambda's first value, relative to the mean size of a key, the text of M (a file, or null:
    # Python's documentation), and how much of it is read.
    text_weight: float = 0.2
    text: str | None = None
    text_tokens: int = 30_000
    # Plain text whose predictions must stay: "generated" by the unedited model, a file, or null
    passages: str | None = "generated"
    passage_max_tokens: int = 1024

    # Memory for what the unedited model says of the records, in GB; what is more lies on disk, in
    # results_dir, as long as training runs
    cache_gb: float = 4.0

    # Curriculum over the sequence length N
    seq_len_start: int = 1
    seq_len_max: int = 1000
    seq_len_patience: int = 3000
    seq_len_growth: float = 0.25
    ema_loss: float = 0.01

    # Validation, logging, results
    val_interval: int = 100
    val_edits: int = 50
    val_seq_lens: list[int] = field(default_factory=lambda: [1, 10])
    val_patience: int = 0  # validations without a better score that end training; 0: none do
    save_interval: int = 100  # steps between states of the run, to resume from
    log_interval: int = 10
    tensorboard: bool = False
    results_dir: str = "./results"
    # Of the networks' matrices in the archive; float16 halves the file. Training goes on in float32
    archive_dtype: Literal["float32", "float16"] = "float32"

    # Read by EasyEdit's data sets and model loader
    dropout: float | None = None
    no_grad_layers: int | None = None
    half: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.val_seq_lens:
            raise SettingsError("Setting 'val_seq_lens' is empty; name a length, such as [1].")

    NAME_KEY: ClassVar[str] = "alg"
    NAME: ClassVar[str] = "DAFNET"
    FOLDER: ClassVar[str] = "TRAINING/DAFNet"
    WHAT: ClassVar[str] = "training settings (`train` takes them)"
    EXAMPLE: ClassVar[str] = "TRAINING/DAFNet/smollm2-135m-strong"
