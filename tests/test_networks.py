from __future__ import annotations

import copy

import pytest
import torch

from easyedit_dafnet.networks import (
    NORMS,
    AuxiliaryNetwork,
    DiagonalFusion,
    ExactNorm,
    InterEditingAttention,
    IntraEditingAttention,
    ModuleNorm,
    MomentumNorm,
    NetworkSizes,
    Rows,
)
from tests.plain import plain_network

SIZES = NetworkSizes(2, 8, 12, 6, 2, 4, 2)


def test_exact_norm_has_the_statistics_of_all_tokens_however_they_came() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(40, 5) * torch.tensor([0.01, 1, 10, 100, 1]) + 3
    norm = ExactNorm(5).train()
    for part in tokens.split([1, 2, 0, 30, 7]):
        norm(part)
    torch.testing.assert_close(norm.mean, tokens.mean(0))
    torch.testing.assert_close(norm.var, tokens.var(0), rtol=1e-5, atol=0)
    assert int(norm.count) == 40
    before = norm.mean.clone()
    out = norm.eval()(tokens)
    assert torch.equal(norm.mean, before)
    torch.testing.assert_close(out.std(0), torch.ones(5))


def test_momentum_norm_moves_by_a_tenth() -> None:
    norm, tokens = MomentumNorm(3).train(), torch.randn(9, 3) + 5
    norm(tokens)
    torch.testing.assert_close(norm.mean, tokens.mean(0) / 10)
    torch.testing.assert_close(norm.var, 0.9 + tokens.var(0, unbiased=False) / 10)


def test_intra_editing_attention_stays_within_an_edit() -> None:
    torch.manual_seed(0)
    attention, x = IntraEditingAttention(6, 8), torch.randn(7, 6)
    c, r = attention(x, torch.tensor([3, 0, 4]))
    first, r_first = attention(x[:3], torch.tensor([3]))
    torch.testing.assert_close(c[:3], first)
    torch.testing.assert_close(r[0], r_first[0])
    assert torch.equal(r[1], torch.zeros(6))  # an edit without tokens says nothing
    # Written out for one edit: softmax-weighted sum of a.
    a = attention.w2(attention.w1(x[3:]).relu())
    weights = attention.v2(attention.v1(a).relu()).softmax(0)
    torch.testing.assert_close(c[3:], weights * a)
    torch.testing.assert_close(r[2], (weights * a).sum(0))


def test_inter_editing_attention_is_multi_head_attention_to_the_past() -> None:
    torch.manual_seed(0)
    attention, r = InterEditingAttention(6, 4, 2), torch.randn(2, 3, 6)
    out, _ = attention(r)
    for m in range(2):
        for i in range(3):
            heads = []
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                q, k = attention.query(r[m])[i, part], attention.key(r[m])[: i + 1, part]
                heads.append((k @ q / 4**0.5).softmax(0) @ attention.value(r[m])[: i + 1, part])
            torch.testing.assert_close(out[m, i], attention.out(torch.cat(heads)))


def test_diagonal_fusion_is_the_attention_to_oneself() -> None:
    torch.manual_seed(0)
    fusion, r = DiagonalFusion(6, 4, 2), torch.randn(2, 4, 6)
    u, _ = fusion(r)
    assert (u[:, 0] == 1).all()  # the first edit has nothing else to look at
    expected = torch.zeros(2, 4)
    for m in range(2):
        for i in range(4):
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                q, k = fusion.query(r[m])[i, part], fusion.key(r[m])[: i + 1, part]
                expected[m, i] += (k @ q / 4**0.5).softmax(0)[i] / 2
    torch.testing.assert_close(u, expected)


@pytest.fixture
def network() -> AuxiliaryNetwork:
    torch.manual_seed(0)
    network = AuxiliaryNetwork(5, 7, 3, SIZES).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(("scale.weight", "shift.weight")):
                parameter.normal_()
    return network


LENGTHS = torch.tensor([[2, 1, 3, 4], [0, 2, 1, 1], [1, 0, 0, 5]])


@pytest.mark.parametrize("norm", ["frozen", "exact", "batch", "layer"])
def test_modules_together_are_what_each_is_alone(network: AuxiliaryNetwork, norm: str) -> None:
    s, lengths = torch.randn(20, 12) * 3 + 1, LENGTHS.flatten()
    if norm == "frozen":
        network.update_statistics(torch.randn(30, 12) * 2, torch.tensor([10, 10, 10]))
    else:
        network.norm = NORMS[norm](12)
        network.train()
    alone = copy.deepcopy(network)
    x_hat, delta_hat, u, past = network(s, lengths)
    assert past is None
    start = 0
    for mode, counts in enumerate(LENGTHS.tolist()):
        tokens = alone.norm(s[start : start + sum(counts)])  # counts on, module after module
        xs, expected = plain_network(alone, mode, list(tokens.split(counts)))
        torch.testing.assert_close(u[:, mode], expected)
        found = torch.cat([x_hat, delta_hat], -1)[start : start + sum(counts)]
        torch.testing.assert_close(found, torch.cat(xs), rtol=1e-4, atol=1e-5)
        start += sum(counts)
    for name, value in alone.norm.state_dict().items():
        torch.testing.assert_close(network.norm.state_dict()[name], value)


