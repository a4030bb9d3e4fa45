# SPDX-License-Identifier: Apache-2.0
"""Adapters in files of their own, which ONNX Runtime swaps into a live session.

An ``.onnx_adapter`` file holds the inputs of Dora nodes by the names they have among the inputs of
a swappable model. It has no room for metadata but three numbers: ``adapter_version`` is the version
of the operator set, ``model_version`` the first 31 bits of :func:`rram_digest`. ONNX Runtime looks
at neither; :func:`read_adapter_file` does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rimc_onnx import passes
from rimc_onnx.errors import ModelError, UsageError, suggest
from rimc_onnx.io.outputs import Outputs
from rimc_onnx.ops import schema
from rimc_onnx.ops.adapter import QuantizedAdapter

__all__ = ["put_adapters", "read_adapter_file", "rram_digest", "write_adapter_file"]

_ADAPTER_FORMAT = "1.20"
"""ONNX Runtime that brought adapter files."""


def rram_digest(model: ir.Model) -> str:
    """Sha256 (hex) of the arrays: every crossbar's node name, shape and realised weight.

    Adapters, converters, names of values and the order of nodes are not in it: it is the same
    before and after calibration, and another one for another seed, device, drift or age.
    """
    digest = hashlib.sha256()
    for branch in sorted(passes.rram_branches(model), key=lambda b: b.node):
        weight = branch.rram.inputs[1]
        if weight is None or weight.const_value is None:
            raise ModelError(f"node '{branch.rram.name}' has no weight. Convert again.")
        array = np.ascontiguousarray(weight.const_value.numpy(), "<f4")
        digest.update(f"{branch.node}\0{list(array.shape)}\0".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write_adapter_file(
    path: str | Path,
    adapters: Mapping[str, QuantizedAdapter],
    model: ir.Model,
    *,
    force: bool = False,
) -> None:
    """Write adapters of ``model`` alone (:func:`put_adapters`).

    Args:
        path: the file, by convention ``*.onnx_adapter``.
        adapters: node name -> adapter; a node that is not there keeps what its model holds.
        model: the converted model they were fitted for, swappable or not.
        force: replace an existing file.

    Raises:
        ModelError: an adapter does not fit the model.
        OutputError: the file exists and ``force`` is False, or the disk refuses.
        UsageError: ONNX Runtime is older than 1.20, or there are no adapters.
    """
    with Outputs(force=force) as out:
        put_adapters(Path(path), adapters, model, out)


def put_adapters(
    path: Path, adapters: Mapping[str, QuantizedAdapter], model: ir.Model, out: Outputs
) -> None:
    """Make adapters of ``model`` one of a job's files; see :func:`write_adapter_file`."""
    onnxruntime = _onnxruntime()
    if not adapters:
        raise UsageError(f"{path}: there is no adapter to write.")
    _check_fit(adapters, model)
    parameters = {}
    for branch in passes.rram_branches(model):
        if branch.node not in adapters:
            continue
        tensors = adapters[branch.node].tensors()
        for name, value in passes.adapter_values(branch).items():
            array = np.ascontiguousarray(tensors[name])
            parameters[str(value.name)] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    adapter_format = onnxruntime.AdapterFormat()
    adapter_format.set_adapter_version(schema.VERSION)
    adapter_format.set_model_version(_model_version(model))
    adapter_format.set_parameters(parameters)
    adapter_format.export_adapter(str(out.folder(path) / path.name))


def read_adapter_file(path: str | Path, model: ir.Model) -> dict[str, QuantizedAdapter]:
    """Adapters of a file by node name, checked against the model that they are for.

    Raises:
        ModelError: not an adapter file, or one of other arrays, names or shapes.
        UsageError: ONNX Runtime is older than 1.20.
    """
    onnxruntime = _onnxruntime()
    path = Path(path)
    if not os.path.isfile(path):
        raise ModelError(f"{path}: no such file. Give the path of an .onnx_adapter file.")
    try:
        adapter_format = onnxruntime.AdapterFormat.read_adapter(str(path))
        found = {name: v.numpy() for name, v in adapter_format.get_parameters().items()}
    except Exception as error:  # RuntimeError, with a stack trace in its text; sizes beyond memory
        raise ModelError(
            f"{path}: not an ONNX Runtime adapter file, or truncated. Write or copy it again."
        ) from error
    version = adapter_format.get_adapter_version()
    if version != schema.VERSION:
        raise ModelError(
            f"{path}: its adapters are of version {version} of {schema.DOMAIN}, the model's are of "
            f"version {schema.VERSION}. Calibrate again."
        )
    if adapter_format.get_model_version() != _model_version(model):
        raise ModelError(
            f"{path}: was made for other arrays (another model, seed, device or age). "
            "Calibrate this model."
        )
    adapters = _by_node(path, found, model)
    try:
        _check_fit(adapters, model)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return adapters


def _by_node(
    path: Path, found: Mapping[str, npt.NDArray[Any]], model: ir.Model
) -> dict[str, QuantizedAdapter]:
    rest = dict(found)
    adapters = {}
    known: list[str] = []
    for branch in passes.rram_branches(model):
        names = {str(v.name): key for key, v in passes.adapter_values(branch).items()}
        known += names
        tensors = {key: rest.pop(name) for name, key in names.items() if name in rest}
        if not tensors:
            continue
        for name, key in names.items():
            if key not in tensors:
                raise ModelError(f"{path}: lacks '{name}'. Write it again.")
        try:
            adapters[branch.node] = QuantizedAdapter(**tensors)
        except ValueError as error:
            raise ModelError(f"{path}: node '{branch.node}': {error}. Write it again.") from error
    for name in rest:
        raise ModelError(
            f"{path}: '{name}' is no adapter input of this model. " + suggest(name, known)
        )
    return adapters


def _check_fit(adapters: Mapping[str, QuantizedAdapter], model: ir.Model) -> None:
    """The checks of a converted model, made on a copy that holds the adapters."""
    branches = [b for b in passes.rram_branches(model) if b.node in adapters]
    for branch in branches:
        tensors = adapters[branch.node].tensors()
        for name, value in passes.adapter_values(branch).items():
            if value.dtype is not None and tensors[name].dtype != value.dtype.numpy():
                wanted = value.dtype.name.lower()
                raise _error(branch, f"input '{name}' must be {wanted}, got {tensors[name].dtype}")
    copy = model.clone()
    passes.AttachAdaptersPass(adapters)(copy)
    passes.check_rimc_model(copy)


def _error(branch: passes.RramBranch, what: str) -> ModelError:
    return ModelError(f"node '{branch.dora.name}' ({branch.dora.op_type}): {what}.")


def _model_version(model: ir.Model) -> int:
    """31 bits, so that it is positive in every language."""
    return int(rram_digest(model)[:8], 16) >> 1


def _onnxruntime() -> Any:
    import onnxruntime  # here, since `rimc-onnx --help` must not load it

    if not hasattr(onnxruntime, "AdapterFormat"):
        raise UsageError(
            f"adapter files need ONNX Runtime {_ADAPTER_FORMAT} or newer, this is "
            f"{onnxruntime.__version__}. Upgrade onnxruntime."
        )
    return onnxruntime
