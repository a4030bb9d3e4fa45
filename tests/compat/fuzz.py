# SPDX-License-Identifier: Apache-2.0
"""Hostile inputs: mutated models, arrays, device files, statistics, adapters and provider options.

    python tests/compat/fuzz.py --cases 2000 --seed 0

A process that has imported everything forks for every 50 cases. Each has 10 seconds of the
processor, 6 GiB and a folder that is compared before and after, in ``TMPDIR`` (``/dev/shm`` is
quickest); after a fault the next one begins in a new process. What it may end in is success, or
one line with exit code 1 or 2 (an error of ``rimc_onnx.errors`` from the library). Anything else
is kept in ``--keep`` and counted: a signal, a hang, a traceback, more lines, "This should not
happen", a file that was changed. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from mutations import DIGITS, FLOATS, NUMBERS, Random, models, mutated, mutated_bytes, pick, sample

_SECONDS = 10
"""Of the processor; what waits for it on a busy machine does not hang."""
_WALL_SECONDS = 1200
_MEMORY_BYTES = 6 << 30
_GOOD = ("done", "refused")


class RefusedRunError(Exception):
    """ONNX Runtime's own error of a run."""


# ----------------------------------------------------------------------------------------- cases

Case = tuple[str, Callable[[], object]]


def cli(*arguments: object) -> Callable[[], object]:
    """The command line, as typed."""

    def run() -> object:
        from rimc_onnx.cli.main import main

        sys.argv = ["rimc-onnx", *map(str, arguments)]
        main()

    return run


def model_case(random: Random, base: list[onnx.ModelProto]) -> Case:
    """A mutated model through a command, the library or the provider."""
    Path("m.onnx").write_bytes(mutated(random, pick(random, base)))
    way = int(random.integers(6))
    if way == 0:
        return "model: inspect", cli("inspect", "m.onnx", "--json")
    if way == 1:
        return "model: convert", cli("convert", "m.onnx")
    if way == 2:
        bits = ["--dac-bits", 8, "--adc-bits", 8, "--tile-rows", 16]
        return "model: convert 8 bits", cli("convert", "m.onnx", *bits, "--data", "data.npz")
    if way == 3:
        return "model: statistics", cli("statistics", "m.onnx", "--data", "data.npz")
    if way == 4:
        data = ["--data", "data.npz", "--teacher", "sample/model.onnx"]
        return "model: evaluate", cli("evaluate", "m.onnx", *data, "--stock")

    def provider() -> object:
        from rimc_onnx.runtime.provider import provider_session

        session = provider_session("m.onnx", provider_options={"preset": "gaussian-relative"})
        with np.load("data.npz") as arrays:
            feeds = {i.name: arrays[i.name] for i in session.get_inputs() if i.name in arrays}
        try:
            return session.run(None, feeds)
        except Exception as error:  # a session is ONNX Runtime's own, and so are its errors
            raise RefusedRunError(str(error)) from error

    return "model: provider", provider


def converted_case(random: Random, base: list[onnx.ModelProto]) -> Case:
    """A mutated converted model."""
    Path("sample/m.rimc.onnx").write_bytes(mutated(random, pick(random, base)))
    way = int(random.integers(4))
    if way == 0:
        return "converted: inspect", cli("inspect", "sample/m.rimc.onnx")
    if way == 1:
        return "converted: age", cli("age", "sample/m.rimc.onnx", "--time", "1d", "--force")
    if way == 2:
        many = ["--samples", 3, "--force", "--twin", "t.onnx"]
        return "converted: calibrate", cli("calibrate", "sample/m.rimc.onnx", *many)
    return "converted: evaluate", cli("evaluate", "sample/m.rimc.onnx", "--data", "sample/test.npz")


def data_case(random: Random) -> Case:
    """A damaged .npz, or arrays of other shapes and types."""
    path = Path("sample/bad.npz")
    if random.random() < 0.6:
        path.write_bytes(mutated_bytes(random, Path("sample/calibration.npz").read_bytes()))
    else:
        shape = [pick(random, [0, 1, 2, 8, 9]) for _ in range(int(random.integers(0, 6)))]
        kind = pick(random, [np.float32, np.float64, np.int64, np.bool_, np.complex64, "U3", "O"])
        np.savez(path, **{pick(random, ["input", "labels", "x" * 300]): np.zeros(shape, kind)})
    commands = [
        ["calibrate", "model.rimc.onnx"],
        ["evaluate", "model.onnx"],
        ["statistics", "model.onnx"],
        ["convert", "model.onnx", "--dac-bits", 8],
    ]
    command = pick(random, commands)
    extra = ["--batch-axis", pick(random, [0, 1, 5, "none", "input=2", "y=0"])]
    extra = extra if random.random() < 0.3 else []
    given = [command[0], f"sample/{command[1]}", *command[2:], "--data", path, *extra]
    output = [] if command[0] == "evaluate" else ["-o", "new"]
    return "data", cli(*given, *output)


