"""What is refused, with which sentence: bad settings, requests, files, archives, models, outputs.

    python -m tests.refusals            # writes docs/refusals.md

Each bad input goes to the command line, or to the function of Python, with a tiny model that is
made for it. Nothing may change by it: no file beside the input, no weight of the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from easyedit_dafnet import apply_dafnet_to_model
from easyedit_dafnet.cli import main
from tests.conftest import SOLVED_LLAMA, Subject
from tests.tiny import REQUESTS, tiny_llama

TABLE = Path(__file__).resolve().parents[1] / "docs" / "refusals.md"
REFUSED = {
    "exit 1", "CheckpointError", "FloatingPointError", "ModelError", "RequestError",
}  # fmt: skip
FACT = {"prompt": "The capital of France is", "subject": "France", "target_new": "Rome"}


class World:
    """A folder with a tiny model, a DAFNet for it, settings and facts, all of them good."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subject = Subject(
            tiny_llama(folder / "llama"), SOLVED_LLAMA, folder / "archive", fusion="least_squares"
        )
        self.tok = self.subject.tok
        self.settings = {
            **asdict(self.subject.hparams()),
            "model_name": str(folder / "llama"),
            "archive": str(folder / "archive"),
        }
        self.training = {
            "alg": "DAFNET",
            "model_name": str(folder / "llama"),
            "inner_params": list(SOLVED_LLAMA),
            "device": "cpu",
            "passages": None,
            "max_iters": 2,
            "norm_warmup_edits": 4,
            "results_dir": str(folder / "results"),
        }
        self.yaml("good.yaml", self.settings)
        self.yaml("training.yaml", self.training)
        self.json("facts.json", [FACT])

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, name: str, content: bytes | str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def yaml(self, name: str, content: Any) -> str:
        return self.write(name, yaml.safe_dump(content, sort_keys=False))

    def json(self, name: str, content: Any) -> str:
        return self.write(name, json.dumps(content))

    def edit(self, hparams: str = "good.yaml", facts: str = "facts.json", *more: str) -> list[str]:
        out = more or ("--out", self.path("edited"))
        return ["edit", "--hparams", self.path(hparams), "--facts", self.path(facts), *out]

    def train(
        self, hparams: str = "training.yaml", data: str = "facts.json", *more: str
    ) -> list[str]:
        return ["train", "--hparams", self.path(hparams), "--data", self.path(data), *more]

    def archive(self, config: Callable[[dict[str, Any]], Any] | None = None) -> Path:
        """A copy of the archive, with another config.json."""
        copy = self.folder / "bad"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "archive", copy)
        if config is not None:
            content = json.loads((copy / "config.json").read_text())
            changed = config(content)
            (copy / "config.json").write_text(json.dumps(changed if changed else content))
        self.yaml("bad.yaml", {**self.settings, "archive": str(copy)})
        return copy


Made = Sequence[str] | tuple[Any, Callable[[Any], Any]]  # a command, or a model and what is done


@dataclass(frozen=True)
class Case:
    kind: str
    what: str
    make: Callable[[World], Made]


@dataclass(frozen=True)
class Row:
    """What came of a case. result: the exit code, or the exception's name."""

    case: Case
    result: str
    message: str
    untouched: bool

    @property
    def is_refused(self) -> bool:
        """With a sentence that says why, and without a trace."""
        return self.untouched and bool(self.message) and self.result in REFUSED


# ---- the cases ----------------------------------------------------------------------------------

CASES: list[Case] = []


def case(kind: str, what: str) -> Callable[[Callable[[World], Made]], None]:
    def add(make: Callable[[World], Made]) -> None:
        CASES.append(Case(kind, what, make))

    return add


def settings_case(what: str, **changes: Any) -> None:
    """Editing settings with other values; `...` leaves one out."""

    def make(world: World) -> list[str]:
        settings = {k: v for k, v in {**world.settings, **changes}.items() if v is not ...}
        world.yaml("bad.yaml", settings)
        return world.edit("bad.yaml")

    CASES.append(Case("settings", what, make))


