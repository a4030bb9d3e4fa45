# SPDX-License-Identifier: Apache-2.0
"""The page of the quickstart: what it says is what the tool says, and it works in a browser."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from browser import in_browser, node_packages

from rimc_onnx import ConvertConfig, calibrate, convert, evaluate
from rimc_onnx.device import get_preset
from rimc_onnx.jobs import quickstart_page as page_job

PAGE = "quickstart.html"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart with a page of two states a series, which takes a tenth of the time."""
    from rimc_onnx.jobs.quickstart import quickstart

    folder = tmp_path_factory.mktemp("page")
    drift, _, pcm = page_job._SERIES
    series = (
        dataclasses.replace(drift, values=(0.1, 0.2)),
        dataclasses.replace(pcm, values=pcm.values[-1:]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_job, "_SERIES", series)
        patch.setattr(page_job, "_SHOWN_FIRST", (0, 1))
        report = quickstart(folder, page=True)
    assert report.page == str(folder / PAGE)
    return folder


def page_data(folder: Path) -> dict[str, Any]:
    text = (folder / PAGE).read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def test_states_are_those_of_the_commands(made: Path, tmp_path: Path) -> None:
    # Points in another order than their labels, a time that is not handed on, weights of one state
    # shown as another's.
    data = page_data(made)
    assert [p["label"] for p in data["series"][0]["points"]] == ["10 %", "20 %"]
    device = get_preset("pcm-natcomm2020")
    files = {name: tmp_path / f"{name}.onnx" for name in ("drifted", "calibrated")}
    config = ConvertConfig(device=device, time_s=365.25 * 86400)
    convert(made / "model.onnx", files["drifted"], config=config)
    calibrate(files["drifted"], files["calibrated"], data=made / "calibration.npz")
    (point,) = data["series"][1]["points"]
    for name, file in files.items():
        # Read noise is drawn by the run, and the page has one.
        top1 = evaluate(file, data=made / "test.npz", batch_size=500).top1
        assert point[name]["right"] == round(500 * (top1 or 0))
    assert data["clean"]["right"] == 491
    cells = sum(rows * columns for rows, columns in (n["shape"] for n in data["nodes"]))
    held = np.frombuffer(base64.b64decode(point["drifted"]["weights"]), np.int8).astype(int)
    target = np.concatenate(
        [np.frombuffer(base64.b64decode(n["target"]), np.int8) for n in data["nodes"]]
    ).astype(int)
    assert held.shape == target.shape == (cells,)
    # After a year every conductance has become smaller by the same law, and some noise.
    assert 0.2 < np.dot(held, target) / np.dot(target, target) < 0.8


def test_page_asks_no_other_host_and_is_not_replaced(
    made: Path, cli: Callable[..., Any], tmp_path: Path
) -> None:
    text = (made / PAGE).read_text("utf-8")
    assert not re.search(r"(src|href)=\"http", text)
    assert len(text) < 2**21
    (tmp_path / PAGE).write_text("mine")
    failed = cli("quickstart", ".", "--page", cwd=tmp_path)
    assert (failed.code, failed.stderr.count("\n")) == (1, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [PAGE]


def test_page_works_in_a_browser(made: Path) -> None:
    # An error of the script leaves the page without bars; a slider that moves only itself.
    found = in_browser(
        made,
        PAGE,
        """const bars = "#accuracy b", live = page.document.getElementById("live").textContent;
        const shown = () => [...page.document.querySelectorAll(bars)].map((b) => b.textContent);
        if (page.document.documentElement.dataset.ready !== "yes") return undefined;
        const slider = page.document.getElementById("slider"), before = shown();
        slider.value = 0;
        slider.dispatchEvent(new page.Event("input"));
        const after = shown();
        page.document.querySelectorAll("#series button")[1].click();
        return { before, after, last: shown(), live };""",
    )
    data = page_data(made)
    (low, high), (pcm,) = (series["points"] for series in data["series"])
    for key, point in (("before", high), ("after", low), ("last", pcm)):
        right = [data["clean"]["right"], point["drifted"]["right"], point["calibrated"]["right"]]
        assert found[key] == [f"{r / 5:.1f} %" for r in right]
    assert found["before"] != found["after"]
    assert found["live"].startswith("not here.")


def test_page_runs_all_digits_in_onnxruntime_web(made: Path, tmp_path: Path) -> None:
    # Bytes of the images or files that the page decodes otherwise; answers of another state.
    os.symlink(node_packages("onnxruntime-web"), tmp_path / "node_modules")
    os.symlink(made / PAGE, tmp_path / PAGE)
    found = in_browser(
        tmp_path,
        PAGE,
        """const button = page.document.getElementById("run");
        if (page.liveResult) return page.liveResult;
        if (!button.disabled && !page.asked) { page.asked = true; button.click(); }
        return undefined;""",
    )
    with np.load(made / "test.npz") as arrays:
        images = arrays["input"]
    for state, file in (
        ("drifted", "model.rimc.onnx"),
        ("calibrated", "model.rimc.calibrated.onnx"),
    ):
        session = ort.InferenceSession(made / file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"input": images})
        assert found[state]["answers"] == "".join(map(str, logits.argmax(axis=1)))
        assert found[state]["ms"] > 0
        print(state, found[state]["right"], f"{found[state]['ms']:.1f} ms")
