"""Sequential edit signals: what each edited module saw, and what it was blamed for (paper, 3.2).

For an edit with loss L = sum of -log p(target_new | prompt) on the *unedited* model, a module
y = xW gives per token its input x and the gradient delta = dL/dy. The gradient of W would be the
sum of the outer products of x and delta; DAFNet works on the factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .dafnet_hparams import nearest
from .language_model import inference_mode_of, target_logits
from .models import check_path, check_types, check_weight
from .records import IGNORE, TokenBatch

# Powers of two, so that dividing it out again is exact. float16 gradients would underflow.
LOSS_SCALE = {torch.float16: 1024.0}


@dataclass(frozen=True)
class EditedModule:
    """A linear module of the language model that DAFNet edits; y = xW with W [d_in, d_out]."""

    name: str
    d_in: int
    d_out: int
    transposed: bool  # torch.nn.Linear stores W transposed, GPT-2's Conv1D does not
    has_bias: bool

    @property
    def shape(self) -> str:
        return f"({self.d_in}, {self.d_out})"

    @property
    def weight_name(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias_name(self) -> str:
        return f"{self.name}.bias"


@dataclass(frozen=True)
class EditSignals:
    """Signals of n edits at one module, the tokens of edit 0 first, then those of edit 1, ...

    x: [T, d_in], delta: [T, d_out], float32; lengths: [n], kept tokens per edit, their sum is T.
    answer: [T, d], at each token the gradient of its edit's loss at what the output embeddings
    see, summed over the target's tokens; None where it was not asked for.
    """

    x: Tensor
    delta: Tensor
    lengths: Tensor
    answer: Tensor | None = None

    def to(self, device: torch.device | str) -> EditSignals:
        moved = (t if t is None else t.to(device) for t in vars(self).values())
        return EditSignals(*cast(Iterable[Any], moved))

    def split(self) -> list[EditSignals]:
        """Edit by edit, each in memory of its own."""
        tokens = self.lengths.tolist()
        answers = [None] * len(tokens) if self.answer is None else self.answer.split(tokens)
        parts = zip(self.x.split(tokens), self.delta.split(tokens), answers, strict=True)
        return [
            EditSignals(x.clone(), delta.clone(), n[None].clone(), a if a is None else a.clone())
            for (x, delta, a), n in zip(parts, self.lengths, strict=True)
        ]


def concatenate(parts: Sequence[EditSignals]) -> EditSignals:
    """The signals of one module for all the edits of several batches, in order."""
    answers = [p.answer for p in parts if p.answer is not None]
    return EditSignals(
        torch.cat([p.x for p in parts]),
        torch.cat([p.delta for p in parts]),
        torch.cat([p.lengths for p in parts]),
        torch.cat(answers) if answers else None,
    )


def find_modules(model: nn.Module, names: Sequence[str]) -> list[EditedModule]:
    """Look the modules up that are to be edited.

    Args:
        model: The language model itself, as `models.editable` gives it.
        names: Of the modules or of their weights.

    Raises:
        ValueError: A module is not there, with the name of the nearest one, or may not be edited.
        ModelError: The model's weights are such that none can be edited.
    """
    named = dict(model.named_modules())
    shared = _shared_weights(model)
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    found = []
    for name in names:
        name = name.removesuffix(".weight")
        module = named.get(name)
        if module is None:
            check_path(name, named)
            linear = [k for k, m in named.items() if isinstance(m, nn.Linear | Conv1D)]
            raise ValueError(
                f"inner_params: the model has no module {name!r}; {nearest(name, linear)}"
            )
        check_weight(name, module)
        if other := shared.get(f"{name}.weight"):
            raise ValueError(
                f"inner_params: {name!r} shares its weight with {other!r}, which would be edited "
                "too; choose another module or untie the weights."
            )
        if module is head:
            raise ValueError(
                f"inner_params: {name!r} are the output embeddings; DAFNet edits modules inside "
                "the layers."
            )
        transposed = isinstance(module, nn.Linear)
        weight = cast(Tensor, module.weight)
        d_in, d_out = weight.T.shape if transposed else weight.shape
        found.append(EditedModule(name, d_in, d_out, transposed, module.bias is not None))
    check_types(model)
    return found


def _shared_weights(model: nn.Module) -> dict[str, str]:
    """Names of parameters that are one tensor under several names, each with another's name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # Parameters of their own may still lie at one place.
        plain = type(parameter) is nn.Parameter and parameter.numel() > 0
        place = parameter.data_ptr() if plain else 0
        names.setdefault(place or id(parameter), []).append(name)
    return {
        name: next(other for other in group if other != name)
        for group in names.values()
        if len(group) > 1
        for name in group
    }


