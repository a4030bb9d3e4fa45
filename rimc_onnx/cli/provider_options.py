# SPDX-License-Identifier: Apache-2.0
"""Options that put an execution provider of ONNX Runtime in the simulator's place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from rimc_onnx.errors import UsageError

if TYPE_CHECKING:
    from rimc_onnx.runtime.any_provider import ProviderDevice

__all__ = ["NATIVE_PROVIDER", "ProviderOptions"]

Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Execution provider of ONNX Runtime that runs the arrays.",
        show_default="the native library",
    ),
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Option of the provider; may be given again."),
]
ProviderLibrary = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Shared library of a plugin provider, ONNX Runtime 1.24."),
]


@dataclass(frozen=True, kw_only=True)
class ProviderOptions:
    """Which execution provider runs the arrays."""

    panel: ClassVar[str] = "Execution provider"

    provider: Provider = None
    provider_option: ProviderOption = None
    provider_library: ProviderLibrary = None

    def device(self) -> ProviderDevice | None:
        """What makes its sessions; None is the native library."""
        if self.provider is None:
            options = {
                "--provider-option": self.provider_option,
                "--provider-library": self.provider_library,
            }
            if given := next((name for name, value in options.items() if value), None):
                raise UsageError(f"{given} needs --provider, the name of the execution provider.")
            return None
        texts: dict[str, str] = {}
        for option in self.provider_option or []:
            key, equals, value = option.partition("=")
            if not key or not equals:
                raise UsageError(f"--provider-option {option!r} is not of the form KEY=VALUE.")
            if key in texts:
                raise UsageError(f"--provider-option {key} is given twice.")
            texts[key] = value
        from rimc_onnx.runtime.any_provider import provider_device

        return provider_device(self.provider, options=texts, library=self.provider_library)


NATIVE_PROVIDER = ProviderOptions()
