"""Files are written whole or not at all; a path is told from a name on the hub."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from paft_plugin.files import (
    LINT_FILE,
    RECIPE_FILE,
    fingerprint,
    fused_files,
    is_hub_name,
    lock_file,
    looks_local,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_a_lock_is_on_the_file_that_is_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, whoever held it deletes it: two would hold two files of one name."""
    path, lock = tmp_path / "lock", fcntl.flock
    others: list[int] = []

    def slow(descriptor: int, how: int) -> None:
        if not others:
            path.unlink()
            others.append(os.open(path, os.O_RDWR | os.O_CREAT))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    mine = lock_file(path)
    with pytest.raises(BlockingIOError):
        lock(others[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(mine)
    lock(others[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        lock_file(path)
    os.close(others[0])


def test_json_refuses_what_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_fingerprints_tell_order_and_boundaries_apart() -> None:
    prints = [fingerprint(parts) for parts in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [])]
    assert len(set(prints)) == len(prints)


def test_what_is_a_path_and_what_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_name("meta-llama/Llama-3.2-3B")
    assert not any(map(is_hub_name, ["/models/base", "base", "a/b/c", "./base/x"]))
    (tmp_path / "models" / "base").mkdir(parents=True)
    assert is_hub_name("models/base")
    assert not is_hub_name("models/base", tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("models/base")  # a folder here
    assert all(map(looks_local, ["/models/base", "./base", "~/base", "a/b/c", "a\\b"]))
    assert not any(map(looks_local, ["base", "org/base"]))


def test_files_of_fused_arms_are_found_where_this_and_the_last_version_put_them(tmp_path: Path) -> None:
    for place in ("recipes/old/old.yml", "recipes/both/both.yml", "models/both/recipe.yml", "models/new/recipe.yml"):
        write_text(tmp_path / place, "")
    write_text(tmp_path / "lint" / "old" / "lint.json", "{}")
    assert fused_files(tmp_path, RECIPE_FILE) == {
        "old": tmp_path / "recipes" / "old" / "old.yml",
        "both": tmp_path / "models" / "both" / "recipe.yml",
        "new": tmp_path / "models" / "new" / "recipe.yml",
    }
    assert list(fused_files(tmp_path, LINT_FILE)) == ["old"]
