from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModel, T5Config, T5ForConditionalGeneration

from easyedit_dafnet import apply_dafnet_to_model
from easyedit_dafnet.checkpoint import load_dafnet
from easyedit_dafnet.dafnet_main import STATE
from easyedit_dafnet.models import ModelError, editable
from easyedit_dafnet.signals import find_modules
from tests.conftest import Subject
from tests.tiny import REQUESTS

Weights = dict[str, torch.Tensor]


def edit(subject: Subject, model: Any, requests: Any = REQUESTS[:2], **how: Any) -> Any:
    hparams = subject.hparams(value_steps=2, rehearsed=2)
    return apply_dafnet_to_model(
        model, subject.tok, requests, hparams, return_orig_weights=True, **how
    )


def snapshot(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(model: nn.Module, weights: Weights) -> None:
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def assert_refused(subject: Subject, model: Any, message: str) -> None:
    """In one sentence, before the archive is looked at, and nothing has changed."""
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    before = {name: p.detach().clone() for name, p in parameters.items() if not p.is_meta}
    hparams = subject.hparams(archive="not-there")
    with pytest.raises(ModelError, match=message) as error:
        apply_dafnet_to_model(model, subject.tok, REQUESTS[:1], hparams)
    assert "\n" not in str(error.value)
    for name, value in before.items():
        assert torch.equal(parameters[name], value), name
    assert not hasattr(model, STATE)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# ---- wrappers -----------------------------------------------------------------------------------


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": compiled,
    "both": lambda model: nn.DataParallel(compiled(model)),
}


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("copy", [False, True])
def test_the_model_inside_a_wrapper_is_edited(
    subjects: Callable[[str], Subject], name: str, copy: bool
) -> None:
    subject = subjects("solved-llama")
    model, plain = subject.model(), subject.model()
    edit(subject, plain)
    wrapped = WRAPPERS[name](model)
    before = snapshot(wrapped)
    edited, originals = edit(subject, wrapped, copy=copy)
    assert type(edited) is type(wrapped) and (edited is wrapped) is not copy
    inside, prefix = editable(edited)
    assert_equal(inside, snapshot(plain))
    if copy:
        assert_equal(wrapped, before)
    # The sequence is found again, whether the model or its wrapper is given.
    edit(subject, inside, REQUESTS[2:3])
    edit(subject, edited, REQUESTS[3:4])
    assert getattr(inside, STATE).count == 4
    assert all(key.startswith(prefix) and key in before for key in originals)
    assert all(edited.get_parameter(key).shape == value.shape for key, value in originals.items())
    assert not edited.load_state_dict(originals, strict=False).unexpected_keys
    assert_equal(edited, before)


def test_a_model_for_several_processes_is_edited(
    subjects: Callable[[str], Subject], alone: None
) -> None:
    subject = subjects("llama")
    plain, wrapped = subject.model(), nn.parallel.DistributedDataParallel(subject.model())
    before = snapshot(wrapped)
    edit(subject, plain)
    _, originals = edit(subject, wrapped)
    assert_equal(wrapped.module, snapshot(plain))
    wrapped.load_state_dict(originals, strict=False)
    assert_equal(wrapped, before)


@pytest.mark.filterwarnings("ignore:FSDP")
def test_a_model_that_is_shared_out_among_processes_is_refused(
    subjects: Callable[[str], Subject], alone: None
) -> None:
    subject = subjects("llama")
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapped = FullyShardedDataParallel(subject.model(), device_id=torch.device("cpu"))
    assert_refused(subject, wrapped, "wrapped by FullyShardedDataParallel")


def test_weights_that_are_shared_out_are_refused(subject: Subject, alone: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    model, name = subject.model(), subject.edited[0].name
    module, mesh = model.get_submodule(name), init_device_mesh("cpu", (1,))
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh))
    with pytest.raises(ModelError, match=f"{name} is shared out among processes .DTensor"):
        edit(subject, model)


@pytest.mark.parametrize("where", ["forward", "module"])
def test_what_was_compiled_in_place_is_edited_without_compiling(
    subjects: Callable[[str], Subject], where: str
) -> None:
    """Compiled code does not know of hooks, or is compiled anew for each of them."""
    subject = subjects("solved-gpt2")
    model, plain, compilations = subject.model(), subject.model(), []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    ids = subject.tok(REQUESTS[0]["prompt"], return_tensors="pt").input_ids
    if where == "forward":
        model.forward = torch.compile(model.forward, backend=backend)
    else:
        model.compile(backend=backend)
    model(ids)
    before = len(compilations)
    for one in (model, plain):
        edit(subject, one, REQUESTS[:1])
        edit(subject, one, REQUESTS[1:3])
    assert before > 0 and len(compilations) == before
    assert_equal(model, snapshot(plain))
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)


