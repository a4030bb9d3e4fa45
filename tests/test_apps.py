# SPDX-License-Identifier: Apache-2.0
"""The sample programs run a deployed model and agree on its accuracy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from browser import in_browser, node_packages
from provider_models import HAS_PROVIDERS, needs_providers

from rimc_onnx import evaluate, passes, runtime
from rimc_onnx.device import get_preset
from rimc_onnx.io.adapter_file import write_adapter_file
from rimc_onnx.io.model_files import load_model, save_model
from rimc_onnx.jobs.device_file import write_device_file

ROOT = Path(__file__).resolve().parents[1]
APPS = ROOT / "samples" / "apps"
MODEL = "model.rimc.calibrated.onnx"


def run(*command: object, cwd: Path) -> str:
    result = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def right(output: str) -> int:
    found = re.fullmatch(r"(\d+) of 500 right, accuracy (\d+\.\d) %\n", output)
    assert found is not None, output
    assert found[2] == f"{int(found[1]) / 5:.1f}"
    return int(found[1])


def expected(folder: Path) -> int:
    top1 = evaluate(folder / MODEL, data=folder / "test.npz", native=False).top1
    assert top1 is not None
    return round(500 * top1)


@pytest.fixture
def raw(digits_job: Path) -> Path:
    """The calibrated sample with its test images in raw files."""
    run(sys.executable, APPS / "export_raw.py", "test.npz", ".", cwd=digits_job)
    return digits_job


def test_python_app_has_the_accuracy_of_evaluate(digits_job: Path) -> None:
    # A sample that feeds or scores other than the tool does; and it must not need the package.
    code = APPS / "app.py"
    assert "rimc_onnx" not in code.read_text().replace("rimc-onnx", "")
    output = run(sys.executable, code, MODEL, "test.npz", cwd=digits_job)
    assert right(output) == expected(digits_job)


def test_python_app_registers_the_library_by_its_path(digits_job: Path) -> None:
    command = [
        sys.executable,
        APPS / "app.py",
        MODEL,
        "test.npz",
        "--library",
        runtime.library_path(),
    ]
    # Sums in another order may move a code at a tie: an image of 500 that lies between two digits.
    assert abs(right(run(*command, cwd=digits_job)) - expected(digits_job)) <= 1


@pytest.mark.skipif(not hasattr(ort, "AdapterFormat"), reason="adapter files need 1.20")
def test_python_app_takes_an_adapter(digits_job: Path) -> None:
    # The adapter freed before the run, which then goes on without it.
    fitted, live = load_model(digits_job / MODEL), load_model(digits_job / "model.rimc.onnx")
    adapters = {b.node: b.adapter() for b in passes.rram_branches(fitted)}
    write_adapter_file(digits_job / "fitted.onnx_adapter", adapters, fitted)
    passes.MakeAdaptersSwappablePass()(live)
    save_model(live, digits_job / "live.onnx", force=False)
    command = [sys.executable, APPS / "app.py", "live.onnx", "test.npz"]
    without = right(run(*command, cwd=digits_job))
    swapped = right(run(*command, "--adapter", "fitted.onnx_adapter", cwd=digits_job))
    assert abs(swapped - expected(digits_job)) <= 1
    assert without < swapped


def cpp_compiler() -> list[object]:
    compiler = shutil.which("g++")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    return [compiler, "-std=c++17", *warnings, f"-I{ROOT / 'runtime' / 'include'}"]


def build(source: str, folder: Path) -> Path:
    """Build a C++ program of the samples as ``app``; gives the library of ONNX Runtime."""
    compiler = cpp_compiler()
    libraries = list((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not libraries:
        pytest.skip("this onnxruntime wheel holds no libonnxruntime.so")
    run(*compiler, APPS / source, "-o", "app", "-ldl", cwd=folder)
    return libraries[0]


@pytest.fixture
def cpp(raw: Path) -> list[object]:
    """The C++ program, built, with its arguments."""
    return ["./app", build("main.cc", raw), MODEL, "images.f32", "labels.u8"]


def test_cpp_app_has_the_accuracy_of_evaluate(raw: Path, cpp: list[object]) -> None:
    # A slot number off by one; a header that only builds inside the library.
    assert right(run(*cpp, cwd=raw)) == expected(raw)
    (raw / MODEL).unlink()
    failed = subprocess.run(
        [str(c) for c in cpp], cwd=raw, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")


def test_cpp_app_registers_the_library_by_its_path(raw: Path, cpp: list[object]) -> None:
    # As in Python; a library that is registered but not used would give the accuracy as well, so
    # a file that is none has to be refused.
    output = run(*cpp, runtime.library_path(), cwd=raw)
    assert abs(right(output) - expected(raw)) <= 1
    wrong = subprocess.run(
        [*map(str, cpp), "images.f32"], cwd=raw, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 1


@needs_providers
def test_cpp_provider_app_has_the_accuracy_of_a_conversion(raw: Path) -> None:
    # An option that the C interface does not hand on; a slot number off by one.
    library = build("provider.cc", raw)
    command = ["./app", library, runtime.library_path(), "model.onnx", "images.f32", "labels.u8"]
    top1 = evaluate(raw / "model.rimc.onnx", data=raw / "test.npz").top1
    assert top1 is not None
    # Batch norms: other last bits than a conversion's (docs/deployment.md).
    output = run(*command, "preset=gaussian-relative", "seed=0", cwd=raw)
    assert abs(right(output) - round(500 * top1)) <= 1
    write_device_file(get_preset("gaussian-relative", drift_frac=0.0), raw / "ideal.rimcdev")
    assert right(run(*command, "device=@ideal.rimcdev", cwd=raw)) > 480
    wrong = subprocess.run(
        [*map(str, command), "preset=gaussian-relative", "seed=x"],
        cwd=raw,
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1
    assert "provider option seed must lie in 0..2^63-1, got 'x'" in wrong.stderr


@needs_providers
def test_cpp_provider_app_takes_device_and_periphery_as_the_page_says(raw: Path) -> None:
    # A file that the library looks for elsewhere, an option that only Python sets.
    page = (APPS / "README.md").read_text("utf-8")
    script = re.search(r"<<'EOF'\n(.*?)EOF\n", page, re.DOTALL)
    assert script is not None
    shutil.copy(ROOT / "samples" / "devices" / "own.toml", raw)
    run(sys.executable, "-c", script[1], cwd=raw)
    periphery = ["--dac-bits", "8", "--adc-bits", "8"]
    run(
        *(
            sys.executable,
            "-c",
            "from rimc_onnx.cli.main import main; main()",
            "convert",
            "model.onnx",
        ),
        *("--device", "own.toml", *periphery, "-o", "own.rimc.onnx"),
        cwd=raw,
    )
    top1 = evaluate(raw / "own.rimc.onnx", data=raw / "test.npz").top1
    assert top1 is not None
    command = ["./app", build("provider.cc", raw), runtime.library_path(), "model.onnx"]
    options = ["device=@own.rimcdev", "mapping=@mapping.json"]
    options += ["periphery=@periphery.json", "seed=0"]
    output = run(*command, "images.f32", "labels.u8", *options, cwd=raw)
    # Batch norms: other last bits than a conversion's.
    assert abs(right(output) - round(500 * top1)) <= 1


@needs_providers
def test_cpp_provider_app_runs_a_deployed_model(raw: Path) -> None:
    # Without options the provider brings the operators and claims nothing.
    library = build("provider.cc", raw)
    command = ["./app", library, runtime.library_path(), MODEL, "images.f32", "labels.u8"]
    assert abs(right(run(*command, cwd=raw)) - expected(raw)) <= 1


@pytest.mark.parametrize(
    "program", sorted((ROOT / "tests" / "compat").glob("*.cc")), ids=lambda p: p.stem
)
def test_programs_of_the_compatibility_scripts_compile(program: Path, tmp_path: Path) -> None:
    # They share headers with the samples and are built by scripts that no test runs.
    folders = [f"-I{ROOT / 'runtime' / 'src'}", f"-I{APPS}"]
    run(*cpp_compiler(), *folders, "-fsyntax-only", program, cwd=tmp_path)


def test_node_app_has_the_accuracy_of_evaluate(raw: Path) -> None:
    # Float32Array over a Buffer that is not aligned, or labels read as the wrong type.
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    # An import, unlike require, looks beside the program alone.
    os.symlink(node_packages("onnxruntime-node"), raw / "node_modules")
    shutil.copy(APPS / "app.mjs", raw)
    command = [node, "app.mjs", MODEL, "images.f32", "labels.u8"]
    assert abs(right(run(*command, cwd=raw)) - expected(raw)) <= 1
    bare = subprocess.run([node, "app.mjs"], cwd=raw, capture_output=True, text=True, check=False)
    assert (bare.returncode, bare.stderr.count("\n")) == (2, 1)  # no stack trace


def test_browser_page_has_the_logits_of_python(raw: Path) -> None:
    # A function body that onnxruntime-web inlines otherwise, or lacks an operator of; a page that
    # waits for a file under another name.
    os.symlink(node_packages("onnxruntime-web"), raw / "node_modules")
    shutil.copy(APPS / "browser.html", raw)
    found = in_browser(
        raw,
        "browser.html",
        """const result = page.document.getElementById("result");
        if (result.textContent.startsWith("running")) return undefined;
        const logits = JSON.parse(result.dataset.logits ?? "null");
        return { text: result.textContent, logits };""",
    )
    assert right(found["text"] + "\n") == expected(raw)
    session = ort.InferenceSession(raw / MODEL, providers=["CPUExecutionProvider"])
    with np.load(raw / "test.npz") as data:
        (logits,) = session.run(None, {"input": data["input"]})
    browsers = np.reshape(found["logits"], logits.shape)
    np.testing.assert_array_equal(browsers.argmax(axis=1), logits.argmax(axis=1))
    # Sums in another order move a code of the int8 branch at a tie.
    assert np.abs(browsers - logits).max() < 1e-3 * np.abs(logits).max()


def test_examples_of_the_deployment_page_run(
    digits_job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An import path, an argument or a file name in the documentation that does not exist.
    monkeypatch.chdir(digits_job)
    page = (ROOT / "docs" / "deployment.md").read_text("utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 5
    shutil.copy(ROOT / "samples" / "devices" / "own.toml", digits_job)
    adapters, twin_example, *providers = examples
    examples = [twin_example]
    if hasattr(ort, "AdapterFormat"):
        examples.append(adapters)
    # A provider is registered once per process.
    for code in providers if HAS_PROVIDERS else []:
        run(sys.executable, "-c", code, cwd=digits_job)
    for code in examples:
        exec(compile(code, "deployment.md", "exec"), {"__name__": "example"})
    plain = evaluate(digits_job / MODEL, data="test.npz", native=False).top1
    twin = evaluate(digits_job / "model.twin.onnx", data="test.npz", native=False).top1
    assert plain is not None
    assert twin is not None
    # int8 rounding of ten small corrections: one image in a hundred may lie on the other side.
    assert abs(plain - twin) <= 0.01
