"""What an edit is about: its subject, as given or guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Words that may stand inside a name, and those that are none, capitalised or not.
_INSIDE = r"(?:of|the|de|la|du|van|von|der|and|for|in|on|at|to|y|e|&)"
_NAME = re.compile(rf"[A-Z0-9][\w'’.:!-]*(?:,? {_INSIDE}(?= )| ?[A-Z0-9&][\w'’.:!-]*| [IVX]+)*")
_VERB = "is|are|was|were|be|been|has|have|had|do|does|did|can|could|will|would|may"
_SMALL = (
    f"{_VERB}|what|who|whom|whose|which|where|when|why|how|the|a|an|in|on|at|by|of|to|from|for|with|"
    "as|and|or|during|after|before|if|it|its|he|his|she|her|they|their|we|our|you|your|i|my|this|"
    "that|these|those|there|not|called|named|known|located|born"
)


def _is(kind: str, word: str) -> bool:
    return re.fullmatch(kind, word.strip(",;"), re.IGNORECASE) is not None


def guess_subject(prompt: str) -> str:
    """What a prompt is about, where nobody says so: its longest name, a first word only if alone.

    A name is a run of capitalised words, with small ones such as "of" between them. Without one it
    is the last run of words before the verb that are not small, or all of the prompt.
    """
    names = []
    for match in _NAME.finditer(prompt):
        words = match[0].split(" ")
        while words and _is(_SMALL, words[0]):
            words = words[1:]
        if name := " ".join(words).rstrip(",.:!?"):
            names.append((match.start() > 0, re.sub(r"['’]s$", "", name)))
    inside = [name for is_inside, name in names if is_inside or " " in name]
    if found := inside or [name for _, name in names]:
        return max(found, key=len)
    words = prompt.rstrip(" .:?!").split(" ")
    small = [_is(_SMALL, word) for word in words]
    for end in reversed([i for i, word in enumerate(words) if _is(_VERB, word)]):
        if not all(small[:end]):
            words, small = words[:end], small[:end]
            break
    while small and small[-1]:
        words, small = words[:-1], small[:-1]
    start = max((i + 1 for i, is_small in enumerate(small) if is_small), default=0)
    return " ".join(words[start:]) or prompt


def subject_of(request: Mapping[str, Any]) -> Any:
    """What the request says, without space around it; a guess where it says nothing."""
    subject = request.get("subject")
    subject = subject.strip() if isinstance(subject, str) else subject
    return guess_subject(request["prompt"]) if subject in (None, "") else subject