def device_case(random: Random) -> Case:
    """A device file with strange values, or damaged."""
    text = 'base = "gaussian-relative"\n' if random.random() < 0.5 else ""
    keys = ["drift_frac", "g_max_us", "g_min_us", "level_bits", "num_slices", "time_law", "law"]
    keys += ["read_noise_frac", "iv_square", "scaling", "preset", "stuck_min_frac", "unknown"]
    values = [*map(str, NUMBERS), "nan", "inf", "1e999", '"x"', "[1, 2]", "{}", "true", "[" * 3000]
    values += ['{kind = "power"}', "1979-05-27", f'"{"y" * 5000}"', "[{}, {}]", "-0.0", "0.1"]
    for _ in range(int(random.integers(1, 5))):
        text += f"{pick(random, keys)} = {pick(random, values)}\n"
    content = text.encode()
    Path("d.toml").write_bytes(mutated_bytes(random, content) if random.random() < 0.3 else content)
    if random.random() < 0.5:
        return "device file", cli("devices", "d.toml", "--json")
    given = ["sample/model.onnx", "--device", "d.toml", "-o", "new.onnx"]
    return "device file", cli("convert", *given)


def statistics_case(random: Random) -> Case:
    """A damaged statistics file, or one with other arrays."""
    path = Path("sample/bad.statistics.npz")
    if random.random() < 0.5:
        path.write_bytes(mutated_bytes(random, Path("sample/model.statistics.npz").read_bytes()))
    else:
        with np.load("sample/model.statistics.npz") as archive:
            arrays = dict(archive)
        for _ in range(int(random.integers(1, 4))):
            key = pick(random, sorted(arrays))
            way = int(random.integers(5))
            if way == 0:
                del arrays[key]
            elif way == 1 and arrays[key].dtype.kind == "f":
                arrays[key] = np.full_like(arrays[key], pick(random, FLOATS))
            elif way == 2:
                arrays[key] = arrays[key].reshape(-1)[: int(random.integers(5))]
            elif way == 3:
                arrays[key] = arrays[key].astype(
                    pick(random, ["U9", "f8", "?"] if arrays[key].dtype.kind != "U" else ["U9"])
                )
            else:
                arrays[pick(random, ["n", "a/b", "x" * 300])] = arrays.pop(key)
        np.savez(path, **arrays)
    given = ["--statistics", path, "--read-out", "--samples", pick(random, [0, 2])]
    return "statistics", cli("calibrate", "sample/model.rimc.onnx", *given, "-o", "new.onnx")


def adapter_case(random: Random) -> Case:
    """A damaged adapter file through the library."""
    Path("a.onnx_adapter").write_bytes(
        mutated_bytes(random, Path("sample/a.onnx_adapter").read_bytes())
    )

    def read() -> object:
        from rimc_onnx.io.adapter_file import read_adapter_file
        from rimc_onnx.io.model_files import load_model

        return read_adapter_file("a.onnx_adapter", load_model(Path("sample/model.rimc.onnx")))

    return "adapter file", read


def options_case(random: Random) -> Case:
    """Strange options of the provider."""
    keys = ["preset", "device", "time_s", "seed", "scaling", "keep_digital", "drift_frac"]
    keys += ["periphery", "g_max_us", "level_bits", "num_slices", "device_reads", "unknown"]
    values = [*map(str, NUMBERS), *map(str, FLOATS), "gaussian-relative", "{}", "[]", "@nothing"]
    values += ["@.", "@/dev/zero", '{"*": {}}', '{"*": {"dac_bits": 99}}', "[" * 3000, "*", "a;;b"]
    values += [json.dumps({"law": "relative", "preset": "x", "drift_frac": v}) for v in ("a", 9e9)]
    options = {pick(random, keys): pick(random, values) for _ in range(int(random.integers(1, 4)))}
    if random.random() < 0.7:
        options["preset"] = "gaussian-relative"

    def run() -> object:
        from rimc_onnx.runtime.provider import provider_session

        return provider_session("sample/model.onnx", provider_options=options)

    return "provider options", run


# ------------------------------------------------------------------------------------------- run


