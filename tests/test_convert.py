# SPDX-License-Identifier: Apache-2.0
"""What a converted file holds: a pure function of model, device and seed."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rimc_onnx import calibrate, convert, inspect, runtime
from rimc_onnx.crossbar.config import ConvertConfig, PeripheryConfig, ReadNoiseLaw
from rimc_onnx.device import DeviceConfig, Scaling, get_preset
from rimc_onnx.errors import ModelError, OutputError
from rimc_onnx.io.model_files import data_files, load_model, save_model
from rimc_onnx.ops import schema

MakeModel = Callable[..., onnx.ModelProto]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def device(drift: float = 0.2) -> DeviceConfig:
    return get_preset("gaussian-relative", drift_frac=drift)


def cells(path: Path) -> dict[str, np.ndarray]:
    """Realised weight of every crossbar, by the teacher's node."""
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.domain == schema.DOMAIN and node.op_type.startswith("Rram"):
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            found[attributes["node"].decode()] = numpy_helper.to_array(tensors[node.input[1]])
    return found


def weights(*sizes: int) -> list[np.ndarray]:
    random = rng(7)
    return [random.standard_normal((k, n), dtype=np.float32) for k, n in itertools.pairwise(sizes)]


@pytest.fixture
def chain(tmp_path: Path, matmul_model: MakeModel) -> Path:
    """Three MatMuls, 20 -> 30 -> 25 -> 10."""
    path = tmp_path / "chain.onnx"
    onnx.save(matmul_model(*weights(20, 30, 25, 10)), path)
    return path


# ------------------------------------------------------------------------------------- same bytes


def test_two_conversions_give_the_same_bytes(chain: Path, digits: Path, tmp_path: Path) -> None:
    # A time stamp, a set's order or a shared random stream in the file.
    for source in (chain, digits / "model.onnx"):
        for name in ("a.onnx", "b.onnx"):
            convert(source, tmp_path / name, config=ConvertConfig(seed=3), force=True)
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_two_processes_give_the_same_bytes(chain: Path) -> None:
    # hash() of a string differs from process to process unless PYTHONHASHSEED says otherwise.
    digests = set()
    for hash_seed in ("1", "2"):
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from rimc_onnx import convert; convert('chain.onnx', force=True)",
            ],
            cwd=chain.parent,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )
        converted = (chain.parent / "chain.rimc.onnx").read_bytes()
        digests.add(hashlib.sha256(converted).hexdigest())
    assert len(digests) == 1


def test_every_seed_is_a_seed_of_its_own(chain: Path, tmp_path: Path) -> None:
    # Seed 0 as "random", seeds cut to 32 bits, or a seed that shifts the stream by one.
    seeds = [0, 1, 2, 2**32, 2**32 + 1, 2**63 - 1]
    found = []
    for seed in seeds:
        convert(chain, tmp_path / "s.onnx", config=ConvertConfig(seed=seed), force=True)
        found.append(cells(tmp_path / "s.onnx"))
    for name, weight in zip(["fc1", "fc2", "fc3"], weights(20, 30, 25, 10), strict=True):
        errors = [(f[name] / weight - 1).reshape(-1) for f in found]
        assert np.std(errors, axis=1) == pytest.approx(0.2, abs=0.05)
        # Independent draws: correlations within 4 standard errors, n cells.
        correlation = np.corrcoef(errors) - np.eye(len(seeds))
        assert np.abs(correlation).max() < 4.5 / np.sqrt(weight.size)


def test_cells_of_a_node_depend_on_no_other_node(
    chain: Path, tmp_path: Path, matmul_model: MakeModel
) -> None:
    # Draws taken one after the other: leave a node out and every later one changes.
    convert(chain, tmp_path / "all.onnx")
    every = cells(tmp_path / "all.onnx")
    digital = ConvertConfig(keep_digital=("fc1",))
    convert(chain, tmp_path / "two.onnx", config=digital)
    assert cells(tmp_path / "two.onnx").keys() == {"fc2", "fc3"}
    first, second, third = weights(20, 30, 25, 10)
    alone = matmul_model(first, second, third)
    del alone.graph.node[3:]  # fc3 and the Relu in front of it
    alone.graph.node[2].output[0] = "y"
    del alone.graph.initializer[2]
    alone.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 25
    onnx.save(alone, tmp_path / "short.onnx")
    convert(tmp_path / "short.onnx")
    for name in ("two.onnx", "short.rimc.onnx"):
        for node, weight in cells(tmp_path / name).items():
            assert np.array_equal(weight, every[node])


