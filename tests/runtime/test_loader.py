# SPDX-License-Identifier: Apache-2.0
"""The Python side: finding the library, making sessions, knowing what ran."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from rimc_onnx import errors, runtime
from rimc_onnx.ops import schema


def test_build_info_names_the_library_and_its_isa() -> None:
    info = runtime.build_info()
    assert Path(info["library"]) == runtime.library_path()
    assert info["isa"] in info["available_isas"]
    assert info["available_isas"][0] == "scalar"
    assert info["onnxruntime"] == onnxruntime.__version__
    assert info["version"].count(".") == 2


def test_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_FILE_NAME", "librimc_absent.so")
    with pytest.raises(runtime.NativeLibraryError, match=r"librimc_absent.so does not exist\. Ins"):
        runtime.library_path()
    assert issubclass(runtime.NativeLibraryError, errors.RimcError)


def test_library_registered_twice_is_refused() -> None:
    options = onnxruntime.SessionOptions()
    runtime.register(options)
    runtime.register(options)  # ONNX Runtime finds the second domain when it makes the session
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    with pytest.raises(Exception, match="already"):
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


@pytest.mark.parametrize("op", list(schema.OPS))
def test_registered_kernel_runs_in_place_of_the_function(
    cases: ModuleType, op: str, tmp_path: Path
) -> None:
    # Catches a library that is loaded but whose ops ONNX Runtime doesn't take: results alone
    # would not tell.
    case = cases.MAKERS[op](np.random.default_rng(0))
    path = tmp_path / "model.onnx"
    path.write_bytes(case.model())
    before = runtime.kernels_created()
    runtime.make_session(path)
    assert runtime.kernels_created() == before + 1
    runtime.make_session(path, native=False)
    assert runtime.kernels_created() == before + 1


def test_session_without_native_kernels_is_an_error(
    cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loader's own check: registering nothing leaves the function bodies to run.
    case = cases.rram_matmul_case(np.random.default_rng(0))
    monkeypatch.setattr(runtime, "register", lambda _: None)
    with pytest.raises(runtime.NativeLibraryError, match="runs none on the native library"):
        runtime.make_session(case.model())


def test_model_without_our_nodes_needs_no_kernel() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    session = runtime.make_session(model.SerializeToString(), num_threads=1)
    assert session.run(None, {"x": np.array([-1, 1], np.float32)})[0].tolist() == [0, 1]


def test_import_does_not_load_onnxruntime() -> None:
    # `rimc-onnx --help` has to be quick.
    code = "import sys, rimc_onnx.runtime; sys.exit('onnxruntime' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("op", list(schema.OPS))
def test_symbolic_dimensions_are_carried_through(cases: ModuleType, op: str) -> None:
    # Catches shape inference that turns a named batch into an unknown one.
    case = next(
        c
        for c in (cases.MAKERS[op](np.random.default_rng(s)) for s in range(50))
        if c.feeds["x"].ndim > 1
    )
    shapes = {name: ["batch", *value.shape[1:]] for name, value in case.feeds.items()}
    session = runtime.make_session(case.model(shapes=shapes))
    assert session.get_outputs()[0].shape == ["batch", *case.oracle().shape[1:]]


def test_unknown_spatial_size_stays_unknown(cases: ModuleType) -> None:
    case = cases.rram_conv_case(np.random.default_rng(1))
    x = case.feeds["x"]
    names = [f"s{i}" for i in range(x.ndim - 2)]
    session = runtime.make_session(case.model(shapes={"x": ["batch", x.shape[1], *names]}))
    shape = session.get_outputs()[0].shape
    assert shape[:2] == ["batch", len(case.constants["w"])]
    assert not any(isinstance(size, int) for size in shape[2:])
    np.testing.assert_array_equal(session.run(None, case.feeds)[0], case.run())
