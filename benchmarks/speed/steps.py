"""One training step: seconds, and that both codes compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.speed.reference import Reference
from benchmarks.speed.report import Section, ratio
from benchmarks.speed.setting import Setting, StepBatch, forget
from benchmarks.speed.timing import Timing, show, take_turns, timed
from easyedit_dafnet import DAFNetTrainer
from easyedit_dafnet import trainer as trainer_module
from easyedit_dafnet.edited_weights import EditedWeights
from easyedit_dafnet.unedited import Unedited

# A bias added to all scores alike leaves a softmax as it is: their gradient is zero but for
# rounding. So is that of queries and keys where there is but one key to look at.
ZERO_GRADIENT = ("intra.v2.bias", "inter.key.bias", "fusion.key.bias")
ZERO_GRADIENT_ALONE = ("inter.query", "inter.key", "fusion.query", "fusion.key")
TINY = 1e-30
# Where our step spends its time: (owner, name) of what it calls.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "unedited model": [(Unedited, "records"), (Unedited, "passage")],
    "networks": [(DAFNetTrainer, "edited")],
    "losses": [(trainer_module, "backward_losses")],
    "networks' gradients": [(EditedWeights, "backward")],
    "clipping, Adam": [(DAFNetTrainer, "clip"), (torch.optim.Adam, "step")],
}


@dataclass(frozen=True)
class Step:
    """cold: the trainer's cache is empty; warm: it holds the step's facts. parts: of cold."""

    size: str
    setting: str
    edits: int
    cold: Timing
    warm: Timing
    parts: dict[str, Timing]
    theirs: Timing | None
    loss_difference: float | None  # relative, the largest over the losses
    gradient_difference: float | None  # relative, of the whole gradient
    largest_difference: float | None  # relative, the largest over the parameters


def captured(
    optimizers: list[torch.optim.Optimizer],
    gradients: Callable[[], dict[str, Tensor]],
    step: Callable[[], dict[str, float]],
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The step's losses, and the clipped gradients as the first optimiser finds them."""
    found: dict[str, Tensor] = {}

    def hook(*_: Any) -> None:
        if not found:
            found.update(gradients())

    handle = optimizers[0].register_step_pre_hook(hook)
    try:
        return step(), found
    finally:
        handle.remove()


def our_gradients(trainer: DAFNetTrainer) -> dict[str, Tensor]:
    named = trainer.dafnet.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def differences(
    trainer: DAFNetTrainer, reference: Reference, batch: StepBatch, records: list[Any]
) -> tuple[float, float, float]:
    """Relative differences in one step of each: the largest of a loss, that of the gradient as a
    whole, and the largest of a parameter's gradient."""
    reference.take_weights(trainer.dafnet)
    losses, gradients = captured(
        [trainer.optimizer],
        lambda: our_gradients(trainer),
        lambda: trainer.train_step(records),
    )
    their_losses, their_gradients = captured(
        reference.optimizers(), reference.gradients, lambda: reference.step(batch)
    )
    zero = ZERO_GRADIENT + (ZERO_GRADIENT_ALONE if len(records) == 1 else ())
    names = [
        name
        for name in sorted(gradients.keys() | their_gradients.keys())
        if not any(part in name for part in zero)
    ]
    largest = max(relative(gradients.get(name), their_gradients.get(name)) for name in names)
    common = [name for name in names if name in gradients and name in their_gradients]
    whole = relative(
        *(torch.cat([g[n].flatten() for n in common]) for g in (gradients, their_gradients))
    )
    of_losses = [abs(losses[k] - v) / max(abs(v), TINY) for k, v in their_losses.items()]
    return max(of_losses), whole, largest


def relative(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Norm of the difference by the larger norm. None: the parameter takes no part, a zero."""
    if ours is None or theirs is None:
        given = theirs if ours is None else ours
        return float(given is not None and bool(given.any()))
    largest = max(ours.norm().item(), theirs.norm().item(), TINY)
    return (ours - theirs).norm().item() / largest


@contextmanager
def clocked(device: torch.device) -> Iterator[dict[str, float]]:
    """The seconds that our training steps spend in their parts within the block."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def clock(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            results: list[Any] = []
            seconds[part] += timed(lambda: results.append(function(*args, **kwargs)), device)
            return results[0]

        return run

    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                run = clock(part, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, run))
        yield seconds


