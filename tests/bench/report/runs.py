"""Run folders in the benchmark's layout, as a finished and as an interrupted run leave them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ASPECTS = ("reliability", "generality", "locality", "portability", "same_subject")
SCORINGS = ("teacher_forced", "exact_match", "token_f1", "begins")
ENVIRONMENT = {
    "easyedit_dafnet": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "transformers": "4.46.3",
    "commit": "0123abc",
    "host": "EasyEdit release (0.0.1.dev0)",
    "cpu": "AMD EPYC",
}
#: Skill at N = 1, what a tenfold N does to it, seconds and bytes per edit; of the first four
#: aspects: other answers about the subject are kept as those about others twice over.
PROFILES: dict[str, tuple[tuple[float, ...], tuple[float, ...], float, int]] = {
    "no edit": ((0.02, 0.02, 1.0, 0.04), (1, 1, 1, 1), 0.0001, 0),
    "FT": ((1.0, 0.39, 0.41, 0.2), (0.9, 0.8, 0.5, 0.8), 2.1, 0),
    "LoRA": ((0.97, 0.45, 0.5, 0.22), (0.85, 0.8, 0.7, 0.8), 3.3, 480_000),
    "ROME": ((0.98, 0.41, 0.9, 0.3), (0.45, 0.4, 0.3, 0.5), 11.0, 3_500_000),
    "MEMIT": ((0.93, 0.39, 0.98, 0.3), (0.98, 0.95, 0.94, 0.95), 12.0, 17_700_000),
    "MEND": ((0.8, 0.4, 0.6, 0.2), (0.3, 0.3, 0.4, 0.5), 0.4, 0),
    "AlphaEdit": ((1.0, 0.42, 0.97, 0.31), (0.99, 0.94, 0.92, 0.95), 12.5, 17_700_000),
    "WISE": ((0.96, 0.6, 0.99, 0.25), (0.9, 0.9, 0.99, 0.9), 8.0, 21_000_000),
    "GRACE": ((0.99, 0.03, 1.0, 0.05), (0.99, 1, 1, 1), 4.0, 4_608),
    "EMMET": ((0.92, 0.38, 0.96, 0.28), (0.97, 0.9, 0.93, 0.95), 11.5, 17_700_000),
    "R-ROME": ((0.98, 0.42, 0.91, 0.3), (0.8, 0.75, 0.6, 0.6), 11.1, 3_500_000),
    "PMET": ((0.9, 0.4, 0.95, 0.27), (0.95, 0.9, 0.9, 0.9), 14.0, 17_700_000),
    "UltraEdit": ((0.82, 0.27, 0.56, 0.2), (0.7, 0.8, 0.7, 0.8), 0.2, 26_000_000),
    "DEFER": ((0.95, 0.5, 0.6, 0.2), (0.6, 0.6, 0.6, 0.7), 3.0, 2_300_000),
    "IKE": ((0.9, 0.8, 0.5, 0.6), (1, 1, 1, 1), 0.02, 1_500),
    "SERAC": ((0.85, 0.5, 0.95, 0.1), (0.95, 0.9, 0.98, 0.9), 0.05, 2_000),
    "breadth-first FT": ((1.0, 0.36, 0.47, 0.2), (0.98, 0.85, 0.7, 0.8), 0.9, 0),
    "DAFNet (published)": ((0.99, 0.59, 0.25, 0.2), (0.3, 0.3, 1.2, 0.7), 0.05, 455_000),
    "DAFNet": ((1.0, 0.62, 0.93, 0.35), (0.99, 0.93, 0.9, 0.93), 0.05, 455_000),
}


def write_json(path: Path, body: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")


def cell_body(
    data: str,
    label: str,
    num_edits: int,
    stream: int,
    scores: dict[str, dict[str, list[float | None]]],
    **changes: Any,
) -> dict[str, Any]:
    """A finished cell's file; `changes` replace its entries."""
    count = len(next(iter(next(iter(scores.values())).values())))
    body = {
        "format": 1,
        "protocol": "score-after-stream/2",
        "cell": {
            "data": data,
            "method": label.split(" (")[0],
            "label": label,
            "num_edits": num_edits,
            "stream": stream,
            "batch_size": 1,
            "seed": 1000 + stream,
        },
        "status": "done",
        "error": None,
        "edits": [f"{data}-{(stream * 7919 + i) % 5000}" for i in range(count)],
        "scores": scores,
        "kinds": {},
        "perplexity": {"before": 20.0, "after": 21.0, "tokens": 2048},
        "seconds": {
            "edit": 0.5 * count,
            "per_edit": [0.5] * count,
            "score": 0.1 * count,
            "total": 0.6 * count,
        },
        "peak_memory_bytes": 1_200_000_000,
        "state_bytes": 1000 * num_edits,
        "prepared": {"seconds": 0.0},
        "settings": {"lr": 0.001},
        "capability": None,
        "environment": ENVIRONMENT,
        "started": "2026-11-21T10:00:00Z",
        "finished": "2026-11-21T10:05:00Z",
    }
    return {**body, **changes}


