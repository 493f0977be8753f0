from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from easyedit_dafnet import edit_check
from easyedit_dafnet.edit_check import SHOWN, Check, Findings, check_probes, probes_of, says
from easyedit_dafnet.edit_requests import RequestError
from tests.conftest import Subject
from tests.tiny import REQUESTS


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (" Lusaka. The largest", "Lusaka", True),
        (" Lusaka", " Lusaka ", True),
        (" Lusakan kwacha", "Lusaka", False),
        (" 1200", "12", False),
        (" 12.", "12", True),
        (" lusaka", "Lusaka", False),
        ("", "Lusaka", False),
        ("纽约市", "纽约", True),
        (" CC(=O)O1", "CC(=O)", True),
        (" New York\nand", "New York", True),
    ],
)
def test_a_text_says_a_target_that_it_begins_with(text: str, target: str, expected: bool) -> None:
    assert says(text, target) is expected


def test_a_record_may_have_several_rephrases_and_neighbours_or_none() -> None:
    assert probes_of({"rephrase_prompt": "a", "rephrase_prompts": ["b", "a"]}) == (["a", "b"], [])
    none = {"rephrase_prompt": None, "rephrase_prompts": float("nan"), "locality_prompt": " "}
    assert probes_of(none) == ([], [])
    neighbours = {"neighborhood": {"prompt": ["c", "d"], "ground_truth": ["e", "f"]}}
    record = {"locality_prompt": "g", "locality": neighbours, "rephrase": "{} has", "subject": "h"}
    assert probes_of(record) == (["h has"], ["c", "d", "g"])
    with pytest.raises(RequestError, match="Request 1: 'rephrase_prompt' is"):
        check_probes([record, {"rephrase_prompt": {"a": 1}}])


def test_as_many_tokens_are_asked_for_as_the_target_has(
    subjects: Callable[[str], Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    llama = subjects("llama")
    monkeypatch.setattr(edit_check, "AT_ONCE", 2)
    long = {"prompt": "The twins are", "target_new": "London Berlin Madrid Lisbon " * 4}
    check = Check(llama.tok, [*REQUESTS, long])
    counted: list[int] = []
    model = llama.model()
    said = check.ask(model, counted.append)
    assert said.keys() == {r["prompt"] for r in [*REQUESTS, long]} and sum(counted) == len(check)
    assert max(counted) <= 2
    for prompt, text in said.items():
        ids = llama.tok(prompt, return_tensors="pt").input_ids
        more = model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        spoken = llama.tok.decode(more[0, ids.shape[1] :], skip_special_tokens=True)
        assert len(text) >= 5 and (spoken.startswith(text) or text.startswith(spoken))
    assert len(llama.tok(said[long["prompt"]])["input_ids"]) > edit_check.TOKENS


def fact(number: int, holds: bool, **more: Any) -> dict[str, Any]:
    answer = {"kind": "target", "prompt": f"Fact {number} is", "before": "", "after": "\x1b[2J x\n"}
    return {
        "prompt": answer["prompt"],
        "target_new": "Rome",
        "edited_again": False,
        "answers": [{**answer, "holds": holds}],
        **more,
    }


def test_what_does_not_hold_is_named_up_to_a_number() -> None:
    facts = [fact(i, i > SHOWN + 1) for i in range(20)]
    findings = Findings([*facts, fact(20, False, edited_again=True)])
    assert findings.summary() == f"21 edits: {18 - SHOWN} of 20 targets are said."
    missed = findings.misses()
    assert len(missed) == SHOWN + 1 and missed[-1] == "   and 2 more"
    assert "Fact 0 is -> Rome" in missed[0] and "\x1b" not in "".join(missed)
    assert findings.mostly_hold and not Findings(facts[: SHOWN + 2]).mostly_hold
    assert Findings(facts[:1]).summary() == "1 edit: 0 of 1 targets are said."
