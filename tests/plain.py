"""The training step written plainly from the equations: slow, with nothing shared or skipped.

Every text passes the whole model alone; every edit and module passes the networks alone, one
token and one earlier edit after another; one graph leads from the losses to the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from easyedit_dafnet.dafnet import DAFNet
from easyedit_dafnet.language_model import Text
from easyedit_dafnet.networks import AuxiliaryNetwork
from easyedit_dafnet.records import IGNORE
from easyedit_dafnet.signals import EditedModule


def ids_and_start(tok: Any, prompt: str, target: str) -> tuple[Tensor, int]:
    """Token ids of prompt and target together, and the index of the target's first token."""
    return torch.tensor(tok(f"{prompt} {target}")["input_ids"]), len(tok(prompt)["input_ids"])


def log_probabilities(model: Any, ids: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """[length, vocabulary]"""
    return functional_call(model, dict(parameters), (ids[None],)).logits[0].log_softmax(-1)


def target_log_probability(
    model: Any, ids: Tensor, start: int, parameters: Mapping[str, Tensor]
) -> Tensor:
    log_p = log_probabilities(model, ids, parameters)
    return torch.stack([log_p[t - 1, ids[t]] for t in range(start, len(ids))]).sum()


def plain_signals(model: Any, module: EditedModule, ids: Tensor, start: int) -> Tensor:
    """[x ; delta] of one edit's tokens, [tokens, D]."""
    seen = {}

    def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["x"], seen["y"] = args[0], output.detach().requires_grad_()
        return seen["y"]

    handle = model.get_submodule(module.name).register_forward_hook(hook)
    loss = -target_log_probability(model, ids, start, {})
    handle.remove()
    (delta,) = torch.autograd.grad(loss, seen["y"])
    tokens = torch.cat([seen["x"][0], delta[0]], -1)[: len(ids) - 1]
    reached = [i for i, d in enumerate(delta[0, : len(ids) - 1]) if d.any()]
    return tokens[reached].detach()


def attention(query: Tensor, keys: Sequence[Tensor], heads: int) -> Tensor:
    """Weights of one query [H * d] over the keys, [H, number of keys]."""
    parts = []
    for q, k in zip(
        query.chunk(heads), zip(*(key.chunk(heads) for key in keys), strict=True), strict=True
    ):
        parts.append(torch.stack([q @ each / len(q) ** 0.5 for each in k]).softmax(0))
    return torch.stack(parts)


def plain_network(
    network: AuxiliaryNetwork, mode: int, edits: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """One module, edit after edit, all that is past projected again each time.

    edits: normalised tokens [l_i, D] of each. Returns the last layer's tokens and u [layers, n].
    """
    past: list[list[Tensor]] = [[] for _ in network.layers]
    outputs, diagonals = [], []
    for x in edits:
        u = []
        for layer, representations in zip(network.layers, past, strict=True):
            part: Any = layer
            a = part.intra.w2(part.intra.w1(x).relu())
            score = part.intra.v2(part.intra.v1(a).relu())
            c = score.softmax(0) * a
            x = part.norm1(x + c)
            r = c.sum(0)
            representations.append(r)
            inter, fusion = part.inter, part.fusion
            keys = [inter.key(e) for e in representations]
            weights = attention(inter.query(r), keys, inter.head_n)
            values = torch.stack([inter.value(e) for e in representations])
            heads = zip(weights, values.chunk(inter.head_n, -1), strict=True)
            x = part.norm2(x + inter.out(torch.cat([w @ v for w, v in heads])))
            keys = [fusion.key(e) for e in representations]
            u.append(attention(fusion.query(r), keys, fusion.head_n)[:, -1].mean())
            x = part.norm3(x + part.f2(part.f1(x).relu()))
            z = x * part.scale.weight[mode] + part.shift.weight[mode]
            x = x + z.clamp(min=0)
        outputs.append(x)
        diagonals.append(torch.stack(u))
    return outputs, torch.stack(diagonals, 1)


def plain_weights(
    model: Any, tok: Any, dafnet: DAFNet, records: Sequence[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """The edited parameters after the records' edits, one after another."""
    parameters = {}
    for m, module in enumerate(dafnet.edited):
        mode = [other.shape for other in dafnet.edited[:m]].count(module.shape)
        edits = [
            plain_signals(model, module, *ids_and_start(tok, r["prompt"], r["target_new"]))
            for r in records
        ]
        network = dafnet.network(module)
        norm: Any = network.norm
        normalised = [(s - norm.mean) / (norm.var.sqrt() + 1e-8) for s in edits]
        outputs, diagonals = plain_network(network, mode, normalised)
        change: Any = torch.zeros(module.d_in, module.d_out)
        bias: Any = torch.zeros(module.d_out)
        for tokens, u in zip(outputs, diagonals.mean(0), strict=True):
            u = u if dafnet.train_fusion else u.detach()
            new: Any = 0.0
            new_bias: Any = 0.0
            for token in tokens:
                x_hat, delta_hat = token[: module.d_in], token[module.d_in :]
                new = new + torch.outer(x_hat, delta_hat) / len(tokens)
                new_bias = new_bias + delta_hat / len(tokens)
            eta = dafnet.step_sizes[m]
            change = (1 - u) * change + u * eta * new
            bias = (1 - u) * bias + u * eta * new_bias
        weight = model.get_parameter(module.weight_name).detach()
        parameters[module.weight_name] = weight + (change.T if module.transposed else change)
        if dafnet.edit_bias:
            parameters[module.bias_name] = model.get_parameter(module.bias_name).detach() + bias
    return parameters


def plain_losses(
    model: Any,
    tok: Any,
    records: Sequence[Mapping[str, Any]],
    passage: Text,
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Mean loss per target token of each kind, all texts of the records and one passage."""
    learnt = {
        "reliability": [(r["prompt"], r["target_new"]) for r in records],
        "rephrase": [
            (r["rephrase_prompt"], r["target_new"]) for r in records if "rephrase_prompt" in r
        ],
        "prefix": [
            (f"{r['prefix']} {r['prompt']}", r["target_new"]) for r in records if "prefix" in r
        ],
    }
    losses: dict[str, Tensor] = {}
    for name, pairs in learnt.items():
        texts = [ids_and_start(tok, *pair) for pair in pairs]
        each = [-target_log_probability(model, *text, parameters) for text in texts]
        losses[name] = torch.stack(each).sum() / sum(len(ids) - start for ids, start in texts)

    def divergences(ids: Tensor, positions: Sequence[int]) -> list[Tensor]:
        before = log_probabilities(model, ids, {}).detach()
        after = log_probabilities(model, ids, parameters)
        return [(before[t].exp() * (before[t] - after[t])).sum() for t in positions]

    kept = []
    for r in records:
        if "locality_prompt" in r:
            ids, start = ids_and_start(tok, r["locality_prompt"], r["locality_ground_truth"])
            kept += divergences(ids, range(start - 1, len(ids) - 1))
    losses["locality"] = torch.stack(kept).mean()
    asked = [t for t, label in enumerate(passage.labels.tolist()) if label != IGNORE]
    losses["passage"] = torch.stack(divergences(passage.ids, asked)).mean()
    return losses
