from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from easyedit_dafnet.least_squares import LeastSquares, Overshoot, Written, gains
from easyedit_dafnet.signals import EditedModule

MODULES = [EditedModule(f"m{i}", 12, 5, True, False) for i in range(2)]


def solver(rank: int = 4) -> LeastSquares:
    torch.manual_seed(0)
    made = LeastSquares(MODULES, rank, 0.3)
    for m in range(2):
        text = torch.randn(200, 12) * torch.linspace(3, 0.2, 12)
        made.protect(m, text.T @ text)
        made.scale_to(m, torch.randn(50, 12))
    return made


def edits(n: int = 6) -> tuple[list[Tensor], list[Tensor], Tensor]:
    torch.manual_seed(1)
    keys, values = ([torch.randn(n, d) for _ in MODULES] for d in (12, 5))
    return keys, values, torch.arange(n)


def write(
    s: LeastSquares,
    parts: list[tuple[list[Tensor], list[Tensor], Tensor]],
    written: Written | None = None,
) -> tuple[list[Tensor], Written]:
    """The change of each module after the parts, one after another."""
    changes, written = [torch.zeros(12, 5) for _ in MODULES], written or s.nothing_written()
    for keys, values, prompts in parts:
        steps, written = s.write(keys, values, prompts, written, changes)
        changes = [c + a.T @ b for c, (a, b) in zip(changes, steps, strict=True)]
    return changes, written


def rows(part: tuple[list[Tensor], list[Tensor], Tensor], chosen: slice):
    keys, values, prompts = part
    return [k[chosen] for k in keys], [v[chosen] for v in values], prompts[chosen]


def moments(s: LeastSquares, m: int) -> Tensor:
    """M of module m, from what is kept of it."""
    directions, freedom = s.get_buffer(f"directions_{m}"), s.get_buffer(f"freedom_{m}")
    return torch.eye(12) + directions @ torch.diag(1 / freedom - 1) @ directions.T


def first_gain(s: LeastSquares, m: int, key: Tensor) -> Tensor:
    """The share of its value that the edit with this key [1, d_in] gets where it is alone."""
    return (gains(key, s.spread(m, key)) @ key.T).detach()


def test_the_change_minimises_what_it_says() -> None:
    s, (keys, values, prompts) = solver(), edits()
    changes, _ = write(s, [(keys, values, prompts)])
    for m, (k, v, change) in enumerate(zip(keys, values, changes, strict=True)):
        weight = s.log_weights[m].exp().detach()
        expected = torch.linalg.solve(k.T @ k + weight * moments(s, m), k.T @ v)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-4)
        # Training, where all edits are the first ones, gets there in one step.
        torch.testing.assert_close(gains(k, s.spread(m, k)).T @ v, expected, rtol=1e-4, atol=1e-4)


def test_the_moments_are_those_given_with_a_flat_tail() -> None:
    s = LeastSquares(MODULES, 4, 1.0)
    torch.manual_seed(0)
    text = torch.randn(300, 12) * torch.linspace(3, 0.2, 12)
    second = text.T @ text
    s.protect(0, second)
    strengths, directions = torch.linalg.eigh(second)
    strengths[:8] = strengths[:8].mean()
    expected = directions @ torch.diag(strengths / strengths[0]) @ directions.T
    torch.testing.assert_close(moments(s, 0), expected, rtol=1e-3, atol=1e-3)


