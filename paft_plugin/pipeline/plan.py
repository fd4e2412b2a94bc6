"""A run as stages of real commands, and the files that it writes for them: train ∥ train, inspect, fuse, evaluate, report."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template

from paft_plugin import __version__
from paft_plugin.errors import PaftError, some
from paft_plugin.evaluation.arms import RUN_FILE, Arm, RunFile, Step
from paft_plugin.evaluation.config import EvaluationConfig
from paft_plugin.evaluation.held_out_rows import HELD_OUT
from paft_plugin.evaluation.task_code import task_inputs
from paft_plugin.files import RECIPE_FILE, json_text, read_json_or_nothing, write_text
from paft_plugin.fusion.recipe.render import adapter_recipe
from paft_plugin.fusion.recipe.settings import ROLES, BranchName, RecipeSettings
from paft_plugin.pipeline.arms import BASE, BRANCHES, MODELS, PREFERENCE, SFT, Setup
from paft_plugin.pipeline.baselines import ControlRequest, joint_epochs
from paft_plugin.pipeline.branches import Branch, config_text
from paft_plugin.pipeline.config import ALPHA, ControlSpec
from paft_plugin.pipeline.estimate.memory import estimate_memory
from paft_plugin.pipeline.held_out.request import (
    REST,
    Request,
    has_rows,
    owners,
    question,
    request_beside,
    request_of,
    trained_on_rest,
)
from paft_plugin.pipeline.joint_rows import ROWS_FILE, JointRequest, joint_source
from paft_plugin.reading import MOST_YAML_BYTES, UnreadableError, read_text
from paft_plugin.runner.stages import Resources, Stage
from paft_plugin.search.alpha import AlphaRequest
from paft_plugin.search.alpha_curve import CURVES
from paft_plugin.search.fused import BranchFolder, FusedRequest, InMemory

CONFIGS = RUN_FILE.parent
"""What stages are given: axolotl configs, recipes of the user's, what is scored."""
SCORES = Path("scores")
"""Below the folder of a run: a folder for each arm."""
JOINT_ROWS = "joint-rows"
"""The stage that writes the rows of the joint training, and their folder below the run's."""
HOLD_OUT = "hold-out"
"""The stage that takes rows out of the branches' data; for a branch that only stands beside others, `hold-out-<its name>`."""
DEVICE = Resources(devices=1)
VERSIONS = {"paft-plugin": __version__}
"""Another version of ours may do a stage otherwise: it runs again."""


@dataclass(frozen=True)
class Planned:
    """One stage, with the files that it is given."""

    stage: Stage
    files: Mapping[Path, str] = field(default_factory=dict)
    """Absolute path → text; written before anything starts."""


@dataclass(frozen=True)
class Plan:
    """All stages of a run, in an order in which they could run one after another, and all that they are given."""

    stages: list[Stage]
    files: Mapping[Path, str]

    def write_files(self) -> None:
        """Write what is not there already, so that a file that stays the same stays as old as it is."""
        for file, text in self.files.items():
            if not file.is_file() or file.read_bytes() != text.encode("utf-8"):
                write_text(file, text)


def make_plan(setup: Setup) -> Plan:
    """The stages of a run; nothing is written.

    Raises:
        PaftError: A recipe of the user's cannot be read, or has a $placeholder that means nothing.
    """
    planned = [
        *_hold_out(setup),
        *(
            _train(setup, branch, branch.name, setup.base, inputs=(setup.base,))
            for branch in setup.trainings
            if not branch.is_joint
        ),
        *(_make_control(setup, branch, branch.control) for branch in setup.needed if branch.control),
        *_train_joint(setup),
        *_train_sequential(setup),
        *_inspect_branches(setup),
        *(_find_alpha(setup, arm) for arm in setup.of_kind("fused") if arm.recipe == ALPHA),
        *(_fuse(setup, arm) for kind in ("disjoint", "fused") for arm in setup.of_kind(kind) if not arm.in_memory),
        *_inspect_fused(setup),
        *_evaluate(setup),
    ]
    planned.append(_report(setup, [each.stage for each in planned]))
    files = {file: text for each in planned for file, text in each.files.items()}
    return Plan([replace(each.stage, versions=VERSIONS) for each in planned], files)