def settings_text(what: str, content: bytes | str) -> None:
    def make(world: World) -> list[str]:
        world.write("bad.yaml", content)
        return world.edit("bad.yaml")

    CASES.append(Case("settings", what, make))


settings_case("a name that is none", marginn=2)
settings_case("one that is missing", inner_params=...)
settings_case("a text for a number", margin="loud")
settings_case("true for a number", value_steps=True)
settings_case("a number below zero", value_rate=-1.0)
settings_case("nan", margin=float("nan"))
settings_case("infinity", protection=float("inf"))
settings_case("a number out of all proportion", margin=1e30)
settings_case("no module to edit", inner_params=[])
settings_case("a module twice", inner_params=[SOLVED_LLAMA[0], SOLVED_LLAMA[0]])
settings_case("a module that the model lacks", inner_params=["model.layers.9.mlp.down_proj"])
settings_case("the embeddings", inner_params=["model.embed_tokens"])
settings_case("a norm", inner_params=["model.norm"])
settings_case("the output embeddings", inner_params=["lm_head"])
settings_case("another method's name", alg_name="ROME")
settings_case("a device that is none", device="gpu")
settings_case("a CUDA device where none is", device="cuda:0")
settings_case("no archive", archive=None)
settings_case("an archive that is not there", archive="nowhere")
settings_case("another way to fuse than the archive's", fusion="mean")
settings_case("other sizes than the archive's", ffn_dim=7)
settings_case("biases with least squares", edit_bias=True)
settings_case("a model that is not there", model_name="no/such/llama")
settings_text("a key twice", "alg_name: DAFNet\nalg_name: DAFNet\n")
settings_text("no YAML", "a: [1\n")
settings_text("a list", "- 1\n- 2\n")
settings_text("an empty file", "")
settings_text("Latin-1", "alg_name: é\n".encode("latin-1"))
settings_text("a tag of Python", "alg_name: !!python/object/apply:os.system [ls]\n")
settings_text("ROME's settings", "alg_name: ROME\nmodel_name: gpt2\nlayers: [5]\n")


@case("settings", "training settings to edit with")
def _(world: World) -> list[str]:
    return world.edit("training.yaml")


@case("settings", "editing settings to train with")
def _(world: World) -> list[str]:
    return world.train("good.yaml")


@case("settings", "facts for settings")
def _(world: World) -> list[str]:
    return world.edit("facts.json")


@case("settings", "a file that is not there")
def _(world: World) -> list[str]:
    return world.edit("absent.yaml")


def facts_case(what: str, *facts: Any, kind: str = "requests") -> None:
    def make(world: World) -> list[str]:
        world.json("bad.json", list(facts))
        return world.edit(facts="bad.json")

    CASES.append(Case(kind, what, make))


facts_case("none at all")
facts_case("no target", {**FACT, "target_new": None})
facts_case("an empty target", {**FACT, "target_new": " "})
facts_case("NaN as the target", {**FACT, "target_new": float("nan")})
facts_case("true as the target", {**FACT, "target_new": True})
facts_case("an empty list of answers", {**FACT, "target_new": []})
facts_case("no prompt", {"subject": "France", "target_new": "Rome"})
facts_case("a number for a request", 3)
facts_case("a subject that the prompt lacks", {**FACT, "subject": "Spain"})
facts_case("a subject inside another word", {**FACT, "subject": "Franc"})
facts_case("braces without a subject", {"prompt": "The capital of {} is", "target_new": "Rome"})
facts_case("no subject, and none to be told", {"prompt": "中国的首都是", "target_new": "Rome"})
facts_case("half of a surrogate pair", {**FACT, "target_new": "\ud83d"})
facts_case("a prompt longer than the context", {**FACT, "prompt": "France " * 99 + "is"})
facts_case("messages without a role", {**FACT, "prompt": [{"content": "France"}]})
facts_case(
    "messages that end with a reply",
    {**FACT, "prompt": [{"role": "assistant", "content": "France"}]},
)
facts_case(
    "messages to a tokenizer without a template",
    {**FACT, "prompt": [{"role": "user", "content": "The capital of France?"}]},
)
facts_case("two of three that are bad", FACT, {**FACT, "target_new": ""}, {**FACT, "prompt": ""})
facts_case("an unknown layout", {"question": "What?", "answer": "That."})


