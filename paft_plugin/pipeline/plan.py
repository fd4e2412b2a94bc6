"""A run as stages of real commands: train ∥ train, inspect, recipes, lint, merge, evaluate, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Template

import yaml

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.config import task_inputs
from paft_plugin.files import read_json_or_nothing, write_text
from paft_plugin.pipeline.arms import BASE, DENSE, SEQUENTIAL, WHOLE, Setup
from paft_plugin.pipeline.branches import Branch, config_text
from paft_plugin.pipeline.config import MethodOptions
from paft_plugin.pipeline.estimate.memory import estimate_memory
from paft_plugin.runner.stages import Resources, Stage

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


def given_files(setup: Setup, stages: list[Stage]) -> dict[Path, str]:
    """Absolute path → text of every file that the run itself writes for its stages.

    Raises:
        PaftError: A recipe of the user's cannot be read, or has a $placeholder that means nothing.
    """
    run_dir = setup.run_dir
    files = {
        config_file(run_dir, name): config_text(setup.branches[name], str(setup.base), name, run_dir)
        for name in setup.needed
        if setup.branches[name].trained is None
    }
    files |= _sequential_of_given(setup)
    for arm in setup.fused:
        source = setup.config.fusion.recipes.get(arm.partition("-")[2])
        if source is not None:
            files[recipe_file(setup, arm)] = _filled(setup, arm, source)
    if setup.config.evaluation is not None:
        content = setup.config.evaluation.model_dump(mode="json")
        files[run_dir / MEASURES_FILE] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return {**files, run_dir / RUN_FILE: _run_content(setup, stages)}


def write_files(files: dict[Path, str]) -> None:
    """Write what is not there already, so that a file that stays the same stays as old as it is."""
    for file, text in files.items():
        if not file.is_file() or file.read_bytes() != text.encode("utf-8"):
            write_text(file, text)


def _sequential_of_given(setup: Setup) -> dict[Path, str]:
    if SEQUENTIAL not in setup.arms:
        return {}
    preference, base = setup.branches[setup.preference], sequential_base(setup)
    files = {
        config_file(setup.run_dir, SEQUENTIAL): config_text(preference, str(base), SEQUENTIAL, setup.run_dir),
    }
    if setup.branches[DENSE].is_adapter:
        files[whole_recipe(setup, WHOLE)] = _whole_of_given(setup.base, setup.branch_folder(DENSE))
    if preference.is_adapter:
        files[whole_recipe(setup, SEQUENTIAL)] = _whole_of_given(base, setup.run_dir / "branches" / SEQUENTIAL)
    return files


def _whole_of_given(base: Path, adapter: Path) -> str:
    """The recipe that folds an adapter into its base: in fp32, since base + s·BA would be rounded twice otherwise."""
    model = {"model": {"model": {"path": str(base)}, "lora": {"path": str(adapter)}}, "parameters": {"weight": 1.0}}
    recipe = {"merge_method": "linear", "models": [model], "dtype": "float32", "out_dtype": _dtype(base)}
    return (
        f"# {adapter.name} as a whole model.\n{yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)}"
    )


def _dtype(base: Path) -> str:
    """The dtype that a model's config names, the one that its weights are saved in; fp32 if it names none."""
    # A model that is still to be made has the base's, and a broken one is preflight's to name.
    config = read_json_or_nothing(base / "config.json")
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def _filled(setup: Setup, arm: str, source: Path) -> str:
    sft, preference = (str(setup.branch_folder(name)) for name in setup.sources(arm))
    try:
        return Template(source.read_text(encoding="utf-8")).substitute(base=setup.base, sft=sft, preference=preference)
    except (OSError, UnicodeDecodeError) as error:
        raise PaftError(f"{source}: cannot be read ({error}).") from None
    except (KeyError, ValueError) as error:
        raise PaftError(
            f"{source}: a $placeholder of it means nothing here ({error}). There are $base, $sft and $preference; "
            "write $$ for a plain $."
        ) from None


def _run_content(setup: Setup, stages: Sequence[Stage]) -> str:
    """What `run.json` says for the report: the arms, and the commands that repeat them (but the report's own)."""
    run_dir = setup.run_dir
    evaluation = setup.config.evaluation
    content = {
        "schema": 1,
        "description": setup.config.description,
        "base": setup.config.base,
        "branches": list(setup.branches),
        "skill": evaluation.skill if evaluation else None,
        "preference": evaluation.preference if evaluation else None,
        "thresholds": setup.config.inspection.thresholds,
        "arms": {arm: str(setup.model(arm)).removeprefix(f"{run_dir}/") for arm in setup.arms},
        "fused": {arm: setup.sources(arm) for arm in setup.fused},
        "stages": [
            {"name": stage.name, "title": stage.title, "command": readable(stage.command, run_dir)}
            for stage in stages
            if stage.name != REPORT
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