def paft(*arguments: str) -> tuple[str, ...]:
    """`axolotl paft …`, without the five seconds that axolotl's own command line takes to start."""
    return (sys.executable, "-m", "paft_plugin.cli", *arguments)


def readable(command: Sequence[str], run_dir: Path) -> list[str]:
    """A stage's command as a person in `run_dir` would type it."""
    words = [word.replace(f"{run_dir}/", "") for word in command]
    if words[:3] == [sys.executable, "-m", "paft_plugin.cli"]:
        return ["axolotl", "paft", *words[3:]]
    return ["python" if word == sys.executable else word for word in words]


# --- held-out rows ------------------------------------------------------------------------------------------------------


def _hold_out(setup: Setup) -> Iterator[Planned]:
    """What the arms are scored on, and the trainings' data without it; then the data of those that only stand beside."""
    request = request_of(setup)
    if request is None:
        return
    read = [branch for branch in owners(setup).values() if has_rows(branch)]
    retained = setup.config.evaluation.retained if setup.config.evaluation else None
    yield _held_out(
        setup, HOLD_OUT, request, [*_data(setup, read), *([retained] if isinstance(retained, Path) else [])]
    )
    for branch in setup.trainings:
        beside = request_beside(setup, branch)
        if beside is not None:
            yield _held_out(setup, f"{HOLD_OUT}-{branch.name}", beside, _data(setup, [branch]), (HOLD_OUT,))


def _held_out(setup: Setup, name: str, request: Request, data: Sequence[Path], needs: tuple[str, ...] = ()) -> Planned:
    file = setup.run_dir / CONFIGS / f"{name}.json"
    stage = Stage(
        name=name,
        title="hold rows out" if not needs else "leave out what is held out",
        command=(sys.executable, "-m", "paft_plugin.pipeline.held_out", str(file)),
        folder=request.folder.relative_to(setup.run_dir),
        needs=needs,
        inputs=(file, setup.base, *data),
    )
    # A task of lm-eval more must not train everything anew: the stage does not ask what else is scored.
    content = {**request.model_dump(mode="json"), "nothing_else": not needs}
    return Planned(stage, {file: json_text(content)})


def _data(setup: Setup, branches: Sequence[Branch]) -> list[Path]:
    """The user's own files that trainings are made from beside their configs, but for what the run itself has written."""
    ours = [setup.run_dir / folder for folder in (HELD_OUT, REST, JOINT_ROWS)]
    files = dict.fromkeys(path for branch in branches for path in (*branch.data(), *branch.settings()))
    return [path for path in files if not any(path.is_relative_to(folder) for folder in ours)]


# --- training -----------------------------------------------------------------------------------------------------------


def _train(
    setup: Setup, branch: Branch, name: str, base: Path, needs: tuple[str, ...] = (), inputs: tuple[Path, ...] = ()
) -> Planned:
    """The training `name`: as `branch` describes it, started from the model in `base`."""
    if (rest := trained_on_rest(setup, branch)) is not branch:
        beside = request_beside(setup, branch)
        branch, needs = rest, (*needs, HOLD_OUT if beside is None else f"{HOLD_OUT}-{branch.name}")
    if (reference := setup.reference_of(branch)) is not None:
        needs = (*needs, reference)
    config = setup.run_dir / CONFIGS / f"{name}.yml"
    what = f"{'SFT and ' if branch.is_joint else ''}{branch.strategy.upper()}"
    with_penalty = ", with a penalty" if branch.penalised else ""
    stage = Stage(
        name=name,
        title=f"train {name} ({what}{with_penalty})",
        command=(sys.executable, "-m", "paft_plugin.pipeline.train", str(config), *_launcher(branch)),
        folder=BRANCHES / name,
        needs=needs,
        inputs=(config, *_data(setup, [branch]), *inputs),
        resumes=True,
        resources=Resources(devices=branch.spec.devices, device_memory=_memory(setup, branch)),
    )
    return Planned(stage, {config: config_text(branch, str(base), name, setup.run_dir / stage.folder)})


def _memory(setup: Setup, branch: Branch) -> int:
    """Bytes that a training takes on its GPU, or of main memory; 0 on several GPUs, which it shares with no other stage."""
    if branch.spec.devices > 1:
        return 0
    return estimate_memory(branch.content, setup.base, cpu=setup.on_cpu).total