def prepare(folder: Path, *, digits: bool) -> None:
    """Files that the cases start from: a small network, or the sample."""
    from rimc_onnx import calibrate, convert, write_statistics

    files = folder / "sample"
    files.mkdir(parents=True)
    if digits:
        for file in ("model.onnx", "calibration.npz", "test.npz"):
            shutil.copy(DIGITS / file, files / file)
    else:
        model, arrays = sample()
        onnx.save(model, files / "model.onnx")
        for file in ("calibration.npz", "test.npz"):
            np.savez(files / file, **arrays)
    convert(files / "model.onnx")
    calibrate(files / "model.rimc.onnx", adapter_file=files / "a.onnx_adapter", swappable=True)
    write_statistics(files / "model.onnx", keep_samples=4)
    random = np.random.default_rng(1)
    x = random.standard_normal((10, 6)).astype(np.float32)
    images = random.standard_normal((10, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, input=images, gain=np.float32(2), flag=np.array(True))


def load_everything() -> None:
    """What commands import and build when they need it, once, before the forks."""
    import onnxruntime  # noqa: F401
    import scipy.linalg
    import scipy.sparse.linalg  # noqa: F401
    import typer.main

    import rimc_onnx

    for module in pkgutil.walk_packages(rimc_onnx.__path__, "rimc_onnx."):
        if not module.name.startswith(("rimc_onnx.training", "rimc_onnx.studies")):
            with contextlib.suppress(ImportError):  # of an extra
                importlib.import_module(module.name)
    # typer makes all commands from their signatures anew for every call: 50 ms.
    typer.main.get_command = functools.cache(typer.main.get_command)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli("devices", "gaussian-relative", "--json")()
    gc.collect()
    gc.freeze()


def listing(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Files with what the system knows of them: who writes into one, or replaces it, changes it."""
    found = {}
    for path in folder.rglob("*"):
        state = path.lstat()
        if path.is_file():
            name = str(path.relative_to(folder))
            found[name] = (state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def ended_in(case: Callable[[], object]) -> int:
    """Run a case; exit code 0, 1 or 2, anything else is a fault."""
    from rimc_onnx.errors import RimcError

    code: object = 0
    try:
        case()
    except SystemExit as stop:
        code = stop.code or 0
    except RimcError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except (MemoryError, RefusedRunError):
        print("error: not enough memory, or refused by ONNX Runtime itself", file=sys.stderr)
        code = 1
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 70


def verdict(code: int, text: str, changed: bool) -> str:
    """What a case ended in."""
    if "Traceback" in text:
        last = text.strip().splitlines()[-1].partition(":")[0]
        return f"TRACEBACK {last[:60]}"
    if "should not happen" in text:
        return "SHOULD NOT HAPPEN"
    if code not in (0, 1, 2):
        return f"CODE {code}"
    lines = text.splitlines()
    if code == 0 and len(lines) == 1 and lines[0].startswith("warning: "):
        return _GOOD[0]
    if (code == 0) != (not lines) or len(lines) > 1:
        return "LINES"
    if changed:
        return "FILES CHANGED"
    return _GOOD[code != 0]


def death(status: int) -> str:
    """What a process ended in that did not get to the end of its case."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return "HANG"
    if os.WIFSIGNALED(status):
        return f"SIGNAL {signal.Signals(os.WTERMSIG(status)).name}"
    return f"LEFT WITH CODE {os.WEXITSTATUS(status)}"


class Base(NamedTuple):
    """What cases start from."""

    folder: Path
    ordinary: list[onnx.ModelProto]
    converted: list[onnx.ModelProto]


def run_case(
    index: int, seed: int, bases: Sequence[Base], folder: Path
) -> Iterator[tuple[str, str, str]]:
    """(class, verdict, stderr) of one case: before it runs, without a verdict, and after."""
    random = np.random.default_rng([seed, index])
    work, err = folder / "work", folder / "stderr"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    base = bases[int(random.random() < 0.1)]
    shutil.copytree(base.folder, work)
    os.chdir(work)
    makers: list[Callable[[], Case]] = [
        *[lambda: model_case(random, base.ordinary)] * 6,
        *[lambda: converted_case(random, base.converted)] * 4,
        lambda: data_case(random),
        lambda: device_case(random),
        lambda: statistics_case(random),
        lambda: adapter_case(random),
        lambda: options_case(random),
    ]
    kind, case = pick(random, makers)()
    yield kind, "", ""
    before = listing(work)
    descriptor = os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime) + 1 + _SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.RLIM_INFINITY))
    code = ended_in(case)
    text = err.read_text("utf-8", "replace")
    after = listing(work)
    changed = any(after.get(n) != d for n, d in before.items()) or (code != 0 and after != before)
    yield kind, verdict(code, text, changed), text


