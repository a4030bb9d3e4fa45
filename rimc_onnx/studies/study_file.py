# SPDX-License-Identifier: Apache-2.0
"""Study files: which trials there are, and what is shown of them, in TOML (docs/studies.md)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from rimc_onnx.device.toml_file import parse_toml, read_toml
from rimc_onnx.errors import ConfigError, RimcError, UsageError, suggest
from rimc_onnx.studies.comparison import Lifespan, Paper
from rimc_onnx.studies.settings import FIELDS, trial_of
from rimc_onnx.studies.tables import PlotSpec, TableSpec
from rimc_onnx.studies.trial import Trial

__all__ = ["Point", "Study", "load_study", "parse_setting", "shipped_studies", "shipped_study"]

_MOST_TRIALS = 100_000
_KEYS: tuple[str, ...] = (
    "title",
    "about",
    "base",
    "grid",
    "zip",
    "variants",
    "sweep",
    "table",
    "plot",
    "paper",
)
_KEYS += ("lifespan",)
_TABLES = ("training", "options")
"""Fields of a trial that are tables of fields themselves."""
_SWEEP_KEYS = ("name", "base", "grid", "zip", "variants")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial and where it stands in its study."""

    sweep: str
    names: Mapping[str, Any]
    """Its place on every axis of the sweep."""
    trial: Trial