def _launcher(branch: Branch) -> Iterator[str]:
    """The options by which axolotl's own launcher starts a training, on several devices, too."""
    spec = branch.spec
    launcher = spec.launcher or ("python" if spec.devices == 1 else "accelerate")
    yield from ("--launcher", launcher)
    own = {"accelerate": ["--num_processes"], "torchrun": ["--nproc_per_node"], "python": []}[launcher]
    arguments = spec.launcher_args or [word for option in own for word in (option, str(spec.devices))]
    if arguments:
        yield from ("--", *arguments)


def _train_joint(setup: Setup) -> Iterator[Planned]:
    """The baselines of one training on the rows of all branches; rows that several of them take are written once."""
    written: dict[str, Planned] = {}
    for arm in setup.of_kind("joint"):
        branch = setup.branches[arm.name]
        asked, rows = _joint_rows(setup, branch, f"{JOINT_ROWS}-{arm.name}" if written else JOINT_ROWS)
        if asked not in written:
            yield written.setdefault(asked, rows)
        stage = written[asked].stage
        entry = {"path": str(setup.run_dir / stage.folder / ROWS_FILE), "ds_type": "json", "split": "train"}
        with_rows = replace(branch, content={**branch.content, "datasets": [entry]})
        yield _train(setup, with_rows, arm.name, setup.base, (stage.name,), (setup.base,))


def _joint_rows(setup: Setup, branch: Branch, name: str) -> tuple[str, Planned]:
    """The stage that writes the rows of a joint training; first what is asked of it, wherever they are to lie."""
    given = [setup.branches[each] for each in branch.made_of]
    sources = [trained_on_rest(setup, each) for each in given]
    request = JointRequest(
        folder=setup.run_dir / name,
        strategy=str(branch.content["rl"]),
        seed=setup.config.fusion.seed,
        sources=tuple(
            joint_source(question(setup, setup.key(each.name), each), each, joint_epochs(given)) for each in sources
        ),
    )
    file = setup.run_dir / CONFIGS / f"{name}.json"
    held_out = any(one is not other for one, other in zip(given, sources, strict=True))
    stage = Stage(
        name=name,
        title="write the rows of the joint training",
        command=(sys.executable, "-m", "paft_plugin.pipeline.joint_rows", str(file)),
        folder=Path(name),
        needs=(HOLD_OUT,) if held_out else (),
        inputs=(file, setup.base, *_data(setup, sources)),
    )
    asked = request.model_dump_json(exclude={"folder"})
    return asked, Planned(stage, {file: json_text(request.model_dump(mode="json"))})


def _train_sequential(setup: Setup) -> Iterator[Planned]:
    """The baselines of one training on top of the other; what two of them have in common is done once."""
    planned: dict[str, Planned] = {}
    for arm in setup.of_kind("sequential"):
        for each in _chain(setup, arm):
            planned.setdefault(each.stage.name, each)
    yield from planned.values()


def _chain(setup: Setup, arm: Arm) -> Iterator[Planned]:
    """The trainings of a sequential arm after the first, which is a branch's own, each on the merge of those before."""
    first, *others = (setup.branches[name] for name in arm.order)
    base, needs = setup.branch_folder(first.name), _made_here(setup, arm)
    outside = _from_outside(setup, [first.name])
    if first.is_adapter:
        whole = _merge_adapter(setup, f"{first.name}-whole", setup.base, base, needs, (setup.base, *outside))
        yield whole
        base, needs, outside = setup.run_dir / whole.stage.folder, (whole.stage.name,), ()
    for length, branch in enumerate(others, start=2):
        name = setup.sequential_name(arm.order[:length])
        training = _train(setup, branch, name, base, needs, outside)
        yield training
        trained_on, base = base, setup.run_dir / training.stage.folder
        if branch.is_adapter:
            merged = _merge_adapter(setup, name, trained_on, base, (*needs, training.stage.name))
            yield merged
            training, base = merged, setup.run_dir / merged.stage.folder
        needs = (training.stage.name,)


