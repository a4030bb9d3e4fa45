# SPDX-License-Identifier: Apache-2.0
"""Any execution provider of ONNX Runtime as the device: a vendor's, in place of the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rimc_onnx.errors import ModelError, UsageError
from rimc_onnx.ops import schema
from rimc_onnx.runtime.device_options import compiled_options
from rimc_onnx.runtime.provider import (
    PROVIDER_NAME,
    devices_of,
    has_plugins,
    mapped_session,
    nothing_runs,
    register_plugin,
    register_provider,
)

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["ProviderDevice", "ProviderSession", "provider_device"]

Array = npt.NDArray[np.generic]

_CPU = "CPUExecutionProvider"
_RRAM = (schema.RRAM_CONV, schema.RRAM_MATMUL)


class ProviderSession:
    """A session on a provider; what goes wrong in a run is one line that names the provider."""

    def __init__(self, session: onnxruntime.InferenceSession, provider: str) -> None:
        self._session, self._provider = session, provider

    def run(self, output_names: Sequence[str] | None, feeds: dict[str, Array]) -> list[Any]:
        """Outputs in the order of their names.

        Raises:
            ModelError: the provider fails.
        """
        try:
            outputs: list[Any] = self._session.run(output_names, feeds)
        except Exception as error:  # the bindings have no common base class for statuses
            raise ModelError(f"{self._provider} fails in a run ({_brief(error)}).") from error
        return outputs


@dataclass(frozen=True, kw_only=True)
class ProviderDevice:
    """Makes sessions on one execution provider; see :func:`provider_device`."""

    name: str
    """Of the provider."""
    options: Mapping[str, str]
    devices: Sequence[Any]
    """``OrtEpDevice`` of a plugin; none of a provider that is part of ONNX Runtime."""

    def __call__(self, model: bytes) -> ProviderSession:
        """A session of a model.

        Raises:
            ModelError: the provider can't load the model or, with ONNX Runtime 1.24 or newer, none
                of the nodes of a model with crossbars runs on it.
        """
        session = _open(model, self.name, self.options, self.devices)
        if self.name not in session.get_providers():
            raise ModelError(
                f"ONNX Runtime has {self.name} but can't start it here; it would run the model on "
                f"{', '.join(session.get_providers())}."
            )
        if not _is_used(session, model, self.name):
            if self.name == PROVIDER_NAME:
                raise nothing_runs(model, self.options)
            raise ModelError(
                f"{self.name} takes none of the model's nodes, all would run on {_CPU}. Of a "
                f"converted model it has to take {schema.DOMAIN} {' and '.join(_RRAM)}, or "
                "operators of their bodies."
            )
        return ProviderSession(session, self.name)


def provider_device(
    name: str,
    *,
    options: Mapping[str, str] | None = None,
    library: str | Path | None = None,
) -> ProviderDevice:
    """A device for ``calibrate`` and ``evaluate``: makes sessions on one execution provider.

    Nodes that the provider does not take run on the CPU provider, those of the domain ``ai.rimc``
    as function bodies or by the operators that the provider brings. ``RimcExecutionProvider`` needs
    no ``library``.

    Args:
        name: of the provider, as ONNX Runtime has it.
        options: the provider's own.
        library: file of a plugin provider, registered with ONNX Runtime (1.24 or newer) unless a
            provider of that name is already.

    Raises:
        UsageError: ONNX Runtime knows no such provider, or it takes no options.
        NativeLibraryError: ``name`` is that of the native library, and it can't be used.
    """
    devices = _find(name, library)
    if name == _CPU and options:
        raise UsageError(f"{_CPU} takes no provider options, got {', '.join(options)}.")
    return ProviderDevice(name=name, options=dict(options or {}), devices=devices)


def _find(name: str, library: str | Path | None) -> Sequence[onnxruntime.OrtEpDevice]:
    """The plugin's devices; none for a provider that is part of ONNX Runtime."""
    import onnxruntime  # here, since `rimc-onnx --help` must not load it

    if library is not None:
        return _find_plugin(name, Path(library))
    if name == PROVIDER_NAME:
        return register_provider()
    if name == _CPU:
        return []
    known = set(onnxruntime.get_available_providers())
    devices = devices_of(name) if has_plugins() else []
    if not devices and name not in known:
        known |= {PROVIDER_NAME} if has_plugins() else set()
        raise UsageError(
            f"ONNX Runtime {onnxruntime.__version__} has no provider {name!r}, but "
            f"{', '.join(sorted(known))}. Name the file of a plugin provider with "
            "`library`."
        )
    return devices


def _find_plugin(name: str, library: Path) -> Sequence[onnxruntime.OrtEpDevice]:
    import onnxruntime

    if not has_plugins():
        raise UsageError(
            f"a provider's library needs ONNX Runtime 1.24 or newer, got "
            f"{onnxruntime.__version__}. Update onnxruntime."
        )
    if not library.is_file():
        raise UsageError(f"{library}: no such file. Give the library of provider {name!r}.")
    before = {device.ep_name for device in onnxruntime.get_ep_devices()}
    try:
        devices = register_plugin(name, library.resolve())
    except Exception as error:
        raise UsageError(
            f"{library}: ONNX Runtime can't register it as a provider ({_brief(error)})."
        ) from error
    if not devices:
        brought = sorted({d.ep_name for d in onnxruntime.get_ep_devices()} - before)
        onnxruntime.unregister_execution_provider_library(name)
        raise UsageError(
            f"{library}: has no provider {name!r}, but "
            f"{', '.join(brought) or 'none with a device on this machine'}."
        )
    return devices


def _open(
    model: bytes, name: str, options: Mapping[str, str], devices: Sequence[onnxruntime.OrtEpDevice]
) -> onnxruntime.InferenceSession:
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    # Errors are raised; that some nodes are not the provider's is a warning of ONNX Runtime's.
    session_options.log_severity_level = 4
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    chosen: dict[str, Any] = {}
    if name == PROVIDER_NAME:
        with compiled_options(options) as native:
            session_options.add_provider_for_devices(devices, native)
            return mapped_session(model, session_options, native)
    if devices:
        session_options.add_provider_for_devices(devices, dict(options))
    else:
        chosen["providers"] = [(name, dict(options)), *([_CPU] if name != _CPU else [])]
    return _session(model, name, session_options, chosen)


def _session(
    model: bytes, name: str, session_options: Any, chosen: Mapping[str, Any]
) -> onnxruntime.InferenceSession:
    import onnxruntime

    try:
        # The fallback of the Python binding would run a refused model on the CPU provider instead.
        return onnxruntime.InferenceSession(model, session_options, enable_fallback=0, **chosen)
    except Exception as error:
        raise ModelError(f"{name} can't load the model ({_brief(error)}).") from error


def _is_used(session: onnxruntime.InferenceSession, model: bytes, name: str) -> bool:
    """False where nothing but other providers would answer, as far as ONNX Runtime tells.

    A piece of a converted model without a crossbar need not run on it.
    """
    if name == _CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return True
    if schema.has_rimc_node(model) and not schema.has_rimc_node(model, _RRAM):
        return True
    # A node of the domain is a kernel: an operator that the provider brings.
    return any(
        subgraph.ep_name == name or node.domain == schema.DOMAIN
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
