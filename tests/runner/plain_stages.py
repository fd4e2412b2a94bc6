"""Stages whose command does nothing, and what would be known of them in a run directory: no process is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from paft_plugin.runner.identity import identities
from paft_plugin.runner.markers import outdated, prepare_folder, write_marker
from paft_plugin.runner.stages import Stage


def stage(name: str, *needs: str, **others: object) -> Stage:
    plain = Stage(name, name.title(), ("true",), Path(name), needs)
    return dataclasses.replace(plain, **others)  # type: ignore[arg-type]


def finish(stages: list[Stage], run_dir: Path) -> None:
    now = identities(stages, run_dir)
    for each in stages:
        prepare_folder(each, run_dir, now[each.name].fingerprint)
        write_marker(run_dir, each.name, now[each.name], 1.5)


def fingerprints(stages: list[Stage], run_dir: Path) -> dict[str, str]:
    return {name: identity.fingerprint for name, identity in identities(stages, run_dir).items()}


def reasons(stages: list[Stage], run_dir: Path) -> dict[str, str]:
    return outdated(stages, run_dir, identities(stages, run_dir))
