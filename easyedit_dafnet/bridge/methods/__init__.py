"""EasyEdit's own methods as methods of the benchmark."""

from __future__ import annotations

from ...bench.method import Factory


def host_methods() -> dict[str, Factory]:
    """Each method of the host's ALG_DICT that edits text."""
    return {}
