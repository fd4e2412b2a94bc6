"""`python -m paft_plugin.benchmarks NAME`: what training, merging, inspecting and a whole run cost, beside bars that are held."""

from __future__ import annotations

from importlib import import_module

import click

BENCHMARKS = ("penalty", "fusion", "inspection", "two-branches", "memory", "gpu")


class Benchmarks(click.Group):
    """Imports the benchmark that is asked for and no other: a process that it starts is never smaller than its own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in BENCHMARKS:
            return None
        command: click.Command = import_module(f"paft_plugin.benchmarks.{cmd_name.replace('-', '_')}").command
        return command


@click.command(cls=Benchmarks)
def benchmarks() -> None:
    """Measure what PAFT costs, beside the bars that it is held to."""


if __name__ == "__main__":
    benchmarks(prog_name="python -m paft_plugin.benchmarks")
