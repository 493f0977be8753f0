"""One edit: its seconds beside the floor, and against the number of edits made before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.reference import PAST_AT_ONCE, Reference
from benchmarks.speed.report import Section, bytes_text, ratio
from benchmarks.speed.setting import Record, Setting
from benchmarks.speed.timing import Timing, take_turns, timed
from easyedit_dafnet import DAFNetHyperParams, apply_dafnet_to_model
from easyedit_dafnet.checkpoint import load_dafnet
from easyedit_dafnet.dafnet_main import STATE, EditSequence
from easyedit_dafnet.language_model import inference_mode_of, target_logits
from easyedit_dafnet.networks import PastEdits, Rows
from easyedit_dafnet.records import encode_requests

Dtype = Literal["float32", "bfloat16", "float16"]  # of what is kept of past edits
READ_AT_ONCE = 2**30  # bytes
ROOM = 100  # edits


@dataclass(frozen=True)
class Latency:
    """One edit. floor: one forward of the request, one backward through the edited layers.

    sequence: "first" of a sequence, in an unedited model, or a "later" one.
    """

    size: str
    sequence: str
    ours: Timing
    floor: Timing
    theirs: Timing | None


@dataclass(frozen=True)
class PastCost:
    """An edit after `past` others. read: once over the bytes that are kept of them.

    deviation: of the weights' change from that with float32, relative, after one more edit.
    """

    size: str
    dtype: Dtype
    past: int
    bytes_per_edit: int
    ours: Timing
    read: Timing
    theirs: Timing | None
    deviation: float | None = None


# -- Our sequence of edits ------------------------------------------------------------------------


def as_request(record: Record) -> dict[str, str]:
    return {key: record[key] for key in ("prompt", "target_new")}


def edit(setting: Setting, record: Record, hparams: DAFNetHyperParams) -> None:
    apply_dafnet_to_model(setting.model, setting.tok, [as_request(record)], hparams)


@torch.no_grad()
def restore(model: Any) -> None:
    """Write the unedited weights back; the next edit starts a sequence."""
    sequence: EditSequence | None = getattr(model, STATE, None)
    if sequence is not None:
        for name, original in sequence.originals.items():
            model.get_parameter(name).copy_(original)
        delattr(model, STATE)


def fill_past(sequence: EditSequence, count: int) -> None:
    """Pretend that `count` edits were made, the same ones for every precision.

    The buffers have room for the next ones, as they mostly do: their doubling is not measured.
    """
    generator = torch.Generator().manual_seed(0)

    def many(rows: Rows) -> Rows:
        modules, heads, _, width = rows.buffer.shape
        buffer = rows.buffer.new_empty(modules, heads, 2 ** (count + ROOM).bit_length(), width)
        some = torch.randn(modules, heads, PAST_AT_ONCE, width, generator=generator)
        for start in range(0, count, PAST_AT_ONCE):
            part = buffer[:, :, start : min(start + PAST_AT_ONCE, count)]
            part.copy_(some[:, :, : part.shape[2]])
        return Rows(buffer, count)

    past = {
        shape: [PastEdits(many(p.keys), many(p.values), many(p.score_keys)) for p in layers]
        for shape, layers in sequence.held.past.items()
    }
    sequence.held = replace(sequence.held, past=past)
    sequence.count = count


# -- Floors ---------------------------------------------------------------------------------------


def forward_and_backward(setting: Setting, record: Record, modules: Iterable[str]) -> None:
    """What no gradient-based edit can do without: the loss of the target, then its gradient at
    the output of every edited module. No parameter's gradient is computed."""
    model = setting.model
    batch = encode_requests(setting.tok, [as_request(record)], model).to(setting.device)
    outputs: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        outputs.append(output)
        return output

    handles = [model.get_submodule(name).register_forward_hook(hook) for name in modules]
    try:
        with inference_mode_of(model), torch.enable_grad():
            logits = target_logits(model, batch, {})
            torch.autograd.grad(F.cross_entropy(logits, batch.labels[batch.targets]), outputs)
    finally:
        for handle in handles:
            handle.remove()


