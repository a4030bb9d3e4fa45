# SPDX-License-Identifier: Apache-2.0
"""Tables and curves of a study: what its rows come to at each place, over seeds and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean, stdev
from typing import Any

from rimc_onnx.errors import UsageError, suggest
from rimc_onnx.studies.trial import Row

__all__ = [
    "SHARES",
    "Column",
    "Curve",
    "Named",
    "PlotSpec",
    "Table",
    "TableSpec",
    "aggregate",
    "at",
    "curves",
]
__all__ += ["make_table", "places", "restored"]

SHARES = frozenset({"clean", "trained", "uncalibrated", "calibrated", "restored_frac", "gamma"})
"""Values that are shown in percent; ``sram_frac`` too."""

_AGGREGATES = ("mean", "std", "min", "max", "count", "restored", "spread")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A row at its place in a study."""

    sweep: str
    names: Mapping[str, Any]
    row: Row

    def value(self, name: str) -> Any:
        """A name of its place, or else a value of the row."""
        return self.names.get(name, self.row.get(name))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table: which rows, which value, what is made of several."""

    title: str
    at: Mapping[str, Any]
    value: str = "calibrated"
    aggregate: str = "spread"
    against: Mapping[str, Any] | None = None
    """Rows whose value is the share's start, for ``restored``; None: their own ``uncalibrated``."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """A table as a study file asks for it."""

    title: str
    sweep: str | None
    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    by: str | None
    """Axis with a column for each of its places."""
    show: tuple[str, ...]
    value: str

    @classmethod
    def of(cls, values: Mapping[str, Any], axes: Mapping[str, set[str]]) -> TableSpec:
        """Of its table in a study file.

        Raises:
            UsageError: a key, a sweep or an axis that is not known.
        """
        keys = ("title", "sweep", "rows", "columns", "column", "show", "value")
        _check("table", values, keys)
        sweep = _sweep_of("table", values, axes)
        known = axes[sweep] if sweep else set().union(*axes.values())
        listed = [values.get("rows", [])] if isinstance(values.get("rows"), str) else None
        rows = tuple(listed or values.get("rows", ()))
        by = values.get("columns")
        for name in (*rows, *([] if by is None else [by])):
            if name not in known:
                raise UsageError(f"a table has axis {name!r}. {suggest(str(name), known)}")
        columns = tuple(_column(c, known) for c in values.get("column", ()))
        show = tuple(values.get("show", ("spread", "restored")))
        for name in show:
            _aggregate_known(name)
        value = str(values.get("value", "calibrated"))
        title = str(values.get("title", "Rows"))
        return cls(
            title=title, sweep=sweep, rows=rows, columns=columns, by=by, show=show, value=value
        )


