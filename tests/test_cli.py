"""The command line: light to start, one clear message for a mistake, the right exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from paft_plugin.cli import PaftGroup, paft
from paft_plugin.errors import PaftError

HEAVY = ("torch", "transformers", "peft", "mergekit", "axolotl", "lm_eval", "datasets")


@pytest.mark.parametrize("arguments", [["--help"], ["recipe", "--help"], ["lint", "--help"], ["demo", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom paft_plugin.cli import paft\n"
        f"try: paft({arguments!r})\nexcept SystemExit: pass\n"
        f"sys.exit(', '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Usage" in run.stdout


def test_explaining_a_code_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom paft_plugin.cli import paft\n"
        "try: paft(['lint', '--explain', 'all'])\nexcept SystemExit: pass\n"
        f"sys.exit(', '.join(name for name in {HEAVY!r} if name in sys.modules) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "PAFT102" in run.stdout


def test_axolotl_finds_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "axolotl.cli.main", "paft", "--help"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0
    assert "demo" in run.stdout
    assert "recipe" in run.stdout


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.fixture
def group() -> Iterator[Callable[[BaseException], click.Group]]:
    def make(error: BaseException) -> click.Group:
        made = PaftGroup("paft", params=[click.Option(["--debug"], is_flag=True)], callback=lambda **_: None)
        made.add_command(click.Command("fail", callback=raising(error)))
        return made

    return make


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (PaftError(["first mistake", "second mistake"]), 2, ["Error: first mistake", "Error: second mistake"]),
        (OSError(28, "No space left on device", "/out/file"), 2, ["Error: No space left on device (/out/file)"]),
        (KeyboardInterrupt(), 130, ["Interrupted."]),
    ],
    ids=["mistakes", "full disk", "Ctrl-C"],
)
def test_what_goes_wrong_is_said_without_a_traceback(
    group: Callable[[BaseException], click.Group], error: BaseException, code: int, said: list[str]
) -> None:
    result = CliRunner().invoke(group(error), ["fail"])
    assert result.exit_code == code
    assert all(line in result.stderr for line in said)
    assert "Traceback" not in result.output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_as_ctrl_c_does_and_a_second_one_does_not_disturb_the_clean_up(
    signum: signal.Signals, tmp_path: Path
) -> None:
    before = signal.signal(signum, signal.SIG_DFL)
    file = tmp_path / "half"

    def command() -> None:
        file.touch()
        try:
            os.kill(os.getpid(), signum)
            pytest.fail("it went on")
        finally:
            os.kill(os.getpid(), signum)
            file.unlink()

    made = PaftGroup("paft", callback=lambda **_: None)
    made.add_command(click.Command("work", callback=command))
    try:
        result = CliRunner().invoke(made, ["work"])
        assert signal.getsignal(signum) is signal.SIG_DFL
    finally:
        signal.signal(signum, before)
    assert result.exit_code == 128 + signum
    assert "Interrupted" in result.stderr
    assert not file.exists()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """Under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    made = PaftGroup("paft", callback=lambda **_: None)
    made.add_command(click.Command("work", callback=lambda: os.kill(os.getpid(), signal.SIGHUP)))
    try:
        assert CliRunner().invoke(made, ["work"]).exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("count", "more"), [(10, None), (11, 2), (224, 215)])
def test_many_errors_are_ten_lines(group: Callable[[BaseException], click.Group], count: int, more: int | None) -> None:
    result = CliRunner().invoke(group(PaftError([f"mistake {number}" for number in range(count)])), ["fail"])
    lines = result.output.strip().splitlines()
    assert len(lines) == 10
    assert lines[-1] == (f"Error: and {more} more. Mend these first." if more else "Error: mistake 9")


def test_debug_shows_the_traceback(group: Callable[[BaseException], click.Group]) -> None:
    result = CliRunner().invoke(group(PaftError("a mistake")), ["--debug", "fail"])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr


def test_an_unknown_command_is_refused() -> None:
    assert CliRunner().invoke(paft, ["recpie"]).exit_code == 2
