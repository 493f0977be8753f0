"""What of a model can be edited: the language model inside a wrapper, and weights that are plain.

An edit is written into the weights in place: they must be the model's own, in memory, and floating
point numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .language_model import inference_mode_of

# torch's wrappers that leave a model's parameters as they are, and where each keeps the model.
WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "OptimizedModule": "_orig_mod",  # torch.compile's
}
# Where wrappers of a part of a model keep that part.
WITHIN = {*WRAPPERS.values(), "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class ModelError(ValueError):
    """A model that cannot be edited as it is; the message says why and what to do."""


def editable(model: Any) -> tuple[Any, str]:
    """The language model to edit inside the given one.

    Args:
        model: A causal language model of transformers, alone or inside torch's data parallelism or
            `torch.compile`.

    Returns:
        The model inside, and what the names of its parameters begin with in the given one.

    Raises:
        ModelError: The model cannot be edited, or is inside another wrapper.
    """
    prefix = ""
    while inside := next((WRAPPERS[k] for k in _classes(model) if k in WRAPPERS), None):
        model, prefix = getattr(model, inside), f"{prefix}{inside}."
    kind = type(model).__name__
    if _is_of_peft(model):
        raise ModelError(
            f"The model is wrapped by PEFT's {kind}, whose adapters have a say in what it answers "
            "and which saves no edits; merge them first (model.merge_and_unload()), or edit "
            "model.get_base_model()."
        )
    if "FullyShardedDataParallel" in _classes(model):
        raise ModelError(
            f"The model is wrapped by {kind}, which shares its weights out among processes; edit "
            "the model before it is wrapped."
        )
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"The model is a {kind}; {_where_a_model_is(model)}.")
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        raise ModelError(
            f"The model is a {kind}, which does not continue a text; load a causal language model "
            "(AutoModelForCausalLM)."
        )
    if next(model.parameters()).is_meta:
        name, _ = next(model.named_parameters())
        raise ModelError(_offloaded(name.rpartition(".")[0]))
    if any(p.is_inference() for p in model.parameters()):
        raise ModelError(
            "The model was loaded under torch.inference_mode(), so that no gradient can pass it; "
            "load it outside, or edit a copy.deepcopy() of it."
        )
    return model, prefix


def _classes(model: Any) -> list[str]:
    return [c.__name__ for c in type(model).__mro__]


def _is_of_peft(module: Any) -> bool:
    return any(c.__module__.partition(".")[0] == "peft" for c in type(module).__mro__)


def _where_a_model_is(wrapper: Any) -> str:
    """What to give in place of an object that is no model of transformers."""
    is_module = isinstance(wrapper, nn.Module)
    parts = wrapper.named_modules() if is_module else getattr(wrapper, "__dict__", {}).items()
    for name, module in parts:
        if isinstance(module, PreTrainedModel):
            return f"give the model inside, its .{name}"
    return "give a model of transformers, as AutoModelForCausalLM.from_pretrained loads it"


def _offloaded(name: str) -> str:
    return (
        f"{name} is offloaded or was never loaded (its weight is on the meta device); load the "
        "model with the embeddings and all edited layers in memory."
    )


def check_types(model: Any) -> None:
    """Raise ModelError where weights of different types keep the model from running."""
    types: dict[torch.dtype, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            types.setdefault(parameter.dtype, name)
    if len(types) < 2:
        return
    try:
        with inference_mode_of(model), torch.no_grad():
            model(torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device))
    except RuntimeError as error:
        found = ", ".join(f"{name} is {kind}" for kind, name in types.items())
        raise ModelError(
            f"The model does not run with its weights of several types ({found}); give it one, "
            "such as model.to(torch.float32)."
        ) from error


def check_path(name: str, modules: Mapping[str, nn.Module]) -> None:
    """Raise ModelError where the module of that name is inside a wrapped part of the model.

    modules: The model's, by the names that they have in it.
    """
    for path in modules:
        parts = path.split(".")
        inside = [part for part in parts if part in WITHIN]
        if inside and ".".join(part for part in parts if part not in WITHIN) == name:
            place = ".".join(parts[: parts.index(inside[0])])
            raise ModelError(
                f"{name} is inside a {type(modules[place]).__name__}, which stands at {place}; put "
                f"what it wraps, its .{inside[0]}, there first."
            )


def check_weight(name: str, module: nn.Module) -> None:
    """Raise ModelError, with the module's name in it, unless it has a weight that can be edited."""
    kind = type(module).__name__
    if _is_of_peft(module):
        raise ModelError(
            f"{name} carries an adapter (PEFT's {kind}), so its weight is not all that it adds; "
            "merge the adapters first (merge_and_unload() of the PEFT model), or unload them."
        )
    is_linear = type(module) in (nn.Linear, Conv1D)
    if hasattr(module, "parametrizations") or (is_linear and "weight" not in module._parameters):
        raise ModelError(
            f"The weight of {name} is computed from others, as pruning and weight normalisation "
            "do; make it a parameter again (torch.nn.utils.prune.remove, "
            "torch.nn.utils.parametrize.remove_parametrizations)."
        )
    weight: Any = getattr(module, "weight", None)
    if "DTensor" in _classes(weight) or (is_linear and weight.ndim != 2):
        raise ModelError(
            f"The weight of {name} is shared out among processes ({type(weight).__name__} of shape "
            f"{tuple(weight.shape)}); edit the model before that."
        )
    if (stored := _quantised(module, weight)) is not None:
        raise ModelError(
            f"{name} is quantised ({kind}, {stored}), so an edit cannot be written into it; load "
            "the model in float32, bfloat16 or float16, edit it, then quantise it."
        )
    if not is_linear:
        raise ModelError(
            f"inner_params: {name!r} is a {kind}; DAFNet edits torch.nn.Linear and GPT-2's Conv1D "
            "only."
        )
    if weight.is_meta:
        raise ModelError(_offloaded(name))
    if not weight.is_floating_point():
        raise ModelError(
            f"The weight of {name} is {weight.dtype}; load the model in float32, bfloat16 or "
            "float16."
        )


def _quantised(module: nn.Module, weight: Any) -> str | None:
    """As what the module keeps its numbers, where they are no plain ones.

    Quantised modules are told by what they hold, not by their names: a tensor of a class of its
    own (torchao, bitsandbytes), integers or 8 bit floating point numbers (GPTQ, AWQ, torch).
    """
    if isinstance(weight, Tensor):
        if type(weight) not in (Tensor, nn.Parameter):
            return type(weight).__name__
    elif callable(weight):  # torch's own modules pack it away
        weight = weight()
    others = (
        [] if type(module) in (nn.Linear, Conv1D) else [*module.parameters(), *module.buffers()]
    )
    tensors = [weight, *others] if isinstance(weight, Tensor) else others
    return next((str(t.dtype) for t in tensors if _is_packed(t)), None)


def _is_packed(tensor: Tensor) -> bool:
    dtype = tensor.dtype
    small = dtype.itemsize == 1 or not (dtype.is_floating_point or dtype.is_complex)
    return small and dtype not in (torch.bool, torch.int64)


@contextmanager
def own_precision() -> Iterator[None]:
    """Gradients in the model's own precision, whatever modes the caller has set.

    That is without inference mode, autocast, torch.compile and a default device.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # What was compiled does not know of the hooks that are put on.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
