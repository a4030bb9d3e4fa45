# SPDX-License-Identifier: Apache-2.0
"""Equal word lines for a float model: files in, files out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rimc_onnx import passes
from rimc_onnx.errors import ModelError
from rimc_onnx.io.model_files import blame_model, files_of, load_model, save_model
from rimc_onnx.io.outputs import check_output, output_of
from rimc_onnx.jobs.reports import EqualizedNodeReport, EqualizeReport

__all__ = ["equalize"]


def equalize(
    model: str | Path,
    output: str | Path | None = None,
    *,
    keep_digital: Sequence[str] = (),
    force: bool = False,
) -> EqualizeReport:
    """Scale inputs of unequal strength by powers of two, and their weights by the inverse.

    The output has the structure that is mapped (functions inlined, nodes named, opset 7 or newer,
    batch normalisations folded, Gemm as MatMul and Add), and is converted and calibrated in place
    of ``model``: it is the teacher then. It gives the same results, bit by bit in fp32 where no
    batch normalisation was folded and no product rewritten, elsewhere up to rounding. What it does:
    :class:`.EqualizeWordLinesPass`.

    Args:
        model: a float model, as ``convert`` takes it.
        output: default ``<model>.equalized.onnx``.
        keep_digital: patterns of nodes that are left alone, as ``convert`` keeps them digital.
        force: replace an existing output.

    Raises:
        ModelError: the model is converted already.
        RimcError: see the subclasses; nothing is written then.
    """
    start = time.perf_counter()
    source = Path(model)
    graph = load_model(source)
    if passes.is_converted(graph):
        raise ModelError(f"{source}: has its weights in RRAM. Give the float model.")
    target = output_of(source, output, ".equalized.onnx")
    check_output(target, force=force, reads=files_of(source))
    with blame_model(source):
        equalized = passes.equalize_model(graph, keep_digital=tuple(keep_digital))
    save_model(graph, target, force=force)
    return EqualizeReport(
        output=str(target),
        nodes=[
            EqualizedNodeReport(
                name=node.name,
                op_type=node.op_type,
                channels=node.channels,
                error_share=node.error_share,
            )
            for node in equalized
        ],
        seconds=time.perf_counter() - start,
    )
