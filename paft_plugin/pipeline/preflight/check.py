"""Everything that is looked at before a run; here also what a config says itself, without axolotl, and a branch that is done."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paft_plugin.args import STRENGTHS, names_plugin
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import Findings, PaftError, collecting, some
from paft_plugin.pipeline.arms import SFT, Setup
from paft_plugin.pipeline.branches import PLUGIN, Branch
from paft_plugin.pipeline.estimate.disk import check_disk
from paft_plugin.pipeline.held_out.request import has_rows, owners
from paft_plugin.pipeline.preflight.ask import asked, held_out_findings
from paft_plugin.pipeline.preflight.data_files import remote_data
from paft_plugin.pipeline.secrets import find_secrets


def preflight(setup: Setup) -> Findings:
    """All that would fail, or surprise, later in a run whose base model is in a folder; nothing is trained or written."""
    findings = Findings()
    wanted, configured = setup.needed, [*different_trainings(setup), *_overridden(setup)]
    with tempfile.TemporaryDirectory(prefix="paft-preflight-") as name:
        folder = Path(name).resolve()
        with asked(setup, configured, folder) as answers_of:  # which takes seconds: the rest is done meanwhile
            for found in _without_axolotl(setup, wanted, configured):
                findings.take(found)
            answers = answers_of()
        from paft_plugin.pipeline.preflight.agreement import agree

        for answer in answers.values():
            findings.take(answer)
        findings.take(agree(setup, answers, folder))
        if not findings.problems:  # else it would say the same of rows that cannot be read
            findings.take(held_out_findings(folder))
    for check in (check_base, check_disk):
        findings.take(check(setup))
    return findings


def _without_axolotl(setup: Setup, wanted: list[Branch], configured: list[Branch]) -> Iterator[Findings]:
    from paft_plugin.pipeline.preflight.agreement import same_base  # torch, loaded while the probe is at work

    for branch in configured:
        yield same_base(setup, branch)
        yield check_penalty(setup, branch)
        yield check_resume(branch)
        yield check_secrets(branch)
        yield check_start(setup, branch)
        yield remote_data(branch)
    for branch in (*setup.trainings, *setup.continued):
        yield check_launcher(setup, branch)
    yield check_recipes(setup)
    yield check_evaluation(setup)
    yield check_held_out(setup)
    for branch in wanted:
        if branch.trained is not None:
            yield check_trained(setup, branch)
    yield check_apart(setup)


def different_trainings(setup: Setup) -> list[Branch]:
    """The trainings, without dense twins whose penalised ones are there: they are the same configs, less the plugin."""
    trainings = [*setup.trainings, *setup.continued]
    trained = dict.fromkeys(name for branch in trainings for name in branch.made_of or (branch.name,))
    spared = {twin for sparse, twin in setup.twins.items() if sparse in trained}
    return [setup.branches[name] for name in trained if name not in spared or name in setup.config.compare.branches]


def _overridden(setup: Setup) -> list[Branch]:
    """The joint trainings with settings of their own, on rows of a preference branch: theirs are not written yet."""
    joints = [setup.branches[arm.name] for arm in setup.of_kind("joint")]
    own = [joint for joint in joints if setup.config.compare.joints[joint.name].overrides]
    rows = setup.branches[setup.of_role("preference")[0]].content.get("datasets") if own else None
    return [replace(joint, content={**joint.content, "datasets": rows}) for joint in own]


# --- without axolotl -----------------------------------------------------------------------------------------------------


def check_base(setup: Setup) -> Findings:
    """The base's weights: headers only."""
    from paft_plugin.deltas.quantised import quantised

    findings = Findings()
    with collecting(findings.problems):
        findings.problem(*quantised(open_model(setup.base)))
    return findings


def check_launcher(setup: Setup, branch: Branch) -> Findings:
    """A training that would start tasks of Ray inside a task of Ray.

    It would wait for the GPUs that its own stage holds, and its workers would outlive the guard.
    """
    findings = Findings()
    if setup.config.executor.kind != "ray":
        return findings
    if branch.content.get("use_ray") or "--use-ray" in branch.spec.launcher_args:
        findings.problem(
            f"{branch.where}: use_ray: true cannot go together with `executor: ray`: the training is a task of Ray already. "
            "Remove it, and give the branch `devices:` and a `launcher:`."
        )
    return findings


