"""The benchmark: every method edits the same streams of facts and is scored after the last edit."""

from __future__ import annotations

from ..edit_records import EditRecord, Probe
from .method import Method, Need, Workbench, register_method

__all__ = ["EditRecord", "Method", "Need", "Probe", "Workbench", "register_method"]
