"""The packages of the extra ``dafset``, imported where they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(name: str) -> Any:
    """The module of that name.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"The data set's builder needs the package {name.partition('.')[0]}, which is not "
            'installed: run `pip install "easyedit_dafnet[dafset]"`.'
        ) from error
