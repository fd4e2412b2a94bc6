"""What a config says itself, without axolotl: the penalty where it belongs, and trainings that could not be resumed."""

from __future__ import annotations

from typing import Any

from paft_plugin.deltas.store import open_model
from paft_plugin.errors import Findings, PaftError, some
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.branches import PLUGIN, Branch


def check_base(setup: Setup) -> Findings:
    """The base's weights: headers only."""
    findings = Findings()
    try:
        open_model(setup.base)
    except PaftError as error:
        findings.add(error.problems)
    return findings


def check_launcher(setup: Setup, branch: Branch) -> Findings:
    """A training that would start tasks of Ray inside a task of Ray."""
    if setup.config.executor.kind != "ray" or not branch.content.get("use_ray"):
        return Findings()
    return Findings(
        [
            f"{branch.where}: use_ray: true cannot go together with `executor: ray`: the training is a task of Ray already. "
            "Remove it, and give the branch `devices:` and a `launcher:`."
        ]
    )


def check_evaluation(setup: Setup) -> Findings:
    """The tasks are there, can be opened, and report the numbers that are asked for."""
    evaluation = setup.config.evaluation
    if evaluation is None:
        return Findings()
    from paft_plugin.evaluation.scorer import quiet
    from paft_plugin.evaluation.tasks import open_measures

    try:
        with quiet():
            open_measures(evaluation.measures, evaluation.tasks)
    except PaftError as error:
        return Findings(error.problems)
    return Findings()


def check_penalty(setup: Setup, branch: Branch) -> Findings:
    """The plugin with a strength or a target on the sparse SFT branch, and none of it on a preference branch.

    What the plugin itself refuses once it is named (no strength, a preference training) is left to it.
    """
    findings = Findings()
    keys = sorted(key for key in branch.content if key.startswith("paft_"))
    plugins = branch.content.get("plugins") or []
    if PLUGIN in plugins:
        if branch.content.get("paft_l1_lambda") == 0 and branch.content.get("paft_target_sparsity") is None:
            findings.add(
                warnings=[
                    f"{branch.where}: paft_l1_lambda: 0 only measures, so this branch is dense. Set a strength above 0, or "
                    "paft_target_sparsity, to make it sparse."
                ]
            )
    elif branch.strategy != "sft":
        if keys:
            findings.add(
                [
                    f"{branch.where}: {some(keys)}: the penalty belongs to the SFT branch, and axolotl drops this in silence. "
                    "Remove it here."
                ]
            )
    elif keys:
        findings.add(
            [
                f"{branch.where}: {some(keys)}: does nothing unless `plugins:` names {PLUGIN}. Add it there, as `- {PLUGIN}`."
            ]
        )
    elif branch.name == setup.sft:
        findings.add(
            [
                f"{branch.where}: the SFT branch has no penalty. Add `plugins: [{PLUGIN}]` and paft_l1_lambda or "
                "paft_target_sparsity, such as paft_target_sparsity: 0.9."
            ]
        )
    if branch.name == setup.sft and branch.strategy != "sft":
        findings.add(
            [
                f"{branch.where}: rl: {branch.strategy}: the SFT branch is trained by SFT. Give it under `preference:` instead."
            ]
        )
    return findings


def check_resume(branch: Branch) -> Findings:
    """Why a training that is killed would start again, as warnings."""
    content = branch.content
    reason = _no_checkpoint(content)
    if reason is None:
        return Findings()
    again = "so a training that is killed starts again from the beginning"
    return Findings(warnings=[f"{branch.where}: {reason}, {again}. {_REMEDY}"])


_REMEDY = "Set save_steps (or saves_per_epoch) and save_total_limit: 2 to have it go on."


def _no_checkpoint(content: Any) -> str | None:
    strategy = content.get("save_strategy")
    if str(strategy).lower() in ("no", "none", "false") and strategy is not None:
        return f"save_strategy: {strategy} writes no checkpoints"
    if content.get("save_only_model"):
        return "save_only_model leaves the optimizer's state out of checkpoints"
    if content.get("auto_resume_from_checkpoints") is False and not content.get("resume_from_checkpoint"):
        return "auto_resume_from_checkpoints: false leaves checkpoints unused"
    steps, most = content.get("save_steps"), content.get("max_steps")
    if isinstance(steps, int) and isinstance(most, int) and steps >= most:
        return f"save_steps: {steps} comes only once in max_steps: {most}, at the end"
    epochs = content.get("num_epochs", 1)
    if not steps and not content.get("saves_per_epoch") and isinstance(epochs, (int, float)) and epochs <= 1:
        return "checkpoints are written once an epoch, and there is one epoch"
    return None


def check_trained(setup: Setup, branch: Branch) -> Findings:
    """A branch that is done already: does it fit the base, and was it penalised? Reads headers only."""
    from paft_plugin.deltas.belongs import branch_problems
    from paft_plugin.deltas.proof import why_unproven

    findings = Findings()
    assert branch.trained is not None
    try:
        findings.add(branch_problems(open_model(setup.base), branch.trained))
    except PaftError as error:
        findings.add(error.problems)
    if branch.name == setup.sft and (reason := why_unproven(branch.trained)):
        findings.add(warnings=[reason])
    return findings
