from __future__ import annotations

import pytest
import torch

from easyedit_dafnet.dafnet import DAFNet, FusionOrder, Update, fusion_weights
from easyedit_dafnet.dafnet_hparams import NetworkSizes
from easyedit_dafnet.signals import EditedModule, EditSignals

MODULES = [
    EditedModule("a", 4, 6, True, True),
    EditedModule("b", 6, 4, True, True),
    EditedModule("c", 4, 6, True, True),
]


def make(**settings: bool | str) -> DAFNet:
    torch.manual_seed(0)
    return DAFNet(MODULES, NetworkSizes(2, 8, 12, 6, 2, 4, 2), edit_lr=0.1, **settings).eval()  # type: ignore[arg-type]


def signals(lengths: list[int]) -> list[EditSignals]:
    torch.manual_seed(1)
    n, counts = sum(lengths), torch.tensor(lengths)
    return [EditSignals(torch.randn(n, m.d_in), torch.randn(n, m.d_out), counts) for m in MODULES]


def test_fusion_weights_are_what_edit_after_edit_leaves() -> None:
    u = torch.tensor([[0.9, 0.5, 0.2], [0.7, 0.1, 0.4]])
    w, w_past = fusion_weights(u)
    mean, kept, past = u.mean(0), torch.zeros(3), torch.tensor(1.0)
    for i in range(3):
        kept *= 1 - mean[i]
        past *= 1 - mean[i]
        kept[i] += mean[i]
    torch.testing.assert_close(w, kept)
    torch.testing.assert_close(w_past, past)
    torch.testing.assert_close(w.sum() + w_past, torch.tensor(1.0))


def test_released_order_averages_the_layers_products() -> None:
    u = torch.tensor([[0.9, 0.5, 0.2], [0.7, 0.1, 0.4]])
    w, w_past = fusion_weights(u, "released")
    each = [fusion_weights(layer[None]) for layer in u]
    torch.testing.assert_close(w, (each[0][0] + each[1][0]) / 2)
    torch.testing.assert_close(w_past, (each[0][1] + each[1][1]) / 2)
    assert not torch.allclose(w, fusion_weights(u)[0])
    torch.testing.assert_close(fusion_weights(u[:, :1], "released"), fusion_weights(u[:, :1]))


@pytest.mark.parametrize("order", ["paper", "released"])
def test_fusion_weights_of_several_modules_are_those_of_each(order: FusionOrder) -> None:
    u = torch.rand(2, 3, 4)
    w, w_past = fusion_weights(u, order)
    for m in range(3):
        torch.testing.assert_close((w[m], w_past[m]), fusion_weights(u[:, m], order))


def test_modules_of_one_shape_share_a_network_and_differ_in_mode() -> None:
    dafnet = make()
    assert list(dafnet.networks) == ["(4, 6)", "(6, 4)"]
    assert dafnet.groups == {"(4, 6)": [0, 2], "(6, 4)": [1]}
    assert [dafnet.network(m).modes for m in MODULES] == [2, 1, 2]


@pytest.mark.parametrize("m", [0, 1, 2])
def test_gradient_fusion_written_out(m: int) -> None:
    dafnet, s = make(edit_bias=True), signals([2, 3])
    with torch.no_grad():
        dafnet.step_sizes.copy_(torch.tensor([0.1, 0.2, 0.3]))
    update = dafnet(s)[0][m]
    group = {0: [0, 2], 1: [1], 2: [0, 2]}[m]
    joined = torch.cat([torch.cat([s[g].x, s[g].delta], -1) for g in group])
    lengths = torch.cat([s[g].lengths for g in group])
    x_hat, delta_hat, u, _ = dafnet.network(MODULES[m])(joined, lengths)
    place = group.index(m)
    x_hat, delta_hat = x_hat.split(5)[place], delta_hat.split(5)[place]
    w, w_past = fusion_weights(u[:, place])
    expected, bias, token = torch.zeros(s[m].x.shape[1], s[m].delta.shape[1]), 0, 0
    for i, length in enumerate([2, 3]):
        for _ in range(length):
            expected += torch.outer(x_hat[token], delta_hat[token]) * w[i] / length
            bias += delta_hat[token] * w[i] / length
            token += 1
    eta = 0.1 * (m + 1)
    torch.testing.assert_close(update.step_weight, eta * expected)
    torch.testing.assert_close(update.step_bias, eta * bias)
    torch.testing.assert_close(update.past_weight, w_past)


@pytest.mark.parametrize("transposed", [True, False])
@torch.no_grad()
def test_changes_go_on_from_those_before(transposed: bool) -> None:
    module = EditedModule("a", 4, 6, transposed, True)
    update = Update(torch.randn(3, 4), torch.randn(3, 6), torch.tensor(0.4), edit_bias=True)
    shape = (6, 4) if transposed else (4, 6)
    changes = {"a.weight": torch.randn(shape), "a.bias": torch.randn(6)}
    before = {name: change.clone() for name, change in changes.items()}
    step = update.x_hat.T @ update.delta_hat
    changed = update.changed(module, changes)
    wanted = 0.4 * before["a.weight"] + (step.T if transposed else step)
    torch.testing.assert_close(changed["a.weight"], wanted)
    torch.testing.assert_close(changed["a.bias"], 0.4 * before["a.bias"] + update.delta_hat.sum(0))
    assert all(torch.equal(changes[name], before[name]) for name in changes)
    torch.testing.assert_close(update.steps(module)["a.weight"], step.T if transposed else step)


@torch.no_grad()
def test_edits_without_tokens_add_nothing() -> None:
    dafnet, lengths = make(), [2, 0, 3, 0]
    some, empty = signals([2, 3]), signals([0, 0])
    every = [EditSignals(s.x, s.delta, torch.tensor(lengths)) for s in some]
    assert all(u.step_weight.isfinite().all() for u in dafnet(every)[0])
    for update, module in zip(dafnet(empty)[0], MODULES, strict=True):
        assert torch.equal(update.step_weight, torch.zeros(module.d_in, module.d_out))


@pytest.mark.parametrize("train_fusion", [True, False])
def test_the_fusion_weights_are_trained_unless_asked_otherwise(train_fusion: bool) -> None:
    dafnet = make(train_fusion=train_fusion)
    updates, past = dafnet(signals([2, 3]))
    assert past is None
    sum(u.step_weight.square().sum() for u in updates).backward()
    gradients = [p.grad for name, p in dafnet.named_parameters() if ".fusion.query.weight" in name]
    assert all((g is not None and g.abs().sum() > 0) == train_fusion for g in gradients)
    assert dafnet.step_sizes.grad is not None and dafnet.step_sizes.grad.all()