def failed(body: dict[str, Any], kind: str, message: str) -> dict[str, Any]:
    error = {"type": kind, "message": message, "traceback": f"Traceback ...\n{kind}: {message}"}
    return {**body, "status": "failed", "error": error, "scores": {}, "kinds": {}}


def cell_path(run: Path, body: dict[str, Any]) -> Path:
    cell = body["cell"]
    name = f"n{cell['num_edits']}-s{cell['stream']}.json"
    return run / "cells" / cell["data"] / cell["label"] / name


def write_run(
    run: Path,
    cells: Sequence[dict[str, Any]],
    planned: Sequence[dict[str, Any]] = (),
    sanity: Sequence[dict[str, Any]] = (),
) -> Path:
    """planned: entries beyond the cells given, which are then cells that were not run."""
    for body in cells:
        write_json(cell_path(run, body), body)
    for body in sanity:
        write_json(run / "sanity" / f"{body['cell']['label']}.json", body)
    order = {name: i for i, name in enumerate(PROFILES)}
    entries = [body["cell"] for body in cells] + list(planned)
    entries.sort(key=lambda e: (e["num_edits"], e["stream"], order.get(e["label"], 99)))
    data = dict.fromkeys(entry["data"] for entry in entries)
    methods = {entry["label"]: {"name": entry["method"], "settings": {}} for entry in entries}
    suite = {
        "format": 1,
        "protocol": "score-after-stream/2",
        "common": {"model": "3f2a9c", "device": "cpu", "seed": 0, "single_edits": 25},
        "data": {
            name: {"path": f"sets/{name}.json", "records": 5000, "usable": 4890, "digest": "77aa"}
            for name in data
        },
        "methods": methods,
        "cells": entries,
        "left_out": {"KN": "needs a package that is missing"},
        "asked": {"model": "models/SmolLM2-135M-Instruct"},
        "command": "easyedit-dafnet bench --suite test.yaml --out run",
    }
    write_json(run / "suite.json", suite)
    return run


