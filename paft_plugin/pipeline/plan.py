"""A run as stages of real commands: train ∥ train, inspect, recipes, lint, merge, evaluate, report."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from paft_plugin.evaluation.inputs import task_inputs
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.config import MethodOptions
from paft_plugin.pipeline.memory import estimate_memory
from paft_plugin.pipeline.setup import BASE, DENSE, SEQUENTIAL, WHOLE, Setup
from paft_plugin.pipeline.stages import Resources, Stage

CONFIGS = Path("configs")
"""What a run is given: axolotl configs, recipes of the user's, what is scored. Written before any stage starts."""
RUN_FILE = CONFIGS / "run.json"
MEASURES_FILE = CONFIGS / "measures.json"
INSPECTION = Path("inspection")
REPORT = "report"
DEVICE = Resources(devices=1)


def make_stages(setup: Setup) -> list[Stage]:
    """All stages of a run, in an order in which they could run one after another."""
    stages = [
        *(train(setup, name) for name in setup.needed if setup.branches[name].trained is None),
        *_sequential(setup),
        *_inspect_branches(setup),
        *(stage for arm in setup.fused for stage in _fuse(setup, arm)),
        *_inspect_fused(setup),
        *_evaluate(setup),
    ]
    return [*stages, _report(setup, stages)]


def paft(*arguments: str) -> tuple[str, ...]:
    """`axolotl paft …`, without the five seconds that axolotl's own command line takes to start."""
    return (sys.executable, "-m", "paft_plugin.cli", *arguments)


def readable(command: Sequence[str], run_dir: Path) -> list[str]:
    """A stage's command as a person in `run_dir` would type it."""
    words = [word.replace(f"{run_dir}/", "") for word in command]
    if words[:3] == [sys.executable, "-m", "paft_plugin.cli"]:
        return ["axolotl", "paft", *words[3:]]
    return ["python" if word == sys.executable else word for word in words]


# --- training -----------------------------------------------------------------------------------------------------------


def config_file(run_dir: Path, name: str) -> Path:
    """Where the axolotl config of a training lies."""
    return run_dir / CONFIGS / f"{name}.yml"


def train(setup: Setup, name: str) -> Stage:
    """The training of a branch on the base model."""
    return _train(setup, setup.branches[name], name, (), (setup.base,))


def _train(setup: Setup, branch: Branch, name: str, needs: tuple[str, ...], base: tuple[Path, ...]) -> Stage:
    config = config_file(setup.run_dir, name)
    what = {"sft": "SFT"}.get(branch.strategy, branch.strategy.upper())
    with_penalty = ", L1 penalty" if branch.penalised else ""
    return Stage(
        name=name,
        title=f"train {name} ({what}{with_penalty})",
        command=(sys.executable, "-m", "paft_plugin.pipeline.train", str(config), *_launcher(branch)),
        folder=Path("branches") / name,
        needs=needs,
        inputs=(config, *branch.data(), *base),
        resumes=True,
        resources=Resources(devices=branch.spec.devices, device_memory=_memory(setup, branch)),
    )


def _memory(setup: Setup, branch: Branch) -> int:
    """Bytes on each of its GPUs, or of main memory; a training on several GPUs shares none, so that it is no matter there."""
    if branch.spec.devices > 1:
        return 0
    return estimate_memory(branch.content, setup.base, cpu=setup.on_cpu).total


def _launcher(branch: Branch) -> Iterator[str]:
    """axolotl's own launcher, in charge of a training on several devices."""
    spec = branch.spec
    launcher = spec.launcher or ("python" if spec.devices == 1 else "accelerate")
    yield from ("--launcher", launcher)
    own = {"accelerate": ["--num_processes"], "torchrun": ["--nproc_per_node"], "python": []}[launcher]
    arguments = spec.launcher_args or [word for option in own for word in (option, str(spec.devices))]
    if arguments:
        yield from ("--", *arguments)


