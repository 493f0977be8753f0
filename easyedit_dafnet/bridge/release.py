"""DAFNet by the conventions of the PyPI release of EasyEdit.

The release's `batch_edit` and `edit_dataset` score the unedited model after the edit, return the
metrics of the last batch only, and do not score locality. For DAFNet they are replaced; all other
methods keep the release's own.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import dafnet_main

LOG = logging.getLogger(__name__)
NAME = "DAFNet"
Metrics = dict[str, Any]
Request = Mapping[str, Any]


def apply_dafnet_to_model(
    model: Any,
    tok: Any,
    requests: Sequence[Request],
    hparams: Any,
    copy: bool = False,
    return_orig_weights: bool = False,
    keep_original_weight: bool = False,
    **kwargs: Any,
) -> tuple[Any, dict[str, Tensor]]:
    """`easyedit_dafnet.apply_dafnet_to_model` with the release's way to restore.

    The release copies back whatever it is given, so its methods give the original weights only
    with `keep_original_weight`; without, edits accumulate.
    """
    model, weights_copy = dafnet_main.apply_dafnet_to_model(
        model,
        tok,
        requests,
        hparams,
        copy=copy,
        return_orig_weights=return_orig_weights and keep_original_weight,
        keep_original_weight=keep_original_weight,
        **kwargs,
    )
    return model, weights_copy


def only_for_dafnet(own: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Wrap a method of the release's `BaseEditor`: `own` for DAFNet, the original for the rest."""

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def method(editor: Any, *args: Any, **kwargs: Any) -> Any:
            run = own if editor.alg_name == NAME else original
            return run(editor, *args, **kwargs)

        return method

    return wrap


def batch_edit(
    editor: Any,
    prompts: Sequence[str],
    target_new: Sequence[str],
    ground_truth: str | Sequence[str] | None = None,
    rephrase_prompts: Sequence[str] | None = None,
    locality_prompts: Sequence[str] | None = None,
    locality_ground_truth: Sequence[str] | None = None,
    keep_original_weight: bool = False,
    verbose: bool = True,
    test_generation: bool = False,
    **inputs: Any,
) -> tuple[list[Metrics], Any, dict[str, Tensor]]:
    """Edit in batches of `hparams.batch_size`.

    Takes the release's arguments, and `locality_inputs` and `portability_inputs` as `edit` does.
    Returns the metrics of every request, the edited model and the last batch's original weights.
    """
    if ground_truth is None:
        ground_truth = ["<|endoftext|>"] * len(prompts)
    elif isinstance(ground_truth, str):
        ground_truth = [ground_truth]
    if not len(prompts) == len(target_new) == len(ground_truth):
        raise ValueError(
            f"batch_edit got {len(prompts)} prompts, {len(target_new)} targets and "
            f"{len(ground_truth)} ground truths: give as many of each."
        )
    if locality_prompts is not None:
        if locality_ground_truth is None:
            raise ValueError("batch_edit got locality_prompts without locality_ground_truth.")
        locality = {"prompt": locality_prompts, "ground_truth": locality_ground_truth}
        inputs["locality_inputs"] = {"locality": locality, **inputs.get("locality_inputs", {})}
    requests = editor._prepare_requests(
        prompts, target_new, ground_truth, rephrase_prompts, **inputs
    )
    return _edit(editor, requests, keep_original_weight, verbose, test_generation)


def edit_dataset(
    editor: Any, ds: Any, keep_original_weight: bool = False, verbose: bool = True
) -> tuple[list[Metrics], Any, dict[str, Tensor]]:
    """Edit with a dataset's records in batches of `hparams.batch_size`."""
    requests = [ds[i] for i in range(len(ds))]
    return _edit(editor, requests, keep_original_weight, verbose)


def _edit(
    editor: Any,
    requests: Sequence[Request],
    keep_original_weight: bool,
    verbose: bool,
    test_generation: bool = False,
) -> tuple[list[Metrics], Any, dict[str, Tensor]]:
    """Edit batch by batch; score each batch before it and after it."""
    if not requests:
        raise ValueError("There is nothing to edit: give at least one request.")
    hparams = editor.hparams
    evaluate = importlib.import_module("easyeditor.evaluate.evaluate")

    def score(model: Any, request: Request) -> Metrics:
        return evaluate.compute_edit_quality(
            model,
            editor.model_name,
            hparams,
            editor.tok,
            request,
            hparams.device,
            test_generation=test_generation,
        )

    all_metrics: list[Metrics] = []
    for start in tqdm(range(0, len(requests), hparams.batch_size), desc="DAFNet batches"):
        batch = requests[start : start + hparams.batch_size]
        before = [score(editor.model, request) for request in batch]
        began = perf_counter()
        edited_model, weights_copy = editor.apply_algo(
            editor.model,
            editor.tok,
            batch,
            hparams,
            return_orig_weights=True,
            keep_original_weight=keep_original_weight,
        )
        seconds = perf_counter() - began
        for i, (request, pre) in enumerate(zip(batch, before, strict=True), start):
            metrics = {
                "case_id": request.get("case_id", i),
                "requested_rewrite": request,
                "time": seconds,
                "pre": pre,
                "post": score(edited_model, request),
            }
            _compare_locality(metrics)
            if verbose:
                LOG.info("%d editing: %s -> %s", i, request["prompt"], request["target_new"])
            all_metrics.append(metrics)
        with torch.no_grad():
            for name, weight in weights_copy.items():
                editor.model.get_parameter(name).copy_(weight)
    return all_metrics, edited_model, weights_copy


def _compare_locality(metrics: Metrics) -> None:
    """Turn the answers to locality prompts before and after into accuracies, as `edit` does."""
    before = metrics["pre"].pop("locality")
    after = metrics["post"]["locality"]
    for output in list(after):
        key = output.removesuffix("_output")
        after[f"{key}_acc"] = [
            np.mean(np.equal(new, old))
            for new, old in zip(after.pop(output), before[output], strict=True)
        ]
