# SPDX-License-Identifier: Apache-2.0
"""Samples, labels, metrics and teachers that do not fit: one line on stderr, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

Cli = Callable[..., Any]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def save_npz(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "bad.npz"
    np.savez(path, **arrays)
    return path


def images(num: int = 12) -> np.ndarray:
    return rng().random((num, 1, 8, 8), dtype=np.float32)


# ------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": images()}, "no array for input 'input'; it has 'image'"),
        ({"input": images()[:, 0]}, "shape [12, 8, 8], the model's input is [N, 1, 8, 8]"),
        ({"input": images()[:, :, :4]}, "shape [12, 1, 4, 8]"),
        ({"input": images().astype(np.float64)}, "is float64, the model's input is float32"),
        ({"input": (255 * images()).astype(np.uint8)}, "is uint8"),
        ({"input": np.full_like(images(), np.nan)}, "NaN or infinity"),
        ({"input": np.where(images() > 0.5, np.inf, 0).astype(np.float32)}, "NaN or infinity"),
        ({"input": images(0)}, "holds no sample"),
        ({"input": images(12), "labels": np.zeros(11, int)}, "Give one for every sample"),
        ({"input": images(9)}, "10 samples were asked for, the data has 9"),
    ],
    ids=["name", "rank", "size", "float64", "uint8", "nan", "inf", "none", "counts", "few"],
)
def test_samples_that_do_not_fit_are_refused(
    fails: Callable[..., str], digits_job: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    # Adapters fitted to garbage, or an error in ONNX Runtime's words in the middle of the work.
    save_npz(digits_job, **arrays)
    output = ["-o", "new.onnx"]
    assert says in fails(
        digits_job, 1, "calibrate", "model.rimc.onnx", "--data", "bad.npz", *output
    )
    if "asked for" not in says:
        line = fails(
            digits_job, 1, "convert", "model.onnx", "--dac-bits", 8, "--data", "bad.npz", *output
        )
        assert says in line


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.npz", None, "no such file"),
        ("missing", None, "no such data"),
        ("text.npz", b"not a zip", "not an .npz"),
        ("empty.npz", b"", "not an .npz"),
        ("input.npy", np.lib.format.magic(1, 0), "not an .npz"),
    ],
)
def test_file_that_holds_no_samples_is_refused(
    fails: Callable[..., str], digits_job: Path, name: str, content: bytes | None, says: str
) -> None:
    # numpy takes any file for a pickle and says so, and an .npy for one array without a name.
    if content is not None:
        (digits_job / name).write_bytes(content)
    line = fails(digits_job, 1, "calibrate", "model.rimc.onnx", "--data", name, "-o", "new.onnx")
    assert says in line
    assert name in line


def test_array_of_objects_is_refused(fails: Callable[..., str], digits_job: Path) -> None:
    # Loading a pickle runs whatever code it holds.
    np.savez(digits_job / "bad.npz", input=np.array([{"a": 1}, None], dtype=object))
    fails(digits_job, 1, "evaluate", "model.onnx", "--data", "bad.npz")
    (digits_job / "folder").mkdir()
    np.save(digits_job / "folder" / "input.npy", np.array([None], dtype=object))
    fails(digits_job, 1, "evaluate", "model.onnx", "--data", "folder")


def test_folder_without_arrays_is_refused(fails: Callable[..., str], digits_job: Path) -> None:
    # An empty folder is not zero samples.
    (digits_job / "folder").mkdir()
    line = fails(digits_job, 1, "evaluate", "model.onnx", "--data", "folder")
    assert "holds no .npy" in line


def test_no_samples_at_all_is_refused(fails: Callable[..., str], digits_job: Path) -> None:
    # The default, calibration.npz beside the model, is not there.
    (digits_job / "calibration.npz").unlink()
    (digits_job / "model.rimc.calibrated.onnx").unlink()
    (digits_job / "model.rimc.calibrated.report.json").unlink()
    assert "--data" in fails(digits_job, 1, "calibrate", "--samples", 10)
    line = fails(digits_job, 1, "convert", "model.onnx", "--adc-bits", 8, "-o", "new.onnx")
    assert "--data" in line


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        ("import nothing_of_this_name", 2, "nothing_of_this_name"),
        ("raise RuntimeError('no\\nGPU')", 2, "no GPU"),
        ("def reader(:", 2, "can't be imported"),
        ("def other(): pass", 2, "no such callable. Known: other."),
        ("def readr(): pass", 2, "Did you mean 'readr'"),
        ("def reader(): return [1, 2]", 1, "gives int, not a dict"),
        ("def reader(): return 3", 1, "not iterable"),
        ("def reader(): raise OSError('no camera')", 1, "no camera"),
        ("def reader(): return []", 1, "holds no sample"),
    ],
    ids=["import", "raises", "syntax", "other", "near", "ints", "int", "camera", "empty"],
)
def test_reader_in_python_that_fails_is_named(
    fails: Callable[..., str],
    digits_job: Path,
    code: str,
    exit_code: int,
    says: str,
    request: pytest.FixtureRequest,
) -> None:
    # The user's own code: whatever it raises is not an error of ours.
    module = f"reader_{abs(hash(request.node.name))}"
    (digits_job / f"{module}.py").write_text(f"{code}\n")
    line = fails(
        digits_job, exit_code, "calibrate", "model.rimc.onnx", "--data", f"{module}:reader",
        "-o", "new.onnx",
    )  # fmt: skip
    assert module in line or "holds no sample" in line
    assert says in line


# ----------------------------------------------------------------------- teacher, labels, metric


def test_missing_teacher_is_named(fails: Callable[..., str], digits_job: Path) -> None:
    # The converted file alone was copied to another folder.
    (digits_job / "model.onnx").unlink()
    for arguments in (["-o", "new.onnx"], ["-o", "new.onnx", "--teacher", "model.onnx"]):
        line = fails(digits_job, 1, "calibrate", "model.rimc.onnx", *arguments)
        assert "model.onnx" in line


def test_teacher_that_is_another_file_is_refused(
    fails: Callable[..., str], cli: Cli, digits_job: Path
) -> None:
    # Trained again under the same name: the adapters would move the student to another network.
    model = onnx.load(digits_job / "model.onnx")
    model.doc_string = "trained again"
    onnx.save(model, digits_job / "model.onnx")
    for arguments in ([], ["--teacher", "model.onnx"]):
        line = fails(digits_job, 1, "calibrate", "model.rimc.onnx", "-o", "new.onnx", *arguments)
        assert "sha256" in line
        assert "--force" in line
    forced = cli("calibrate", "model.rimc.onnx", "-o", "new.onnx", "--force", cwd=digits_job)
    assert forced.code == 0


def test_teacher_of_another_network_is_refused(
    fails: Callable[..., str], digits_job: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # --force lets another file in, but not another network.
    onnx.save(matmul_model(np.ones((3, 2), np.float32)), digits_job / "other.onnx")
    line = fails(
        digits_job, 1, "calibrate", "model.rimc.onnx", "-o", "new.onnx", "--force",
        "--teacher", "other.onnx",
    )  # fmt: skip
    assert "is not in the teacher" in line


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, "no array 'classes' for the labels"),
        (np.zeros((12, 2), int), "labels have shape [12, 2]"),
        (np.zeros(12, np.float32), "float32, need whole numbers"),
        (np.full(12, 10), "labels lie in 10..10, output 'logits' has 10 classes"),
        (np.full(12, -1), "labels lie in -1..-1"),
    ],
    ids=["missing", "shape", "dtype", "high", "low"],
)
def test_labels_that_do_not_fit_are_refused(
    fails: Callable[..., str], digits_job: Path, labels: np.ndarray | None, says: str
) -> None:
    # One-hot labels or labels from 1 on count as 0 % or wrap around.
    arrays = {"input": images()} | ({} if labels is None else {"classes": labels})
    save_npz(digits_job, **arrays)
    line = fails(
        digits_job, 1, "evaluate", "model.onnx", "--data", "bad.npz", "--labels", "classes"
    )
    assert says in line


def test_evaluate_with_nothing_to_compare_is_a_usage_error(
    fails: Callable[..., str], digits_job: Path
) -> None:
    # A table without a single figure.
    save_npz(digits_job, input=images())
    line = fails(digits_job, 2, "evaluate", "model.onnx", "--data", "bad.npz")
    assert "--labels" in line
    assert "--teacher" in line


@pytest.mark.parametrize(
    ("metric", "code", "says"),
    [
        ("nothing_of_this_name:f", 2, "can't be imported"),
        ("user_metrics:spearmann", 2, "Did you mean 'spearman'"),
        ("spearman", 2, "'spearman' is not of the form module:callable"),
        ("user_metrics:raises", 1, "metric 'raises' fails: KeyError: 'pairs'"),
        ("user_metrics:text", 1, "metric 'text' fails"),
        ("user_metrics:nan", 1, "metric 'nan' is nan"),
        ("user_metrics:samples", 1, "metric 'samples' has the name"),
    ],
)
def test_metric_that_fails_is_named(
    fails: Callable[..., str], digits_job: Path, metric: str, code: int, says: str
) -> None:
    # NaN is no JSON; a metric called samples would hide the number of samples.
    (digits_job / "user_metrics.py").write_text(
        "def spearman(outputs, extras): return 0.5\n"
        "def raises(outputs, extras): return extras['pairs']\n"
        "def text(outputs, extras): return 'good'\n"
        "def nan(outputs, extras): return float('nan')\n"
        "def samples(outputs, extras): return 1.0\n"
    )
    sys.modules.pop("user_metrics", None)
    line = fails(
        digits_job, code, "evaluate", "model.onnx", "--data", "test.npz", "--metric", metric,
        "--json",
    )  # fmt: skip
    assert says in line


def test_model_that_onnx_runtime_refuses_is_one_line(
    fails: Callable[..., str], tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # ONNX Runtime's own messages have several lines and a source path.
    model = matmul_model(np.ones((3, 2), np.float32))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "bad.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((2, 3), np.float32), labels=np.zeros(2, int))
    line = fails(tmp_path, 1, "evaluate", "bad.onnx", "--data", "data.npz")
    assert "NoSuchOperator" in line


def test_model_that_answers_nan_has_no_sqnr(
    fails: Callable[..., str], tmp_path: Path, matmul_model: Callable[..., onnx.ModelProto]
) -> None:
    # NaN can't be written as JSON, and "nan dB" says nothing.
    model = matmul_model(np.ones((3, 2), np.float32))
    onnx.save(model, tmp_path / "good.onnx")
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.full((3, 2), np.nan, np.float32), "w1")
    )
    onnx.save(model, tmp_path / "bad.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((2, 3), np.float32))
    line = fails(
        tmp_path, 1, "evaluate", "bad.onnx", "--data", "data.npz", "--teacher", "good.onnx"
    )
    assert "'y'" in line


@pytest.mark.parametrize("written", ["0.10.0", "9" * 5000])
@pytest.mark.parametrize("command", [["calibrate"], ["inspect"], ["age", "--time", "1d"]])
def test_model_of_a_newer_version_is_refused(
    fails: Callable[..., str], digits_job: Path, command: list[str], written: str
) -> None:
    # Attributes that mean something else by now, read as today's; 0.10 taken for less than 0.9;
    # a number of more digits than Python converts.
    path = digits_job / "model.rimc.onnx"
    model = onnx.load(path)
    [version] = [p for p in model.metadata_props if p.key == "rimc.version"]
    version.value = written
    onnx.save(model, path)
    says = fails(digits_job, 1, *command, "model.rimc.onnx")
    assert f"converted by rimc-onnx {written[:40]}, which is newer than this one" in says
    assert "Update rimc-onnx" in says


@pytest.mark.parametrize("version", ["0.0.9", "", "0.1.0"])
def test_model_of_an_older_version_is_taken(cli: Cli, digits_job: Path, version: str) -> None:
    # A version that can't be compared, or the same one, refused.
    path = digits_job / "model.rimc.onnx"
    model = onnx.load(path)
    [entry] = [p for p in model.metadata_props if p.key == "rimc.version"]
    entry.value = version
    onnx.save(model, path)
    assert cli("inspect", "model.rimc.onnx", cwd=digits_job).code == 0
