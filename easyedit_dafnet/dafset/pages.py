"""The templates of the data set's card and report."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from ..bench.report.wording import counted


def environment(autoescape: bool) -> Environment:
    """Finds the templates here, and the style of the benchmark's report."""
    found = Environment(
        loader=ChoiceLoader(
            [PackageLoader(__package__), PackageLoader("easyedit_dafnet.bench.report")]
        ),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals.update(counted=counted)
    return found
