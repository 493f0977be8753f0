"""What counts as a text in a request or record, and the error that names what does not."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SHOWN = 10  # problems that a message names one by one


class RequestError(ValueError):
    """Requests or records that cannot be used; the message says which ones and why.

    Attributes:
        problems: {place in the list that was given: reason} of the requests at fault, so that a
            caller can leave them out; empty where the error is about something else.
    """

    def __init__(self, message: str, problems: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.problems = dict(problems or {})


class Record(dict[str, Any]):
    """A request or record that knows what messages call it.

    Attributes:
        name: such as "Request 3" or "facts.csv, line 4".
    """

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        super().__init__(values)
        self.name = name


def name_of(request: Any, i: int) -> str:
    """What messages call a request: its name, or else its place in the list."""
    return request.name if isinstance(request, Record) else f"Request {i}"


def refuse(requests: Sequence[Any], problems: Mapping[int, str]) -> None:
    """Say what is wrong with some of the requests, if anything is.

    Args:
        requests: all that were given.
        problems: reasons, each a sentence, by the place in `requests`.

    Raises:
        RequestError: with the first of the problems by name, and how many there are.
    """
    if not problems:
        return
    named = [f"{name_of(requests[i], i)}: {problems[i]}" for i in sorted(problems)]
    if len(named) > 1:
        more = [f"... and {len(named) - SHOWN} more."] if len(named) > SHOWN else []
        first = f"{len(named)} of {len(requests)} requests cannot be used:"
        named = ["\n  ".join([first, *named[:SHOWN], *more])]
    raise RequestError(named[0], problems)


def text_of(value: Any, key: str) -> str | None:
    """A value as a text, its white space kept; numbers are written out.

    Args:
        value: as a file, pandas or numpy have it.
        key: what messages call it.

    Returns:
        None for what counts as not given: None, NaN, or nothing but white space.

    Raises:
        RequestError: it is neither a text nor a number, or not a text that UTF-8 can write.
    """
    if hasattr(value, "tolist"):  # numpy's
        value = value.tolist()
    if isinstance(value, str):
        if re.search("[\ud800-\udfff]", value):
            raise RequestError(
                f"{key!r} is {_shown(value)}, with half of a character (a lone surrogate); write "
                "the whole character."
            )
        return value if value.strip() else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # pandas makes floats of whole numbers where one of a column is missing.
        return str(int(value)) if value.is_integer() else str(value)
    if value is None or _is_not_a_value(value):
        return None
    raise RequestError(f"{key!r} is {_shown(value)}; it must be a text.")


def _is_not_a_value(value: Any) -> bool:
    """Whether this is one of pandas' empty cells, which differ from themselves, or cannot tell."""
    try:
        return bool(value != value)
    except TypeError:
        return True


def needed_text(value: Any, key: str) -> str:
    """The value as `text_of` has it. Raises RequestError, also where it is not given."""
    if (text := text_of(value, key)) is None:
        raise not_given(value, key)
    return text


def not_given(value: Any, key: str) -> RequestError:
    given = f"is {value!r}" if isinstance(value, str) else "is missing"
    return RequestError(f"{key!r} {given}; it must be a text that is not empty.")


def texts_of(value: Any, key: str) -> tuple[str, ...]:
    """All texts in a value or in nested lists of them, in order, each once, without white space
    around them. Raises RequestError for what is neither a text, a number nor a list."""

    def flat(value: Any) -> Iterator[str]:
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, (list, tuple)):
            for one in value:
                yield from flat(one)
        elif (text := text_of(value, key)) is not None:
            yield text.strip()

    return tuple(dict.fromkeys(flat(value)))


_PLACEHOLDER = re.compile(r"\{(?:subject)?\}")


def filled(text: str, subject: str | None, key: str) -> str:
    """A template such as "{} is located in" with the subject in place of its braces.

    Args:
        text: returned as it is where it is no template.
        subject: what to put there.
        key: what messages call the text.

    Raises:
        RequestError: there is no subject to put there, or the text has the subject already.
    """
    if not _PLACEHOLDER.search(text):
        return text
    rest = _PLACEHOLDER.sub("", text)
    if not subject:
        raise RequestError(
            f"{key!r} is {_shown(text)}, a template without a subject to put in place of {{}}; "
            "give a 'subject', or write the text without braces."
        )
    if re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", rest):
        raise RequestError(
            f"{key!r} is {_shown(text)}, with {{}} for the subject {subject!r} and the subject "
            "itself; write it once, without braces."
        )
    return _PLACEHOLDER.sub(lambda _: subject, text)


def _shown(value: Any) -> str:
    """A value in a message, shortened where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)