def test_a_wrapped_layer_is_named(subject: Subject) -> None:
    model, (path, _, rest) = subject.model(), subject.modules[0].partition(".1.")
    layers = model.get_submodule(path)
    layers[1] = compiled(layers[1])
    message = f"{path}.1.{rest} is inside a OptimizedModule, which stands at {path}.1"
    with pytest.raises(ModelError, match=message):
        edit(subject, model)


def lora(model: Any, *targets: str) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=list(targets), task_type="CAUSAL_LM", fan_in_fan_out=False
    )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("target", ["q_proj", "down_proj"])
def test_adapters_are_to_be_merged_first(subjects: Callable[[str], Subject], target: str) -> None:
    subject = subjects("llama")
    wrapped = lora(subject.model(), target)
    assert_refused(subject, wrapped, r"PEFT's PeftModelForCausalLM.*merge_and_unload\(\)")
    assert_refused(subject, nn.DataParallel(wrapped), "PEFT's PeftModelForCausalLM")
    inside = wrapped.get_base_model()
    if target == "q_proj":
        edit(subject, inside)  # as the sentence says
        assert getattr(inside, STATE).count == 2
    else:
        assert_refused(subject, inside, "down_proj carries an adapter")
        edit(subject, wrapped.merge_and_unload())


def test_adapters_without_a_wrapper_are_seen(subjects: Callable[[str], Subject]) -> None:
    peft = pytest.importorskip("peft")
    subject = subjects("llama")
    model = subject.model()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["up_proj"]), model)
    assert_refused(subject, model, r"layers\.1\.mlp\.up_proj carries an adapter")