def check_recipes(setup: Setup) -> Findings:
    """What the linter says of the user's own recipes, as far as it needs no branch: those are not trained yet."""
    from paft_plugin.fusion.lint.findings import errors
    from paft_plugin.fusion.lint.linter import lint_recipe

    findings = Findings()
    for file in setup.config.fusion.recipes.values():
        wrong = [one for one in errors(lint_recipe(file, read_weights=False)) if one.code < "PAFT3"]
        findings.problem(*(f"{file}: {one.code} {one.where}: {one.message} {one.fix}" for one in wrong))
    return findings


def check_evaluation(setup: Setup) -> Findings:
    """The tasks are there, can be opened, and report the numbers that are asked for."""
    findings, evaluation = Findings(), setup.config.evaluation
    if evaluation is None or not evaluation.by_task:
        return findings
    from paft_plugin.evaluation.config import held_out_measures
    from paft_plugin.evaluation.scorer import quiet
    from paft_plugin.evaluation.statistics import LEAST_ITEMS
    from paft_plugin.evaluation.tasks import open_measures

    with collecting(findings.problems), quiet():
        measures, tasks = open_measures(evaluation.by_task, evaluation.tasks, trusted=evaluation.trust_task_code)
        rows = held_out_measures(list(setup.fused)) if evaluation.held_out is not False else []
        for measure in measures:
            if measure.name in rows:
                findings.warn(
                    f"evaluation.measures: {measure.name} is also what a measure of held-out rows is called, and takes its "
                    "place. To have both, give the task's another `name:`."
                )
            items = tasks[measure.task].items(evaluation.limit)
            if items < LEAST_ITEMS:
                findings.warn(
                    f"evaluation.measures: {measure.name} has {items} items, and fewer than {LEAST_ITEMS} show no difference "
                    "between arms, however large. Raise `limit`, or take a task with more."
                )
    return findings


def check_held_out(setup: Setup) -> Findings:
    """Branches without rows of their own, of which some were to be held out."""
    findings, evaluation = Findings(), setup.config.evaluation
    if evaluation is None or evaluation.held_out is False:
        return findings
    for name, branch in owners(setup).items():
        if has_rows(branch) or evaluation.held_out.get(name) == 0:
            continue
        why = "is trained already" if branch.trained is not None else "reads its data as a stream"
        say = findings.problem if name in evaluation.held_out else findings.warn
        say(
            f"{setup.file}: {name} {why}, so no rows of its data can be held out: no model is scored on them. Name lm-eval "
            f"tasks under evaluation.measures for what it teaches, and set evaluation.held_out: {{{name}: 0}}."
        )
    return findings


def check_penalty(setup: Setup, branch: Branch) -> Findings:
    """The plugin with a strength or a target on the sparse SFT branch, and no keys anywhere without it.

    What the plugin itself refuses once it is named (no strength, another kind of training) is left to it.
    """
    findings = Findings()
    keys = sorted(key for key in branch.content if key.startswith("paft_"))
    if names_plugin(branch.content):
        if branch.content.get("paft_l1_lambda") == 0 and not any(map(branch.content.get, STRENGTHS)):
            findings.warn(
                f"{branch.where}: paft_l1_lambda: 0 only measures, so this branch is dense. Set a strength above 0, or "
                "paft_target_sparsity, to make it sparse."
            )
    elif keys:
        findings.problem(
            f"{branch.where}: {some(keys)}: does nothing unless `plugins:` names {PLUGIN}. "
            + (
                f"Add it there, as `- {PLUGIN}`."
                if branch.strategy == "sft"
                else "The penalty belongs to the SFT branch: remove it here, or add the plugin for an experiment."
            )
        )
    elif branch.name == setup.fused.get(SFT) and not setup.config.arms:
        findings.warn(
            f"{branch.where}: the SFT branch has no penalty, so all arms are dense. For PAFT's own add `plugins: [{PLUGIN}]` and "
            "paft_l1_lambda or paft_target_sparsity, such as paft_target_sparsity: 0.9."
        )
    if branch.name in setup.of_role("sft") and branch.strategy != "sft":
        instead = "under `preference:`" if branch.name == setup.fused.get(SFT) else "`role: preference`"
        findings.problem(
            f"{branch.where}: rl: {branch.strategy}: the SFT branch is trained by SFT. Give it {instead} instead."
        )
    return findings