def _merge_adapter(
    setup: Setup, name: str, base: Path, adapter: Path, needs: tuple[str, ...], inputs: tuple[Path, ...] = ()
) -> Planned:
    """Fold an adapter into the model that it was trained on."""
    file, folder = _given_recipe(setup, name), MODELS / name
    stage = Stage(
        name=f"merge-{name}",
        title=f"merge the adapter of {name}",
        command=paft(
            *("merge", str(file), str(setup.run_dir / folder)), *("--seed", str(setup.config.fusion.seed), "--quiet")
        ),
        folder=folder,
        needs=needs,
        inputs=(file, *inputs),
        resources=DEVICE,
    )
    # In the base's dtype: that of a model which this run makes is not known before it is there.
    return Planned(stage, {file: adapter_recipe(base, adapter, _out_dtype(setup))})


def _out_dtype(setup: Setup) -> str:
    """What merged models are saved in: the dtype that the base's config names; fp32 if it names none."""
    config = read_json_or_nothing(setup.base / "config.json")  # a broken one is preflight's to name
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


# --- controls -----------------------------------------------------------------------------------------------------------


def _make_control(setup: Setup, branch: Branch, spec: ControlSpec) -> Planned:
    """What is made of trained deltas, and lies where a trained branch would."""
    folders = dict(zip(("of", "like"), map(setup.branch_folder, spec.sources), strict=False))
    folder = BRANCHES / branch.name
    request = ControlRequest(
        spec=spec, base=setup.base, **folders, as_adapter=branch.is_adapter, folder=setup.run_dir / folder
    )
    file = setup.run_dir / CONFIGS / f"{branch.name}.json"
    stage = Stage(
        name=branch.name,
        title=f"make {branch.name} ({spec.control} of {' like '.join(spec.sources)})",
        command=(sys.executable, "-m", "paft_plugin.pipeline.controls", str(file)),
        folder=folder,
        needs=tuple(name for name in spec.sources if setup.branches[name].trained is None),
        inputs=(file, setup.base, *_from_outside(setup, spec.sources)),
    )
    return Planned(stage, {file: json_text(request.model_dump(mode="json", exclude_unset=True))})


# --- fusion -------------------------------------------------------------------------------------------------------------


def _fuse(setup: Setup, arm: Arm) -> Planned:
    """Recipe, lint and merge of one arm."""
    assert arm.recipe is not None
    assert arm.stage is not None
    inputs, files = (setup.base, *_from_outside(setup, arm.branches)), {}
    fusion = setup.config.fusion
    own = fusion.recipes.get(arm.recipe) if arm.kind == "fused" else None
    needs = _made_here(setup, arm)
    if arm.kind == "fused" and arm.recipe == ALPHA:
        needs = (*needs, f"{ALPHA}-{arm.name}")
        recipe = ["--recipe", str(setup.run_dir / CURVES / arm.name / RECIPE_FILE)]
    elif own is None:
        names = [BranchName(setup.key(name), setup.branches[name].role or "sft") for name in arm.branches]
        recipe = [
            *("--base", str(setup.base), *_branches(setup, arm), "--method", arm.recipe),
            *(fusion.methods[arm.recipe].only(names) if arm.kind == "fused" else RecipeSettings()).options(),
        ]
    else:
        file = _given_recipe(setup, arm.name)
        recipe, inputs, files = ["--recipe", str(file)], (file, *inputs), {file: _filled(setup, arm, own)}
    stage = Stage(
        name=arm.stage,
        title=f"fuse {arm.name}",
        command=paft("fuse", str(setup.model(arm)), *recipe, "--seed", str(fusion.seed), "--quiet"),
        folder=Path(arm.model),
        needs=needs,
        inputs=inputs,
        resources=DEVICE,
    )
    return Planned(stage, files)


