"""One training step: seconds, and that both codes compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.reference import Reference
from benchmarks.speed.report import Section, ratio
from benchmarks.speed.setting import Setting, StepBatch
from benchmarks.speed.timing import Timing, take_turns, timed
from easyedit_dafnet import DAFNetTrainer

# A bias added to all scores alike leaves a softmax as it is: their gradient is zero but for
# rounding. So is that of queries and keys where there is but one key to look at.
ZERO_GRADIENT = ("intra.v2.bias", "inter.key.bias", "fusion.key.bias")
ZERO_GRADIENT_ALONE = ("inter.query", "inter.key", "fusion.query", "fusion.key")
TINY = 1e-30


@dataclass(frozen=True)
class Step:
    """cold: facts that the trainer has not seen before; warm: the same facts again."""

    size: str
    setting: str
    edits: int
    cold: Timing
    warm: Timing
    theirs: Timing | None
    loss_difference: float | None  # relative, the largest over the losses
    gradient_difference: float | None  # relative, the largest over the parameters


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
) -> tuple[float, float]:
    """Largest relative difference of a loss and of a parameter's gradient, in one step of each."""
    reference.take_weights()
    losses, gradients = captured(
        [trainer.optimizer],
        lambda: our_gradients(trainer),
        lambda: trainer.train_step(records),
    )
    their_losses, their_gradients = captured(
        reference.optimizers(), reference.gradients, lambda: reference.step(batch)
    )
    zero = ZERO_GRADIENT + (ZERO_GRADIENT_ALONE if len(records) == 1 else ())
    of_gradients = [
        relative(gradients.get(name), their_gradients.get(name))
        for name in gradients.keys() | their_gradients.keys()
        if not any(part in name for part in zero)
    ]
    of_losses = [abs(losses[k] - v) / max(abs(v), TINY) for k, v in their_losses.items()]
    return max(of_losses), max(of_gradients)


def relative(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Norm of the difference by the larger norm. None: the parameter takes no part, a zero."""
    if ours is None or theirs is None:
        given = theirs if ours is None else ours
        return float(given is not None and bool(given.any()))
    largest = max(ours.norm().item(), theirs.norm().item(), TINY)
    return (ours - theirs).norm().item() / largest


def measure_edits(
    setting: Setting,
    trainer: DAFNetTrainer,
    reference: Reference | None,
    batches: list[list[Any]],
) -> tuple[dict[str, Timing], tuple[float | None, float | None]]:
    """Timings of steps on all batches but the first, and the differences on that one.

    The first step of either code is not timed: it allocates the optimiser's state.
    """
    options, device = setting.options, setting.device
    first, *rest = batches
    batch = setting.step_batch(trainer, first)
    tokens = [setting.step_batch(trainer, records) for records in rest]
    found: tuple[float | None, float | None] = (None, None)
    if reference is not None and not trainer.dafnet.train_fusion:
        found = differences(trainer, reference, batch, first)
    else:
        trainer.train_step(first)
        if reference is not None:
            reference.step(batch)

    def ours(i: int) -> float:
        return timed(lambda: trainer.train_step(rest[i]), device)

    runs: dict[str, Callable[[int], float]] = {"cold": ours, "warm": ours}
    if reference is not None:
        authors = reference
        runs["theirs"] = lambda i: timed(lambda: authors.step(tokens[i]), device)
    return take_turns(runs, options.repetitions, options.patience), found


def measure(setting: Setting, progress: Callable[[str], None]) -> list[Step]:
    options = setting.options
    count = options.repetitions + 1
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
            used = 0
            for edits in options.edits:
                progress(f"step, {size}, {name}, {edits} edits")
                batches = setting.batches(edits, count, used)
                used += edits * count
                timings, difference = measure_edits(setting, trainer, reference, batches)
                found.append(
                    Step(
                        size,
                        name,
                        edits,
                        timings["cold"],
                        timings["warm"],
                        timings.get("theirs"),
                        *difference,
                    )
                )
    return found


def section(steps: list[Step]) -> Section:
    with_theirs = any(step.theirs for step in steps)
    header = ["networks", "setting", "edits", "ours cold, s", "ours warm, s"]
    if with_theirs:
        header += ["authors, s", "ratio cold", "ratio warm", "loss diff.", "gradient diff."]
    rows = []
    for step in steps:
        row = [step.size, step.setting, str(step.edits), str(step.cold), str(step.warm)]
        if step.theirs is not None:
            row += [str(step.theirs), ratio(step.theirs, step.cold), ratio(step.theirs, step.warm)]
            both = (step.loss_difference, step.gradient_difference)
            row += ["" if d is None else f"{d:.0e}" for d in both]
        rows.append(row)
    note = (
        "One training step: signals, networks, losses and gradients, clipping, Adam. Median "
        "(least..most) seconds. Cold: the facts are new to the trainer, as in a first epoch; "
        "warm: seen before, as in every later one."
    )
    if with_theirs:
        note += (
            " Parity: fusion weights not trained, their order of fusion, frozen statistics in "
            "both; the differences are relative, the largest over the losses and over the "
            "parameters' gradients. Product: ours with its defaults, theirs as they train. Ratio: "
            "the authors' seconds by ours. Their tokenising and data thread are not in their time, "
            "our tokenising is in ours."
        )
    return Section("Training step", header, rows, note, names=2)