@dataclass(frozen=True, kw_only=True)
class Study:
    """Trials, and what is shown of them."""

    title: str
    about: str
    """A few sentences."""
    points: tuple[Point, ...]
    tables: tuple[TableSpec, ...]
    plots: tuple[PlotSpec, ...]
    paper: Paper | None
    lifespan: Lifespan | None
    text: str
    """The file."""
    left_out: tuple[str, ...] = ()
    """Values of axes whose files are not there, with the reason."""


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    name: str
    axes: tuple[tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...], ...]
    """Of every axis its places: (names, settings)."""
    base: Mapping[str, Any] = field(default_factory=dict)

    def axis_names(self) -> set[str]:
        """Names that every point has."""
        return {name for axis in self.axes for own, _ in axis[:1] for name in own}

    def places(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Names and settings of every point."""
        for chosen in itertools.product(*self.axes):
            names: dict[str, Any] = {}
            settings = dict(self.base)
            for own, given in chosen:
                names |= own
                settings |= given
            yield names, settings


@dataclass(frozen=True, kw_only=True)
class _Changes:
    """What a call has in place of a file's own."""

    settings: Mapping[str, Any]
    axes: Mapping[str, list[int]]
    """Seeds and draws."""
    networks: tuple[dict[str, Any], Path] | None
    only: Sequence[tuple[str, Any]]
    trial: Trial | None

    def trial_at(
        self, names: Mapping[str, Any], settings: Mapping[str, Any], folder: Path
    ) -> Trial:
        """Of its fields, or the given one as the device and the draw that the place names."""
        if self.trial is None:
            return trial_of(_changed(settings, self.settings), folder)
        found, method = self.trial, self.trial.method
        if "seed" in names:
            found = replace(found, convert=replace(found.convert, seed=names["seed"]))
        if "draw" in names and method is not None:
            found = replace(found, method=replace(method, sample_seed=names["draw"]))
        return found


def _changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``table.field`` changes a field of the table that a trial has; one without stays without."""
    found = dict(settings)
    for name, value in changes.items():
        table, dot, inner = name.partition(".")
        if not dot:
            found[name] = value
        elif table not in _TABLES:
            raise UsageError(f"{name!r}: {table!r} is no table. {suggest(table, _TABLES)}")
        elif isinstance(found.get(table), Mapping):
            found[table] = {**found[table], inner: value}
    return found


def _numbers(value: int | Sequence[int]) -> list[int]:
    return list(range(value)) if isinstance(value, int) else list(value)


def shipped_studies() -> dict[str, str]:
    """Names of the studies that come with the package, each with its title."""
    found = {}
    for entry in resources.files("rimc_onnx.studies.files").iterdir():
        if entry.name.endswith(".toml"):
            name = entry.name[:-5]
            found[name] = parse_toml(entry.read_text("utf-8"), entry.name)["title"]
    return dict(sorted(found.items()))


def shipped_study(name: str, **overrides: Any) -> Study:
    """A study that comes with the package; ``overrides`` are those of :func:`load_study`.

    A ``trial`` among them takes the place of all fields, and its seed and draw are the axes'.

    Raises:
        UsageError: there is none of that name.
    """
    if name not in shipped_studies():
        raise UsageError(f"study {name!r} is not known. {suggest(name, shipped_studies())}")
    text = (resources.files("rimc_onnx.studies.files") / f"{name}.toml").read_text("utf-8")
    return _study(f"study {name}", text, Path(), **overrides)


def load_study(path: str | Path, **overrides: Any) -> Study:
    """The study of a file; paths in it are seen from its folder.

    Args:
        path: a TOML file.
        overrides: ``settings`` (fields of trials that hold for all sweeps), ``seeds`` and ``draws``
            (a number of devices, of draws of samples, or a list of them, in place of those of axes
            ``seed`` and ``draw``), ``networks`` (a TOML file of networks in place of the
            places of axes ``network``), ``only`` (places of axes, the others are left out).

    Raises:
        UsageError: it can't be read, or says something that is not known; with its name.
    """
    path = Path(path)
    read_toml(path)  # refuses what is no TOML file
    return _study(str(path), path.read_text("utf-8"), path.parent, **overrides)


def parse_setting(text: str) -> tuple[str, Any]:
    """Name and value of ``field=value``; a value that is not TOML is a text.

    Raises:
        UsageError: it has no such form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not of the form FIELD=VALUE.")
    try:
        return name.strip(), parse_toml(f"value = {value}", text)["value"]
    except ConfigError:
        return name.strip(), value


def _study(
    name: str,
    text: str,
    folder: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    seeds: int | Sequence[int] | None = None,
    draws: int | Sequence[int] | None = None,
    networks: str | Path | None = None,
    only: Sequence[tuple[str, Any]] = (),
    trial: Trial | None = None,
) -> Study:
    values = parse_toml(text, name)
    try:
        _known("the file", values, _KEYS)
        changes = _Changes(
            settings=dict(settings or {}),
            axes={n: _numbers(v) for n, v in (("seed", seeds), ("draw", draws)) if v is not None},
            networks=None if networks is None else _networks(Path(networks)),
            only=only,
            trial=trial,
        )
        sweeps = _sweeps(values, folder, changes)
        points, left_out = _points(sweeps, folder, changes)
        # Of all sweeps: a table of one that is left out is not wrong, but empty.
        axes = {s.name: s.axis_names() for s in sweeps}
        return Study(
            title=str(values.get("title", name)),
            about=str(values.get("about", "")),
            points=tuple(points),
            tables=tuple(TableSpec.of(t, axes) for t in _list(values, "table")),
            plots=tuple(PlotSpec.of(p, axes) for p in _list(values, "plot")),
            paper=None if "paper" not in values else Paper.of(values["paper"], _methods(values)),
            lifespan=None if "lifespan" not in values else Lifespan.of(values["lifespan"]),
            text=text,
            left_out=tuple(left_out),
        )
    except RimcError as error:
        raise UsageError(f"{name}: {error}") from error


def _methods(values: Mapping[str, Any]) -> set[str]:
    """Places of the axis ``method``, chosen or not."""
    variants = (one.get("variants", {}) for one in (values, *_list(values, "sweep")))
    return {name for of_sweep in variants for name in of_sweep.get("method", {})}


def _networks(path: Path) -> tuple[dict[str, Any], Path]:
    values = read_toml(path)
    _known(str(path), values, ("network",))
    return dict(values.get("network", {})), path.parent


def _known(where: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in values:
        if name not in known:
            raise UsageError(f"{where} has {name!r}, which is not known. {suggest(name, known)}")


def _list(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(part, dict) for part in found):
        raise UsageError(f"{name} must be written [[{name}]], once for each.")
    return found


def _sweeps(values: Mapping[str, Any], folder: Path, changes: _Changes) -> list[_Sweep]:
    base = dict(values.get("base", {}))
    found = _list(values, "sweep") or [{k: values[k] for k in _SWEEP_KEYS if k in values}]
    for one in found:
        _known("a sweep", one, _SWEEP_KEYS)
    return [_sweep(one, base, changes, folder) for one in found]


def _points(
    sweeps: Sequence[_Sweep], folder: Path, changes: _Changes
) -> tuple[list[Point], list[str]]:
    points: list[Point] = []
    left_out: dict[str, None] = {}
    known = set().union(*(sweep.axis_names() for sweep in sweeps))
    for name, _ in changes.only:
        if name not in known:
            raise UsageError(f"`only`: the study has no axis {name!r}. {suggest(name, known)}")
    for sweep in sweeps:
        for names, found in sweep.places():
            if not _is_chosen(names, changes.only):
                continue
            for name in set(names) & set(changes.settings):
                raise UsageError(
                    f"{name} is an axis of sweep {sweep.name!r}, so it can't be set. Choose among "
                    f"its places: `only` {name}=PLACE."
                )
            where = Path(found.pop("folder", folder))
            try:
                trial = changes.trial_at(names, found, where)
            except UsageError as error:
                at = ", ".join(f"{k} {v}" for k, v in names.items())
                raise UsageError(
                    f"sweep {sweep.name!r} at {at or 'its only point'}: {error}"
                ) from error
            missing = next((p for p in _needed(trial) if not os.path.exists(p)), None)
            if missing is not None and "network" in names:
                left_out[f"{names['network']}: {missing} is missing"] = None
                continue
            points.append(Point(sweep=sweep.name, names=names, trial=trial))
            if len(points) > _MOST_TRIALS:
                raise UsageError(f"a study has at most {_MOST_TRIALS} trials, this one has more.")
    if not points:
        chosen = ", ".join(f"{name}={place}" for name, place in changes.only)
        why = "; ".join(left_out) or f"No place of its axes is {chosen or 'left'}."
        raise UsageError(f"there is no trial to run. {why}")
    return points, list(left_out)


def _is_chosen(names: Mapping[str, Any], only: Sequence[tuple[str, Any]]) -> bool:
    chosen: dict[str, list[str]] = {}
    for axis, place in only:
        chosen.setdefault(axis, []).append(str(place))
    return all(str(names.get(axis)) in values for axis, values in chosen.items())


def _needed(trial: Trial) -> list[Path]:
    """Files without which a network is left out."""
    data = [trial.test, trial.data]
    found = [Path(d) for d in data if isinstance(d, str | Path) and ":" not in str(d)]
    return [trial.model, *found]


def _sweep(
    values: Mapping[str, Any],
    base: Mapping[str, Any],
    changes: _Changes,
    folder: Path,
) -> _Sweep:
    axes: list[tuple[tuple[Mapping[str, Any], Mapping[str, Any]], ...]] = []
    for axis, variants in values.get("variants", {}).items():
        places = dict(variants)
        where = folder
        if axis == "network" and changes.networks is not None:
            places, where = changes.networks
        for name, given in places.items():
            if not isinstance(given, dict):
                raise UsageError(f"variants.{axis}.{name} must be a table of fields.")
        extra = {} if where == folder else {"folder": where}
        axes.append(tuple(({axis: n}, {**given, **extra}) for n, given in places.items()))
    for name, found in values.get("grid", {}).items():
        listed = changes.axes.get(name, found)
        axes.append(tuple(({name: v}, {name: v}) for v in _axis(name, listed)))
    zipped = {name: _axis(name, v) for name, v in values.get("zip", {}).items()}
    if "seed" in changes.axes and "seed" in zipped and zipped.keys() <= {"seed", "draw"}:
        zipped = {name: changes.axes.get(name, changes.axes["seed"]) for name in zipped}
    if len({len(v) for v in zipped.values()}) > 1:
        lengths = ", ".join(f"{n} {len(v)}" for n, v in zipped.items())
        raise UsageError(f"lists of zip must be equally long, got {lengths}.")
    if zipped:
        rows = (dict(zip(zipped, row, strict=True)) for row in zip(*zipped.values(), strict=True))
        axes.append(tuple((row, row) for row in rows))
    own = {**base, **values.get("base", {})}
    return _Sweep(name=str(values.get("name", "study")), axes=tuple(axes), base=own)


def _axis(name: str, values: Any) -> list[Any]:
    if name not in FIELDS:
        raise UsageError(f"{name!r} is no field of a trial. {suggest(name, FIELDS)}")
    if not isinstance(values, list) or not values:
        raise UsageError(f"axis {name} must be a list with a value for each place, got {values!r}.")
    if any(isinstance(v, dict | list) for v in values):
        raise UsageError(f"axis {name} must hold plain values; tables have names: variants.")
    if len(set(map(str, values))) != len(values):
        raise UsageError(f"axis {name} repeats itself: {values}.")
    return values
