"""`axolotl paft …`: the group of all commands, and how a mistake is told."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import Any

import click

from paft_plugin import __version__
from paft_plugin.commands.demo import demo
from paft_plugin.commands.diagnose import diagnose
from paft_plugin.commands.fuse import fuse
from paft_plugin.commands.init import init
from paft_plugin.commands.inspect import inspect
from paft_plugin.commands.lint import lint
from paft_plugin.commands.merge import merge
from paft_plugin.commands.recipe import recipe
from paft_plugin.commands.report import report
from paft_plugin.commands.run import run
from paft_plugin.commands.search import search
from paft_plugin.commands.status import status
from paft_plugin.commands.study import study
from paft_plugin.errors import BAD_INPUT, INTERRUPTED, EndedBySignal, PaftError, ended_by_signals, printable

MOST_ERRORS = 10
"""Lines of errors, the last of which says how many more there are."""


class PaftGroup(click.Group):
    """A group whose commands turn a user's mistake or a signal into one clear message and an exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with ended_by_signals():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            with suppress(OSError):  # after SIGHUP there is no terminal any more
                click.echo("Interrupted. What was finished is kept: run the same command again to go on.", err=True)
            ctx.exit(error.exit_code if isinstance(error, EndedBySignal) else INTERRUPTED)
        except PaftError as error:
            self._explain(ctx, error.problems)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            self._explain(ctx, [printable(f"{error.strerror or error}{where}")])
        except MemoryError:
            self._explain(ctx, ["No memory is left. Free some, or give smaller files."])

    def _explain(self, ctx: click.Context, problems: list[str]) -> None:
        if ctx.params.get("debug"):
            traceback.print_exc()
        shown = problems if len(problems) <= MOST_ERRORS else problems[: MOST_ERRORS - 1]
        for problem in shown:
            click.echo(f"Error: {problem}", err=True)
        if len(problems) > len(shown):
            click.echo(f"Error: and {len(problems) - len(shown)} more. Mend these first.", err=True)
        ctx.exit(BAD_INPUT)


@click.group(cls=PaftGroup)
@click.version_option(__version__, prog_name="paft-plugin")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def paft(debug: bool) -> None:
    """PAFT: sparse SFT and preference training in parallel from one base model, then fusion (arXiv 2406.17923)."""


for command in (demo, init, run, study, status, recipe, lint, merge, fuse, search, inspect, diagnose, report):
    paft.add_command(command)


if __name__ == "__main__":
    sys.exit(paft())