def _find_alpha(setup: Setup, arm: Arm) -> Planned:
    """Score the way from one branch to the other on validation items, and write the recipe of the point that is taken."""
    evaluation, alpha = setup.config.evaluation, setup.config.fusion.alpha
    assert evaluation is not None
    assert alpha is not None
    measures, text = _measures(setup, evaluation)
    rows = request_of(setup) is not None
    sft, preference = sorted(arm.branches, key=lambda name: setup.branches[name].role != "sft")
    folder = CURVES / arm.name
    request = AlphaRequest(
        arm=arm.name,
        base=setup.base,
        branches=(setup.branch_folder(sft), setup.branch_folder(preference)),
        names=(setup.key(sft), setup.key(preference)),
        points=alpha.points,
        measures=measures,
        held_out=setup.run_dir / HELD_OUT if rows else None,
        skills=evaluation.skill,
        preferences=evaluation.preference,
        out_dtype=_out_dtype(setup),
        seed=setup.config.fusion.seed,
        folder=setup.run_dir / folder,
    )
    file = setup.run_dir / CONFIGS / f"{ALPHA}-{arm.name}.json"
    stage = Stage(
        name=f"{ALPHA}-{arm.name}",
        title=f"score {alpha.points} points of {arm.name} on validation items",
        command=(sys.executable, "-m", "paft_plugin.search.alpha", str(file)),
        folder=folder,
        needs=(*_made_here(setup, arm), *((HOLD_OUT,) if rows else ())),
        inputs=(file, measures, setup.base, *_tasks(evaluation), *_from_outside(setup, arm.branches)),
        resources=DEVICE,
    )
    return Planned(stage, {file: json_text(request.model_dump(mode="json")), measures: text})


def _branches(setup: Setup, arm: Arm) -> Iterator[str]:
    """The branches of a fused arm, as options of `axolotl paft recipe`."""
    for name in arm.branches:
        role, folder = setup.branches[name].role, str(setup.branch_folder(name))
        if list(setup.fused) == [SFT, PREFERENCE]:
            yield from (f"--{role}", folder)
        else:
            yield from ("--branch", f"{setup.key(name)}={folder},role={role}")


def _given_recipe(setup: Setup, name: str) -> Path:
    """Where a recipe lies that the run is given, rather than makes."""
    return setup.run_dir / CONFIGS / "recipes" / f"{name}.yml"


_NO_NAME = re.compile(r"\W")
"""What cannot stand in a $placeholder, and is an underscore there."""


def _filled(setup: Setup, arm: Arm, source: Path) -> str:
    """A recipe of the user's with the run's folders in it."""
    folders = {_NO_NAME.sub("_", setup.key(name)): str(setup.branch_folder(name)) for name in arm.branches}
    try:
        return Template(read_text(source, MOST_YAML_BYTES)).substitute(folders, base=setup.base)
    except UnreadableError:
        raise
    except (KeyError, ValueError) as error:
        raise PaftError(
            f"{source}: a $placeholder of it means nothing here ({error}). There are $base, "
            f"{some([f'${name}' for name in folders], len(folders))}; write $$ for a plain $."
        ) from None


def _made_here(setup: Setup, arm: Arm) -> tuple[str, ...]:
    """The trainings of this run that an arm is made from."""
    return tuple(name for name in arm.branches if setup.branches[name].trained is None)


def _from_outside(setup: Setup, branches: Sequence[str]) -> tuple[Path, ...]:
    """The folders of those branches that were trained elsewhere."""
    return tuple(trained for name in branches if (trained := setup.branches[name].trained) is not None)


# --- looking at it ------------------------------------------------------------------------------------------------------


def _inspect_branches(setup: Setup) -> Iterator[Planned]:
    kinds = {"branches": [branch.name for branch in setup.needed if not branch.made_of]}
    kinds |= {arm.name: list(arm.branches) for arm in setup.of_kind("disjoint")}
    for kind, names in kinds.items():
        if names:
            deltas = [f"{name}={setup.branch_folder(name)}" for name in names]
            needs = tuple(name for name in names if setup.branches[name].trained is None)
            what = "the branches’ deltas" if kind == "branches" else f"the deltas of {kind}"
            # Further branches and controls are looked at beside those that are fused, and elect no signs with them.
            fused = [arm if arm in names else setup.twins.get(arm) for arm in setup.fused.values()]
            elect = [f"--fused={name}" for name in fused if name in names and len(names) > len(fused)]
            yield _inspect(setup, kind, what, deltas, needs, _from_outside(setup, names), *elect)


def _inspect_fused(setup: Setup) -> Iterator[Planned]:
    arms = [arm for arm in setup.arms if arm.is_aligned and not arm.in_memory]
    if arms:
        deltas = [f"{arm.name}={setup.model(arm)}" for arm in arms]
        needs = tuple(arm.stage for arm in arms if arm.stage is not None)
        yield _inspect(setup, "fused", "the fused deltas", deltas, needs, (), "--no-pairs")


