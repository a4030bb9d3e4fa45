# SPDX-License-Identifier: Apache-2.0
"""Jobs that are interrupted, terminated, killed or run out of disk: every output is whole.

    python tests/compat/kill.py --runs 200 --seed 0

Each run is a command in a process of its own that gets a signal at a random moment, or a limit on
the size of its files. Afterwards every file under an output's name has to be what the command
writes undisturbed or, with ``--force``, what was there before: never half of it, never a model
whose weights are another run's. INT and TERM leave no hidden folder and one line. Exit code 1 if
a run broke that.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from mutations import DIGITS

BEGIN = "import os; from rimc_onnx.cli.entry import main; os.write({}, b'.'); main()"
"""What comes before the first line of ours is Python's: a byte in a pipe says where that is."""
JOBS = {
    "convert": ["convert", "ext.onnx", "-o", "out.onnx"],
    "calibrate": [
        *["calibrate", "m.rimc.onnx", "-o", "out.onnx", "--twin", "out.twin.onnx"],
        *["--adapter-file", "out.onnx_adapter"],
    ],
    "age": ["age", "m.rimc.onnx", "--time", "1d", "-o", "out.onnx"],
    "statistics": ["statistics", "m.onnx", "-o", "out.npz"],
}
INTERRUPTED = "error: interrupted. No file is half written."


def prepare(folder: Path) -> None:
    """What the jobs read: the sample, and it again with its weights in a file of their own."""
    from rimc_onnx import convert
    from rimc_onnx.crossbar.config import ConvertConfig
    from rimc_onnx.device import get_preset

    shutil.copy(DIGITS / "model.onnx", folder / "m.onnx")
    shutil.copy(DIGITS / "calibration.npz", folder / "calibration.npz")
    model = onnx.load(folder / "m.onnx")
    onnx.save(
        model,
        folder / "ext.onnx",
        save_as_external_data=True,
        location="ext.data",
        size_threshold=0,
    )
    convert(folder / "m.onnx", config=ConvertConfig(device=get_preset("wan2022-aihwkit")))


def outputs(folder: Path, before: set[str]) -> dict[str, str]:
    """What stands under outputs' names, by what it says; times of a report apart."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name in before or not path.is_file() or path.suffix == ".data":
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            report = json.loads(content)
            for name in ("seconds", "peak_rss_bytes"):
                report.pop(name)
            content = json.dumps(report).encode()
        elif path.suffix == ".onnx":
            model = onnx.load(path)  # with its weights, wherever they are
            onnx.checker.check_model(model)
            content = model.SerializeToString()
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


def run(
    command: list[str], folder: Path, ending: str, delay_s: float, limit: int
) -> tuple[int, str]:
    """Exit code and the lines on stderr."""

    def restrict() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if ending == "disk full":
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    begun, begins = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN.format(begins), *command],
        cwd=folder,
        pass_fds=[begins],
        preexec_fn=restrict,  # noqa: PLW1509 - no threads here
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(begins)
    os.read(begun, 1)
    os.close(begun)
    if ending.startswith("SIG"):
        time.sleep(delay_s)
        process.send_signal(signal.Signals[ending])
    _, stderr = process.communicate(timeout=600)
    return process.returncode, stderr


def fault(
    folder: Path, before: set[str], allowed: list[dict[str, str]], ending: str, code: int, text: str
) -> str | None:
    """What is wrong with what a run left, if anything is."""
    try:
        found = outputs(folder, before)
    except Exception as error:
        return f"a file that can't be read: {type(error).__name__}: {error}"
    for name, digest in found.items():
        if digest not in [run.get(name) for run in allowed]:
            return f"{name} is no run's"
    hidden = [p.name for p in folder.iterdir() if p.name.startswith(".rimc-")]
    # A signal before Python has read the first line ends it without a word.
    if hidden and ending != "SIGKILL":
        return f"{hidden} were left"
    began = code not in (-signal.SIGINT, -signal.SIGTERM) or text
    if began and code not in (0, 1, 130, -signal.SIGKILL):
        return f"exit code {code}: {text[-300:]}"
    if code == 130 and text.splitlines() != [INTERRUPTED]:
        return f"not the one line: {text[-500:]}"
    if code == 1 and len(text.splitlines()) != 1:
        return f"not one line: {text[-500:]}"
    if "should not happen" in text:
        return text
    return None


def main() -> int:
    """Run and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=200)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    given = arguments.parse_args()
    origin = Path(tempfile.mkdtemp(prefix="rimc-kill-"))
    prepare(origin)
    before = {p.name for p in origin.iterdir()}
    undisturbed: dict[str, tuple[dict[str, str], float]] = {}
    for job, command in JOBS.items():
        folder = Path(tempfile.mkdtemp(prefix="rimc-kill-"))
        shutil.copytree(origin, folder, dirs_exist_ok=True)
        start = time.monotonic()
        code, text = run(command, folder, "", 0, 0)
        assert code == 0, text
        undisturbed[job] = outputs(folder, before), time.monotonic() - start
        shutil.rmtree(folder)
    random = np.random.default_rng(given.seed)
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    begin = time.monotonic()
    for index in range(given.runs):
        if time.monotonic() - begin > given.seconds:
            break
        job = str(random.choice(list(JOBS)))
        ending = str(random.choice(["SIGINT", "SIGTERM", "SIGKILL", "disk full"]))
        want, seconds = undisturbed[job]
        folder = Path(tempfile.mkdtemp(prefix="rimc-kill-"))
        shutil.copytree(origin, folder, dirs_exist_ok=True)
        command, allowed = [*JOBS[job]], [want]
        if random.random() < 0.5:  # over what another run left
            other = {"convert": ["--seed", "7"], "calibrate": ["--seed", "7"]}.get(job, [])
            run([*command, *other], folder, "", 0, 0)
            allowed.append(outputs(folder, before))
            command.append("--force")
        delay_s = float(random.uniform(0.01, 1.1 * seconds))
        code, text = run(command, folder, ending, delay_s, int(random.integers(0, 80_000)))
        wrong = fault(folder, before, allowed, ending, code, text)
        counts[job, ending, "FAULT" if wrong else f"exit code {code}"] += 1
        if wrong:
            print(f"run {index} ({job}, {ending}): {wrong}", flush=True)
        shutil.rmtree(folder)
    shutil.rmtree(origin)
    for (job, ending, ended), count in sorted(counts.items()):
        print(f"{job:12} {ending:10} {ended:14} {count}")
    return int(any(ended == "FAULT" for _, _, ended in counts))


if __name__ == "__main__":
    sys.exit(main())
