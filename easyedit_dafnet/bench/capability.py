"""What an edited model can do besides: tasks of EleutherAI's lm-evaluation-harness.

A task is a name that the harness knows, or a file TASK.yaml in its format. Nothing is downloaded: a
task whose data is not on this machine is not run, and its result says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .passes import is_plain

NOT_RUN = "not_run"
BATCH_SIZE = 16


def capability(
    model: Any, tok: Any, tasks: Sequence[str], limit: int | None = None
) -> dict[str, dict[str, float | str]]:
    """The metrics of each task, or {"not_run": the reason}.

    limit: at most so many questions of a task. The model is left as it was. Raises ImportError
    naming the extra when the harness is not installed.
    """
    try:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            f"Measuring capability needs lm-evaluation-harness ({error.name} is missing): "
            "pip install 'easyedit_dafnet[capability]'."
        ) from error
    if not is_plain(model):
        reason = f"the method's model is a {type(model).__name__}, which the harness cannot run"
        return {task: {NOT_RUN: reason} for task in tasks}
    files = [Path(task) for task in tasks if Path(task).suffix in (".yaml", ".yml")]
    manager = TaskManager(
        include_path=[str(folder) for folder in sorted({file.parent for file in files})],
        include_defaults=len(files) < len(tasks),
    )
    training = model.training
    try:
        # The harness sets up the tokenizer for itself.
        harness_model = HFLM(pretrained=model, tokenizer=deepcopy(tok), batch_size=BATCH_SIZE)
        return {task: _run(harness_model, manager, task, limit) for task in tasks}
    finally:
        model.train(training)


def _run(model: Any, manager: Any, task: str, limit: int | None) -> dict[str, float | str]:
    from lm_eval import simple_evaluate

    name = Path(task).stem if Path(task).suffix in (".yaml", ".yml") else task
    known = [*manager.all_tasks, *manager.all_groups, *manager.all_tags]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return {NOT_RUN: f"lm-evaluation-harness knows no task {name!r}{hint}"}
    with _offline():
        try:
            loaded = manager.load([name])
        except (ImportError, OSError, ValueError) as error:
            line = " ".join(str(error).split())
            return {NOT_RUN: f"its data is not at hand ({type(error).__name__}: {line})"}
    group = loaded["groups"].get(name)
    found = simple_evaluate(
        model,
        tasks=[group] if group else list(loaded["tasks"].values()),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        # The streams' own random numbers go on as if nothing had been.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )["results"]
    if name in found:
        return _metrics(found[name])
    return {  # a tag: several tasks
        f"{each} {metric}": value
        for each, result in found.items()
        for metric, value in _metrics(result).items()
    }


def _metrics(result: dict[str, Any]) -> dict[str, float | str]:
    """The harness writes "metric,filter"; the filter is named where there is one."""
    found: dict[str, float | str] = {}
    for key, value in result.items():
        metric, _, kind = key.partition(",")
        if kind and isinstance(value, (int, float)) and not metric.endswith("_stderr"):
            found[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
    return found


@contextmanager
def _offline() -> Iterator[None]:
    """The hub's libraries use what they have on disk."""
    import datasets.config
    import huggingface_hub.constants

    libraries: list[Any] = [datasets.config, huggingface_hub.constants]
    before = [library.HF_HUB_OFFLINE for library in libraries]
    for library in libraries:
        library.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for library, value in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = value