def test_several_moments_count_alike_whatever_their_size() -> None:
    one, other = LeastSquares(MODULES, 4, 1.0), LeastSquares(MODULES, 4, 1.0)
    torch.manual_seed(0)
    a, b = (t.T @ t for t in (torch.randn(40, 12), torch.randn(40, 12) * torch.arange(12)))
    one.protect(0, a, b)
    other.protect(0, 1000 * a, b)
    torch.testing.assert_close(moments(one, 0), moments(other, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("split", [[1] * 6, [2, 4], [3, 1, 2]])
def test_any_split_gives_the_same_change(split: list[int]) -> None:
    s, part = solver(), edits()
    whole, _ = write(s, [part])
    starts = [sum(split[:i]) for i in range(len(split))]
    parts = [rows(part, slice(a, a + n)) for a, n in zip(starts, split, strict=True)]
    changes, written = write(s, parts)
    for a, b in zip(changes, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert len(written.keys) == len(written.prompts) == 6


def test_what_an_edit_alone_gets_of_its_value() -> None:
    s, part = solver(), rows(edits(), slice(0, 1))
    (change, _), _ = write(s, [part])
    share = first_gain(s, 0, part[0][0])
    torch.testing.assert_close(part[0][0] @ change, share * part[1][0], rtol=1e-4, atol=1e-5)
    assert 0.5 < share.item() < 1


def test_the_same_prompt_again_replaces_the_former_edit() -> None:
    s, part = solver(), edits()
    keys, _, prompts = part
    new = [torch.randn(1, 5) for _ in MODULES]
    again = [k[2:3] for k in keys], new, prompts[2:3]
    changes, _ = write(s, [part, again])
    for m, (k, change) in enumerate(zip(keys, changes, strict=True)):
        share = first_gain(s, m, k[2:3])
        torch.testing.assert_close(k[2:3] @ change, share * new[m], rtol=1e-3, atol=1e-3)


def test_the_same_subject_with_another_prompt_is_added() -> None:
    s, part = solver(), rows(edits(), slice(0, 1))
    keys, values, _ = part
    second = [torch.randn(1, 5) for _ in MODULES]
    changes, _ = write(s, [part, (keys, second, torch.tensor([99]))])
    for m, (k, change) in enumerate(zip(keys, changes, strict=True)):
        share = first_gain(s, m, k)
        expected = share * (values[m] + second[m])
        torch.testing.assert_close(k @ change, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("again", [7, 99])
@pytest.mark.parametrize("put_right", [False, True])
def test_one_of_two_prompts_at_a_key_gives_way_alone(again: int, put_right: bool) -> None:
    """Whichever came first, and whatever it got after it was written."""
    s, part = solver(), rows(edits(), slice(0, 1))
    keys = part[0]
    first, second, new, more = ([torch.randn(1, 5) for _ in MODULES] for _ in range(4))
    parts = [(keys, first, torch.tensor([7])), (keys, second, torch.tensor([99]))]
    changes, written = write(s, parts)
    if put_right:
        steps, written = written.corrected(keys, more, [again])
        changes = [c + a.T @ b for c, (a, b) in zip(changes, steps, strict=True)]
    steps, _ = s.write(keys, new, torch.tensor([again]), written, changes)
    stays = second if again == 7 else first
    for m, (k, change, (a, b)) in enumerate(zip(keys, changes, steps, strict=True)):
        share = first_gain(s, m, k)
        expected = share * (new[m] + stays[m])
        torch.testing.assert_close(k @ (change + a.T @ b), expected, rtol=1e-3, atol=1e-3)


def test_a_prompt_at_another_key_is_told_apart_from_itself() -> None:
    """The same words may be said to be about another subject."""
    s, (keys, _, _) = solver(), edits(2)
    here, there = ([k[i : i + 1] for k in keys] for i in range(2))
    first, second, third, last = ([torch.randn(1, 5) for _ in MODULES] for _ in range(4))
    one, other = torch.tensor([7]), torch.tensor([99])
    parts = [(here, first, one), (here, second, other), (there, third, other)]
    changes, _ = write(s, [*parts, (there, last, other)])
    expected, _ = write(s, [*parts[:2], (there, last, other)])
    for m, k in enumerate(there):
        # Along the key S forgets all, what it knew of the other key too, which leaves a tenth.
        difference = (k @ (changes[m] - expected[m])).norm()
        assert difference <= 0.15 * (first_gain(s, m, k) * third[m]).norm()


def test_a_repeat_within_a_batch_is_a_repeat() -> None:
    s, part = solver(), edits(3)
    keys, values, prompts = part
    both = (
        [torch.cat([k, k[1:2]]) for k in keys],
        [torch.cat([v, -v[1:2]]) for v in values],
        torch.cat([prompts, prompts[1:2]]),
    )
    together, _ = write(s, [both])
    apart, _ = write(s, [part, rows(both, slice(3, 4))])
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_protection_multiplies_lambda() -> None:
    s, part = solver(), edits()
    heavier = solver()
    heavier.load_state_dict(s.state_dict())
    with torch.no_grad():
        heavier.log_weights.add_(math.log(5.0))
    keys, _, prompts = part
    again = [k[2:3] for k in keys], [torch.ones(1, 5) for _ in MODULES], prompts[2:3]
    changes, _ = write(s, [part, again], s.nothing_written(protection=5.0))
    expected, _ = write(heavier, [part, again])
    for a, b in zip(changes, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_margin_falls_with_the_number_of_facts() -> None:
    s, part = solver(), edits()
    nothing = s.nothing_written(overshoot=Overshoot(3.0, 2.0, 0.5))
    assert nothing.margin == 3.0  # of no facts at all
    _, written = write(s, [rows(part, slice(0, 4))], nothing)
    assert written.margin == pytest.approx(3.0 / 3**0.5)
    _, written = write(s, [rows(part, slice(0, 4)), rows(part, slice(0, 4))], nothing)
    assert written.margin == pytest.approx(3.0 / 3**0.5)  # facts edited again count once
    assert len(written.keys) == len(written.prompts) == 4


def test_corrections_are_what_larger_values_would_have_written() -> None:
    s, (keys, values, prompts) = solver(), edits()
    loud = s.nothing_written(overshoot=Overshoot(2.0))
    changes, written = write(s, [(keys, values, prompts)], loud)
    some = [0, 2, 5]
    more = [torch.randn(3, 5) for _ in MODULES]
    steps, _ = written.corrected([k[some] for k in keys], more, some)
    for m, (change, (a, b)) in enumerate(zip(changes, steps, strict=True)):
        values[m][some] += more[m] / 2.0  # the margin doubles it
        changes[m] = change + a.T @ b
    expected, _ = write(s, [(keys, values, prompts)], loud)
    for a, b in zip(changes, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_spreads_say_what_corrections_come_to() -> None:
    s, (keys, values, prompts) = solver(), edits()
    _, written = write(s, [(keys, values, prompts)], s.nothing_written(overshoot=Overshoot(2.0)))
    spreads, share = written.spreads(keys)
    steps, _ = written.corrected(keys, [v / share for v in values], list(range(6)))
    for spread, value, (a, b) in zip(spreads, values, steps, strict=True):
        torch.testing.assert_close(2.0 * a.T @ b, spread.T @ value)  # the margin doubles it
    at_keys = torch.stack([(k * s).sum(1) for k, s in zip(keys, spreads, strict=True)])
    torch.testing.assert_close(at_keys.mean(0), torch.ones(6))


def test_what_is_kept_grows_by_a_key_an_edit() -> None:
    s, part = solver(), edits()
    _, written = write(s, [part])
    assert written.bytes_per_edit == 12 * 4 + 8
    assert written.constant_bytes == 2 * 12 * 12 * 4


def test_gradients_reach_values_and_weights() -> None:
    s, (keys, values, _) = solver(), edits()
    value = values[0].requires_grad_()
    change = gains(keys[0], s.spread(0, keys[0])).T @ value
    change.square().sum().backward()
    assert value.grad is not None and value.grad.abs().sum() > 0
    assert s.log_weights.grad is not None and s.log_weights.grad[0] != 0
