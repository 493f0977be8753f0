"""One edit: its seconds beside the floor, and against the number of edits made before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.reference import PAST_AT_ONCE, Reference
from benchmarks.speed.report import Section, bytes_text, ratio
from benchmarks.speed.setting import Record, Setting
from benchmarks.speed.timing import Timing, take_turns, timed
from easyedit_dafnet import DAFNetHyperParams, apply_dafnet_to_model
from easyedit_dafnet.checkpoint import load_dafnet
from easyedit_dafnet.dafnet_main import STATE, EditSequence
from easyedit_dafnet.networks import PastEdits
from easyedit_dafnet.records import encode_requests
from easyedit_dafnet.signals import inference_mode_of, target_log_probs

READ_AT_ONCE = 2**30  # bytes


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
    """An edit after `past` others. read: once over the bytes that are kept of them."""

    size: str
    past: int
    bytes_per_edit: float
    ours: Timing
    read: Timing
    theirs: Timing | None


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


def kept_tensors(sequence: EditSequence) -> Iterator[Tensor]:
    """All that the sequence keeps of its past edits."""
    for module in sequence.past or []:
        for layer in module:
            yield from (layer.keys, layer.values, layer.score_keys)


def fill_past(sequence: EditSequence, count: int) -> None:
    """Pretend that `count` edits were made. The sequence must hold one, which tells the shapes."""

    def many(like: Tensor) -> Tensor:
        some = torch.randn(min(count, PAST_AT_ONCE), like.shape[1], device=like.device)
        return some.to(like.dtype).repeat(-(-count // len(some)), 1)[:count].clone()

    assert sequence.past is not None
    sequence.past = [
        [PastEdits(many(p.keys), many(p.values), many(p.score_keys)) for p in module]
        for module in sequence.past
    ]
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
            logits = model(input_ids=batch.input_ids, use_cache=False).logits
            torch.autograd.grad(-target_log_probs(logits, batch.labels).sum(), outputs)
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


def measure_past(setting: Setting, size: str, count: int, reference: Reference | None) -> PastCost:
    options, device = setting.options, setting.device
    hparams = setting.editing_hparams(size)
    first, *requests = [b[0] for b in setting.batches(1, options.repetitions + 1)]
    edit(setting, first, hparams)
    sequence: EditSequence = getattr(setting.model, STATE)
    fill_past(sequence, count)
    kept = sum(t.nbytes for t in kept_tensors(sequence))
    read = read_once(kept, device)

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
    restore(setting.model)
    if reference is not None:
        reference.restore()
    return PastCost(
        size, count, kept / count, timings["ours"], timings["read"], timings.get("theirs")
    )


def latencies(setting: Setting, progress: Callable[[str], None]) -> list[Latency]:
    found = []
    for size in setting.options.sizes:
        reference = reference_for(setting, size)
        for sequence in ("first", "later"):
            progress(f"{sequence} edit, {size}")
            found.append(measure_latency(setting, size, sequence, reference))
    return found


def past_costs(setting: Setting, progress: Callable[[str], None]) -> list[PastCost]:
    found = []
    for size in setting.options.sizes:
        reference = reference_for(setting, size)
        for count in setting.options.past:
            progress(f"edit after {count}, {size}")
            found.append(measure_past(setting, size, count, reference))
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
    header = [
        "networks",
        "past edits",
        "ours, s",
        "against fewest",
        "read once, s",
        "kept per edit",
    ]
    note = (
        "One edit after so many others. Against fewest: ours by ours after the fewest past edits. "
        "Read once: a matrix times a vector over as many bytes as are kept, the floor of any "
        "attention to all past edits. The past edits are random. Median (least..most) seconds."
    )
    if with_theirs:
        header += ["authors, s", "authors / ours"]
        note += " The authors' code projects all past representations at every edit."
    fewest: dict[str, Timing] = {}
    rows = []
    for row in costs:
        base = fewest.setdefault(row.size, row.ours)
        cells = [row.size, f"{row.past:,}", str(row.ours), ratio(row.ours, base), str(row.read)]
        cells.append(bytes_text(row.bytes_per_edit))
        if row.theirs is not None:
            cells += [str(row.theirs), ratio(row.theirs, row.ours)]
        rows.append(cells)
    return Section("One edit after many", header, rows, note)