def test_what_is_no_language_model_is_refused(subject: Subject) -> None:
    model = subject.model()

    class Engine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

    assert_refused(subject, Engine(), r"is a Engine; give the model inside, its \.inner")
    pipeline = SimpleNamespace(model=model)
    assert_refused(subject, pipeline, r"SimpleNamespace; give the model inside, its \.model")
    assert_refused(subject, str(subject.folder), "is a str; give a model of transformers")
    assert_refused(subject, AutoModel.from_pretrained(subject.folder), "does not continue a text")
    seq2seq = T5ForConditionalGeneration(
        T5Config(vocab_size=420, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    )
    assert_refused(subject, seq2seq, "does not continue a text")


# ---- weights ------------------------------------------------------------------------------------


class Packed(nn.Module):
    """As GPTQ's and AWQ's layers hold their numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(6, 48, dtype=torch.int32))


class Params4bit(nn.Parameter):
    """As bitsandbytes and torchao have parameters: of a class of their own."""


class Linear4bit(nn.Linear):
    def __init__(self) -> None:
        super().__init__(32, 48)
        self.weight = Params4bit(torch.zeros(768, 1, dtype=torch.uint8), requires_grad=False)


def put(model: Any, name: str, module: nn.Module) -> Any:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
    return model


def with_weight(model: Any, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    module = model.get_submodule(name)
    module.weight = nn.Parameter(change(module.weight.detach()), requires_grad=False)
    return model


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantised_weights_are_refused_by_name(subjects: Callable[[str], Subject]) -> None:
    subject = subjects("llama")
    name = subject.modules[0]
    how = f"{name} is quantised .%s., so an edit cannot be written into it; load the model in flo"
    dynamic = torch.ao.quantization.quantize_dynamic(
        subject.model(), {nn.Linear}, dtype=torch.qint8
    )
    assert_refused(subject, dynamic, how % "Linear, torch.qint8")
    assert_refused(subject, put(subject.model(), name, Packed()), how % "Packed, torch.int32")
    four = put(subject.model(), name, Linear4bit())
    assert_refused(subject, four, how % "Linear4bit, Params4bit")
    for dtype in (torch.int8, torch.float8_e4m3fn):
        stray = with_weight(subject.model(), name, lambda w, d=dtype: w.to(d))  # type: ignore[misc]
        assert_refused(subject, stray, how % f"Linear, {dtype}")
    assert_refused(subject, nn.DataParallel(four), how % "Linear4bit, Params4bit")


def test_weights_of_other_kinds_are_refused_by_name(subjects: Callable[[str], Subject]) -> None:
    subject = subjects("llama")
    name = subject.modules[0]
    complex_ = with_weight(subject.model(), name, lambda w: w.to(torch.complex64))
    assert_refused(subject, complex_, f"weight of {name} is torch.complex64")
    pruned = subject.model()
    prune.l1_unstructured(pruned.get_submodule(name), "weight", 0.1)
    assert_refused(subject, pruned, f"weight of {name} is computed from others")
    prune.remove(pruned.get_submodule(name), "weight")
    edit(subject, pruned)
    normed = subject.model()
    parametrizations.weight_norm(normed.get_submodule(name))
    assert_refused(subject, normed, f"weight of {name} is computed from others")
    nowhere = with_weight(subject.model(), name, lambda w: w.to("meta"))
    assert_refused(subject, nowhere, f"{name} is offloaded")


def test_one_place_in_memory_under_two_names_is_refused(subject: Subject) -> None:
    model, one = subject.model(), subject.modules[0]
    other = next(n for n in subject.modules[1:] if n.rsplit(".", 1)[1] == one.rsplit(".", 1)[1])
    # A parameter of its own, but of the same numbers in memory.
    shared = model.get_submodule(one).weight.detach()
    model.get_submodule(other).weight = nn.Parameter(shared)
    with pytest.raises(ValueError, match="shares its weight"):
        edit(subject, model)


def offloaded(subject: Subject, folder: Path, *names: str) -> Any:
    accelerate = pytest.importorskip("accelerate")
    model = subject.model()
    places = [n for n, m in model.named_modules() if n and not any(m.children())]
    on = {n: "disk" if n.startswith(names) else "cpu" for n in places}
    return accelerate.dispatch_model(
        model, on, main_device="cpu", offload_dir=folder, force_hooks=True
    )


def test_edited_layers_must_not_be_offloaded(
    subjects: Callable[[str], Subject], tmp_path: Path
) -> None:
    subject = subjects("solved-llama")  # edits layers 0 and 1 of 3
    plain = subject.model()
    edit(subject, plain)
    later = offloaded(subject, tmp_path, "model.layers.2", "lm_head")
    edit(subject, later)
    for name in subject.modules:
        assert torch.equal(later.get_submodule(name).weight, plain.get_submodule(name).weight)
    own = offloaded(subject, tmp_path, "model.layers.1")
    assert_refused(subject, own, r"layers\.1\.mlp\.down_proj is offloaded")
    first = offloaded(subject, tmp_path, "model.embed_tokens")
    assert_refused(subject, first, "embed_tokens is offloaded")


# ---- precision and modes ------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_of_another_type_is_refused(subject: Subject, layer: int) -> None:
    model = subject.model()
    model.get_submodule(subject.modules[0].split(".1.")[0])[layer].half()
    assert_refused(subject, model, r"does not run with its weights of several types \(.*float16")
    edit(subject, model.float())


def test_types_that_run_together_are_edited(subjects: Callable[[str], Subject]) -> None:
    subject = subjects("llama")
    model = subject.model()
    model.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)))
    edit(subject, model)


@pytest.fixture
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_dtype")
@pytest.mark.parametrize("name", ["llama", "solved-llama"])
def test_torchs_default_type_changes_nothing(subjects: Callable[[str], Subject], name: str) -> None:
    subject = subjects(name)
    model, plain = subject.model(), subject.model()
    load_dafnet.__globals__["_load"].cache_clear()  # the networks are loaded under the default, too
    edit(subject, model)
    torch.set_default_dtype(torch.float32)
    load_dafnet.__globals__["_load"].cache_clear()
    edit(subject, plain)
    assert {p.dtype for p in load_dafnet(subject.archive).parameters()} == {torch.float32}
    assert_equal(model, snapshot(plain))


MODES: dict[str, Callable[[], Any]] = {
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no gradients": torch.no_grad,
    "default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llama", "solved-llama"])
def test_the_callers_modes_change_nothing(
    subjects: Callable[[str], Subject], mode: str, name: str
) -> None:
    subject = subjects(name)
    model, plain = subject.model(), subject.model()
    for start in (0, 2):
        with MODES[mode]():
            _, originals = edit(subject, model, REQUESTS[start : start + 2])
        edit(subject, plain, REQUESTS[start : start + 2])
    assert_equal(model, snapshot(plain))
    assert not any(t.is_inference() for t in [*model.parameters(), *originals.values()])


def test_a_model_that_was_loaded_in_inference_mode_is_refused(subject: Subject) -> None:
    model = subject.model()
    with torch.inference_mode():
        model = deepcopy(model)  # transformers 5 loads ordinary tensors anyway
    assert_refused(subject, model, "loaded under torch.inference_mode")
    edit(subject, deepcopy(model))  # as the sentence says


@pytest.mark.parametrize("setting", [{"return_dict": False}, {"torchscript": True}])
def test_outputs_may_be_tuples(solved: Subject, setting: dict[str, bool]) -> None:
    model, plain = solved.model(), solved.model()
    model.config.update(setting)
    edit(solved, model)
    edit(solved, plain)
    assert_equal(model, snapshot(plain))
    ((name, value),) = setting.items()
    assert getattr(model.config, name) is value


def test_threads_edit_one_after_another(subjects: Callable[[str], Subject]) -> None:
    subject = subjects("solved-llama")
    model, errors = subject.model(), []

    def work(request: Any) -> None:
        try:
            edit(subject, model, [request])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[r]) for r in REQUESTS[:4]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    sequence = getattr(model, STATE)
    assert sequence.count == 4 and sequence.is_held_by(model)
    assert len(find_modules(model, subject.modules)) == len(subject.modules)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
