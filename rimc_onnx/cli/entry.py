# SPDX-License-Identifier: Apache-2.0
"""Entry point of ``rimc-onnx``: an interrupt has its one line before anything else is imported."""

from __future__ import annotations

import _thread
import os
import signal
import sys
from types import FrameType

__all__ = ["INTERRUPTED", "INTERRUPTED_CODE", "main"]

INTERRUPTED = "error: interrupted. No file is half written."
INTERRUPTED_CODE = 130


def _leave(_signal: int, _frame: FrameType | None) -> None:
    # While libraries are imported an exception would end in one of theirs.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{INTERRUPTED}\n".encode())
    os._exit(INTERRUPTED_CODE)


def _again(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt that fell into a destructor, where no exception can leave, comes once more."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(unraisable)


def main() -> None:
    """Run the command line; nothing is written before its commands take the signals over."""
    sys.unraisablehook = _again
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)
    from rimc_onnx.cli.later import run_later

    # Arithmetic with symbolic dimensions, which hardly a model asks for, is a third of the time
    # that a command takes to start. onnx_ir imports sympy in these two places.
    run_later("sympy", "onnx_ir._symbolic_shapes")
    from rimc_onnx.cli.main import main as command_line

    command_line()
