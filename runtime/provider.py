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

from rimc_onnx.errors import ConfigError, ModelError, NodeMappingError, RimcError, one_line
from rimc_onnx.ops.refusals import Refusal
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
    "mapped_session",
    "nothing_runs",
    "provider_session",
    "register_plugin",
    "register_provider",
    "translated",
]

PROVIDER_NAME: Final = "RimcExecutionProvider"

_OLDEST: Final = (1, 24)
_MAX_REASONS: Final = 4
_MADE_NAMES: Final = ("_inlfunc_", "MatMulBnFusion_")
"""How names begin that ONNX Runtime makes: of what it inlines, of a MatMul and a batch norm."""
_FUSION: Final = "MatMulAddFusion"
"""Makes a Gemm of a MatMul and an Add whose shapes need not be known to fit an array's bias."""
_REWRITTEN: Final = (
    Refusal.AUTO_PAD,
    Refusal.BATCHED,
    Refusal.BIAS_NOT_A_ROW,
    Refusal.BIAS_NOT_STORED,
    Refusal.CONV_TRANSPOSE,
    Refusal.DTYPE,
    Refusal.NOT_STORED,
    Refusal.OVERRIDABLE,
    Refusal.TRANSPOSED,
)
"""What a conversion may rewrite so that the node goes to an array."""
_MOST_PROTOBUF_BYTES: Final = (1 << 31) - (1 << 20)
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
    ``rimc_onnx.jobs.provider_options`` makes them as a conversion would. Nodes are those that a
    conversion maps, under its names: where ONNX Runtime shows the provider another form of one
    (float16, ``transA``, ConvTranspose, no name), the model is opened in the form of a conversion.

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
        ModelError: a weight has NaN or infinite values, or ONNX Runtime can't load the model.
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
    before = kernels_created()
    with compiled_options(texts) as native:
        # Naming the provider in `providers` would not bring its operators.
        session_options.add_provider_for_devices(register_provider(), native)
        session = mapped_session(model, session_options, native)
    if kernels_created() == before:
        raise nothing_runs(model, texts)
    return session


def mapped_session(
    model: str | Path | bytes,
    session_options: onnxruntime.SessionOptions,
    native: Mapping[str, str],
) -> onnxruntime.InferenceSession:
    """A session with the provider among ``session_options``; ``native`` are its options.

    Raises:
        RimcError: see :func:`provider_session`.
    """
    source: Any = model if isinstance(model, bytes) else str(model)
    session = _session(source, session_options, name=_name(model))
    again = _rewritten(model, native) if "device" in native else None
    if again is None:
        return session
    if not isinstance(model, bytes):
        folder = str(Path(model).resolve().parent)
        session_options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, folder)
    return _session(again, session_options, name=_name(model), fuses=False)


def last_mapping() -> list[NodeMapping]:
    """What the calling thread's last session with the provider made of an ordinary model's nodes.

    Names and types are those that ONNX Runtime showed the provider, in its order: its own basic
    optimizations come before, so a MatMul and its Add may be a Gemm of the MatMul's name.
    """
    library = _library()
    return [NodeMapping(**entry) for entry in json.loads(library.RimcLastMapping().decode())]


def _session(
    source: Any, options: onnxruntime.SessionOptions, *, name: str, fuses: bool = True
) -> onnxruntime.InferenceSession:
    import onnxruntime

    disabled = [] if fuses else [_FUSION]
    try:
        # The fallback of the Python binding would run a refused model on the CPU provider instead.
        return onnxruntime.InferenceSession(
            source, options, enable_fallback=0, disabled_optimizers=disabled
        )
    except MemoryError:
        raise
    except Exception as error:
        own = translated(error)
        if isinstance(own, RimcError):
            raise own from error
        raise ModelError(
            f"{name}: ONNX Runtime can't load it ({one_line(error)[:300].rstrip('.')})."
        ) from error


def _name(model: str | Path | bytes) -> str:
    return "the model" if isinstance(model, bytes) else str(model)


def _is_unnamed(name: str) -> bool:
    """True of a node without a name, or with one that ONNX Runtime made."""
    return not name or name.startswith(_MADE_NAMES)


def _rewritten(model: str | Path | bytes, options: Mapping[str, str]) -> bytes | None:
    """The model in the form in which a conversion maps it, where that has more on crossbars.

    1. Nodes that stayed digital though a conversion maps them (float16, transposed operands,
       ConvTranspose, axes of size 1): the graph that :func:`rimc_onnx.passes.prepare_pipeline`
       makes, float16 products in float32.
    2. Nodes without a name alone: the same graph with the names that a conversion gives.
    3. Neither, or more weights than one protobuf holds: nothing.
    """
    shown = last_mapping()
    kept = [pattern for pattern in options.get("keep_digital", "").split(";") if pattern]
    is_unnamed = any(_is_unnamed(m.name) for m in shown)
    if not is_unnamed and not any(
        m.reason and any(refusal.gave(m.reason) for refusal in _REWRITTEN) for m in shown
    ):
        return None
    import onnx
    import onnx_ir as ir

    from rimc_onnx import passes
    from rimc_onnx.crossbar import ConvertConfig

    def graph() -> ir.Model:
        if isinstance(model, bytes):
            found = ir.serde.deserialize_model(onnx.load_from_string(model))
        else:
            found = ir.serde.deserialize_model(onnx.load(str(model), load_external_data=False))
            ir.external_data.set_base_dir(found.graph, Path(model).resolve().parent)
        found.graph.sort()  # ONNX Runtime takes nodes in any order, passes do not
        return found

    prepared = graph()
    try:
        passes.prepare_pipeline(keep_digital=kept)(prepared)
        decisions = passes.select_rram_nodes(prepared, ConvertConfig(map_shared=True))
    except RimcError:  # a conversion refuses what ONNX Runtime runs
        decisions = []
    units = [d.unit for d in decisions if d.unit and passes.is_kept_digital(d.name, kept) is None]
    mapped = {m.name for m in shown if m.reason is None}
    more = any(unit.name not in mapped for unit in units)
    tensors = [v.const_value for v in prepared.graph.initializers.values() if v.const_value]
    if more and sum(t.nbytes for t in tensors) < _MOST_PROTOBUF_BYTES:
        passes.CastHalfProductsPass(units)(prepared)
        return bytes(ir.serde.serialize_model(prepared).SerializeToString())
    if not is_unnamed:
        return None
    named = graph()
    passes.InlineFunctionsPass()(named)
    passes.NameNodesPass()(named)
    return bytes(ir.serde.serialize_model(named).SerializeToString())


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
