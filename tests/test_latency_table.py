# SPDX-License-Identifier: Apache-2.0
"""README's table of latencies says what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import latency_table


def _run(processor: str, threads: int, **ratios: dict[str, float]) -> dict[str, Any]:
    return {"processor": processor, "threads": threads, "ratios": ratios}


def test_readme_has_the_table_of_the_measured_ratios() -> None:
    # A figure that is typed into README, or measured and not written there.
    table = latency_table.table(latency_table.read_runs())
    assert f"<!-- latency -->\n{table}<!-- end of latency -->" in latency_table.README.read_text(
        "utf-8"
    )


def test_a_run_takes_the_place_of_its_processor_and_threads(tmp_path: Path) -> None:
    # Two columns of one processor, or networks lost that a later run did not measure.
    path = tmp_path / "latency.json"
    latency_table.put_run(path, _run("AVX2", 1, a={"ideal, provider": 2.0}, b={}))
    latency_table.put_run(path, _run("AVX2", 2, a={"ideal, provider": 3.0}))
    latency_table.put_run(path, _run("AVX2", 1, a={"ideal, provider": 1.5, "all, provider": 4.0}))
    runs = latency_table.read_runs(path)
    assert [run["threads"] for run in runs] == [1, 2]
    assert set(runs[0]["ratios"]) == {"a", "b"}
    assert latency_table.table(runs) == (
        "| ideal / 8 bits / all | AVX2, one thread | AVX2, 2 threads |\n"
        "|---|---|---|\n"
        "| a, provider | 1.50 / - / 4.00 | 3.00 / - / - |\n"
    )