def _sequential(setup: Setup) -> Iterator[Stage]:
    """The baseline: the preference training on top of the dense SFT model instead of the base."""
    if SEQUENTIAL not in setup.arms:
        return
    needs: tuple[str, ...] = (DENSE,)
    if setup.branches[DENSE].is_adapter:
        yield _whole(setup, WHOLE, (DENSE,))
        needs = (f"merge-{WHOLE}",)
    preference = setup.branches[setup.preference]
    yield _train(setup, preference, SEQUENTIAL, needs, ())
    if preference.is_adapter:
        yield _whole(setup, SEQUENTIAL, (*needs, SEQUENTIAL))


def sequential_base(setup: Setup) -> Path:
    """The model that the sequential baseline's second training starts from."""
    if setup.branches[DENSE].is_adapter:
        return setup.run_dir / "models" / WHOLE
    return setup.branch_folder(DENSE)


def whole_recipe(setup: Setup, name: str) -> Path:
    """The recipe that folds one adapter into the model that it was trained on."""
    return setup.run_dir / CONFIGS / "recipes" / f"{name}.yml"


def _whole(setup: Setup, name: str, needs: tuple[str, ...]) -> Stage:
    recipe = whole_recipe(setup, name)
    return _merge(setup, f"merge-{name}", f"merge the adapter of {name}", recipe, name, needs, (recipe,))


# --- fusion -------------------------------------------------------------------------------------------------------------


def recipe_file(setup: Setup, arm: str) -> Path:
    """The recipe of a fused arm."""
    if _own_recipe(setup, arm):
        return whole_recipe(setup, arm)
    return setup.run_dir / "recipes" / arm / f"{arm}.yml"


def _own_recipe(setup: Setup, arm: str) -> bool:
    return arm.partition("-")[2] in setup.config.fusion.recipes


def _fuse(setup: Setup, arm: str) -> Iterator[Stage]:
    recipe, branches = recipe_file(setup, arm), setup.sources(arm)
    trained = tuple(name for name in branches if setup.branches[name].trained is None)
    outside = tuple(setup.branch_folder(name) for name in branches if name not in trained)
    needs, inputs = trained, (setup.base, *outside)
    if _own_recipe(setup, arm):
        inputs = (recipe, *inputs)
    else:
        yield _recipe(setup, arm, recipe, trained, inputs)
        needs = (*needs, f"recipe-{arm}")
    yield Stage(
        name=f"lint-{arm}",
        title=f"lint the recipe of {arm}",
        command=paft("lint", str(recipe), "--json", str(setup.run_dir / "lint" / arm / "lint.json")),
        folder=Path("lint") / arm,
        needs=needs,
        inputs=inputs,
    )
    yield _merge(setup, f"merge-{arm}", f"merge {arm}", recipe, arm, (*needs, f"lint-{arm}"), inputs)


def _recipe(setup: Setup, arm: str, file: Path, needs: tuple[str, ...], inputs: tuple[Path, ...]) -> Stage:
    method = arm.partition("-")[2]
    sft, preference = (str(setup.branch_folder(name)) for name in setup.sources(arm))
    return Stage(
        name=f"recipe-{arm}",
        title=f"write the recipe of {arm}",
        command=paft(
            "recipe",
            *("--base", str(setup.base), "--sft", sft, "--preference", preference, "--method", method),
            *_options(setup.config.fusion.methods[method]),
            *("--seed", str(setup.config.fusion.seed)),
            *("--output", str(file), "--merged", str(setup.model(arm))),
        ),
        folder=file.parent,
        needs=needs,
        inputs=inputs,
    )


def _options(options: MethodOptions) -> Iterator[str]:
    """A method's settings as options of `axolotl paft recipe`."""
    given = {**options.model_dump(exclude={"filter", "extras"}), **options.extras}
    for name, value in given.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif value is not None:
            yield from (f"--{option}", str(value))
    for entry in options.filter:
        yield from ("--filter", entry)


