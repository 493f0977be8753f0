"""What a model's configuration tells of the edits that are in its weights.

save_pretrained writes the edited weights as any others, without the sequence of edits. So that the
model is known again, its configuration keeps the fingerprint of the unedited weights and of the
edited ones. Hosts that put weights back know nothing of it: which state the weights are in is told
by comparing, whenever it is asked.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .checkpoint import fingerprint
from .dafnet import DAFNet
from .signals import EditedModule

LOG = logging.getLogger(__name__)
RECORD = "dafnet"  # attribute of the model's configuration

# Fingerprints by the number of edits that the weights held: the unedited first, the present last.
History = dict[int, dict[str, float]]


def edit_history(model: Any, modules: Sequence[EditedModule]) -> History:
    """The states that the modules' weights went through, by the model's configuration."""
    now = fingerprint(model, list(modules))
    recorded: Any = getattr(model.config, RECORD, None)
    try:
        known = {
            int(n): {name: float(norms[name]) for name in now} for n, norms in recorded.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):  # none, or that of other modules
        return {0: now}
    present = list(now.values())
    nearest = min(
        sorted(known), key=lambda n: math.dist(list(known[n].values()), present), default=0
    )
    if 0 not in known or unlike(now, known[nearest]):
        return {0: now}
    return {n: known[n] for n in sorted(known) if n < nearest} | {nearest: now}


def record_edits(model: Any, modules: Sequence[EditedModule], before: History, count: int) -> None:
    """Write into the model's configuration that it holds `count` edits more than `before`."""
    history = before | {max(before) + count: fingerprint(model, list(modules))}
    setattr(model.config, RECORD, {str(n): norms for n, norms in history.items()})


def unlike(found: Mapping[str, float], known: Mapping[str, float]) -> str | None:
    """The first module whose weight is not the one that is known, whatever their precision."""
    for name, norm in found.items():
        if name in known and not math.isclose(norm, known[name], rel_tol=0.01):
            return name
    return None


def warn_if_other_model(dafnet: DAFNet, model: Any) -> None:
    """Warn when the unedited weights are not those that the DAFNet was trained on.

    Of a model that was edited, saved and loaded, tell what was not saved.
    """
    history = edit_history(model, dafnet.edited)
    known: dict[str, float] = dafnet.base_model.get("fingerprint", {})
    if (edits := max(history)) > 0:
        LOG.warning(
            "This model holds %d DAFNet edits from before it was loaded, which are taken as part "
            "of it: what the sequence keeps of them (keys, rehearsal) is not in the folder that "
            "save_pretrained writes, so they may hold less well after later edits; torch.save of "
            "the whole model would have kept it.",
            edits,
        )
    # An archive may have been trained on an edited model, too.
    if (name := unlike(history[0], known)) and unlike(history[edits], known):
        LOG.warning(
            "This DAFNet was trained on %s; here %s has norm %.4f, not %.4f, so its edits may "
            "be poor.",
            dafnet.base_model.get("name", "another model"),
            name,
            history[0][name],
            known[name],
        )