def test_gradients_are_those_of_the_modules_alone(network: AuxiliaryNetwork) -> None:
    s, lengths = torch.randn(20, 12), LENGTHS.flatten()
    x_hat, delta_hat, u, _ = network(s, lengths)
    aim = torch.randn(20, 12), torch.randn(2, 3, 4)
    loss = (torch.cat([x_hat, delta_hat], -1) * aim[0]).sum() + (u * aim[1]).sum()
    found = torch.autograd.grad(loss, list(network.layers.parameters()))
    start, plain = 0, torch.zeros(())
    for mode, counts in enumerate(LENGTHS.tolist()):
        part = slice(start, start := start + sum(counts))
        tokens = network.norm(s[part])
        xs, u = plain_network(network, mode, list(tokens.split(counts)))
        plain = plain + (torch.cat(xs) * aim[0][part]).sum() + (u * aim[1][:, mode]).sum()
    expected = torch.autograd.grad(plain, list(network.layers.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_no_tokens_at_all_make_no_update(network: AuxiliaryNetwork) -> None:
    x_hat, delta_hat, u, _ = network(torch.zeros(0, 12), torch.zeros(6, dtype=torch.long))
    assert x_hat.shape == (0, 5) and delta_hat.shape == (0, 7) and u.isfinite().all()


def split(s: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Edits start..stop of 24 edits of 2 tokens each at 3 modules, s [3 * 24 * 2, D]."""
    part = s.unflatten(0, (3, 24, 2))[:, start:stop]
    return part.flatten(0, 2), torch.full([3 * (stop - start)], 2)


@pytest.mark.parametrize("sizes", [[1] * 24, [3, 1, 9, 11], [23, 1], [1, 23]])
@torch.no_grad()
def test_any_split_of_the_edits_gives_the_same_tokens_and_weights(
    network: AuxiliaryNetwork, sizes: list[int]
) -> None:
    s = torch.randn(3 * 24 * 2, 12)
    x, delta, u, _ = network(*split(s, 0, 24))
    past, start, found = network.new_past(torch.float32, torch.device("cpu")), 0, []
    for size in sizes:
        *out, past = network(*split(s, start, start + size), past)
        out[:2] = [o.unflatten(0, (3, size, 2)) for o in out[:2]]
        found.append(out)
        start += size
    torch.testing.assert_close(torch.cat([f[0] for f in found], 1).flatten(0, 2), x)
    torch.testing.assert_close(torch.cat([f[1] for f in found], 1).flatten(0, 2), delta)
    torch.testing.assert_close(torch.cat([f[2] for f in found], 2), u)
    assert past[1].keys.filled.shape == (3, 2, 24, 6)


@torch.no_grad()
def test_what_is_kept_stays_as_it_was_when_edits_are_added(network: AuxiliaryNetwork) -> None:
    s = torch.randn(3 * 24 * 2, 12)
    *_, past = network(*split(s, 0, 5), network.new_past(torch.float32, torch.device("cpu")))
    before = copy.deepcopy(past)
    first = network(*split(s, 5, 8), past)
    assert all(torch.equal(a.keys.filled, b.keys.filled) for a, b in zip(past, before, strict=True))
    # Going on from it again, after an edit that came to nothing, and from a copy of it.
    network(*split(s, 9, 10), past)
    for again in (network(*split(s, 5, 8), past), network(*split(s, 5, 8), before)):
        assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))


def test_rows_double_and_the_old_ones_stay() -> None:
    rows, capacities = Rows(torch.empty(2, 3, 0, 4), 0), set()
    new = torch.randn(2, 3, 9, 4)
    for i in range(9):
        old = rows
        rows = rows.append(new[:, :, i : i + 1])
        assert torch.equal(old.filled, new[:, :, :i])
        capacities.add(rows.buffer.shape[2])
    assert torch.equal(rows.filled, new)
    assert capacities == {1, 2, 4, 8, 16}
    assert rows.bytes_per_edit == 2 * 3 * 4 * 4


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.01), ("float16", 0.001)])
@torch.no_grad()
def test_lower_precision_of_what_is_kept_changes_little(
    network: AuxiliaryNetwork, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyedit_dafnet.networks.WIDENED_AT_ONCE", 30)  # several blocks
    s, device = torch.randn(3 * 24 * 2, 12), torch.device("cpu")
    exact, kept = (network.new_past(d, device) for d in (torch.float32, getattr(torch, dtype)))
    for start, stop in [(0, 10), (10, 11), (11, 24)]:
        *wanted, exact = network(*split(s, start, stop), exact)
        *found, kept = network(*split(s, start, stop), kept)
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == torch.float32
            assert 0 < (a - b).norm() <= tolerance * b.norm()
    assert 2 * kept[0].bytes_per_edit == exact[0].bytes_per_edit


def test_modes_tell_modules_of_one_shape_apart() -> None:
    torch.manual_seed(0)
    network = AuxiliaryNetwork(5, 7, 2, SIZES).eval()
    s, lengths = torch.randn(4, 12).repeat(2, 1), torch.tensor([4, 4])
    first, second = network(s, lengths)[0].split(4)
    torch.testing.assert_close(first, second)
    with torch.no_grad():
        network.get_parameter("layers.0.shift.weight")[1] += 1
    first, second = network(s, lengths)[0].split(4)
    assert not torch.allclose(first, second)


def test_each_module_has_statistics_of_its_own() -> None:
    torch.manual_seed(0)
    norm, lengths = ModuleNorm(4, 2).eval(), torch.tensor([3, 2, 1, 4])
    s = torch.randn(10, 4)
    s[:5] *= 100
    norm.update(s, lengths)
    out = norm(s, lengths)
    for part, rows in zip(out.split(5), s.split(5), strict=True):
        torch.testing.assert_close(part, (rows - rows.mean(0)) / rows.std(0))
    far = norm(1e6 * s, lengths)
    assert far.abs().max() == ModuleNorm.LIMIT