def work_off(
    first: int,
    last: int,
    seed: int,
    bases: Sequence[Base],
    folder: Path,
    results: int,
) -> None:
    """In a process of its own: cases until one goes wrong or memory grows, a line for each step."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for index in range(first, last):
        for result in run_case(index, seed, bases, folder):
            os.write(results, json.dumps([index, *result]).encode() + b"\n")
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        if result[1] not in _GOOD or pages * resource.getpagesize() > _MEMORY_BYTES // 2:
            break


@contextlib.contextmanager
def _watched(process: int) -> Iterator[Callable[[], object]]:
    """Kills a process from which nothing was heard for long; called when something was."""

    def kill(_signal: int, _frame: object) -> None:
        os.kill(process, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    signal.alarm(_WALL_SECONDS)
    try:
        yield lambda: signal.alarm(_WALL_SECONDS)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def batch(*given: Any) -> Iterator[tuple[int, str, str, str]]:
    """(index, class, verdict, stderr) of cases from the first on that one process works off."""
    folder = given[-1]
    results, write = os.pipe()
    process = os.fork()
    if process == 0:
        stderr = os.dup(2)  # cases take its place
        try:
            os.close(results)
            work_off(*given, write)
        except BaseException:
            os.write(stderr, traceback.format_exc().encode())
            os._exit(71)
        os._exit(0)
    os.close(write)
    at: tuple[int, str] | None = None
    with os.fdopen(results) as lines, _watched(process) as alive:
        for line in lines:
            alive()
            index, kind, ended, text = json.loads(line)
            at = None if ended else (index, kind)
            if ended:
                yield index, kind, ended, text
    status = os.waitpid(process, 0)[1]
    if at is not None:
        err = folder / "stderr"
        yield *at, death(status), err.read_text("utf-8", "replace") if err.exists() else ""
    elif status:
        raise RuntimeError(f"a process of the fuzz itself: {death(status)}")


def main() -> int:
    """Run the cases and print the counts."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--cases", type=int, default=1000)
    arguments.add_argument("--first", type=int, default=0, help="index of the first case")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    arguments.add_argument("--batch", type=int, default=50, help="cases to a process at most")
    arguments.add_argument("--keep", type=Path, help="folder for the cases that went wrong")
    arguments.add_argument("--counts", type=Path, help="JSON of the counts; goes on from there")
    given = arguments.parse_args()
    keep, counts_file = (p and p.resolve() for p in (given.keep, given.counts))
    root = Path(tempfile.mkdtemp(prefix="rimc-fuzz-"))
    folder, origins = root / "case", [root / "small", root / "digits"]
    # In a process of its own: a session's threads would not survive a fork.
    if os.fork() == 0:
        for origin in origins:
            prepare(origin, digits=origin.name == "digits")
        os._exit(0)
    if os.wait()[1] != 0:
        return 1
    names = ("model.onnx", "model.rimc.onnx", "model.rimc.calibrated.onnx")
    loaded = [[onnx.load(origin / "sample" / name) for name in names] for origin in origins]
    bases = [
        Base(origins[0], models(), loaded[0][1:]),
        Base(origins[1], loaded[1][:1], loaded[1][1:]),
    ]
    load_everything()

    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    index, last = given.first, given.first + given.cases
    if counts_file is not None and counts_file.exists():
        saved = json.loads(counts_file.read_text())
        index = saved["next"]
        counts.update({(kind, ended): count for kind, ended, count in saved["counts"]})
    start, begun = time.monotonic(), index
    while index < last and time.monotonic() - start < given.seconds:
        first, end = index, min(index + given.batch, last)
        for at, kind, ended, text in batch(first, end, given.seed, bases, folder):
            index = at + 1
            counts[kind, ended] += 1
            if ended not in _GOOD:
                print(f"case {at} ({kind}): {ended}: {text[-300:]!r}", flush=True)
                if keep is not None:
                    shutil.copytree(folder, keep / str(at), dirs_exist_ok=True)
        if counts_file is not None:
            rows = [[*key, count] for key, count in sorted(counts.items())]
            counts_file.write_text(json.dumps({"next": index, "counts": rows}))
    shutil.rmtree(root, ignore_errors=True)
    for (kind, ended), count in sorted(counts.items()):
        print(f"{kind:24} {ended:40} {count}")
    print(f"{index - begun} cases in {time.monotonic() - start:.0f} s, {counts.total()} in all")
    return int(any(ended not in _GOOD for _, ended in counts))


if __name__ == "__main__":
    sys.exit(main())
