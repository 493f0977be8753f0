from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dafnet.bench import Workbench
from easyedit_dafnet.bench.breadth_first import BreadthFirst
from easyedit_dafnet.bench.protocol import start_random_numbers
from easyedit_dafnet.dafnet_hparams import SettingsError
from tests.bench.conftest import RECORDS
from tests.plain import ids_and_start, target_log_probability

REQUESTS = [record.request() for record in RECORDS]
SETTINGS: dict[str, Any] = {"module": "model.layers.1.mlp.down_proj", "lr": 3e-3, "batch_size": 3}


def tuned(bench: Workbench, **settings: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    method = BreadthFirst(bench, {**SETTINGS, **settings})
    model = bench.load_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    start_random_numbers(0)
    method.start(model)
    method.edit(REQUESTS)
    return model, before


def loss_of(bench: Workbench, model: Any, end: str = "") -> torch.Tensor:
    """Mean over the edits of the negative log likelihood per target token, by plain passes."""
    losses = []
    for request in REQUESTS:
        ids, start = ids_and_start(bench.tok, request["prompt"], request["target_new"] + end)
        losses.append(-target_log_probability(model, ids, start, {}) / (len(ids) - start))
    return torch.stack(losses).mean()


def test_it_learns_all_edits_and_changes_one_matrix(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    bench = workbench(tmp_path)
    model, before = tuned(bench, append_eos=False)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert changed == ["model.layers.1.mlp.down_proj.weight"]
    assert loss_of(bench, model) < 0.8 * loss_of(bench, bench.load_model())
    assert all(p.requires_grad for p in model.parameters()), "they are as they were loaded"


def test_it_is_what_plain_fine_tuning_with_adam_gives(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    """One mini-batch an epoch, so that the order of the edits does not matter."""
    bench = workbench(tmp_path)
    model, _ = tuned(bench, batch_size=len(REQUESTS), epochs=4)
    plain = bench.load_model()
    weight = plain.get_parameter("model.layers.1.mlp.down_proj.weight")
    optimizer = torch.optim.Adam([weight], 3e-3)
    for _ in range(4):
        optimizer.zero_grad()
        loss_of(bench, plain, end=bench.tok.eos_token).backward()
        optimizer.step()
    # Adam divides by the gradient's size, so rounding shows where a gradient is nearly zero.
    torch.testing.assert_close(
        model.get_parameter("model.layers.1.mlp.down_proj.weight"), weight, rtol=1e-3, atol=1e-4
    )


def test_it_stops_where_the_loss_is_low_enough(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    model, before = tuned(workbench(tmp_path), enough=1e3)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_the_same_seed_gives_the_same_weights(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    first, _ = tuned(workbench(tmp_path))
    second, _ = tuned(workbench(tmp_path))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_setting_is_named(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="no setting 'epoch'; did you mean 'epochs'"):
        BreadthFirst(workbench(tmp_path), {"epoch": 1})


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("", {}, "must hold settings as `name: value` lines"),
        ("lr: [", {}, "is not valid YAML"),
        ("lr: 0.1", {}, "setting 'module' is missing"),
        ("module: layer", {"lr": "fast"}, "'lr' is 'fast'; it must be a number"),
        ("module: layer", {"epochs": 0}, "'epochs' is 0; it must be above zero"),
    ],
)
def test_settings_that_cannot_be_used_are_named(
    content: str,
    settings: dict[str, Any],
    message: str,
    workbench: Callable[[Path], Workbench],
    tmp_path: Path,
) -> None:
    file = tmp_path / "bft.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        BreadthFirst(workbench(tmp_path), {"hparams": str(file), **settings})


def test_a_rate_as_yaml_reads_it_is_a_number(
    workbench: Callable[[Path], Workbench], tmp_path: Path
) -> None:
    method = BreadthFirst(workbench(tmp_path), {"lr": "5e-4"})
    assert method.effective_settings["lr"] == 5e-4
