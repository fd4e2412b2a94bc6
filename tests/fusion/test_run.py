"""Running a recipe's own command: one clear line for a mistake. (That it merges is shown by the demo's test.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from paft_plugin.fusion.run import header_command, main


def test_the_command_is_read_from_the_header(tmp_path: Path) -> None:
    recipe = tmp_path / "ties.yml"
    recipe.write_text("# PAFT\n# mergekit-yaml '/a b/ties.yml' /out --random-seed 0\nmerge_method: ties\n")
    assert header_command(recipe) == ["mergekit-yaml", "/a b/ties.yml", "/out", "--random-seed", "0"]


@pytest.mark.parametrize("what", ["no recipe", "missing", "no header"])
def test_a_mistake_is_one_line_and_exit_code_2(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "ties.yml"
    if what == "no header":
        recipe.write_text("merge_method: ties\n")
    assert main([] if what == "no recipe" else [str(recipe)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("Usage: ", "Error: "))
