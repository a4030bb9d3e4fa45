# SPDX-License-Identifier: Apache-2.0
"""Ours beside a paper's figures: gap in points and in share restored; lifespan and speed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Any

from rimc_onnx.errors import UsageError, suggest
from rimc_onnx.studies.tables import Named, Table, at, restored

__all__ = [
    "Comparison",
    "Constant",
    "Lifespan",
    "Paper",
    "PaperPoint",
    "compare",
    "comparison_table",
]


_OPTIONAL = ("also", "uncalibrated", "restored", "against")
"""Of a point."""


@dataclass(frozen=True, kw_only=True)
class PaperPoint:
    """A figure that a paper states."""

    figure: str
    """Where it stands: ``Fig. 4``."""
    what: str
    sweep: str
    at: Mapping[str, Any]
    """Where ours is: the like of it."""
    also: tuple[Mapping[str, Any], ...]
    """Others of ours at the same place."""
    value: float
    uncalibrated: float | None
    """The paper's before calibration; None where it does not say."""
    restored: float | None = None
    """Share of what drift took, where the paper states that."""
    against: Mapping[str, Any] = field(default_factory=dict)
    """What differs of the place where our share starts; of none, the rows' own ``uncalibrated``."""


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A paper's own figures; scores are shares."""

    source: str
    clean: float
    points: tuple[PaperPoint, ...]
    redone: frozenset[str] = frozenset()
    """Places of the axis ``method`` that are others' methods, run here: not ours."""

    @classmethod
    def of(cls, values: Mapping[str, Any], methods: Collection[str] = ()) -> Paper:
        """Of the table ``paper`` of a study file; ``methods`` are places of the axis ``method``.

        Raises:
            UsageError: a key or a method is not known, or a key is missing.
        """
        known = ("source", "clean", "uncalibrated", "redone", "point")
        _check("paper", values, known, ("source", "clean"))
        redone = values.get("redone", [])
        for name in redone:
            if name not in methods:
                raise UsageError(f"paper.redone has {name!r}. {suggest(str(name), methods)}")
        points = []
        for one in values.get("point", ()):
            needed = ("figure", "what", "sweep", "at", "value")
            _check("paper.point", one, (*needed, *_OPTIONAL), needed)
            start = one.get("uncalibrated", values.get("uncalibrated"))
            also = tuple(one.get("also", ()))
            points.append(PaperPoint(**{**one, "also": also, "uncalibrated": start}))
        return cls(
            source=values["source"],
            clean=values["clean"],
            points=tuple(points),
            redone=frozenset(redone),
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours and the paper's at one place; a share is of what drift took."""

    figure: str
    what: str
    method: str
    ours: float
    paper: float
    ours_restored: float | None
    paper_restored: float | None
    is_redone: bool = False
    """Another's method, run here: what it gives says nothing of ours."""

    @property
    def is_less(self) -> bool:
        """Less of what drift took comes back; where no share is stated, the score is lower."""
        if self.ours_restored is None or self.paper_restored is None:
            return self.ours < self.paper
        return self.ours_restored < self.paper_restored

    @property
    def is_worse(self) -> bool:
        """Less, by a method of ours."""
        return self.is_less and not self.is_redone


def compare(paper: Paper, rows: Sequence[Named]) -> list[Comparison]:
    """Every figure of the paper that there are rows for, with each of ours."""
    found = []
    for point in paper.points:
        for where in (point.at, *point.also):
            ours = at(rows, {**point.at, **where}, point.sweep)
            if not ours:
                continue
            share = point.restored
            if share is None and point.uncalibrated is not None:
                share = (point.value - point.uncalibrated) / (paper.clean - point.uncalibrated)
            method = str(ours[0].value("method"))
            before = None
            if point.against:
                start = at(rows, {**point.at, **where, **point.against}, point.sweep)
                before = [n.row["calibrated"] for n in start]
            found.append(
                Comparison(
                    figure=point.figure,
                    what=point.what,
                    method=method,
                    is_redone=method in paper.redone,
                    ours=fmean(n.row["calibrated"] for n in ours),
                    paper=point.value,
                    ours_restored=restored(ours, before),
                    paper_restored=share,
                )
            )
    return found


def comparison_table(found: Sequence[Comparison]) -> Table:
    """Both in percent, their gap in points, and the same of the shares."""
    header: tuple[str, ...] = ("figure", "at", "by", "here", "paper", "gap, points")
    header += ("restored here", "paper restored", "gap, points of share")
    texts, numbers = [], []
    for one in found:
        shares = (one.ours_restored, one.paper_restored)
        gap = None if shares[0] is None or shares[1] is None else shares[0] - shares[1]
        values = (one.ours, one.paper, one.ours - one.paper, *shares, gap)
        texts.append(
            (
                one.figure,
                one.what,
                f"{one.method} (redone)" if one.is_redone else one.method,
                *("" if v is None else _percent(v, i) for i, v in enumerate(values)),
            )
        )
        numbers.append((None, None, None, *values))
    return Table(
        title="Beside the paper",
        header=header,
        rows=tuple(texts),
        numbers=tuple(numbers),
        num_names=3,
    )


def _percent(value: float, index: int) -> str:
    sign = "+" if index in (2, 5) else ""
    return f"{100 * value:{sign}.2f}" if index < 3 else f"{100 * value:{sign}.0f} %"


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number of a model, and what publications give for it."""

    value: float
    low: float
    high: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.value <= self.high:
            raise UsageError(
                f"need 0 < low <= value <= high, got {self.low}, {self.value} and {self.high}."
            )


@dataclass(frozen=True, kw_only=True)
class Lifespan:
    """How often a device can be calibrated, and how fast: Dong et al. 2025, section IV.D and E.

    A calibration of ``epochs`` over n samples, one at a time, updates its weights epochs * n times.
    Memory of endurance e takes e over that many calibrations; time goes to updates alone.
    """

    rram_endurance: Constant
    """Writes of a cell."""
    sram_endurance: Constant
    rram_over_sram_write: Constant
    """Time of a write in RRAM over that in SRAM."""
    epochs: int
    bp_samples: int
    """Samples of a calibration by back-propagation."""
    our_samples: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Lifespan:
        """Of the table ``lifespan`` of a study file.

        Raises:
            UsageError: a key is not known or missing, or out of range.
        """
        names = [f.name for f in fields(cls)]
        _check("lifespan", values, names, names)
        numbers = [f.name for f in fields(Constant)]
        found = dict(values)
        for name in names[:3]:
            _check(f"lifespan.{name}", values[name], numbers, numbers)
            found[name] = Constant(**values[name])
        return cls(**found)

    def table(self, updates: Mapping[str, tuple[int, bool]]) -> Table:
        """Calibrations of a lifetime and speed over the first of ``updates``.

        Args:
            updates: by method its updates of a calibration, and whether they write to RRAM.
        """
        header = ("method", "updates", "memory", "calibrations", "range", "speed")
        times = {
            name: count * (self.rram_over_sram_write.value if in_rram else 1.0)
            for name, (count, in_rram) in updates.items()
        }
        first = next(iter(times.values()))
        texts, numbers = [], []
        for name, (count, in_rram) in updates.items():
            endurance = self.rram_endurance if in_rram else self.sram_endurance
            lives = endurance.value / count
            span = f"{endurance.low / count:.3g} to {endurance.high / count:.3g}"
            speed = first / times[name]
            cells = (f"{count:,}", "RRAM" if in_rram else "SRAM", f"{lives:,.0f}", span)
            texts.append((name, *cells, f"{speed:,.0f} x"))
            numbers.append((None, count, None, lives, None, speed))
        return Table(
            title="Lifespan and speed, limited by writes",
            header=header,
            rows=tuple(texts),
            numbers=tuple(numbers),
            num_names=1,
        )

    def updates(self) -> dict[str, tuple[int, bool]]:
        """Of the paper's two methods, and of the closed form, which writes once."""
        return {
            f"back-propagation, {self.bp_samples} samples": (self.epochs * self.bp_samples, True),
            f"DoRA by steps, {self.our_samples} samples": (self.epochs * self.our_samples, False),
            "closed form": (1, False),
        }


def _check(
    what: str, values: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]
) -> None:
    for name in values:
        if name not in known:
            raise UsageError(f"{what} has {name!r}, which is not known. {suggest(name, known)}")
    for name in needed:
        if name not in values:
            raise UsageError(f"{what} needs {name!r}.")
