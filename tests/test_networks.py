from __future__ import annotations

import torch

from easyedit_dafnet.networks import (
    AuxiliaryNetwork,
    DiagonalFusion,
    ExactNorm,
    InterEditingAttention,
    IntraEditingAttention,
    MomentumNorm,
    NetworkSizes,
)

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
    attention, r = InterEditingAttention(6, 4, 2), torch.randn(3, 6)
    out, _ = attention(r, None)
    for i in range(3):
        heads = []
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            q, k = attention.query(r)[i, part], attention.key(r)[: i + 1, part]
            heads.append((k @ q / 4**0.5).softmax(0) @ attention.value(r)[: i + 1, part])
        torch.testing.assert_close(out[i], attention.out(torch.cat(heads)))


def test_diagonal_fusion_is_the_attention_to_oneself() -> None:
    torch.manual_seed(0)
    fusion, r = DiagonalFusion(6, 4, 2), torch.randn(4, 6)
    u, _ = fusion(r, None)
    assert u[0] == 1  # the first edit has nothing else to look at
    expected = torch.zeros(4)
    for i in range(4):
        for h in range(2):
            part = slice(4 * h, 4 * h + 4)
            q, k = fusion.query(r)[i, part], fusion.key(r)[: i + 1, part]
            expected[i] += (k @ q / 4**0.5).softmax(0)[i] / 2
    torch.testing.assert_close(u, expected)


def test_any_split_of_the_edits_gives_the_same_tokens_and_weights() -> None:
    torch.manual_seed(0)
    network = AuxiliaryNetwork(5, 7, 2, SIZES).eval()
    lengths, s = torch.tensor([2, 1, 3, 4]), torch.randn(10, 12)
    x, delta, u, past = network(s, lengths, 1, None)
    x1, delta1, u1, kept = network(s[:3], lengths[:2], 1, None)
    x2, delta2, u2, kept = network(s[3:], lengths[2:], 1, kept)
    torch.testing.assert_close(torch.cat([x1, x2]), x)
    torch.testing.assert_close(torch.cat([delta1, delta2]), delta)
    torch.testing.assert_close(torch.cat([u1, u2], 1), u)
    torch.testing.assert_close(kept[1].keys, past[1].keys)


def test_modes_tell_modules_of_one_shape_apart() -> None:
    torch.manual_seed(0)
    network = AuxiliaryNetwork(5, 7, 2, SIZES).eval()
    lengths, s = torch.tensor([4]), torch.randn(4, 12)
    assert torch.equal(network(s, lengths, 0, None)[0], network(s, lengths, 1, None)[0])
    with torch.no_grad():
        network.get_parameter("layers.0.shift.weight")[1] += 1
    assert not torch.equal(network(s, lengths, 0, None)[0], network(s, lengths, 1, None)[0])