def _merge(
    setup: Setup, name: str, title: str, recipe: Path, arm: str, needs: tuple[str, ...], inputs: tuple[Path, ...]
) -> Stage:
    folder = setup.run_dir / "models" / arm
    seed = str(setup.config.fusion.seed)
    return Stage(
        name=name,
        title=title,
        command=paft("merge", str(recipe), str(folder), "--seed", seed, "--quiet"),
        folder=folder,
        needs=needs,
        inputs=inputs,
        resources=DEVICE,
    )


# --- looking at it ------------------------------------------------------------------------------------------------------


def _inspect_branches(setup: Setup) -> Iterator[Stage]:
    if not setup.needed:
        return
    trained = tuple(name for name in setup.needed if setup.branches[name].trained is None)
    outside = tuple(setup.branch_folder(name) for name in setup.needed if name not in trained)
    deltas = [f"{name}={setup.branch_folder(name)}" for name in setup.needed]
    yield _inspect(setup, "branches", "the branches’ deltas", deltas, trained, outside)


def _inspect_fused(setup: Setup) -> Iterator[Stage]:
    arms = [arm for arm in setup.arms if arm in setup.fused or arm == SEQUENTIAL]
    if arms:
        needs = tuple(made_by(setup, arm) for arm in arms)
        deltas = [f"{arm}={setup.model(arm)}" for arm in arms]
        yield _inspect(setup, "fused", "the fused deltas", deltas, needs, (), "--no-pairs")


def _inspect(
    setup: Setup, name: str, what: str, deltas: list[str], needs: tuple[str, ...], outside: tuple[Path, ...], *more: str
) -> Stage:
    thresholds = [f"--threshold={threshold:g}" for threshold in setup.config.inspection.thresholds]
    folder = setup.run_dir / INSPECTION / name
    return Stage(
        name=f"inspect-{name}",
        title=f"inspect {what}",
        command=paft("inspect", "--base", str(setup.base), *deltas, "--output-dir", str(folder), *thresholds, *more),
        folder=folder,
        needs=needs,
        inputs=(setup.base, *outside),
    )


def made_by(setup: Setup, arm: str) -> str:
    """The stage that makes an arm's model."""
    if arm in setup.branches or (arm == SEQUENTIAL and not setup.branches[setup.preference].is_adapter):
        return arm
    return f"merge-{arm}"


def _evaluate(setup: Setup) -> Iterator[Stage]:
    evaluation = setup.config.evaluation
    if evaluation is None:
        return
    measures = setup.run_dir / MEASURES_FILE
    tasks = () if evaluation.tasks is None else task_inputs(evaluation.tasks)
    for arm in setup.arms:
        model = setup.model(arm)
        adapter = arm in setup.branches and setup.branches[arm].is_adapter
        outside = () if setup.run_dir in model.parents else (model,)
        made_here = arm != BASE and not (arm in setup.branches and setup.branches[arm].trained)
        yield Stage(
            name=f"evaluate-{arm}",
            title=f"evaluate {arm}",
            command=(
                *(sys.executable, "-m", "paft_plugin.evaluation.score", "--measures", str(measures)),
                *("--output", str(setup.run_dir / "scores" / arm / "scores.json")),
                *(("--adapter", arm, str(setup.base), str(model)) if adapter else (f"{arm}={model}",)),
            ),
            folder=Path("scores") / arm,
            needs=(made_by(setup, arm),) if made_here else (),
            inputs=(measures, *tasks, *((setup.base,) if arm == BASE or adapter else outside)),
            resources=DEVICE,
        )


def _report(setup: Setup, stages: Sequence[Stage]) -> Stage:
    return Stage(
        name=REPORT,
        title="write the report",
        command=paft("report", str(setup.run_dir)),
        folder=Path("report"),
        needs=tuple(stage.name for stage in stages),
        inputs=(setup.run_dir / RUN_FILE,),
    )