def edit_signals(
    model: Any,
    modules: Sequence[EditedModule],
    batch: TokenBatch,
    originals: Mapping[str, Tensor] | None = None,
    batch_size: int = 8,
) -> list[EditSignals]:
    """Signals of the batch's edits at every module, on the unedited model.

    `originals` holds the unedited parameters by name where the model's own are edited already.
    `batch_size` edits pass the model together. Kept are the tokens up to the last that predicts
    a target, without those at which x or delta is all zero: prompt tokens that the loss does not
    reach, as in the last layer's MLP. A batch that says `at` which token its edits are written
    keeps that one only, and the answer's signal with it.
    Raises FloatingPointError when a signal is not finite.
    """
    device = next(model.parameters()).device
    parts = []
    for part in batch.to(device).split(batch_size):
        forward = partial(target_logits, model, part, originals or {})
        with inference_mode_of(model):
            parts.append(collect_signals(model, modules, part.labels, forward, at=part.at))
    return [concatenate(p) for p in zip(*parts, strict=True)]


def collect_signals(
    model: Any,
    modules: Sequence[EditedModule],
    labels: Tensor,
    forward: Callable[[], Tensor],
    lengths: Sequence[int] | None = None,
    at: Tensor | None = None,
) -> list[EditSignals]:
    """The signals of one pass of texts [n, length], one EditSignals a module.

    forward: runs the model, its parameters without gradients, and gives the logits at the
    targets [number of targets, vocabulary]. lengths: of the texts, where they stand side by side
    in one row. at: [n], the one token of each text to keep; then with the answer's signal.
    """
    sizes = lengths or [labels.shape[1]] * len(labels)
    labels = labels.flatten()
    seen: list[Tensor] = []

    def watch_answer(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])

    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # The first edited module starts the graph; below it nothing is recorded.
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            inputs[name], outputs[name] = args[0].detach(), output
            return output

        return hook

    targets = labels != IGNORE
    with ExitStack() as stack, torch.enable_grad():
        for module in modules:
            handle = model.get_submodule(module.name).register_forward_hook(watch(module.name))
            stack.callback(handle.remove)
        if at is not None:
            head = model.get_output_embeddings()
            stack.callback(head.register_forward_pre_hook(watch_answer).remove)
        logits = forward()
        scale = LOSS_SCALE.get(logits.dtype, 1.0)
        wanted = labels[targets].to(logits.device)
        loss = scale * F.cross_entropy(logits.float(), wanted, reduction="sum")
        gradients = torch.autograd.grad(loss, [*(outputs[m.name] for m in modules), *seen])

    if at is not None:
        # seen before the head's input is narrowed down to the targets: all positions are there.
        answer = gradients[-1].reshape(len(labels), -1).float() / scale
        answers = torch.stack([part.sum(0) for part in answer.split(sizes)])
        rows = torch.tensor([0, *sizes[:-1]]).cumsum(0) + at.cpu()
        return [
            _finite(
                module,
                inputs[module.name].reshape(len(labels), -1)[rows.to(gradient.device)].float(),
                gradient.reshape(len(labels), -1)[rows.to(gradient.device)].float() / scale,
                torch.ones(len(sizes), dtype=torch.long, device=gradient.device),
                answers.to(gradient.device),
            )
            for module, gradient in zip(modules, gradients[:-1], strict=True)
        ]
    # Positions up to the last one that predicts a target token.
    reach = torch.cat([part.flip(0).cumsum(0).flip(0) > 0 for part in targets.split(sizes)])
    signals = []
    for module, gradient in zip(modules, gradients, strict=True):
        # Texts and tokens in one dimension, as some layers have them anyway.
        x, delta = (
            part.reshape(len(labels), -1).float() for part in (inputs[module.name], gradient)
        )
        delta = delta / scale
        keep = reach.to(x.device) & (x != 0).any(-1) & (delta != 0).any(-1)
        kept = torch.stack([part.sum() for part in keep.split(sizes)])
        signals.append(_finite(module, x[keep], delta[keep], kept))
    return signals


def _finite(
    module: EditedModule, x: Tensor, delta: Tensor, lengths: Tensor, answer: Tensor | None = None
) -> EditSignals:
    """The module's signals, once they are known to be finite."""
    if not (torch.isfinite(x).all() and torch.isfinite(delta).all()):
        raise FloatingPointError(
            f"The edit signals at {module.name} are not finite; check the model's weights, or "
            "load it in bfloat16 or float32."
        )
    return EditSignals(x, delta, lengths, answer)