def lifelike_run(
    run: Path,
    data: Sequence[str] = ("counterfact", "zsre"),
    labels: Sequence[str] = tuple(PROFILES),
    lengths: Sequence[int] = (1, 10, 100, 1000),
    host: str = ENVIRONMENT["host"],
    slow: float = 5.0,
) -> Path:
    """As large as a real one: methods that differ as published ones do, one that fails, and no
    N = 1000 for those that take `slow` seconds per edit."""
    rng = np.random.default_rng(1)
    cells, planned, sanity = [], [], []
    for source in data:
        for label in labels:
            skill, decay, per_edit, state = PROFILES[label]
            for n in lengths:
                for stream in range(1 if n in (1, 1000) or per_edit >= slow else 3):
                    count = 25 if n == 1 else n
                    scores = lifelike_scores(rng, skill, decay, n, count, source)
                    body = cell_body(source, label, n, stream, scores)
                    if n == 1000 and per_edit >= slow:
                        planned.append(body["cell"])
                        continue
                    if label == "MEND" and source == "zsre" and n == 100:
                        cells.append(failed(body, "RuntimeError", "line 1\nout of <memory>"))
                        continue
                    seconds = [float(s) for s in per_edit * rng.uniform(0.9, 1.2, count)]
                    body["seconds"] = {
                        "edit": sum(seconds),
                        "per_edit": seconds,
                        "score": 0.05 * count,
                        "total": sum(seconds) + 0.05 * count,
                    }
                    body["state_bytes"] = state * n
                    body["peak_memory_bytes"] = int(1.1e9 + 3e7 * len(label) + state * 3)
                    hurt = 1 + (1 - skill[2] * decay[2] ** np.log10(n)) * n / 50
                    body["perplexity"]["after"] = 20.0 * hurt
                    if label.startswith(("MEND", "DAFNet", "SERAC")):
                        body["prepared"] = {"seconds": 611.0}
                    body["environment"] = {**ENVIRONMENT, "host": host}
                    body["kinds"] = lifelike_kinds(scores)
                    kept = scores["teacher_forced"]["same_subject"]
                    body["leaks"] = [float(rng.random() < 0.5 * (1 - (k or 0))) for k in kept]
                    cells.append(body)
                    write_texts(run, body, rng, skill[0])
    for label in labels:
        scores = lifelike_scores(rng, PROFILES[label][0], (1, 1, 1, 1), 1, 25, "")
        body = cell_body("counterfact", label, 1, 0, scores)
        reliability = float(np.mean([v or 0 for v in scores["teacher_forced"]["reliability"]]))
        body["cell"]["stream"] = "sanity"
        body["environment"] = {**ENVIRONMENT, "host": host}
        body["sanity"] = {
            "expected": {} if label == "no edit" else {"reliability": 0.84},
            # One that chance does not explain, so that a † is there.
            "found": {"reliability": 0.4 if label == "MEND" else reliability},
        }
        sanity.append(body)
    return write_run(run, cells, planned, sanity)


def lifelike_scores(
    rng: np.random.Generator,
    skill: Sequence[float],
    decay: Sequence[float],
    n: int,
    count: int,
    source: str,
) -> dict[str, dict[str, list[float | None]]]:
    scores: dict[str, dict[str, list[float | None]]] = {}
    for scoring, factor in zip(SCORINGS, (1.0, 0.7, 0.8, 0.85), strict=True):
        scores[scoring] = {}
        for i, aspect in enumerate(ASPECTS):
            same = aspect == "same_subject"
            kind = 2 if same else i
            level = min(1.0, skill[kind] * decay[kind] ** np.log10(n)) ** (2 if same else 1)
            level *= 1 if kind == 2 else factor
            rising = np.linspace(0.7, 1.3, count) if i == 0 and n > 1 else np.ones(count)
            values = (rng.random(count) < np.clip(level * rising, 0, 1)).astype(float)
            missing = i == 3 and source == "counterfact"
            scores[scoring][aspect] = [None if missing else float(v) for v in values]
    return scores


def lifelike_kinds(scores: dict[str, dict[str, list[float | None]]]) -> dict[str, Any]:
    kinds: dict[str, Any] = {
        "locality": {"neighborhood": {}},
        "same_subject": {"Own questions": {}},
    }
    for scoring, aspects in scores.items():
        kinds["locality"]["neighborhood"][scoring] = aspects["locality"]
        kinds["same_subject"]["Own questions"][scoring] = aspects["same_subject"]
        if aspects["portability"][0] is not None:
            by_kind = kinds.setdefault("portability", {"one-hop": {}, "subject aliasing": {}})
            half = len(aspects["portability"]) // 2
            none = [None] * half
            by_kind["one-hop"][scoring] = aspects["portability"][:-half] + none
            by_kind["subject aliasing"][scoring] = [None] * (
                len(aspects["portability"]) - half
            ) + aspects["portability"][-half:]
    return kinds


