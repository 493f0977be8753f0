"""Inference of the edited model beside the unedited one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.edits import as_request, reference_for
from benchmarks.speed.report import Section, ratio
from benchmarks.speed.setting import Setting
from benchmarks.speed.timing import Timing, take_turns, timed
from easyedit_dafnet import apply_dafnet_to_model
from easyedit_dafnet.records import encode_requests

PROMPTS, NEW_TOKENS = 16, 32


@dataclass(frozen=True)
class Inference:
    """task: "forward" of a batch of texts, or "generate" a continuation of one, greedily."""

    size: str
    task: str
    unedited: Timing
    edited: Timing
    theirs: Timing | None


def measure(setting: Setting, progress: Callable[[str], None]) -> list[Inference]:
    """With the first of the sizes: the edited model does not know which networks changed it."""
    device, size = setting.device, setting.options.sizes[0]
    progress("inference")
    record, *others = setting.batches(1, PROMPTS + 1)
    edited, _ = apply_dafnet_to_model(
        setting.model,
        setting.tok,
        [as_request(record[0])],
        setting.editing_hparams(size),
        copy=True,
    )
    models: dict[str, Any] = {"unedited": setting.model, "edited": edited}
    reference = reference_for(setting, size)
    if reference is not None:
        reference.edit(record[0])
        models["theirs"] = reference.model
    texts = encode_requests(setting.tok, [as_request(o[0]) for o in others], edited).to(device)
    prompt = setting.tok(record[0]["prompt"], return_tensors="pt").to(device)

    def forward(model: Any) -> None:
        model(input_ids=texts.input_ids, attention_mask=texts.attention_mask, use_cache=False)

    def generate(model: Any) -> None:
        model.generate(
            **prompt,
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=setting.tok.eos_token_id,
        )

    found = []
    with torch.no_grad():
        for task, run in (("forward", forward), ("generate", generate)):
            progress(f"inference, {task}")
            for model in models.values():  # once before it counts
                run(model)
            timings = _turns(setting, models, run)
            found.append(
                Inference(size, task, timings["unedited"], timings["edited"], timings.get("theirs"))
            )
    return found


def _turns(
    setting: Setting, models: dict[str, Any], run: Callable[[Any], None]
) -> dict[str, Timing]:
    def timer(model: Any) -> Callable[[int], float]:
        return lambda i: timed(lambda: run(model), setting.device)

    options = setting.options
    runs = {name: timer(model) for name, model in models.items()}
    return take_turns(runs, options.repetitions, options.patience)


def section(found: list[Inference]) -> Section:
    with_theirs = any(row.theirs for row in found)
    header = ["task", "unedited, s", "edited, s", "edited / unedited"]
    note = (
        f"Forward: {PROMPTS} texts in a batch; generate: {NEW_TOKENS} tokens, greedy. After one "
        "edit. Median (least..most) seconds."
    )
    if with_theirs:
        header += ["authors, s", "authors / unedited"]
        note += " The authors' model multiplies with each change in a hook."
    rows = []
    for row in found:
        cells = [row.task, str(row.unedited), str(row.edited), ratio(row.edited, row.unedited)]
        if row.theirs is not None:
            cells += [str(row.theirs), ratio(row.theirs, row.unedited)]
        rows.append(cells)
    return Section("Inference", header, rows, note)
