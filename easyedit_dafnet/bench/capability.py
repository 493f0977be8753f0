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
    except ImportError as error:
        raise ImportError(
            f"Measuring capability needs lm-evaluation-harness ({error.name} is missing): "
            "pip install 'easyedit_dafnet[capability]'."
        ) from error
    if not is_plain(model):
        reason = f"the method's model is a {type(model).__name__}, which the harness cannot run"
        return {task: {NOT_RUN: reason} for task in tasks}
    manager = _manager(tasks)
    training = model.training
    try:
        # The harness sets up the tokenizer for itself.
        harness_model = HFLM(pretrained=model, tokenizer=deepcopy(tok), batch_size=BATCH_SIZE)
        return {task: _run(harness_model, manager, task, limit) for task in tasks}
    finally:
        model.train(training)


def check_tasks(tasks: Sequence[str]) -> None:
    """Raises ValueError for a task that the harness does not know, and a file that is not there."""
    for task in tasks:
        if _is_file(task) and not Path(task).is_file():
            raise ValueError(f"--capability: there is no file {task!r}.")
    manager = _manager(tasks)
    known = [*manager.all_tasks, *manager.all_groups, *manager.all_tags]
    for task in tasks:
        if _name(task) not in known:
            near = get_close_matches(_name(task), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"--capability: lm-evaluation-harness knows no task {_name(task)!r}{hint}"
            )


def _is_file(task: str) -> bool:
    return Path(task).suffix in (".yaml", ".yml")


def _name(task: str) -> str:
    return Path(task).stem if _is_file(task) else task


def _manager(tasks: Sequence[str]) -> Any:
    """The harness's, which knows its own tasks and those in the files' folders."""
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if _is_file(task)]
    return TaskManager(
        include_path=[str(folder) for folder in sorted({file.parent for file in files})],
        include_defaults=len(files) < len(tasks),
    )


def _run(model: Any, manager: Any, task: str, limit: int | None) -> dict[str, float | str]:
    name = _name(task)
    try:
        with _offline():
            try:
                loaded = manager.load([name])
            except (ImportError, OSError, ValueError) as error:
                return {NOT_RUN: f"its data is not at hand ({_in_a_line(error)})"}
        group = loaded["groups"].get(name)
        tasks = [group] if group else list(loaded["tasks"].values())
        found = _evaluated(model, manager, tasks, limit)
    except Exception as error:  # a task's code may raise anything; the edits' scores are worth more
        return {NOT_RUN: f"the harness could not run it ({_in_a_line(error)})"}
    if name in found:
        return _metrics(found[name])
    return {  # a tag: several tasks
        f"{each} {metric}": value
        for each, result in found.items()
        for metric, value in _metrics(result).items()
    }


def _evaluated(model: Any, manager: Any, tasks: list[Any], limit: int | None) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    return simple_evaluate(
        model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        # The streams' own random numbers go on as if nothing had been.
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )["results"]


def _metrics(result: dict[str, Any]) -> dict[str, float | str]:
    """The harness writes "metric,filter"; the filter is named where there is one."""
    found: dict[str, float | str] = {}
    for key, value in result.items():
        metric, _, kind = key.partition(",")
        if kind and isinstance(value, (int, float)) and not metric.endswith("_stderr"):
            found[metric if kind == "none" else f"{metric} ({kind})"] = float(value)
    return found


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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