def write_texts(run: Path, body: dict[str, Any], rng: np.random.Generator, skill: float) -> None:
    cell = body["cell"]
    path = run / "texts" / cell["data"] / cell["label"]
    path.mkdir(parents=True, exist_ok=True)
    cities = ["Rome", "Oslo", "Lima", "Kyoto", "Quito"]
    lines = []
    for i, record in enumerate(body["edits"]):
        old, new = cities[i % 5], cities[(i + 2) % 5]
        prompt = f"The twin city of {cities[(i + 1) % 5]} no. {record.split('-')[-1]} is"
        said = new if body["scores"]["exact_match"]["reliability"][i] else old
        texts = {
            "prompt": {"asked": prompt, "before": f"{old}, a city", "after": said},
            "rephrase": {
                "asked": f"Twinned with no. {record.split('-')[-1]}:",
                "before": f"{old} and more",
                "after": said if rng.random() < 0.5 else old,
            },
            "locality": {
                "asked": "The mother tongue of Léon Blum is",
                "before": "French",
                "after": "French" if rng.random() < 0.8 else "<b>not</b> known",
            },
            "same_subject": {
                "asked": f"A photograph of {cities[(i + 1) % 5]} shows",
                "before": "a bridge",
                "after": "a bridge" if rng.random() < 0.5 else new,
            },
        }
        lines.append(json.dumps({"id": record, "target_new": new, **texts}))
    name = f"n{cell['num_edits']}-s{cell['stream']}.jsonl"
    (path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def small_run(run: Path) -> Path:
    """Numbers to check by hand: data "zsre", methods FT, ROME, MEND and IKE, N = 2 and 1,000.

    FT: two streams of 2 edits, each of which adds 1,000 bytes to a state of 500. ROME: no
    portability, nothing of the same subject, did not pass the sanity cell. MEND failed at 2. IKE
    was not run at 2, and has a sanity cell. Nothing was run at 1,000.
    """

    def scores(
        reliability: list[float], generality: list[float], locality: list[float], *rest: Any
    ) -> dict[str, dict[str, list[float | None]]]:
        none = [None] * len(reliability)
        portability, same_subject = rest or (none, none)
        values = (reliability, generality, locality, portability, same_subject)
        forced = {a: [*v] for a, v in zip(ASPECTS, values, strict=True)}
        said = {a: [None if x is None else x * 0.5 for x in v] for a, v in forced.items()}
        return {"teacher_forced": forced, "exact_match": said}

    cells = [
        cell_body(
            "zsre", "FT", 2, 0, scores([1, 1], [0.5, 0], [0.5, 1], [0.25, None], [0.5, 0.25])
        ),
        cell_body(
            "zsre", "FT", 2, 1, scores([1, 0], [1, 0.5], [0.5, 0], [0.75, None], [0.25, None])
        ),
        cell_body("zsre", "ROME", 2, 0, scores([1, 1], [1, 1], [0.5, 0.5])),
    ]
    for body in cells[:2]:
        body |= {"state_bytes": 2500, "state_bytes_per_edit": 1000}
    cells[0]["leaks"], cells[1]["leaks"] = [0.5, 0.25], [0.0, None]
    cells[0]["perplexity"]["after"] = 40.0
    cells[0]["probes_left_out"] = {"locality": 0, "same_subject": 2, "portability": 3}
    cells[1]["probes_left_out"] = {"locality": 0, "same_subject": 0, "portability": 4}
    cells[1]["perplexity"]["after"] = 90.0
    cells[1]["peak_memory_bytes"] = 2_500_000_000
    cells[1]["prepared"] = {"seconds": 600.0}
    mend = cell_body("zsre", "MEND", 2, 0, scores([0, 0], [0, 0], [0, 0]))
    cells.append(failed(mend, "RuntimeError", "in layer 3\nout of memory | <b>"))
    ike = cell_body("zsre", "IKE", 2, 0, scores([0, 0], [0, 0], [0, 0]))
    planned = [ike["cell"]]
    planned += [{**body["cell"], "num_edits": 1000, "stream": 0} for body in (cells[0], cells[2])]
    sanity = []
    for label, found in (("ROME", 0.52), ("IKE", 1.0)):
        body = cell_body("zsre", label, 1, 0, scores([1, 1], [1, 1], [1, 1]))
        body["cell"]["stream"] = "sanity"
        body["sanity"] = {"expected": {"reliability": 0.9}, "found": {"reliability": found}}
        sanity.append(body)
    return write_run(run, cells, planned, sanity)
