# SPDX-License-Identifier: Apache-2.0
"""A name of its own for every node."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["NameNodesPass"]


class NameNodesPass(ir.passes.InPlacePass):
    """Name nodes, since draws, ranges and adapters are keyed by the node's name.

    1. Node without a name: ``<op type>_<n>``, n its position in the model, bodies of subgraphs
       counted where they stand; ``<op type>_<n>_1`` and so on if that name is taken.
    2. Node with the name of an earlier node: the same suffix.
    3. Node with a name of its own: left alone, so the pass is idempotent.
    """

    def __str__(self) -> str:
        return "NameNodesPass()"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name in place."""
        nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
        given = {node.name for node in nodes}
        seen: set[str] = set()
        modified = False
        for position, node in enumerate(nodes):
            if node.name and node.name not in seen:
                seen.add(node.name)
                continue
            base = node.name or f"{node.op_type}_{position}"
            name, i = base, 0
            while name in given or name in seen:
                i += 1
                name = f"{base}_{i}"
            node.name = name
            seen.add(name)
            modified = True
        return ir.passes.PassResult(model, modified)