def _inspect(
    setup: Setup, name: str, what: str, deltas: list[str], needs: tuple[str, ...], outside: tuple[Path, ...], *more: str
) -> Planned:
    thresholds = [f"--threshold={threshold:g}" for threshold in setup.config.inspection.thresholds]
    folder = Path("inspection") / name
    output = str(setup.run_dir / folder)
    stage = Stage(
        name=f"inspect-{name}",
        title=f"inspect {what}",
        command=paft("inspect", "--base", str(setup.base), *deltas, "--output-dir", output, *thresholds, *more),
        folder=folder,
        needs=needs,
        inputs=(setup.base, *outside),
    )
    return Planned(stage)


def _evaluate(setup: Setup) -> Iterator[Planned]:
    """The base first, if rows are compared with it; all adapters on it in one process, by one load of it; then whole models."""
    evaluation, rows = setup.config.evaluation, _held_out_rows(setup)
    if evaluation is None or not (rows or evaluation.by_task):
        return
    tasks = _tasks(evaluation)  # read once: a study's seed has dozens of stages
    for arm in setup.of_kind("base") or ([setup.base_arm] if rows else []):
        yield _score(setup, f"evaluate-{arm.name}", [arm], rows, tasks)
    adapters = [arm for arm in setup.arms if _is_adapter(setup, arm)]
    if rows:
        rows = (*rows, "--base-scores", str(setup.run_dir / SCORES / BASE))
    if adapters:
        yield _score(setup, "evaluate-adapters", adapters, rows, tasks)
    for arm in setup.arms:
        if arm.kind != "base" and arm not in adapters and not arm.in_memory:
            yield _score(setup, f"evaluate-{arm.name}", [arm], rows, tasks)
    in_memory = [arm for arm in setup.arms if arm.in_memory]
    for stage in dict.fromkeys(arm.stage for arm in in_memory):
        yield _score_in_memory(setup, str(stage), [arm for arm in in_memory if arm.stage == stage], tasks)


def _score(setup: Setup, name: str, arms: Sequence[Arm], rows: tuple[str, ...], tasks: Sequence[Path]) -> Planned:
    """The scoring of some arms in one process; `rows` says what they are scored on beside lm-eval's `tasks`."""
    evaluation = setup.config.evaluation
    assert evaluation is not None
    measures, text = _measures(setup, evaluation)
    needs = [*([HOLD_OUT] if rows else []), *([f"evaluate-{BASE}"] if "--base-scores" in rows else [])]
    folder, *more_folders = (SCORES / arm.name for arm in arms)
    stage = Stage(
        name=name,
        title=f"evaluate {', '.join(arm.name for arm in arms)}",
        command=(
            *(sys.executable, "-m", "paft_plugin.evaluation.score", "--measures", str(measures)),
            *("--output-dir", str(setup.run_dir / SCORES), *rows),
            *(word for arm in arms for word in _model_words(setup, arm)),
        ),
        folder=folder,
        more_folders=tuple(more_folders),
        needs=(*needs, *(arm.stage for arm in arms if arm.stage is not None)),
        inputs=(
            measures,
            *tasks,
            *dict.fromkeys(path for arm in arms for path in _read_from_outside(setup, arm)),
        ),
        keeps=True,
        resources=DEVICE,
    )
    return Planned(stage, {measures: text})


