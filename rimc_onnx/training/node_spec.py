# SPDX-License-Identifier: Apache-2.0
"""What the operator table is told of a node: attributes and constant operands, read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Factory", "NodeSpec", "Operator", "Table"]

Operator = Callable[..., "Tensor | tuple[Tensor | None, ...]"]
"""Called with the values of a node's inputs, ``None`` for those left out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeSpec:
    """One node of the default domain."""

    name: str
    op_type: str
    opset: int
    """Of the model's default domain."""
    attributes: Mapping[str, Any]
    """Plain Python values; tensors are numpy arrays."""
    constants: Sequence[npt.NDArray[Any] | None]
    """Value of every input that is known before the model runs."""
    num_inputs: int
    num_outputs: int

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default``."""
        return self.attributes.get(name, default)

    def refuse(self, reason: str) -> ModelError:
        """The error of a node that can't be imported."""
        return ModelError(f"node '{self.name}' ({self.op_type}): {reason}")

    def has(self, index: int) -> bool:
        """True where input ``index`` is connected; constant operands count."""
        return index < self.num_inputs

    def ints(self, index: int, attribute: str | None = None) -> Callable[..., list[int] | None]:
        """Reads whole numbers from an attribute, a constant operand, or the operand of a call.

        The function takes the node's inputs and gives None where neither is there.
        """
        if attribute is not None and attribute in self.attributes:
            fixed = [int(v) for v in np.atleast_1d(self.attributes[attribute])]
            return lambda *_: fixed
        constant = self.constants[index] if index < len(self.constants) else None
        if constant is not None:
            known = [int(v) for v in np.asarray(constant).reshape(-1)]
            return lambda *_: known

        def read(*inputs: Tensor | None) -> list[int] | None:
            value = inputs[index] if index < len(inputs) else None
            return None if value is None else [int(v) for v in value.reshape(-1).tolist()]

        return read


Factory = Callable[[NodeSpec], Operator]
Table = dict[str, Factory]
