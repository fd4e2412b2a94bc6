"""Everything that is looked at before a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from paft_plugin.errors import Findings
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.estimate.disk import check_disk
from paft_plugin.pipeline.preflight.ask import asked
from paft_plugin.pipeline.preflight.data_files import remote_data
from paft_plugin.pipeline.preflight.static import (
    check_base,
    check_evaluation,
    check_launcher,
    check_penalty,
    check_resume,
    check_trained,
)


def preflight(setup: Setup) -> Findings:
    """All that would fail, or surprise, later in a run whose base model is in a folder; nothing is trained or written."""
    findings = Findings()
    wanted, configured = setup.needed, different_trainings(setup)
    with tempfile.TemporaryDirectory(prefix="paft-preflight-") as name:
        folder = Path(name).resolve()
        with asked(setup, configured, folder) as probe:  # which takes seconds: the rest is done meanwhile
            for found in _without_axolotl(setup, wanted, configured):
                findings.add(found.problems, found.warnings)
            answers = probe.answers()
        from paft_plugin.pipeline.preflight.agreement import agree

        for answer in answers.values():
            findings.add(answer.problems, answer.warnings)
        agreed = agree(setup, answers, folder)
        findings.add(agreed.problems, agreed.warnings)
    for check in (check_base, check_disk):
        found = check(setup)
        findings.add(found.problems, found.warnings)
    return findings


def _without_axolotl(setup: Setup, wanted: list[Branch], configured: list[Branch]) -> Iterator[Findings]:
    from paft_plugin.pipeline.preflight.agreement import same_base  # torch, loaded while the probe is at work

    for branch in configured:
        yield same_base(setup, branch)
        yield check_penalty(setup, branch)
        yield check_launcher(setup, branch)
        yield check_resume(branch)
        yield remote_data(branch)
    yield check_evaluation(setup)
    for branch in wanted:
        if branch.trained is not None:
            yield check_trained(setup, branch)


def different_trainings(setup: Setup) -> list[Branch]:
    """The trainings, without the dense twin where its sparse one is there: it is the same config, less the plugin."""
    sparse = setup.branches[setup.sft]
    return [
        branch
        for branch in setup.trainings
        if branch is sparse or branch.spec is not sparse.spec or sparse not in setup.trainings
    ]
