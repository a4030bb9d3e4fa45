# SPDX-License-Identifier: Apache-2.0
"""Time to open a session: converted networks of ResNets' shapes against their fp32 teachers.

    python -m benchmarks.load [--nodes 54 105 255] [--rounds 5] [--keep FOLDER]
    python benchmarks/open_files.py FOLDER/*.onnx

The networks have random weights: 25.5 M in 54 nodes (ResNet-50's shape), 44.4 M in 105
(ResNet-101's), 84 M in 255. Each is converted with ideal converters and with 8-bit DACs, tiles of
1152 word lines and 8-bit ADCs, and calibrated on two images, once with one rank for all and once
with the default SRAM, which is three quarters sparse cells. Sessions are opened in turn and closed
again. The shortest of all rounds counts, as CPU time of all threads and as wall-clock time; files
are in the page cache. ``--keep`` leaves the files for ``open_files.py``, which needs nothing but an
ONNX Runtime: an older one, for instance.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import rimc_onnx
from benchmarks.resnet50 import make_model
from rimc_onnx import runtime
from rimc_onnx.calibration.config import CalibrateConfig
from rimc_onnx.crossbar import ConvertConfig, PeripheryConfig

_BLOCKS = {
    54: ((3, 64), (4, 128), (6, 256), (3, 512)),
    105: ((3, 64), (4, 128), (23, 256), (3, 512)),
    255: ((3, 64), (30, 128), (47, 256), (3, 512)),
}
"""Bottleneck blocks by the number of nodes that go to RRAM."""
_DATA = "benchmarks.resnet50:images"
_EIGHT_BITS = PeripheryConfig(tile_rows=1152, dac_bits=8, adc_bits=8)


def main() -> None:
    """Make the models, open them in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[54], choices=_BLOCKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for the models")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {arguments.threads} threads; {runtime.build_info()}")
    for nodes in arguments.nodes:
        with _folder(arguments.keep) as folder:
            files = _make(folder, nodes)
            _print(nodes, files, arguments.rounds, arguments.threads)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _make(folder: Path, nodes: int) -> dict[str, tuple[Path, bool]]:
    """Models by what they are, and whether the native library opens them."""
    teacher = folder / f"{nodes}.onnx"
    make_model(teacher, blocks=_BLOCKS[nodes])
    runs = {"fp32 teacher": (teacher, False)}
    for kind, periphery in (("ideal", PeripheryConfig()), ("8 bits", _EIGHT_BITS)):
        converted = folder / f"{nodes}.{kind.replace(' ', '-')}.rimc.onnx"
        config = ConvertConfig(periphery=periphery)
        rimc_onnx.convert(teacher, converted, data=_DATA, config=config, force=True)
        for name, rank in (("rank 4", 4), ("default SRAM", None)):
            calibrated = converted.with_suffix(f".{name.replace(' ', '-')}.onnx")
            config = CalibrateConfig(rank=rank, num_samples=2)
            rimc_onnx.calibrate(
                converted, calibrated, data=_DATA, teacher=teacher, config=config, force=True
            )
            runs[f"{kind}, {name}, native"] = (calibrated, True)
            runs[f"{kind}, {name}, stock"] = (calibrated, False)
    return runs


def _print(nodes: int, runs: dict[str, tuple[Path, bool]], rounds: int, threads: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (path, native) in runs.items():
            times[name].append(_open(path, native, threads))
    print(f"{f'{nodes} nodes':34s} CPU time   ratio   wall clock   ratio")
    cpu0, wall0 = _shortest(times["fp32 teacher"])
    for name, found in times.items():
        cpu, wall = _shortest(found)
        print(
            f"{name:34s} {1e3 * cpu:5.0f} ms   {cpu / cpu0:5.2f}   "
            f"{1e3 * wall:7.0f} ms   {wall / wall0:5.2f}"
        )


def _open(path: Path, native: bool, threads: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    session = runtime.make_session(path, native=native, num_threads=threads)
    found = time.process_time() - cpu, time.perf_counter() - wall
    del session
    return found


def _shortest(times: list[tuple[float, float]]) -> tuple[float, float]:
    return min(cpu for cpu, _ in times), min(wall for _, wall in times)


if __name__ == "__main__":
    main()