def test_cells_of_a_node_do_not_depend_on_the_order_of_nodes(tmp_path: Path) -> None:
    # The same, for two branches that may stand in either order.
    kind = TensorProto.FLOAT
    left, right = weights(6, 5, 4)
    nodes = [
        helper.make_node("MatMul", ["a", "wl"], ["yl"], name="left"),
        helper.make_node("MatMul", ["b", "wr"], ["yr"], name="right"),
    ]
    found = []
    for order in (nodes, nodes[::-1]):
        graph = helper.make_graph(
            order,
            "g",
            [
                helper.make_tensor_value_info("a", kind, ["N", 6]),
                helper.make_tensor_value_info("b", kind, ["N", 5]),
            ],
            [
                helper.make_tensor_value_info("yl", kind, ["N", 5]),
                helper.make_tensor_value_info("yr", kind, ["N", 4]),
            ],
            [numpy_helper.from_array(left, "wl"), numpy_helper.from_array(right, "wr")],
        )
        imports = [helper.make_opsetid("", 17)]
        onnx.save(
            helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx"
        )
        convert(tmp_path / "m.onnx", force=True)
        found.append(cells(tmp_path / "m.rimc.onnx"))
    assert all(np.array_equal(found[0][n], found[1][n]) for n in ("left", "right"))


def test_periphery_and_rank_change_the_cells_by_a_rounding_at_most(
    chain: Path, tmp_path: Path
) -> None:
    # Another ADC means another array; or a DAC of few bits draws other devices, not a grid.
    convert(chain, tmp_path / "a.onnx")
    a = cells(tmp_path / "a.onnx")
    for dac_bits, is_coded in ((12, False), (6, True)):
        periphery = PeripheryConfig(tile_rows=8, dac_bits=dac_bits, adc_bits=6)
        convert(
            chain,
            tmp_path / "b.onnx",
            config=ConvertConfig(rank=2, periphery=periphery),
            data={"x": rng().standard_normal((16, 20), dtype=np.float32)},
            force=True,
        )
        b = cells(tmp_path / "b.onnx")
        for name, w in a.items():
            assert np.array_equal(w, b[name]) != is_coded
            assert np.abs(w - b[name]).max() <= 2.0**-13 * np.abs(w).max()