def python_case(what: str, requests: Any) -> None:
    def make(world: World) -> Made:
        hparams = world.subject.hparams()
        return world.subject.model(), lambda model: apply_dafnet_to_model(
            model, world.tok, requests, hparams
        )

    CASES.append(Case("requests", f"{what} (Python)", make))


python_case("one that is not in a list", FACT)
python_case("bytes as the prompt", [{**FACT, "prompt": b"The capital of France is"}])
python_case("None for the requests", None)
python_case("a text for a request", ["The capital of France is"])


def file_case(what: str, name: str, content: bytes | str) -> None:
    def make(world: World) -> list[str]:
        world.write(name, content)
        return world.edit(facts=name)

    CASES.append(Case("files", what, make))


LINE = json.dumps(FACT) + "\n"
file_case("JSON that ends in the middle", "bad.json", '[{"prompt": "a')
file_case("an object for a list", "bad.json", json.dumps(FACT))
file_case("an empty file", "bad.json", "")
file_case("JSON nested 100,000 deep", "bad.json", "[" * 100_000)
file_case("the third line of JSON Lines", "bad.jsonl", LINE * 2 + '{"prompt": \n')
file_case("UTF-16", "bad.json", json.dumps([FACT]).encode("utf-16"))
file_case("Latin-1", "bad.csv", "prompt,target_new\nCôte,Rome\n".encode("latin-1"))
file_case("a CSV with more cells than its header", "bad.csv", "prompt,target_new\na,b,c\n")
file_case("a CSV without target", "bad.csv", "prompt,answer\na,b\n")
file_case("the third line of a CSV", "bad.csv", "prompt,target_new\nLondon is,big\nParis is,\n")
file_case("a CSV with semicolons", "bad.csv", "prompt;target_new\nLondon is;big\n")
file_case("a CSV with a column twice", "bad.csv", "prompt,prompt,target_new\na,b,c\n")
file_case("a CSV of a header alone", "bad.csv", "prompt,target_new\n")
file_case("another kind of file", "bad.txt", "The capital of France is Rome")


@case("files", "a folder for a file")
def _(world: World) -> list[str]:
    return world.edit(facts="llama")


@case("files", "one that is not there")
def _(world: World) -> list[str]:
    return world.edit(facts="absent.json")


@case("files", "settings for facts")
def _(world: World) -> list[str]:
    return world.edit(facts="good.yaml")


@case("files", "one record to train on, and none to validate")
def _(world: World) -> list[str]:
    return world.train()


@case("files", "a locality prompt without its answer, to train on")
def _(world: World) -> list[str]:
    world.json("bad.json", [{**FACT, "locality_prompt": "Rome is"}] * 3)
    return world.train(data="bad.json")


# What is wrong with an archive's config.json.
for _what, _change in {
    "of a newer format": {"format": "easyedit_dafnet/2"},
    "without a language model": {"base_model": None},
    "with a list for the language model": {"base_model": []},
    "with texts for norms": {"base_model": {"fingerprint": {"a": "1"}}},
    "with sizes that are not its networks'": {"sizes": {"ffn_dim": 7}},
    "without modules": {"modules": []},
}.items():

    def _make(world: World, change: Any = _change) -> list[str]:
        world.archive(lambda config: {**config, **change})
        return world.edit("bad.yaml")

    CASES.append(Case("archives", f"one {_what}", _make))


def archive_case(what: str, break_it: Callable[[Path], Any]) -> None:
    def make(world: World) -> list[str]:
        break_it(world.archive())
        return world.edit("bad.yaml")

    CASES.append(Case("archives", what, make))


