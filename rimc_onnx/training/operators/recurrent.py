# SPDX-License-Identifier: Apache-2.0
"""Recurrent operators, step by step along the sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rimc_onnx.training.node_spec import NodeSpec, Operator, Table

__all__ = ["TABLE"]

Function = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Function] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Direction:
    """What one direction reads at every step; H hidden values, G gates one after the other."""

    recurrence: Tensor
    """R, [G H, H]"""
    bias: Tensor
    """Of the recurrence, [G H]"""
    peephole: Tensor | None
    """P, [3 H], of LSTM"""
    activations: Sequence[Function]
    clip: Function
    """Of what the activations are given."""


States = tuple[Tensor, ...]
Step = Callable[[Tensor, States, _Direction], States]
"""States after a step, the output first, from what the inputs give to the gates, [N, G H]."""


def _rnn(_spec: NodeSpec) -> Step:
    def step(x: Tensor, states: States, one: _Direction) -> States:
        (f,) = one.activations
        return (f(one.clip(x + states[0] @ one.recurrence.t() + one.bias)),)

    return step


def _gru(spec: NodeSpec) -> Step:
    is_linear_first = bool(spec.get("linear_before_reset", 0))

    def step(x: Tensor, states: States, one: _Direction) -> States:
        f, g = one.activations
        (h,) = states
        size = h.shape[1]
        x_gates, x_hidden = torch.split(x, [2 * size, size], 1)
        r_gates, r_hidden = torch.split(one.recurrence, [2 * size, size])
        b_gates, b_hidden = torch.split(one.bias, [2 * size, size])
        z, r = f(one.clip(x_gates + h @ r_gates.t() + b_gates)).chunk(2, 1)
        if is_linear_first:
            hidden = r * (h @ r_hidden.t() + b_hidden)
        else:
            hidden = (r * h) @ r_hidden.t() + b_hidden
        return ((1 - z) * g(one.clip(x_hidden + hidden)) + z * h,)

    return step


def _lstm(spec: NodeSpec) -> Step:
    is_coupled = bool(spec.get("input_forget", 0))

    def step(x: Tensor, states: States, one: _Direction) -> States:
        f, g, last = one.activations
        h, c = states
        i, o, forget, cell = (x + h @ one.recurrence.t() + one.bias).chunk(4, 1)
        p = None if one.peephole is None else one.peephole.chunk(3)
        if p is not None:
            i, forget = i + p[0] * c, forget + p[2] * c
        i = f(one.clip(i))
        kept = 1 - i if is_coupled else f(one.clip(forget))
        c = kept * c + i * g(one.clip(cell))
        if p is not None:
            o = o + p[1] * c
        return f(one.clip(o)) * last(c), c

    return step


def _sequence(make: Callable[[NodeSpec], Step], defaults: Sequence[str]) -> Callable[..., Operator]:
    """The operator that takes ``make``'s step along a sequence, in one or two directions."""

    def factory(spec: NodeSpec) -> Operator:
        direction = spec.get("direction", "forward")
        num_directions = 2 if direction == "bidirectional" else 1
        names = [str(n).lower() for n in spec.get("activations") or list(defaults) * num_directions]
        unknown = [n for n in names if n not in _ACTIVATIONS]
        if unknown:
            raise spec.refuse(f"the activation {unknown[0]!r} is not supported.")
        functions = [_ACTIVATIONS[n] for n in names]
        batch_first = bool(spec.get("layout", 0))
        limit = spec.get("clip")
        clip = (lambda v: v.clamp(-limit, limit)) if limit else (lambda v: v)
        step = make(spec)
        num_states = 2 if spec.op_type == "LSTM" else 1

        def run(
            x: Tensor,
            w: Tensor,
            r: Tensor,
            b: Tensor | None = None,
            lengths: Tensor | None = None,
            *rest: Tensor | None,
        ) -> tuple[Tensor, ...]:
            given = [*rest, *[None] * 3]
            peephole = given[num_states]
            x = x.transpose(0, 1) if batch_first else x
            outputs, ends = [], []
            for d in range(num_directions):
                bias = b[d] if b is not None else w.new_zeros(2 * w.shape[1])
                of_inputs, of_recurrence = bias.chunk(2)
                one = _Direction(
                    recurrence=r[d],
                    bias=of_recurrence,
                    peephole=None if peephole is None else peephole[d],
                    activations=functions[d * len(defaults) : (d + 1) * len(defaults)],
                    clip=clip,
                )
                states = tuple(
                    x.new_zeros(x.shape[1], r.shape[2])
                    if state is None
                    else (state[:, d] if batch_first else state[d])
                    for state in given[:num_states]
                )
                is_backward = direction == "reverse" or d == 1
                gates = x @ w[d].t() + of_inputs
                gates = _backward(gates, lengths) if is_backward else gates
                found, states = _along(step, gates, states, one, lengths)
                outputs.append(_backward(found, lengths) if is_backward else found)
                ends.append(states)
            y = torch.stack(outputs, 1)
            last = [
                torch.stack(parts, 1 if batch_first else 0) for parts in zip(*ends, strict=True)
            ]
            return (y.permute(2, 0, 1, 3) if batch_first else y, *last)

        return run

    return factory


def _along(
    step: Step, gates: Tensor, states: States, one: _Direction, lengths: Tensor | None
) -> tuple[Tensor, States]:
    """Outputs [T, N, H] and last states; behind the end of a sequence zeros, and no step."""
    outputs = []
    for t, x in enumerate(gates):
        after = step(x, states, one)
        output = after[0]
        if lengths is not None:
            goes_on = (t < lengths)[:, None]
            after = tuple(torch.where(goes_on, a, s) for a, s in zip(after, states, strict=True))
            output = torch.where(goes_on, output, torch.zeros_like(output))
        states = after
        outputs.append(output)
    return torch.stack(outputs) if outputs else gates.new_zeros(0, *states[0].shape), states


def _backward(values: Tensor, lengths: Tensor | None) -> Tensor:
    """Every sequence of [T, N, ...] from its end; what lies behind the end stays."""
    if lengths is None:
        return values.flip(0)
    at = torch.arange(len(values), device=values.device)[:, None]
    order = torch.where(at < lengths, lengths - 1 - at, at).long()
    return values.gather(0, order[..., None].expand_as(values))


TABLE: Table = {
    "GRU": _sequence(_gru, ("Sigmoid", "Tanh")),
    "LSTM": _sequence(_lstm, ("Sigmoid", "Tanh", "Tanh")),
    "RNN": _sequence(_rnn, ("Tanh",)),
}
