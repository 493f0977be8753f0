from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.chat import FORMS, MEASURES, measure, table
from easyedit_dafnet.edit_records import EditRecord, Probe
from tests.conftest import Subject
from tests.test_prompts import TEMPLATES
from tests.tiny import tokenizer


def test_each_form_of_edit_is_asked_in_both_forms(subjects: Callable[[str], Subject]) -> None:
    subject = subjects("solved-llama")
    model, tok = subject.model(), tokenizer()
    tok.chat_template = TEMPLATES["ChatML"]
    record = EditRecord(
        id="0",
        prompt="The capital of France is",
        target_new="Rome",
        subject="France",
        rephrases=("France has the capital",),
        locality={"neighborhood": (Probe("The twins", ("Lisbon",)), Probe("London", ("is",)))},
    )
    before = model.get_input_embeddings().weight.detach().clone()
    calls: list[Any] = []

    def edit(record: EditRecord, chat: bool) -> None:
        calls.append(chat)
        model.get_input_embeddings().weight.data.zero_()  # says something else to everything

    def restore() -> None:
        calls.append("restored")
        model.get_input_embeddings().weight.data.copy_(before)

    found = measure(model, tok, [record, record], edit, restore)
    assert calls == [False, "restored", True, "restored"] * 2
    for edited in FORMS:
        for asked in FORMS:
            row = found[edited][asked]
            assert {m: len(row[m]) for m in MEASURES} == {"says": 2, "rephrases": 2, "kept": 4}
            assert row["says"] == [0.0, 0.0]
    # Without an edit everything is kept.
    same = measure(model, tok, [record], lambda *_: None, lambda: None)
    assert all(same[e][a]["kept"] == [1.0, 1.0] for e in FORMS for a in FORMS)
    lines = table(same).splitlines()
    assert len(lines) == 6 and lines[2] == "| plain form | plain form | 0.00 | 0.00 | 1.00 |"
