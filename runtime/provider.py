# SPDX-License-Identifier: Apache-2.0
"""The native library as an execution provider of ONNX Runtime, 1.24 or newer.

Registered once per process, it brings the kernels of the ``ai.rimc`` operators to a session and, on
request, runs the Conv, Gemm and MatMul nodes of an ordinary float32 model on simulated crossbars.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rimc_onnx.errors import ConfigError, ModelError, NodeMappingError
from rimc_onnx.ops.schema import DOMAIN, has_rimc_node
from rimc_onnx.runtime import (
    NativeLibraryError,
    _library,
    kernels_created,
    library_path,
)
from rimc_onnx.runtime.device_options import compiled_options

if TYPE_CHECKING:
    import onnxruntime

__all__ = [
    "PROVIDER_NAME",
    "NodeMapping",
    "devices_of",
    "has_plugins",
    "last_mapping",
    "nothing_runs",
    "provider_session",
    "register_plugin",
    "register_provider",
    "translated",
]

PROVIDER_NAME: Final = "RimcExecutionProvider"

_OLDEST: Final = (1, 24)
_MAX_REASONS: Final = 4
_INLINED: Final = "_inlfunc_"
"""What ONNX Runtime puts before names of nodes that it inlines."""
_EXTERNAL_DATA_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_registering = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class NodeMapping:
    """What the provider made of one node that multiplies matrices."""

    name: str
    op_type: str
    reason: str | None
    """Why the node stays digital; None if it runs on a crossbar."""


def register_provider() -> Sequence[onnxruntime.OrtEpDevice]:
    """The devices of the provider, registered with ONNX Runtime unless it is already.

    Raises:
        NativeLibraryError: the library is missing, or ONNX Runtime is older than 1.24 or refuses
            it.
    """
    import onnxruntime  # here, since `rimc-onnx --help` must not load it

    if not has_plugins():
        raise NativeLibraryError(
            f"{PROVIDER_NAME} needs ONNX Runtime 1.24 or newer, got {onnxruntime.__version__}. "
            "Update onnxruntime, or run a converted model with make_session."
        )
    path = library_path()
    try:
        devices = register_plugin(PROVIDER_NAME, path)
    except Exception as error:  # the bindings have no common base class for statuses
        raise NativeLibraryError(
            f"ONNX Runtime can't register {path}: {_last_line(error)}"
        ) from error
    if not devices:
        raise NativeLibraryError(f"{PROVIDER_NAME} found no processor that ONNX Runtime knows.")
    return devices


def has_plugins() -> bool:
    """True where ONNX Runtime takes this library, and others built for 1.24, as providers."""
    import onnxruntime

    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2]) >= _OLDEST


def register_plugin(name: str, library: Path) -> list[onnxruntime.OrtEpDevice]:
    """Devices of a provider, its library registered unless a provider of the name is already."""
    import onnxruntime

    with _registering:
        if not devices_of(name):
            onnxruntime.register_execution_provider_library(name, str(library))
        return devices_of(name)


def devices_of(name: str) -> list[onnxruntime.OrtEpDevice]:
    """What ONNX Runtime has for a provider; nothing where it is not registered."""
    import onnxruntime

    return [d for d in onnxruntime.get_ep_devices() if d.ep_name == name]


def provider_session(
    model: str | Path | bytes,
    *,
    provider_options: Mapping[str, object] | None = None,
    num_threads: int | None = None,
    options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """Open a model with the provider; nodes that it does not run stay with the CPU provider.

    A converted model needs no options. An ordinary model is programmed into crossbars here, by
    ``provider_options``: ``preset``, or ``device`` (JSON of a ``rimc_onnx.device.DeviceConfig``, or
    ``@`` and the path of a compiled one), ``time_s``, ``seed``, ``scaling`` (``node`` or
    ``column``), ``mapping`` (JSON of ``scaling`` and ``clip_sigma`` by node), ``keep_digital``
    (patterns of node names, a list or one text with ``;`` between them), of a device
    ``drift_frac``, ``drift_mean_frac``, ``g_max_us``, ``g_min_us``, ``clip_sigma``,
    ``stuck_min_frac``, ``stuck_max_frac``, ``level_bits``, ``num_slices``,
    ``devices_per_weight``, ``device_reads`` (False leaves out read noise and I-V curve that the
    device model states), and ``periphery`` (JSON of attributes by node).
    ``rimc_onnx.jobs.provider_options`` makes them as a conversion would. Nodes without a name, and
    those of model-local functions, have the names that a conversion gives them.

    Args:
        model: path of the file, or the serialised model.
        provider_options: see above.
        num_threads: threads inside an operator; ``None`` leaves it to ONNX Runtime.
        options: session configuration entries of ONNX Runtime.

    Raises:
        NativeLibraryError: the provider can't be used, or a converted model runs none of its nodes
            on it.
        ConfigError: an option is not known, or its value is bad.
        NodeMappingError: no node of the model runs on a crossbar.
        ModelError: a weight has NaN or infinite values.
    """
    import onnxruntime

    texts = {name: _text(value) for name, value in (provider_options or {}).items()}
    session_options = onnxruntime.SessionOptions()
    # Errors are raised; that some nodes are not the provider's is a warning of ONNX Runtime's.
    session_options.log_severity_level = 4
    if num_threads is not None:
        session_options.intra_op_num_threads = num_threads
    for key, value in (options or {}).items():
        session_options.add_session_config_entry(key, value)
    source: Any = model if isinstance(model, bytes) else str(model)
    before = kernels_created()
    with compiled_options(texts) as native:
        # Naming the provider in `providers` would not bring its operators.
        session_options.add_provider_for_devices(register_provider(), native)
        session = _session(source, session_options)
        if "device" in native and any(_is_unnamed(m.name) for m in last_mapping()):
            if not isinstance(model, bytes):
                folder = str(Path(model).resolve().parent)
                session_options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, folder)
            session = _session(_named(model), session_options)
    if kernels_created() == before:
        raise nothing_runs(model, texts)
    return session


def last_mapping() -> list[NodeMapping]:
    """What the calling thread's last session with the provider made of an ordinary model's nodes.

    Names and types are those that ONNX Runtime showed the provider, in its order: its own basic
    optimizations come before, so a MatMul and its Add may be a Gemm of the MatMul's name.
    """
    library = _library()
    return [NodeMapping(**entry) for entry in json.loads(library.RimcLastMapping().decode())]


def _session(source: Any, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        # The fallback of the Python binding would run a refused model on the CPU provider instead.
        return onnxruntime.InferenceSession(source, options, enable_fallback=0)
    except Exception as error:
        raise translated(error) from error


def _is_unnamed(name: str) -> bool:
    """True of a node without a name, or with one that ONNX Runtime made when it inlined it."""
    return not name or name.startswith(_INLINED)


def _named(model: str | Path | bytes) -> bytes:
    """The model with the names that a conversion gives to nodes without one."""
    import onnx
    from onnxscript import ir

    from rimc_onnx import passes

    if isinstance(model, bytes):
        proto = onnx.load_from_string(model)
    else:
        proto = onnx.load(str(model), load_external_data=False)
    graph = ir.serde.deserialize_model(proto)
    passes.InlineFunctionsPass()(graph)
    passes.NameNodesPass()(graph)
    return bytes(ir.serde.serialize_model(graph).SerializeToString())


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list | tuple):
        return ";".join(str(part) for part in value)
    return str(value)


def nothing_runs(model: str | Path | bytes, options: Mapping[str, str]) -> Exception:
    """The error where no node of the calling thread's last session runs on the provider."""
    name = "the model" if isinstance(model, bytes) else str(model)
    if "preset" in options or "device" in options:
        reasons = [f"'{m.name}': {m.reason}" for m in last_mapping()]
        more = f"; {len(reasons) - _MAX_REASONS} more" if len(reasons) > _MAX_REASONS else ""
        why = "; ".join(reasons[:_MAX_REASONS]) + more or "it has no Conv, Gemm or MatMul"
        return NodeMappingError(f"{name}: no node can go to a crossbar ({why}).")
    if has_rimc_node(model if isinstance(model, bytes) else Path(model)):
        return NativeLibraryError(
            f"{name} has {DOMAIN} nodes but runs none on {PROVIDER_NAME}. Run it with make_session."
        )
    return NodeMappingError(
        f"{name} has no {DOMAIN} nodes. Give the provider option preset to program its weights."
    )


def _last_line(error: Exception) -> str:
    return str(error).rpartition("] : ")[2].rpartition(" : ")[2].strip()


def translated(error: Exception) -> Exception:
    """The error of ours that ONNX Runtime wrapped, or its own."""
    text = str(error)
    if "): option periphery: " in text:
        return ConfigError(text[text.index("node '") :].strip())
    if "provider option" in text:
        return ConfigError(text[text.index("provider option") :].strip())
    if "no conductance can hold them" in text:
        return ModelError(text[text.index("node '") :].strip())
    return error
