"""Data sets that are not on this disk: on the hub, in its cache, somewhere else, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

from paft_plugin.deltas.findings import Findings
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.hub import access, offline
from paft_plugin.pipeline.preflight.data_files import SUFFIXES, entries, local_files


def remote_data(branch: Branch) -> Findings:
    """Whether they can be had: the hub is asked, unless it must not be."""
    findings = Findings()
    keys = ("datasets", "test_datasets")
    for place, entry in ((f"{key}[{index}]", entry) for key in keys for index, entry in entries(branch.content, key)):
        path = str(entry.get("path") or "")
        where = f"{branch.where}: {place}"
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
