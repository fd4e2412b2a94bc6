"""One command for all benchmarks; what was measured is kept, whatever happens afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from paft_plugin.benchmarks.__main__ import BENCHMARKS, benchmarks
from paft_plugin.benchmarks.harness import BenchmarkRow, Figure, figure, quotients, run_benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_benchmark_is_a_command_that_writes_json(name: str) -> None:
    shown = CliRunner().invoke(benchmarks, [name, "--help"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert "--output" in shown.output
    assert "--json" in shown.output


def test_there_are_no_other_benchmarks() -> None:
    assert CliRunner().invoke(benchmarks, ["harness"]).exit_code == 2


def test_rows_measured_before_a_failure_are_written(tmp_path: Path) -> None:
    def rows() -> Iterator[BenchmarkRow]:
        yield BenchmarkRow("first", [Figure("time", 1.0, "s")])
        raise RuntimeError("the second one fails")

    output = tmp_path / "benchmark.json"
    with pytest.raises(RuntimeError, match="the second"):
        run_benchmark(rows(), output, ["click"], {"quick": True})
    written = json.loads(output.read_text())
    assert ([row["name"] for row in written["rows"]], written["quick"]) == (["first"], True)


def test_a_figure_is_held_to_its_bar_by_its_median() -> None:
    slower = figure("slower", quotients([2.0, 6.0, 4.0], [1.0, 2.0, 1.0]), "×", at_most=3)
    assert (slower.value, slower.low, slower.high, slower.met) == (3.0, 2.0, 4.0, True)
    assert figure("faster", [1.0], "×", at_least=2).met is False
    assert figure("time", [1.0], "s").met is None
