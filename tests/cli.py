"""`axolotl paft …` inside a test."""

from __future__ import annotations

from click.testing import CliRunner, Result

from paft_plugin.cli import paft


def invoke(*arguments: object, **variables: str) -> Result:
    """What a command says and how it ends; `variables` are set in its environment."""
    return CliRunner(env=variables).invoke(paft, [str(argument) for argument in arguments])


def call(*arguments: object, code: int = 0) -> str:
    """What a command that ends with `code` says, on a wide terminal."""
    result = invoke(*arguments, COLUMNS="200")
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output
