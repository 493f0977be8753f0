"""What a model is asked: a prompt and its target as one text, in plain or in chat form.

Nothing here knows tokens; `records` makes them of these texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# What chat templates put around turns: <|im_start|>, <｜User｜>, <start_of_turn>, [INST].
MARKUP = re.compile(r"<[|｜][^<>\n]*[|｜]>|</?(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>")
ROLE = re.compile(r"\s*(?:system|user|human|assistant|model|ipython|tool)\s*\n")
# Scripts that put no space between words, by the first word of their characters' names.
UNSPACED = {
    "BOPOMOFO", "CJK", "FULLWIDTH", "HALFWIDTH", "HIRAGANA", "IDEOGRAPHIC", "KATAKANA", "KHMER",
    "LAO", "MYANMAR", "THAI", "TIBETAN", "YI",
}  # fmt: skip
OPENING = "([{⟨“‘„‚«‹「『〈《【¿¡"  # Spanish marks open, too


@dataclass(frozen=True)
class Wording:
    """How requests are put to the model, as the settings of these names say.

    Args:
        use_chat_template: prompts that are not in chat form yet become the user's turn in the
            tokenizer's chat template.
        target_space: whether a space stands between prompt and target; None: where the prompt's
            script and end ask for one. A request's own `target_space` comes first.
        subject: "given" refuses a subject that the prompt does not contain, "guess" guesses
            another one in its place.
    """

    use_chat_template: bool = False
    target_space: bool | None = None
    subject: Literal["given", "guess"] = "given"


def is_unspaced(character: str) -> bool:
    """Whether the character is of a script that is written without spaces between words."""
    return unicodedata.name(character, "").split(" ")[0] in UNSPACED


def needs_space(prompt: str) -> bool:
    """Whether a target goes on after a space.

    Not after white space, an opening quote or bracket, the markup of a chat template, nor where
    the prompt's last letter is of a script that is written without spaces.
    """
    last = prompt[-1:]
    if last.isspace() or (last and (last in OPENING or is_unspaced(last))):
        return False
    if last and last in "\"'`":  # it opens where nothing is before it that it could close
        before = prompt[-2:-1]
        return not (before == "" or before.isspace() or before in OPENING)
    if (found := list(MARKUP.finditer(prompt))) and found[-1].end() == len(prompt):
        return False
    letter = next((c for c in reversed(prompt) if c.isalpha()), " ")
    return not is_unspaced(letter)


def with_target(prompt: str, target: str, space: bool | None = None) -> str:
    """Prompt and target as one text, as a model would read it.

    Args:
        prompt: a text, as it is.
        target: taken without the white space around it.
        space: whether a space stands between them; None: as `needs_space` finds.
    """
    between = " " if (needs_space(prompt) if space is None else space) else ""
    return prompt + between + target.strip()


def chat_form(tok: Any, prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt, or messages, in the tokenizer's chat template, up to where the reply begins.

    A prompt that is in chat form comes back as it is.

    Raises:
        ValueError: the tokenizer has no template, or its template does not take the messages.
    """
    if isinstance(prompt, str):
        if MARKUP.search(prompt):
            return prompt
        prompt = [{"role": "user", "content": prompt}]
    if not getattr(tok, "chat_template", None):
        raise ValueError("the tokenizer has no chat template; give the prompt as a text")
    try:
        return tok.apply_chat_template(
            [dict(message) for message in prompt], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # whatever a template raises, jinja2's errors among them
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the tokenizer's chat template refuses the messages ({reason})") from None


def question(prompt: str) -> str:
    """What is asked: the last turn with words in it of a prompt in chat form, or all of it."""
    turns = (ROLE.sub("", turn + "\n", count=1).strip() for turn in MARKUP.split(prompt))
    return [prompt, *filter(None, turns)][-1] if MARKUP.search(prompt) else prompt


def after_context(prompt: str, context: str) -> str:
    """The prompt after a text that has nothing to do with it; in chat form within the last turn."""
    start = prompt.rindex(question(prompt))
    return f"{prompt[:start]}{context} {prompt[start:]}"
