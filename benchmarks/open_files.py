# SPDX-License-Identifier: Apache-2.0
"""CPU seconds that the installed ONNX Runtime takes to open files: python open_files.py FILE..."""

from __future__ import annotations

import sys
import time

import onnxruntime


def main() -> None:
    """Open each file three times, print the shortest."""
    for path in sys.argv[1:]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        times = []
        for _ in range(3):
            start = time.process_time()
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            times.append(time.process_time() - start)
            del session
        print(f"{onnxruntime.__version__:8s} {min(times):8.3f} s  {path}", flush=True)


if __name__ == "__main__":
    main()