def _score_in_memory(setup: Setup, name: str, arms: Sequence[Arm], tasks: Sequence[Path]) -> Planned:
    """The merging and scoring of all fusions of the same branches, by one load of the base."""
    evaluation, seed = setup.config.evaluation, setup.config.fusion.seed
    assert evaluation is not None
    measures, text = _measures(setup, evaluation)
    has_held_out = request_of(setup) is not None
    scores = setup.run_dir / SCORES
    of_role = {
        role: tuple(key for key, branch in owners(setup).items() if has_rows(branch) and branch.role == role)
        for role in ROLES
    }
    fusions = {arm.name: setup.config.fusion.fused[arm.name] for arm in arms}
    request = FusedRequest(
        base=setup.base,
        branches={
            branch: BranchFolder(role=setup.branches[branch].role or "sft", folder=setup.branch_folder(branch))
            for branch in sorted(arms[0].branches)
        },
        fusions=tuple(
            InMemory(
                arm=arm,
                branches=one.branches,
                method=one.method,
                settings=one.settings,
                seed=seed if one.seed is None else one.seed,
            )
            for arm, one in fusions.items()
        ),
        measures=measures,
        held_out=setup.run_dir / HELD_OUT if has_held_out else None,
        sft=of_role["sft"] if has_held_out else (),
        preference=of_role["preference"] if has_held_out else (),
        base_scores=scores / BASE if has_held_out else None,
        scores=scores,
    )
    file = setup.run_dir / CONFIGS / f"{name}.json"
    folder, *more_folders = (SCORES / arm.name for arm in arms)
    stage = Stage(
        name=name,
        title=f"fuse {' and '.join(arms[0].branches)} in memory and evaluate {', '.join(fusions)}",
        command=(sys.executable, "-m", "paft_plugin.search.fused", str(file)),
        folder=folder,
        more_folders=tuple(more_folders),
        needs=(*((HOLD_OUT, f"evaluate-{BASE}") if has_held_out else ()), *_made_here(setup, arms[0])),
        inputs=(file, measures, setup.base, *tasks, *_from_outside(setup, arms[0].branches)),
        keeps=True,
        resources=DEVICE,
    )
    return Planned(stage, {file: json_text(request.model_dump(mode="json")), measures: text})


def _measures(setup: Setup, evaluation: EvaluationConfig) -> tuple[Path, str]:
    """The file that says what is scored, and its text."""
    content = evaluation.model_dump(mode="json", exclude={"skill", "preference", "margin"})
    return setup.run_dir / CONFIGS / "measures.json", json_text(content)


def _tasks(evaluation: EvaluationConfig) -> tuple[Path, ...]:
    """The user's own files of tasks."""
    return () if evaluation.tasks is None else tuple(task_inputs(evaluation.tasks))


def _is_adapter(setup: Setup, arm: Arm) -> bool:
    """Whether an arm is scored as an adapter on the base."""
    return arm.kind in ("branch", "joint") and setup.branches[arm.name].is_adapter


def _model_words(setup: Setup, arm: Arm) -> tuple[str, ...]:
    """How an arm is named to the scoring."""
    model = str(setup.model(arm))
    return ("--adapter", arm.name, str(setup.base), model) if _is_adapter(setup, arm) else (f"{arm.name}={model}",)


def _held_out_rows(setup: Setup) -> tuple[str, ...]:
    """The options that name the held-out rows; none if nothing is held out."""
    if request_of(setup) is None:
        return ()
    of_branches = [(f"--{branch.role}", key) for key, branch in owners(setup).items() if has_rows(branch)]
    return ("--held-out", str(setup.run_dir / HELD_OUT), *(word for words in of_branches for word in words))


def _read_from_outside(setup: Setup, arm: Arm) -> Iterator[Path]:
    """The models that an arm's evaluation reads and no stage makes."""
    if _is_adapter(setup, arm) or arm.kind == "base":
        yield setup.base
    if arm.stage is None and arm.kind != "base":
        yield setup.model(arm)


def _report(setup: Setup, stages: Sequence[Stage]) -> Planned:
    file = setup.run_dir / RUN_FILE
    stage = Stage(
        name="report",
        title="write the report",
        command=paft("report", str(setup.run_dir)),
        folder=Path("report"),
        needs=tuple(stage.name for stage in stages),
        inputs=(file,),
    )
    return Planned(stage, {file: json_text(_run_file(setup, stages).content())})


def _run_file(setup: Setup, stages: Sequence[Stage]) -> RunFile:
    """What the report is told: the arms, and the commands that repeat them."""
    evaluation = setup.config.evaluation
    return RunFile(
        description=setup.config.description,
        base=setup.config.base,
        skills=evaluation.skill if evaluation else (),
        preferences=evaluation.preference if evaluation else (),
        margins=evaluation.margin if evaluation else {},
        thresholds=tuple(setup.config.inspection.thresholds),
        arms=setup.arms,
        stages=tuple(
            Step(name=stage.name, title=stage.title, command=tuple(readable(stage.command, setup.run_dir)))
            for stage in stages
        ),
    )