def measure_edits(
    setting: Setting,
    trainer: DAFNetTrainer,
    reference: Reference | None,
    batches: list[list[Any]],
) -> tuple[dict[str, Timing], tuple[float | None, float | None, float | None]]:
    """Timings of steps on all batches but the first, and the differences on that one.

    The first step of either code is not timed: it allocates the optimiser's state.
    """
    options, device = setting.options, setting.device
    first, *rest = batches
    batch = setting.step_batch(trainer, first)
    tokens = [setting.step_batch(trainer, records) for records in rest]
    found: tuple[float | None, float | None, float | None] = (None, None, None)
    if reference is not None and not trainer.dafnet.train_fusion:
        found = differences(trainer, reference, batch, first)
    else:
        trainer.train_step(first)
        if reference is not None:
            reference.step(batch)
    parts: dict[str, list[float]] = {part: [] for part in PARTS}

    def cold(i: int) -> float:
        forget(trainer)
        return timed(lambda: trainer.train_step(rest[i]), device)

    def warm(i: int) -> float:
        return timed(lambda: trainer.train_step(rest[i]), device)

    def in_parts(i: int) -> float:
        forget(trainer)
        with clocked(device) as seconds:
            total = timed(lambda: trainer.train_step(rest[i]), device)
        for part, spent in seconds.items():
            parts[part].append(spent)
        return total

    runs = {"cold": cold, "warm": warm, "parts": in_parts}
    if reference is not None:
        authors = reference
        runs["theirs"] = lambda i: timed(lambda: authors.step(tokens[i]), device)
    timings = take_turns(runs, options.repetitions, options.patience)
    return timings | {part: Timing(seconds) for part, seconds in parts.items()}, found


def measure(setting: Setting, progress: Callable[[str], None]) -> list[Step]:
    options = setting.options
    found = []
    for size in options.sizes:
        for name in ("parity", "product") if options.reference else ("product",):
            progress(f"step, {size}, {name}")
            trainer = setting.trainer(size, name)
            reference = None
            if options.reference:
                reference = Reference(setting, size, trainer.dafnet)
                reference.start_training(
                    setting.step_batch(trainer, setting.records[:1]), freeze=name == "parity"
                )
            for edits in options.edits:
                progress(f"step, {size}, {name}, {edits} edits")
                batches = setting.batches(edits, options.repetitions + 1)
                timings, difference = measure_edits(setting, trainer, reference, batches)
                found.append(
                    Step(
                        size,
                        name,
                        edits,
                        timings["cold"],
                        timings["warm"],
                        {part: timings[part] for part in PARTS},
                        timings.get("theirs"),
                        *difference,
                    )
                )
    return found


def steps_section(steps: list[Step]) -> Section:
    with_theirs = any(step.theirs for step in steps)
    header = ["networks", "setting", "edits", "ours cold, s", "ours warm, s"]
    if with_theirs:
        header += ["authors, s", "ratio cold", "ratio warm"]
        header += ["loss diff.", "gradient diff.", "largest"]
    rows = []
    for step in steps:
        row = [step.size, step.setting, str(step.edits), str(step.cold), str(step.warm)]
        if step.theirs is not None:
            row += [str(step.theirs), ratio(step.theirs, step.cold), ratio(step.theirs, step.warm)]
            differ = (step.loss_difference, step.gradient_difference, step.largest_difference)
            row += ["" if d is None else f"{d:.0e}" for d in differ]
        rows.append(row)
    note = (
        "One training step: signals, networks, losses and gradients, clipping, Adam. Median "
        "(least..most) seconds. Cold: nothing is in the trainer's cache, as in a first epoch; "
        "warm: the facts were seen before, as in every later one."
    )
    if with_theirs:
        note += (
            " Parity: fusion weights not trained, their order of fusion, frozen statistics in "
            "both; the differences are relative: the largest over the losses, the gradient's as "
            "a whole and the largest over the parameters, some of whose gradients nearly cancel. "
            "Product: ours with its defaults, theirs as they train. Ratio: "
            "the authors' seconds by ours. Their tokenising and data thread are not in their time, "
            "our tokenising is in ours."
        )
    return Section("Training step", header, rows, note, names=2)


def parts_section(steps: list[Step]) -> Section:
    note = (
        "Median seconds of a cold step in our code. Unedited model: signals, hidden states and "
        "unedited predictions, none of which a warm step computes. Losses: the layers from the "
        "first edited one on, forward and backward."
    )
    steps = [step for step in steps if step.setting == "product"]
    rows = [
        [step.size, str(step.edits), *(show(step.parts[part].median) for part in PARTS)]
        for step in steps
    ]
    return Section("Parts of our training step", ["networks", "edits", *PARTS], rows, note)
