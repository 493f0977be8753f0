"""Finds a method of the benchmark by its name.

Ours, those of the host's ALG_DICT, and third parties': a package names its factory as an entry
point of the group `easyedit_dafnet.methods`, or a script calls `register_method`. A factory is a
subclass of Method, or anything that takes the same two arguments and returns a Method.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from ..dafnet_hparams import nearest
from .method import REGISTERED, Factory

GROUP = "easyedit_dafnet.methods"


class UnknownMethod(ValueError):
    """No method has this name; the message says which come close."""


def _shipped() -> tuple[dict[str, Factory], str]:
    """Our methods and the host's; without a host ours alone, and why there is none."""
    from .breadth_first import BreadthFirst
    from .own_methods import DAFNet, DAFNetStrong, Unedited

    try:
        from ..bridge.methods import host_methods

        hosts, reason = host_methods(), ""
    except ImportError as error:
        hosts, reason = {}, f" {error}"
    known: dict[str, Factory] = {Unedited.name: Unedited, **hosts}
    return known | {ours.name: ours for ours in (BreadthFirst, DAFNet, DAFNetStrong)}, reason


def method_names() -> list[str]:
    third = (point.name for point in entry_points(group=GROUP))
    return list(dict.fromkeys([*_shipped()[0], *third, *REGISTERED]))


def find_method(name: str) -> Factory:
    """The factory of that name, a third party's first. Raises UnknownMethod."""
    if name in REGISTERED:
        return REGISTERED[name]
    for point in entry_points(group=GROUP, name=name):
        return point.load()
    shipped, reason = _shipped()
    if name not in shipped:
        raise UnknownMethod(f"There is no method {name!r}; {nearest(name, method_names())}{reason}")
    return shipped[name]


def unavailable(name: str) -> str | None:
    """Why the method cannot run here, in one sentence; None when it can."""
    reason = getattr(find_method(name), "unavailable", None)
    return reason() if reason else None