def read_once(count: int, device: torch.device) -> Callable[[], None]:
    """A call that reads `count` bytes of float32 from memory, as a matrix times a vector does."""
    width = 1024
    rows = max(1, min(count, READ_AT_ONCE) // (4 * width))
    matrix, vector = torch.ones(rows, width, device=device), torch.ones(width, device=device)
    whole, rest = divmod(count // (4 * width), rows)

    def run() -> None:
        for _ in range(whole):
            matrix @ vector
        if rest:
            matrix[:rest] @ vector

    return run


# -- Measurements ---------------------------------------------------------------------------------


def reference_for(setting: Setting, size: str) -> Reference | None:
    """The authors' code with the weights of the size's archive, if its path is given."""
    if setting.options.reference is None:
        return None
    archive = setting.editing_hparams(size).archive
    return Reference(setting, size, load_dafnet(str(archive), setting.device))


def measure_latency(
    setting: Setting, size: str, sequence: str, reference: Reference | None
) -> Latency:
    options, device = setting.options, setting.device
    hparams = setting.editing_hparams(size)
    requests = [b[0] for b in setting.batches(1, options.repetitions)]

    def ours(i: int) -> float:
        if sequence == "first":
            restore(setting.model)
        return timed(lambda: edit(setting, requests[i], hparams), device)

    def floor(i: int) -> float:
        names = hparams.inner_params
        return timed(lambda: forward_and_backward(setting, requests[i], names), device)

    runs = {"ours": ours, "floor": floor}
    if reference is not None:
        authors = reference

        def theirs(i: int) -> float:
            if sequence == "first":
                authors.restore()
            return timed(lambda: authors.edit(requests[i]), device)

        runs["theirs"] = theirs
    for run in runs.values():  # once before it counts
        run(0)
    timings = take_turns(runs, options.repetitions, options.patience)
    restore(setting.model)
    if reference is not None:
        reference.restore()
    return Latency(size, sequence, timings["ours"], timings["floor"], timings.get("theirs"))


def measure_past(
    setting: Setting, size: str, dtype: Dtype, count: int, reference: Reference | None
) -> tuple[PastCost, Tensor]:
    """The cost, and what one more edit makes of the weights' changes, for the deviation."""
    options, device = setting.options, setting.device
    hparams = replace(setting.editing_hparams(size), past_dtype=dtype)
    first, *requests = [b[0] for b in setting.batches(1, options.repetitions + 1)]
    edit(setting, first, hparams)
    sequence: EditSequence = getattr(setting.model, STATE)
    fill_past(sequence, count)
    edit(setting, first, hparams)
    change = torch.cat([c.flatten() for c in sequence.held.changes.values()])
    read = read_once(sequence.bytes_per_edit * count, device)

    runs = {
        "ours": lambda i: timed(lambda: edit(setting, requests[i], hparams), device),
        "read": lambda i: timed(read, device),
    }
    if reference is not None:
        authors = reference
        authors.edit(first)
        authors.fill_past(count)
        runs["theirs"] = lambda i: timed(lambda: authors.edit(requests[i]), device)
    timings = take_turns(runs, options.repetitions, options.patience)
    kept = sequence.bytes_per_edit
    restore(setting.model)
    if reference is not None:
        reference.restore()
    timing = timings["ours"], timings["read"], timings.get("theirs")
    return PastCost(size, dtype, count, kept, *timing), change


def latencies(setting: Setting, progress: Callable[[str], None]) -> list[Latency]:
    found = []
    for size in setting.options.sizes:
        reference = reference_for(setting, size)
        for sequence in ("first", "later"):
            progress(f"{sequence} edit, {size}")
            found.append(measure_latency(setting, size, sequence, reference))
    return found


def past_costs(setting: Setting, progress: Callable[[str], None]) -> list[PastCost]:
    options = setting.options
    found = []
    for size in options.sizes:
        reference = reference_for(setting, size)
        for count in options.past:
            exact: Tensor | None = None
            for dtype in ("float32", *options.past_dtypes):
                progress(f"edit after {count}, {size}, {dtype}")
                # Theirs has but one precision.
                beside = reference if exact is None else None
                cost, change = measure_past(setting, size, dtype, count, beside)
                if exact is None:
                    exact = change
                else:
                    deviation = (change - exact).norm() / exact.norm()
                    cost = replace(cost, deviation=deviation.item())
                found.append(cost)
    return found


# -- Tables ---------------------------------------------------------------------------------------


def latency_section(latencies: list[Latency]) -> Section:
    with_theirs = any(row.theirs for row in latencies)
    header = ["networks", "edit", "ours, s", "floor, s", "ours / floor"]
    note = (
        "One request through apply_dafnet_to_model, from the text to the changed weights: the "
        "first in an unedited model, and later ones of the same sequence. Floor: one forward of "
        "the request and one backward through the edited layers, without any network. Median "
        "(least..most) seconds."
    )
    if with_theirs:
        header += ["authors, s", "authors / ours"]
        note += " Authors: edit_one_piece, whose change is left to a hook."
    rows = []
    for row in latencies:
        cells = [row.size, row.sequence, str(row.ours), str(row.floor), ratio(row.ours, row.floor)]
        if row.theirs is not None:
            cells += [str(row.theirs), ratio(row.theirs, row.ours)]
        rows.append(cells)
    return Section("One edit", header, rows, note, names=2)


def past_section(costs: list[PastCost]) -> Section:
    with_theirs = any(row.theirs for row in costs)
    header = ["networks", "kept as", "past edits", "ours, s", "against fewest", "read once, s"]
    header += ["kept per edit", "deviation"]
    note = (
        "One edit after so many others. Against fewest: ours by ours after the fewest past edits. "
        "Read once: a matrix times a vector over as many bytes as are kept, the floor of any "
        "attention to all past edits. Deviation: of the weights' change after the edit from that "
        "with float32, relative. The past edits are random, and the buffers have room for the "
        "next. Median (least..most) seconds."
    )
    if with_theirs:
        header += ["authors, s", "authors / ours"]
        note += " The authors' code projects all past representations at every edit."
    fewest: dict[tuple[str, str], Timing] = {}
    rows = []
    for row in costs:
        base = fewest.setdefault((row.size, row.dtype), row.ours)
        cells = [row.size, row.dtype, f"{row.past:,}", str(row.ours), ratio(row.ours, base)]
        cells += [str(row.read), bytes_text(row.bytes_per_edit)]
        cells.append("" if row.deviation is None else f"{row.deviation:.0e}")
        if with_theirs:
            theirs = row.theirs
            cells += [str(theirs), ratio(theirs, row.ours)] if theirs else ["", ""]
        rows.append(cells)
    return Section("One edit after many", header, rows, note, names=2)
