"""Everything that is looked at before a run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from paft_plugin.deltas.findings import Findings
from paft_plugin.errors import PaftError
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.hub import access, offline
from paft_plugin.pipeline.preflight.agreement import agree, same_base
from paft_plugin.pipeline.preflight.ask import ask
from paft_plugin.pipeline.preflight.data_files import SUFFIXES, local_files
from paft_plugin.pipeline.preflight.disk import check_disk
from paft_plugin.pipeline.preflight.static import check_penalty, check_resume, check_trained
from paft_plugin.pipeline.setup import DENSE, SPARSE, Setup

Check = Callable[[Setup], Findings]
"""A further check, such as the evaluation room's."""


def preflight(setup: Setup, checks: Sequence[Check] = ()) -> Findings:
    """All that would fail, or surprise, later in a run; starts no training and writes nothing into its folder.

    Args:
        setup: The run, its base model in a folder.
        checks: Further ones.
    """
    findings = Findings()
    wanted = [setup.branches[name] for name in setup.needed]
    configured = _once([branch for branch in wanted if branch.trained is None])
    for branch in configured:
        for found in (same_base(setup, branch), check_penalty(branch), _remote_data(branch)):
            findings.add(found.problems, found.warnings)
        findings.add(warnings=check_resume(branch))
    for branch in wanted:
        if branch.trained is not None:
            found = check_trained(setup, branch)
            findings.add(found.problems, found.warnings)
    with tempfile.TemporaryDirectory(prefix="paft-preflight-") as name:
        folder = Path(name).resolve()
        try:
            answers = ask(setup, configured, folder) if configured else {}
        except PaftError as error:
            findings.add(error.problems)
            answers = {}
        for answer in answers.values():
            findings.add(answer.problems, answer.warnings)
        agreed = agree(setup, answers, folder)
        findings.add(agreed.problems, agreed.warnings)
    for check in (check_disk, *checks):
        found = check(setup)
        findings.add(found.problems, found.warnings)
    return findings


def _once(branches: list[Branch]) -> list[Branch]:
    """Without the dense twin where its sparse one is there: it is the same config, less the plugin."""
    names = [branch.name for branch in branches]
    return [branch for branch in branches if not (branch.name == DENSE and SPARSE in names)]


def _remote_data(branch: Branch) -> Findings:
    """Data sets that are not on this disk: on the hub, in its cache, somewhere else, or nowhere."""
    findings = Findings()
    datasets = branch.content.get("datasets") or []
    for index, entry in enumerate(entry if isinstance(entry, dict) else {"path": entry} for entry in datasets):
        path = str(entry.get("path") or "")
        where = f"{branch.where}: datasets[{index}]"
        if local_files(entry):
            continue
        if "://" in path:
            findings.add(warnings=[f"{where}: {path} is not looked at before training."])
        elif Path(path).exists():
            findings.add([f"{where}: {path} has no files that can be read ({', '.join(SUFFIXES)}). Check the path."])
        elif _looks_local(path):
            findings.add([f"{where}: {path}: no such file. Paths are meant from the folder of {branch.where}."])
        elif offline():
            if not _cached(path):
                findings.add(
                    warnings=[
                        f"{where}: {path} could not be checked: HF_HUB_OFFLINE is set, and it is not in the local cache. "
                        f"Fetch it with `hf download --repo-type dataset {path}`, or give a file."
                    ]
                )
        else:
            found = access(path, "dataset")
            findings.add(
                [f"{where}: {problem}" for problem in found.problems],
                [f"{where}: {warning}" for warning in found.warnings],
            )
    return findings


def _looks_local(path: str) -> bool:
    return not path or path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).suffix in SUFFIXES


def _cached(name: str) -> bool:
    """Whether the hub's cache, or that of `datasets`, knows a data set."""
    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    return (Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}").is_dir() or (
        home / name.replace("/", "___")
    ).is_dir()
