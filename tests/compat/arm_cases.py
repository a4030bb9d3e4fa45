# SPDX-License-Identifier: Apache-2.0
"""Models for run_arm.sh with what this machine makes of them, and the comparison.

Usage: arm_cases.py write FOLDER, then arm_cases.py compare FOLDER TAG...: exit code 1 where a byte
differs. Needs tests/helpers on the path.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cases
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import runtime
from rimc_onnx.crossbar import compiled_device
from rimc_onnx.device import Scaling, get_preset
from rimc_onnx.ops import schema
from rimc_onnx.runtime.provider import provider_session

NUM_SEEDS = 40
_AGED = get_preset(
    "pcm-natcomm2020", stuck_min_frac=0.02, stuck_max_frac=0.01, level_bits=5, num_slices=2
)
DEVICES = {
    "simulated": compiled_device(get_preset("gaussian-absolute", scaling=Scaling.COLUMN)),
    # the preset's read noise is of whole weights
    "aged": compiled_device(_AGED, time_s=86400.0, device_reads=False),
    "read": compiled_device(get_preset("milo2021")),
}
OPTIONS: dict[str, dict[str, object]] = {
    "read": {"periphery": '{"*": {"dac_range": 2, "read_noise": 0.01}}'},
}
"""Those of run_models.cc."""
SEED = 12345678901


def _simulated(seed: int) -> tuple[bytes, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    columns, channels, size = (int(rng.integers(1, 40)) for _ in range(3))
    if seed % 2:
        w, attributes = rng.standard_normal((columns, channels, 3, 3)), {"pads": [1, 1, 1, 1]}
        x = rng.standard_normal((2, channels, size, size))
        node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name=f"conv{seed}", **attributes)
    else:
        w, x = (
            rng.standard_normal((columns, 5 * channels)),
            rng.standard_normal((size, 5 * channels)),
        )
        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name=f"fc{seed}", transB=1)
    x, w, b = (a.astype(np.float32) for a in (x, w, rng.standard_normal(columns)))
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.ModelProto.SerializeToString(model), {"x": x}


def write(folder: Path) -> None:
    """Models, inputs, and outputs of this machine."""
    lines = []
    for kind, content in DEVICES.items():
        (folder / f"{kind}.rimcdev").write_bytes(content)

    def add(name: str, kind: str, model: bytes, feeds: dict[str, np.ndarray]) -> None:
        (folder / name).write_bytes(model)
        words = [name, kind, str(len(feeds))]
        for feed, value in feeds.items():
            value.astype("<f4").tofile(folder / f"{name}.{feed}")
            words += [feed, str(value.ndim), *map(str, value.shape)]
        lines.append(" ".join(words))
        if kind in DEVICES:
            options = {"device": f"@{folder / kind}.rimcdev", "seed": SEED, **OPTIONS.get(kind, {})}
            session = provider_session(model, provider_options=options)
        else:
            session = runtime.make_session(model)
        session.run(None, feeds)[0].astype("<f4").tofile(folder / f"{name}.y.here")

    for seed in range(NUM_SEEDS):
        for op, maker in cases.MAKERS.items():
            case = maker(np.random.default_rng(seed))
            add(f"{op}-{seed}", "custom", case.model(), case.feeds)
        case = cases.strip_conv_case(np.random.default_rng(seed))
        add(f"strips-{seed}", "custom", case.model(), case.feeds)
        for op in (schema.RRAM_MATMUL, schema.RRAM_CONV):
            rng = np.random.default_rng(100 + seed)
            names = [name for name in cases.EXTRAS if rng.integers(2)]
            case = cases.MAKERS[op](rng, names=names)
            add(f"{op}-extras-{seed}", "custom", case.model(), case.feeds)
        for kind in OPTIONS:
            add(f"{kind}-{seed}", kind, *_simulated(seed))
    (folder / "list.txt").write_text("\n".join(lines) + "\n")
    print(f"here ({runtime.build_info()['isa']}): {len(lines)} models")


def compare(folder: Path, tags: list[str]) -> int:
    """Number of outputs that differ from this machine's."""
    different = 0
    for line in (folder / "list.txt").read_text().splitlines():
        name = line.split()[0]
        want = (folder / f"{name}.y.here").read_bytes()
        for tag in tags:
            if (folder / f"{name}.y.{tag}").read_bytes() != want:
                print(f"{tag}: {name} gives other bits")
                different += 1
    print(f"{different} outputs differ")
    return different


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        sys.exit(1 if compare(Path(sys.argv[2]), sys.argv[3:]) else 0)
