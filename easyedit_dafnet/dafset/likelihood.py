"""How likely a causal language model finds the answers of facts: those it does not know are rare.

>>> from easyedit_dafnet.dafset.likelihood import score
>>> score(out / "prompts.parquet", out / "likelihoods", "smollm2")

The results are written in pieces; a run that was stopped goes on after the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..language_model import inference_mode_of, target_logits
from ..records import IGNORE, TokenBatch, encode_targets

if TYPE_CHECKING:
    import pyarrow as pa

PIECE = 10_000
"""Facts in a piece of the results."""

MADE_FROM = b"easyedit_dafnet.made_from"
"""In a piece's metadata, what tells the facts and the model that it is for."""


@torch.no_grad()
def log_likelihoods(
    model: Any,
    tok: Any,
    prompts: Sequence[str],
    targets: Sequence[str],
    batch_size: int = 32,
    progress: Callable[[int], Any] = lambda done: None,
) -> list[float]:
    """Mean log-likelihood of each target's tokens after its prompt, in natural units.

    progress: called with the number of texts that each pass has done.
    Raises RequestError for a target without tokens.
    """
    # Texts of about one length share a pass, so little of it is padding.
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]) + len(targets[i]), i))
    found = [0.0] * len(prompts)
    with inference_mode_of(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = encode_targets(
                tok,
                [prompts[i] for i in rows],
                [targets[i] for i in rows],
                [f"Text {i}" for i in rows],
            ).to(model.device)
            for i, mean in zip(rows, _means(model, batch).tolist(), strict=True):
                found[i] = mean
            progress(len(rows))
    return found


def _means(model: Any, batch: TokenBatch) -> Tensor:
    """[n], over each text's target tokens."""
    log_probs = target_logits(model, batch, {}).float().log_softmax(-1)
    tokens = batch.labels[batch.targets].to(log_probs.device)
    given = log_probs.gather(1, tokens[:, None])[:, 0]
    parts = given.split((batch.labels != IGNORE).sum(1).tolist())
    return torch.stack([part.mean() for part in parts])


def score(
    prompts: Path,
    out: Path,
    model_name: str = "smollm2",
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 32,
    piece: int = PIECE,
) -> int:
    """Score the facts of a Parquet file; returns how many there are.

    prompts: a file with the columns head, relation, tail, prompt and target (the tail's label).
    out: a folder of likelihoods-*.parquet with the columns head, relation, tail, log_likelihood;
    pieces in it that are for these facts and this model are kept, others replaced or removed.
    model_name: a folder or hub name; "smollm2" is the embedded model.
    """
    import pyarrow.parquet as pq

    from ..bench.unedited_model import model_fingerprint, model_path

    with pq.ParquetFile(prompts) as file:
        rows = file.metadata.num_rows
    identity = model_fingerprint(model_path(model_name))  # of one name there may be several
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"likelihoods-{i:05}.parquet" for i in range(-(-rows // piece))]
    model = tok = None
    with tqdm(total=rows, unit="fact", desc="Log-likelihoods") as bar:
        for path, facts in zip(paths, _pieces(prompts, piece), strict=True):
            made_from = _made_from(facts, identity, dtype)
            if _is_done(path, made_from):
                bar.initial += len(facts)  # the rate is that of the work done now
                bar.update(len(facts))
                continue
            if model is None:
                model, tok = _load(model_name, device, dtype)
            asked, answers = facts["prompt"].to_pylist(), facts["target"].to_pylist()
            found = log_likelihoods(model, tok, asked, answers, batch_size, bar.update)
            _write_piece(path, facts, found, made_from)
    for stale in set(out.glob("likelihoods-*.parquet")) - set(paths):
        stale.unlink()
    return rows


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    from ..bench.unedited_model import load_model, load_tokenizer, model_path

    path = model_path(name)
    return load_model(path, device, dtype), load_tokenizer(path)


def _pieces(prompts: Path, size: int) -> Iterator[pa.Table]:
    """Tables of so many rows, the last of what is left; row groups do not matter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["head", "relation", "tail", "prompt", "target"]
    with pq.ParquetFile(prompts) as file:
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise ValueError(
                f"{prompts} has no column {missing[0]!r}; it must have {', '.join(columns)}."
            )
        rest = file.schema_arrow.empty_table().select(columns)
        for batch in file.iter_batches(size, columns=columns):
            rest = pa.concat_tables([rest, pa.Table.from_batches([batch]).select(columns)])
            while len(rest) >= size:
                yield rest.slice(0, size)
                rest = rest.slice(size)
        if len(rest):
            yield rest


def _made_from(facts: pa.Table, model: str, dtype: str) -> bytes:
    digest = sha256(f"{model} {dtype}\n".encode())
    for column in facts.columns:
        digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest().encode()


def _is_done(path: Path, made_from: bytes) -> bool:
    import pyarrow.parquet as pq

    if not path.is_file():
        return False
    with pq.ParquetFile(path) as file:
        return (file.schema_arrow.metadata or {}).get(MADE_FROM) == made_from


def _write_piece(path: Path, facts: pa.Table, found: list[float], made_from: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = facts.select(["head", "relation", "tail"])
    table = table.append_column("log_likelihood", pa.array(found, pa.float64()))
    scratch = path.with_name(f".{path.name}.part")
    pq.write_table(table.replace_schema_metadata({MADE_FROM: made_from}), scratch)
    scratch.replace(path)