def test_drift_0_gives_the_trained_weights_bit_for_bit(digits: Path, tmp_path: Path) -> None:
    # A round trip through conductances that loses the last digit. fp32 weights of a MatMul stay
    # as they are; a convolution's are those after its batch norm has been folded.
    random = rng(1)
    weight = (random.standard_normal((40, 30)) * 10.0 ** random.integers(-30, 30, (40, 30))).astype(
        np.float32
    )
    weight[0, :4] = [0.0, -0.0, 1e-45, -3e38]
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 40])],
        [helper.make_tensor_value_info("y", kind, ["N", 30])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    for scaling in Scaling:
        config = ConvertConfig(
            device=get_preset("gaussian-absolute", drift_frac=0.0, scaling=scaling)
        )
        convert(tmp_path / "m.onnx", config=config, force=True)
        assert cells(tmp_path / "m.rimc.onnx")["fc"].tobytes() == weight.tobytes()
    convert(digits / "model.onnx", tmp_path / "d.onnx", config=ConvertConfig(device=device(0.0)))
    session, teacher = (
        runtime.make_session(path, native=False)
        for path in (tmp_path / "d.onnx", digits / "model.onnx")
    )
    with np.load(digits / "test.npz") as data:
        images = data["input"][:64]
    got, expected = (s.run(None, {"input": images})[0] for s in (session, teacher))
    # Folded batch norms round anew, ten layers of up to 288 terms.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# ------------------------------------------------------------------------------------- provenance


def test_file_records_where_it_comes_from(digits_folder: Path) -> None:
    # A file that nobody can trace: which device, which seed, which teacher.
    (digits_folder / "sub").mkdir()
    config = ConvertConfig(device=device(0.1), seed=9)
    out = digits_folder / "sub" / "out.onnx"
    convert(digits_folder / "model.onnx", out, config=config)
    digest = hashlib.sha256((digits_folder / "model.onnx").read_bytes()).hexdigest()
    metadata = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert metadata["rimc.teacher_sha256"] == digest
    assert Path(metadata["rimc.teacher_path"]) == Path("..") / "model.onnx"
    assert str(digits_folder) not in out.read_bytes().decode("latin-1")
    report = inspect(out)
    assert report.teacher_sha256 == digest
    assert report.seed == 9
    assert report.device is not None
    assert DeviceConfig.from_json(json.dumps(report.device)) == config.device.closed


def test_inspect_tells_what_the_file_says_about_converters_and_reads(
    digits_folder: Path, chain: Path
) -> None:
    # Two files of different hardware that look the same; a range read from the first node for all.
    periphery = PeripheryConfig(
        tile_rows=64,
        dac_bits=8,
        adc_bits=7,
        read_noise_frac=0.01,
        read_noise_law=ReadNoiseLaw.RELATIVE,
        adc_gain_error_frac=0.02,
    )
    convert(digits_folder / "model.onnx", config=ConvertConfig(periphery=periphery))
    path = digits_folder / "model.rimc.onnx"
    report = inspect(path)
    assert report.periphery == {
        "tile_rows": 64,
        "dac_bits": 8,
        "adc_bits": 7,
        "dac_serial_bits": None,
        "iv_sinh": None,
        "input_shrink": None,
        "read_noise": 0.01,
        "read_noise_law": "relative",
        "wire_ohm": None,
        "iv_polynomial": None,
        "adc_errors": True,
    }
    nodes = {
        next(a.s.decode() for a in n.attribute if a.name == "node"): {
            a.name: onnx.helper.get_attribute_value(a) for a in n.attribute
        }
        for n in onnx.load(path).graph.node
        if n.op_type in {schema.RRAM_CONV, schema.RRAM_MATMUL}
    }
    ranges = {r.name: r for r in report.ranges or []}
    assert list(ranges) == list(nodes)
    assert {r.num_tiles for r in ranges.values()} == {1, 2}
    for name, found in ranges.items():
        assert found.num_tiles == nodes[name]["num_tiles"]
        assert found.dac_range is not None
        assert found.adc_range is not None
        # The images and what a ReLU gives are never negative.
        assert found.dac_range[0] == 0.0
        assert np.float32(found.dac_range[1]) == np.float32(nodes[name]["dac_range"])
        assert np.float32(found.adc_range[1]) == np.float32(max(nodes[name]["adc_range"]))

    convert(chain)
    ideal = inspect(chain.with_suffix(".rimc.onnx"))
    assert set((ideal.periphery or {}).values()) == {None}
    assert {(r.dac_range, r.adc_range) for r in ideal.ranges or []} == {(None, None)}
    plain = inspect(chain)
    assert (plain.periphery, plain.ranges, plain.adapters, plain.swappable) == (None,) * 4


def test_inspect_tells_the_range_of_a_curve_without_a_dac(digits_folder: Path) -> None:
    # The range bends every product, and saturates; taken for the ideal DAC's neutral 1.
    config = ConvertConfig(periphery=PeripheryConfig(iv_sinh=1.5))
    convert(digits_folder / "model.onnx", config=config)
    found = inspect(digits_folder / "model.rimc.onnx").ranges or []
    assert all(r.dac_range and r.dac_range[0] == -r.dac_range[1] < 0 for r in found)
    assert len({r.dac_range for r in found}) == len(found)


def test_converting_twice_is_refused(chain: Path) -> None:
    # Drift on top of drift.
    convert(chain)
    with pytest.raises(ModelError, match="already converted"):
        convert(chain.with_suffix(".rimc.onnx"))
    with pytest.raises(OutputError, match="exists already"):
        convert(chain)


def test_user_metadata_and_names_stay(chain: Path) -> None:
    # Consumers find inputs, outputs and values by name.
    model = onnx.load(chain)
    model.metadata_props.add(key="author", value="me")
    model.producer_name = "my exporter"
    onnx.save(model, chain)
    convert(chain)
    converted = onnx.load(chain.with_suffix(".rimc.onnx"))
    assert ("author", "me") in {(p.key, p.value) for p in converted.metadata_props}
    values = {o for n in model.graph.node for o in n.output}
    assert values <= {o for n in converted.graph.node for o in n.output}
    assert [i.name for i in converted.graph.input] == ["x"]
    assert [o.name for o in converted.graph.output] == ["y"]


# ---------------------------------------------------------------------------------- external data


def save_external(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
    )


def test_external_data_converts_like_inline_data(
    chain: Path, tmp_path: Path, matmul_model: MakeModel
) -> None:
    # Paths relative to the folder of the call, or a converted file that still points at the
    # teacher's data.
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    save_external(matmul_model(*weights(20, 30, 25, 10)), home / "net.onnx")
    convert(home / "net.onnx", away / "net.rimc.onnx")
    (home / "net.onnx.data").unlink()
    (data,) = data_files(away / "net.rimc.onnx")
    assert sorted(p.name for p in away.iterdir()) == ["net.rimc.onnx", data.name]
    convert(chain, tmp_path / "inline.onnx")
    a, b = cells(away / "net.rimc.onnx"), cells(tmp_path / "inline.onnx")
    assert all(np.array_equal(a[n], b[n]) for n in b)
    x = rng().standard_normal((5, 20), dtype=np.float32)
    results = [
        runtime.make_session(path, native=native).run(None, {"x": x})[0]
        for path in (away / "net.rimc.onnx", tmp_path / "inline.onnx")
        for native in (True, False)
    ]
    for result in results[1:]:
        # float32 sums of 30 terms and three layers
        np.testing.assert_allclose(result, results[0], rtol=1e-4, atol=1e-4)


def test_sha256_of_a_teacher_covers_its_external_data(
    tmp_path: Path, matmul_model: MakeModel
) -> None:
    # Another teacher's weights beside the same graph: calibration towards a network that was never
    # converted.
    path = tmp_path / "net.onnx"
    save_external(matmul_model(*weights(20, 30, 25, 10)), path)
    convert(path, tmp_path / "net.rimc.onnx")
    data = path.with_name("net.onnx.data")
    changed = bytearray(data.read_bytes())
    changed[100] ^= 1
    data.write_bytes(changed)
    samples = {"x": np.zeros((4, 20), np.float32)}
    with pytest.raises(ModelError, match="sha256 differs"):
        calibrate(tmp_path / "net.rimc.onnx", data=samples)


def test_large_model_is_written_with_external_data(chain: Path, tmp_path: Path) -> None:
    # Beyond 2 GiB a protobuf can't be written at all; the limit is lowered here.
    convert(chain, tmp_path / "small.onnx")
    for limit, has_data in ((1 << 30, False), (1000, True)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        save_model(
            load_model(tmp_path / "small.onnx"),
            folder / "big.onnx",
            force=False,
            external_data_bytes=limit,
        )
        names = ["big.onnx", *(p.name for p in data_files(folder / "big.onnx"))]
        assert sorted(p.name for p in folder.iterdir()) == names
        assert len(names) == 1 + has_data
    moved = tmp_path / "moved"
    (tmp_path / "1000").rename(moved)
    x = rng().standard_normal((5, 20), dtype=np.float32)
    big, small = (
        runtime.make_session(path).run(None, {"x": x})[0]
        for path in (moved / "big.onnx", tmp_path / "small.onnx")
    )
    assert np.array_equal(big, small)


PEAK = """\
import sys, threading, time
from rimc_onnx import convert
def anonymous():  # bytes in memory that are no page of a mapped file
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith("RssAnon")).split()[1])
convert(sys.argv[2], "warm.onnx")  # imports everything
before, peak, done = anonymous(), 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
convert(sys.argv[1])
done = True
watcher.join()
print(peak - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_peak_memory_is_that_of_a_few_weights_not_of_the_model(
    chain: Path, tmp_path: Path, matmul_model: MakeModel
) -> None:
    # A model of 12 weights of 16 MB: 192 MB. What is needed at once is the weight that is being
    # programmed (16 MB, and 16 MB for a copy of its target), its bytes on the way to the file
    # (16 MB) and temporaries of a few MB. All weights at once would be 192 MB and more.
    size, count = 2048, 12
    blank = np.zeros((size, size), np.float32)
    model = matmul_model(*[np.zeros((1, 1), np.float32)] * count)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = size
    for i, tensor in enumerate(model.graph.initializer):
        tensor.ClearField("raw_data")
        tensor.dims[:] = [size, size]
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": "w.data", "offset": i * blank.nbytes, "length": blank.nbytes}
        for key, text in entries.items():
            tensor.external_data.add(key=key, value=str(text))
    onnx.save(model, tmp_path / "model.onnx")
    with (tmp_path / "w.data").open("wb") as data:
        data.truncate(count * blank.nbytes)  # zeros, without taking disk
    result = subprocess.run(
        [sys.executable, "-c", PEAK, "model.onnx", str(chain)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 4 * blank.nbytes
