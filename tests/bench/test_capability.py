from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from easyedit_dafnet.bench.capability import capability, check_tasks
from tests.tiny import tiny_llama, tokenizer

TOK: Any = tokenizer()
QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Rome", "Paris", "Oslo"], "answer": 0},
    {"question": "The capital of Italy is", "choices": ["Rome", "Paris", "Oslo"], "answer": 2},
    {"question": "The twins like", "choices": ["Lisbon", "Vienna", "Tokyo"], "answer": 1},
    {"question": "London is a", "choices": ["town", "list", "country"], "answer": 1},
    {"question": "Vienna is", "choices": ["town", "twins"], "answer": 0},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("capability") / "tiny-llama")
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A task in the harness's format with its data beside it."""
    pytest.importorskip("lm_eval", reason="needs the extra 'capability'")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data, file = tmp_path / "towns.jsonl", tmp_path / "towns.yaml"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    file.write_text(
        "\n".join(
            [
                "task: towns",
                "dataset_path: json",
                "dataset_kwargs:",
                f"  data_files: {{test: {data}}}",
                "test_split: test",
                "output_type: multiple_choice",
                'doc_to_text: "{{question}}"',
                'doc_to_choice: "{{choices}}"',
                'doc_to_target: "{{answer}}"',
                "metric_list:",
                "  - metric: acc",
                "metadata: {version: 1}",
            ]
        )
    )
    return str(file)


def accuracy(model: Any) -> float:
    """Questions whose right answer is the most probable, by plain passes."""
    right = 0
    for q in QUESTIONS:
        start = len(TOK(q["question"])["input_ids"])
        likelihoods = []
        for choice in q["choices"]:  # type: ignore[attr-defined]
            ids = TOK(f"{q['question']} {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                log_p = model(ids).logits[0].log_softmax(-1)
            likelihoods.append(sum(log_p[t - 1, ids[0, t]] for t in range(start, ids.shape[1])))
        right += int(torch.stack(likelihoods).argmax()) == q["answer"]  # type: ignore[arg-type]
    return right / len(QUESTIONS)


def test_a_task_is_scored_by_the_harness(model: Any, task: str) -> None:
    random = torch.get_rng_state()
    side = TOK.padding_side
    model.train()
    found = capability(model, TOK, [task])
    assert model.training and TOK.padding_side == side
    assert torch.equal(torch.get_rng_state(), random)
    model.eval()
    assert found == {task: {"acc": accuracy(model)}}
    weight = model.lm_head.weight
    with torch.no_grad():
        weight.copy_(weight.roll(1, 0))
        changed = accuracy(model)
        assert changed != found[task]["acc"]
        assert capability(model, TOK, [task]) == {task: {"acc": changed}}, "of the model as it is"
        weight.copy_(weight.roll(-1, 0))


def test_a_task_without_its_data_says_so_and_others_go_on(model: Any, task: str) -> None:
    Path(task).with_name("lost.yaml").write_text(
        Path(task).read_text().replace("task: towns", "task: lost").replace(".jsonl", ".missing")
    )
    lost = str(Path(task).with_name("lost.yaml"))
    found = capability(model, TOK, [lost, task], limit=2)
    assert str(found[lost]["not_run"]).startswith("its data is not at hand (FileNotFoundError")
    assert "acc" in found[task]


# The first cannot be loaded, the second fails at its second question.
@pytest.mark.parametrize(
    "wrong", [("acc", "f1_of_mine"), ("{answer}", "{answer if answer == 0 else answer.no.more}")]
)
def test_a_task_that_raises_says_so_and_others_go_on(
    wrong: tuple[str, str], model: Any, task: str
) -> None:
    Path(task).with_name("broken.yaml").write_text(
        Path(task).read_text().replace("task: towns", "task: broken").replace(*wrong)
    )
    broken = str(Path(task).with_name("broken.yaml"))
    found = capability(model, TOK, [broken, task], limit=2)
    assert str(found[broken]["not_run"]).startswith("the harness could not run it (")
    assert "acc" in found[task]


def test_unknown_tasks_and_lost_files_are_named_before_anything_runs(task: str) -> None:
    check_tasks([task])
    with pytest.raises(ValueError, match="there is no file"):
        check_tasks([task.replace("towns.yaml", "gone.yaml")])
    with pytest.raises(ValueError, match="knows no task 'hellaswg'; did you mean hellaswag"):
        check_tasks(["hellaswg"])


def test_a_wrapper_cannot_be_run_by_the_harness(model: Any, task: str) -> None:
    found = capability(nn.Sequential(model), TOK, [task])
    assert "Sequential" in str(found[task]["not_run"])


def test_without_the_harness_the_extra_is_named(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ImportError, match=r"easyedit_dafnet\[capability\]"):
        capability(model, TOK, ["towns"])