@dataclass(frozen=True, kw_only=True)
class PlotSpec:
    """A plot as a study file asks for it."""

    title: str
    sweep: str | None
    x: str
    y: str = "calibrated"
    series: str | None = None
    at: Mapping[str, Any] = field(default_factory=dict)
    """Rows that it is of."""
    by: str | None = None
    """Axis with a dot for each of its places, at the mean of x; None: a dot for every x."""
    log_x: bool = False
    x_label: str | None = None
    y_label: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], axes: Mapping[str, set[str]]) -> PlotSpec:
        """Of its table in a study file.

        Raises:
            UsageError: a key, a sweep or an axis that is not known, or no ``x``.
        """
        _check("plot", values, [f.name for f in fields(cls)])
        sweep = _sweep_of("plot", values, axes)
        known = axes[sweep] if sweep else set().union(*axes.values())
        axis_of = [values[key] for key in ("by", "series") if key in values]
        for name in (*values.get("at", {}), *axis_of):
            if name not in known:
                raise UsageError(f"a plot is at axis {name!r}. {suggest(str(name), known)}")
        if "x" not in values:
            raise UsageError("a plot needs x: an axis, or a value of rows.")
        return cls(**{"title": values["x"], **values, "sweep": sweep})


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells as text, and the number that each sorts by."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[tuple[float | None, ...], ...]
    num_names: int
    """Columns that say where."""

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One series of a plot: x, mean and standard deviation of y (in percent for shares)."""

    name: str
    points: tuple[tuple[float, float, float], ...]


def at(rows: Sequence[Named], where: Mapping[str, Any], sweep: str | None = None) -> list[Named]:
    """Those without an error that lie there."""
    return [
        n
        for n in rows
        if n.row.get("error") is None
        and (sweep is None or n.sweep == sweep)
        and all(_same(n.value(k), v) for k, v in where.items())
    ]


def _same(found: Any, wanted: Any) -> bool:
    return bool(found in wanted) if isinstance(wanted, list) else bool(found == wanted)


def places(rows: Sequence[Named], axes: Sequence[str]) -> list[tuple[Any, ...]]:
    """What the axes come to, in order of appearance."""
    return list(dict.fromkeys(tuple(n.value(axis) for axis in axes) for n in rows))


def restored(rows: Sequence[Named], before: Sequence[float] | None = None) -> float | None:
    """Share of what drift took that is given back, of the means; None where it took nothing."""
    if not rows:
        return None
    clean = fmean(n.row["clean"] for n in rows)
    start = fmean(before or [n.row["uncalibrated"] for n in rows])
    lost = clean - start
    return None if lost <= 0 else (fmean(n.row["calibrated"] for n in rows) - start) / lost


def aggregate(rows: Sequence[Named], value: str, how: str) -> tuple[str, float | None]:
    """What a cell shows of its rows, and the number that it sorts by."""
    if how == "restored":
        share = restored(rows)
        return ("" if share is None else f"{100 * share:.0f} %"), share
    found = [float(v) for n in rows if (v := n.value(value)) is not None]
    if how == "count":
        return str(len(found)), len(found)
    if not found:
        return "", None
    factor = 100.0 if value in SHARES or value == "sram_frac" else 1.0
    mean = fmean(found)
    spread = stdev(found) if len(found) > 1 else None
    number = {"std": spread, "min": min(found), "max": max(found)}.get(how, mean)
    if number is None:
        return "", None
    text = _number(factor * number, is_share=factor == 100.0)
    if how == "spread" and spread is not None:
        text += f" ± {_number(factor * spread, is_share=factor == 100.0)}"
    return text, number


def _number(value: float, *, is_share: bool) -> str:
    if is_share:
        return f"{value:.1f}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def make_table(spec: TableSpec, rows: Sequence[Named]) -> Table:
    """The table of rows; places without one are left empty."""
    mine = at(rows, {}, spec.sweep)
    columns = list(spec.columns)
    if spec.by is not None:
        for (place,) in places(mine, [spec.by]):
            columns += [
                Column(
                    title=f"{place}" if len(spec.show) == 1 or how != "restored" else "restored",
                    at={spec.by: place},
                    value=spec.value,
                    aggregate=how,
                )
                for how in spec.show
            ]
    if not columns:
        columns = [
            Column(
                title=spec.value if how == "spread" else how,
                at={},
                value=spec.value,
                aggregate=how,
            )
            for how in spec.show
        ]
    texts, numbers = [], []
    for place in places(mine, spec.rows):
        there = at(mine, dict(zip(spec.rows, place, strict=True)))
        cells = [_cell(column, there) for column in columns]
        texts.append((*map(str, place), *(text for text, _ in cells)))
        heads = tuple(p if isinstance(p, int | float) else None for p in place)
        numbers.append((*heads, *(number for _, number in cells)))
    return Table(
        title=spec.title,
        header=(*spec.rows, *(c.title for c in columns)),
        rows=tuple(texts),
        numbers=tuple(numbers),
        num_names=len(spec.rows),
    )


def _cell(column: Column, rows: Sequence[Named]) -> tuple[str, float | None]:
    chosen = at(rows, column.at)
    if column.aggregate == "restored" and column.against is not None:
        before = [n.row["calibrated"] for n in at(rows, column.against)]
        share = restored(chosen, before) if before else None
        return ("" if share is None else f"{100 * share:.0f} %"), share
    return aggregate(chosen, column.value, column.aggregate)


def curves(spec: PlotSpec, rows: Sequence[Named]) -> list[Curve]:
    """The series of a plot; rows without x or y are left out."""
    mine = [n for n in at(rows, spec.at, spec.sweep) if _is_number(n.value(spec.x))]
    names = places(mine, [spec.series]) if spec.series else [("",)]
    factor = 100.0 if spec.y in SHARES or spec.y == "sram_frac" else 1.0
    found = []
    for (name,) in names:
        chosen = at(mine, {spec.series: name}) if spec.series else mine
        points = []
        for (place,) in places(chosen, [spec.by or spec.x]):
            there = [
                n for n in at(chosen, {spec.by or spec.x: place}) if _is_number(n.value(spec.y))
            ]
            ys = [factor * float(n.value(spec.y)) for n in there]
            if ys:
                x = fmean(float(n.value(spec.x)) for n in there)
                points.append((x, fmean(ys), stdev(ys) if len(ys) > 1 else 0.0))
        points.sort()
        found.append(Curve(name=str(name), points=tuple(points)))
    return [curve for curve in found if curve.points]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check(what: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in values:
        if name not in known:
            raise UsageError(f"a {what} has {name!r}, which is not known. {suggest(name, known)}")


def _sweep_of(what: str, values: Mapping[str, Any], axes: Mapping[str, set[str]]) -> str | None:
    sweep = values.get("sweep")
    if sweep is not None and sweep not in axes:
        raise UsageError(f"a {what} is of sweep {sweep!r}. {suggest(str(sweep), axes)}")
    return None if sweep is None else str(sweep)


def _aggregate_known(name: str) -> None:
    if name not in _AGGREGATES:
        raise UsageError(f"aggregate {name!r} is not known. {suggest(name, _AGGREGATES)}")


def _column(values: Mapping[str, Any], axes: set[str]) -> Column:
    _check("column", values, [f.name for f in fields(Column)])
    _aggregate_known(str(values.get("aggregate", "spread")))
    for name in {**values.get("at", {}), **values.get("against", {})}:
        if name not in axes:
            raise UsageError(f"a column is at axis {name!r}. {suggest(name, axes)}")
    return Column(**{"title": str(values.get("value", "calibrated")), "at": {}, **values})