IGNORE_START = ("dpo", "ipo", "kto")
"""Trainings for which axolotl 0.19 to 0.21 gives TRL the base and the config of a new adapter, whatever `lora_model_dir` says."""


def check_start(setup: Setup, branch: Branch) -> Findings:
    """A training that is to continue another adapter, and whether axolotl does."""
    findings, start = Findings(), branch.content.get("lora_model_dir")
    if not start:
        return findings
    said = f"{branch.where}: lora_model_dir: {start}"
    if not branch.content.get("adapter") or branch.strategy in IGNORE_START:
        why = f"under rl: {branch.strategy}" if branch.content.get("adapter") else "without an adapter"
        findings.warn(
            f"{said}: axolotl ignores it {why}: the branch starts from the base, as a fusion wants it. Remove the key."
        )
    elif PLUGIN in (branch.content.get("plugins") or []):
        findings.problem(
            f"{said}: a training that continues an adapter does not start from δ = 0. Remove it, or the plugin."
        )
    else:
        done = [trained.resolve() for name in setup.of_role("sft") if (trained := setup.branches[name].trained)]
        same = Path(str(start)).is_dir() and Path(str(start)).resolve() in done
        which = (
            "That is the SFT branch, so the" if same else "If that is the SFT branch, or was made from its data, the"
        )
        findings.warn(
            f"{said}: the branch continues that adapter (axolotl does so under rl: {branch.strategy}), and its delta holds it. "
            f"{which} fusion counts it twice. Use {branch.name} alone, unfused, or remove the key to train it from the base."
        )
    return findings


def check_apart(setup: Setup) -> Findings:
    """Branches that are done already: whether two are the same, or one continued the other."""
    from paft_plugin.deltas.belongs import continued

    findings = Findings()
    done = {key: trained for key, name in setup.fused.items() if (trained := setup.branches[name].trained)}
    for (first, one), (second, other) in itertools.combinations(done.items(), 2):
        if one.resolve() == other.resolve():
            findings.problem(f"{first} and {second} are the same folder, {one}. Leave one out: it would count twice.")
            continue
        with contextlib.suppress(PaftError):  # what does not fit is said of each
            findings.warn(*continued(open_model(setup.base), (one, other)))
    return findings


def check_resume(branch: Branch) -> Findings:
    """Why a training that is killed would start again, as warnings."""
    findings = Findings()
    if reason := _no_checkpoint(branch.content):
        findings.warn(
            f"{branch.where}: {reason}, so a training that is killed starts again from the beginning. Set save_steps (or "
            "saves_per_epoch) and save_total_limit: 2 to have it go on."
        )
    return findings


def _no_checkpoint(content: Mapping[str, Any]) -> str | None:
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


def check_secrets(branch: Branch) -> Findings:
    """Secrets in a config, which axolotl copies into the README of its output, its log and trackers."""
    findings = Findings()
    for variable in branch.secrets:
        findings.warn(
            f"{branch.where}: holds a secret, which axolotl would copy into its output and its logs. The run takes it out and "
            f"hands it over as the variable {variable}: better set that yourself, and remove the key here."
        )
    for place in find_secrets(branch.content):
        findings.warn(
            f"{branch.where}: {place}: a secret, which axolotl needs there, and copies into its output and its logs. Only you "
            "will be able to read the run's folder; share nothing of it. Better give a local file, or credentials by the "
            "environment, such as HF_TOKEN, AWS_SECRET_ACCESS_KEY or a ~/.netrc."
        )
    return findings


def check_trained(setup: Setup, branch: Branch) -> Findings:
    """A branch that is done already: does it fit the base, and was it penalised? Reads headers only."""
    from paft_plugin.deltas.belongs import branch_findings
    from paft_plugin.deltas.proof import why_unproven

    findings = Findings()
    assert branch.trained is not None
    with collecting(findings.problems):
        findings.take(branch_findings(open_model(setup.base), branch.trained))
    if branch.name == setup.fused.get(SFT) and (reason := why_unproven(branch.trained)):
        findings.warn(reason)
    return findings