def _cut(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def _flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def _without_one(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("step_sizes")
    save_file(tensors, folder / "model.safetensors")


archive_case("one without weights", lambda f: (f / "model.safetensors").unlink())
archive_case("empty weights", lambda f: _cut(f, 0))
archive_case("weights cut off", lambda f: _cut(f, 3000))
archive_case("a bit that flipped", _flip)
archive_case("a tensor that is missing", _without_one)
archive_case("config.json that is empty", lambda f: (f / "config.json").write_text(""))
archive_case("config.json that is a list", lambda f: (f / "config.json").write_text("[]"))
archive_case(
    "config.json nested 100,000 deep", lambda f: (f / "config.json").write_text('{"a":' * 100_000)
)
archive_case(
    "a pointer of Git LFS",
    lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
)


@case("archives", "a language model for an archive")
def _(world: World) -> list[str]:
    world.yaml("bad.yaml", {**world.settings, "archive": world.path("llama")})
    return world.edit("bad.yaml")


@case("archives", "an empty checkpoint of the authors' code")
def _(world: World) -> list[str]:
    world.write("empty.pt", "")
    config = {"aux_model": {}, "edit_modules": [], "if_edit_bias": False}
    return [
        "import-checkpoint", world.path("empty.pt"), world.path("imported"),
        "--config", world.yaml("theirs.yaml", config), "--model", world.path("llama"),
    ]  # fmt: skip


@case("outputs", "a folder that is there")
def _(world: World) -> list[str]:
    world.write("taken/notes.txt", "mine")
    return world.edit("good.yaml", "facts.json", "--out", world.path("taken"))


@case("outputs", "a file that is there")
def _(world: World) -> list[str]:
    return world.edit("good.yaml", "facts.json", "--delta", world.path("facts.json"))


@case("outputs", "a place below a file")
def _(world: World) -> list[str]:
    return world.edit("good.yaml", "facts.json", "--out", world.path("facts.json/edited"))


@case("outputs", "a link to nothing")
def _(world: World) -> list[str]:
    link = world.folder / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(world.folder / "gone")
    return world.edit("good.yaml", "facts.json", "--out", str(link))


@case("outputs", "an imported checkpoint over a language model")
def _(world: World) -> list[str]:
    config = {"aux_model": {}, "edit_modules": [], "if_edit_bias": False}
    return [
        "import-checkpoint", world.write("their.pt", "x"), world.path("llama"),
        "--config", world.yaml("theirs.yaml", config), "--model", world.path("llama"),
    ]  # fmt: skip


@case("outputs", "a data set into a folder with other files")
def _(world: World) -> list[str]:
    world.write("taken/README.md", "mine")
    return ["dafset", "build", "--out", world.path("taken")]


@case("outputs", "a benchmark into a folder with other files")
def _(world: World) -> list[str]:
    world.write("taken/README.md", "mine")
    return ["bench", "--suite", "quick", "--out", world.path("taken")]


@case("outputs", "a trained DAFNet over another file")
def _(world: World) -> list[str]:
    world.write("results/models/DAFNet/llama/notes.txt", "mine")
    world.json("two.json", [FACT, dict(REQUESTS[1])])
    return world.train(data="two.json")


def model_case(what: str, change: Callable[[Any], Any]) -> None:
    """A model that has been changed in a way in which it cannot be edited."""

    def make(world: World) -> Made:
        hparams = world.subject.hparams()
        return change(world.subject.model()), lambda model: apply_dafnet_to_model(
            model, world.tok, [FACT], hparams
        )

    CASES.append(Case("models", what, make))


def _with_weight(model: Any, weight: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    layer = model.model.layers[1].mlp.down_proj
    layer.weight = torch.nn.Parameter(weight(layer.weight.data), requires_grad=False)
    return model


def _with_adapters(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"]))


def _pruned(model: Any) -> Any:
    from torch.nn.utils import prune

    prune.random_unstructured(model.model.layers[1].mlp.down_proj, "weight", 0.5)
    return model


model_case("adapters of PEFT around it", _with_adapters)
model_case("adapters of PEFT in it", lambda m: _with_adapters(m).get_base_model())
model_case(
    "layers quantised by torch",
    lambda m: torch.ao.quantization.quantize_dynamic(m, {torch.nn.Linear}, dtype=torch.qint8),
)
model_case("a weight of whole numbers", lambda m: _with_weight(m, lambda w: w.to(torch.int8)))
model_case(
    "a weight in 8 bit floats", lambda m: _with_weight(m, lambda w: w.to(torch.float8_e4m3fn))
)
model_case("a complex weight", lambda m: _with_weight(m, lambda w: w.to(torch.complex64)))
model_case("a weight that was never loaded", lambda m: _with_weight(m, lambda w: w.to("meta")))
model_case("an edited layer in half precision alone", lambda m: _with_weight(m, torch.Tensor.half))
model_case("a pruned weight", _pruned)
model_case("a part of it", lambda m: m.model)
model_case("weights that are no numbers", lambda m: _with_weight(m, lambda w: w * float("nan")))
model_case("a model of other shapes", lambda m: _with_weight(m, lambda w: w[:, :20]))


# ---- running them -------------------------------------------------------------------------------


def files_in(folder: Path) -> dict[str, str]:
    """A checksum of each file, and where each link leads."""

    def content(path: Path) -> bytes:
        return str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()

    paths = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path): hashlib.sha256(content(path)).hexdigest() for path in paths}


def weights_of(model: Any) -> list[Any]:
    """What an edit of the model could change: its tensors' bytes, and what it remembers."""
    tensors = [(name, str(t.dtype), t.device.type, bytes_of(t)) for name, t in named_tensors(model)]
    return [tensors, str(model.config), sorted(vars(model))]


def named_tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield name, value


def bytes_of(tensor: torch.Tensor) -> bytes:
    if tensor.device.type == "meta":
        return b""
    plain = tensor.int_repr() if tensor.is_quantized else tensor.detach()
    return plain.flatten().view(torch.uint8).numpy().tobytes()


def run(case: Case, world: World) -> Row:
    """Do what the case says."""
    made = case.make(world)
    before = files_in(world.folder)
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        if isinstance(made, tuple):
            model, do = made
            weights = weights_of(model)
            try:
                do(model)
                result, message = "done", ""
            except Exception as error:
                result, message = type(error).__name__, str(error)
            same = weights_of(model) == weights
        else:
            try:
                result = f"exit {main(list(made))}"
            except SystemExit as stop:
                result = f"exit {stop.code}"
            except Exception as error:  # what a user would see as a traceback
                result = f"traceback of {type(error).__name__}"
            message, same = errors.getvalue(), True
    message = message.strip().removeprefix("easyedit-dafnet: ")
    message = message.replace(f"{world.folder}/", "").replace(str(world.folder), ".")
    return Row(case, result, message, same and files_in(world.folder) == before)


def rows() -> Iterator[Row]:
    """Of all cases, in their order; what one leaves behind does not reach the next."""
    logging.disable(logging.WARNING)  # the command line sets a level of its own
    try:
        with tempfile.TemporaryDirectory() as name:
            world = World(Path(name).resolve() / "world")
            kept = Path(name).resolve() / "kept"
            shutil.copytree(world.folder, kept)
            for case in CASES:
                yield run(case, world)
                shutil.rmtree(world.folder)
                shutil.copytree(kept, world.folder)
    finally:
        logging.disable(logging.NOTSET)


def table(found: Sequence[Row]) -> str:
    """All rows in Markdown, a section a kind."""
    lines = [
        "# What is refused",
        "",
        "Bad inputs, what the command line or the function says, and with which exit code or",
        "exception. Before each of them was refused, no file and no weight had changed.",
        f"`python -m tests.refusals` makes this page; {len(found)} inputs.",
    ]
    for kind in dict.fromkeys(row.case.kind for row in found):
        lines += [
            "",
            f"## {kind.capitalize()}",
            "",
            "| input | result | message |",
            "|---|---|---|",
        ]
        for row in (row for row in found if row.case.kind == kind):
            message = row.message.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
            lines.append(f"| {row.case.what} | {row.result} | {message} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    all_rows = list(rows())
    for row in all_rows:
        if not row.is_refused:
            print(f"{row.case.kind}, {row.case.what}: {row}", file=sys.stderr)
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(table(all_rows), encoding="utf-8")
    print(f"{TABLE}: {len(all_rows)} rows")
