from __future__ import annotations

import pytest
import torch

from easyedit_dafnet.dafnet import DAFNet, fusion_weights
from easyedit_dafnet.networks import NetworkSizes
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


def test_modules_of_one_shape_share_a_network_and_differ_in_mode() -> None:
    dafnet = make()
    assert list(dafnet.networks) == ["(4, 6)", "(6, 4)"]
    assert dafnet.modes == [0, 0, 1]


def test_gradient_fusion_written_out() -> None:
    dafnet, s = make(edit_bias=True), signals([2, 3])
    update = dafnet(s)[1]
    joined = torch.cat([s[1].x, s[1].delta], -1)
    x_hat, delta_hat, u, _ = dafnet.network(MODULES[1])(joined, s[1].lengths, 0, None)
    w, _ = fusion_weights(u)
    expected, bias, token = torch.zeros(6, 4), torch.zeros(4), 0
    for i, length in enumerate([2, 3]):
        for _ in range(length):
            expected += torch.outer(x_hat[token], delta_hat[token]) * w[i] / length
            bias += delta_hat[token] * w[i] / length
            token += 1
    torch.testing.assert_close(update.step_weight, 0.1 * expected)
    torch.testing.assert_close(update.step_bias, 0.1 * bias)


@pytest.mark.parametrize("train_fusion", [True, False])
def test_the_fusion_weights_are_trained_unless_asked_otherwise(train_fusion: bool) -> None:
    dafnet = make(train_fusion=train_fusion)
    sum(u.step_weight.square().sum() for u in dafnet(signals([2, 3]))).backward()
    gradients = [p.grad for name, p in dafnet.named_parameters() if ".fusion.query.weight" in name]
    assert all((g is not None and g.abs().sum() > 0) == train_fusion for g in gradients)
    assert dafnet.step_sizes.grad is not None and dafnet.step_sizes.grad.all()
