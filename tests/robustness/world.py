"""One of every file that is read, all valid, and what reads it: commands in this process, or the functions that they call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner

from paft_plugin.cli import paft
from paft_plugin.deltas.belongs import examine
from paft_plugin.deltas.delta import delta_of
from paft_plugin.deltas.skeleton import open_skeleton
from paft_plugin.deltas.store import open_model
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import RUN_FILE
from paft_plugin.evaluation.results import read_results
from paft_plugin.pipeline.arms import open_setup
from paft_plugin.pipeline.estimate.shapes import weight_shapes
from paft_plugin.pipeline.plan import make_plan
from paft_plugin.pipeline.starter.model import look_at
from paft_plugin.report.collect import write_results
from paft_plugin.report.model_card import RECIPE, card_text
from paft_plugin.runner.identity import identities
from paft_plugin.runner.markers import marker_path, outdated, write_marker
from paft_plugin.runner.stages import Stage
from tests.deltas.builders import make_adapter, make_base, make_model, make_tokenizer
from tests.report.runs import run_file, write_run

STAGE = Stage("sft", "train SFT", ("axolotl", "train"), Path("branches/sft"))


@dataclass(frozen=True)
class Outcome:
    """How a reader ended."""

    code: int
    """0; 2: a user's mistake; 3: a diagnosis found something."""
    said: str


def command(*arguments: str | Path) -> Outcome:
    """Run `axolotl paft …` in this process; whatever it does not make an exit code of is raised."""
    result = CliRunner().invoke(paft, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.output)


def called(function: Callable[[], object]) -> Outcome:
    """What a command makes of it."""
    try:
        function()
    except PaftError as error:
        return Outcome(2, "\n".join(error.problems))
    except OSError as error:
        return Outcome(2, str(error.strerror))
    return Outcome(0, "")


PAFT_YML = """\
base: base
sft: sft.yml
preference: dpo.yml
output_dir: out
description: What it is about.
compare: {other: {config: sft.yml, overrides: {learning_rate: 0.001}}}
fusion:
  methods: {ties: {density: 0.3}, linear: {}}
  recipes: {mine: given.yml}
  seed: 7
sequential: true
inspection: {thresholds: [1.0e-5]}
evaluation: {tasks: tasks, measures: {first: {metric: acc}, second: {}}, skill: first}
executor: {kind: local, devices: [], workers: 1}
search: {objectives: [first], tasks: tasks, trials: 30, methods: {ties: {density: [0.2, 0.5]}}}
"""
BRANCH = """\
base_model: base
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
datasets:
  - {path: sft.jsonl, type: chat_template}
sequence_len: 64
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.0002
optimizer: adamw_torch
output_dir: x
"""
FUSION = """\
# mergekit-yaml {root}/recipe.yml {root}/merged --lora-merge-cache {root}/cache --lora-merge-dtype float32
merge_method: ties
base_model: {{model: {{path: {root}/base}}}}
models:
  - {{model: {{model: {{path: {root}/base}}, lora: {{path: {root}/adapter}}}}, parameters: {{weight: 0.5, density: [0.2, 0.4]}}}}
  - {{model: {root}/model, parameters: {{weight: [{{filter: mlp, value: 0.1}}, {{value: 1.0}}]}}}}
parameters: {{normalize: true, lambda: 1.0}}
dtype: float32
out_dtype: bfloat16
tokenizer: {{source: base}}
"""
TASK = """\
task: first
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: answers
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
SFT_ROW = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
}
PREFERENCE_ROW = {"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
                  "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}]}  # fmt: skip


def make_world(root: Path) -> Path:
    """Models, branches, configs, recipes, rows, tasks, and the folder of a run."""
    base = make_base(root / "base")
    make_tokenizer(base)
    patterns = {"alpha_pattern": {"q_proj": 16}, "rank_pattern": {r".*\.v_proj": 2}, "use_rslora": True}
    make_adapter(base, root / "adapter", **patterns)
    make_tokenizer(root / "adapter")
    make_model(base, root / "model", max_shard_size="30KB")
    texts = {
        "paft.yml": PAFT_YML,
        "sft.yml": BRANCH,
        "dpo.yml": f"rl: dpo\n{BRANCH}",
        "recipe.yml": FUSION.format(root=root),
        # mergekit draws a bar while it builds a tokenizer, whether it is to be quiet or not.
        "merge.yml": FUSION.replace("tokenizer: {{source: base}}\n", "").format(root=root),
        "given.yml": "models: [$base, $sft, $preference]\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    (root / "tasks").mkdir()
    (root / "tasks" / "first.yaml").write_text(TASK)
    for name, row in (("sft.jsonl", SFT_ROW), ("preference.jsonl", PREFERENCE_ROW)):
        (root / name).write_text("".join(json.dumps(row) + "\n" for _ in range(3)))
    make_events(write_run(root / "run"))
    run_file().write(root / "run" / RUN_FILE)
    write_results(root / "run")
    write_marker(root / "run", STAGE.name, identities([STAGE], root / "run")[STAGE.name], 1.0)
    return root


def make_events(run: Path) -> None:
    """What a runner and a search leave in a run's folder."""
    start = {"schema": 1, "time": "2026-01-01T00:00:00.000+00:00", "run": "r"}
    stage = {"name": "sft", "title": "train SFT", "needs": [], "reason": "not run yet"}
    lines = [
        {**start, "event": "run_started", "pid": 1, "host": "x", "version": "1"},
        {**start, "event": "planned", "stages": [stage, {**stage, "name": "dpo", "needs": ["sft"]}]},
        {**start, "event": "stage_started", "stage": "sft", "where": "cuda:0"},
        {**start, "event": "progress", "stage": "sft", "metrics": {"step": 3, "loss": 1.5}},
        {**start, "event": "stage_failed", "stage": "sft", "reason": "failed with exit code 1"},
        {**start, "event": "run_ended", "outcome": "failed", "reason": "sft", "seconds": 3.0},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "logs").mkdir(exist_ok=True)
    (run / "logs" / "sft.log").write_text("1/4 [00:01<00:03]\n{'loss': 1.0, 'learning_rate': 1e-4}\n")
    trial = {"number": 1, "method": "ties", "options": {"sft_density": 0.3}, "is_default": True, "on_front": True,
             "scores": {"first": 0.5}, "stderr": {"first": 0.1}}  # fmt: skip
    (run / "search").mkdir(exist_ok=True)
    (run / "search" / "trials.json").write_text(
        json.dumps({"objectives": [{"name": "first"}], "trials": [trial], "start_with": 1})
    )


def _branches(root: Path) -> Outcome:
    def read() -> None:
        base = open_model(root / "base")
        found = examine(root / "base", [root / "adapter", root / "model"])
        if not found.problems:
            for branch in ("adapter", "model"):
                delta = delta_of(base, root / branch)
                delta.one(delta.names[0])
        weight_shapes(root / "base")
        look_at(str(root / "base"))
        open_skeleton(base)

    return called(read)


def _plan(root: Path) -> Outcome:
    return called(lambda: make_plan(open_setup(root / "paft.yml")))


def _lint(root: Path) -> Outcome:
    return command("lint", root / "recipe.yml", "--no-weights")


def _init(root: Path) -> Outcome:
    return command("init", root / "base", "--sft-data", root / "sft.jsonl", "--preference-data", root / "preference.jsonl",
                   "--output", root / "started", "--force")  # fmt: skip


def _merge(root: Path) -> Outcome:
    """What is there afterwards can be read, and is finite."""
    merged = root / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    outcome = command("merge", root / "merge.yml", merged, "--quiet", "--device", "cpu")
    assert merged.is_dir() == (outcome.code == 0)
    if outcome.code == 0:
        store = open_model(merged)
        assert all(bool(store.tensor(name).isfinite().all()) for name in store.names)
        shutil.rmtree(merged)
    return outcome


def _marker(root: Path) -> Outcome:
    """A run says why a stage must run again, whatever its marker holds."""
    run = root / "run"
    return called(lambda: outdated([STAGE], run, identities([STAGE], run)))


def _run_folder(root: Path) -> Outcome:
    return command("diagnose", root / "run", "--json", root / "diagnosis.json")


def _status(root: Path) -> Outcome:
    return command("status", root / "run", "--json", root / "status.json")


def _cards(root: Path) -> Outcome:
    def write() -> None:
        write_results(root / "run")
        results = read_results(root / "run")
        for arm in results.arms if results is not None else ():
            if (root / "run" / arm.model / RECIPE).is_file():
                card_text(root / "run", results, arm, "Plots take too long here.")

    return called(write)


MARKER = f"run/{marker_path(Path(), STAGE.name)}"
READERS: dict[str, tuple[Callable[[Path], Outcome], tuple[str, ...]]] = {
    "plan": (_plan, ("paft.yml", "sft.yml", "dpo.yml", "given.yml", "tasks/first.yaml", "base/config.json")),
    "recipe": (_lint, ("recipe.yml", "adapter/adapter_config.json", "model/model.safetensors.index.json")),
    "branches": (
        _branches,
        (
            *("base/config.json", "base/model.safetensors", "base/tokenizer.json", "base/tokenizer_config.json"),
            *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/tokenizer.json"),
            *("model/config.json", "model/model.safetensors.index.json"),
        ),
    ),
    "init": (_init, ("sft.jsonl", "preference.jsonl", "base/config.json", "base/tokenizer.json")),
    "diagnose": (
        _run_folder,
        (
            *(
                "run/results.json",
                "run/configs/run.json",
                "run/inspection/branches/inspection.json",
                "run/branches/sft-l1/paft.json",
            ),
            *("run/branches/sft/checkpoint-40/trainer_state.json", "run/lint/paft-ties/lint.json", "run/logs/sft.log"),
        ),
    ),
    "status": (_status, ("run/events.jsonl",)),
    "marker": (_marker, (MARKER,)),
    "merge": (
        _merge,
        (
            *("merge.yml", "base/config.json", "base/model.safetensors", "base/generation_config.json"),
            *("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model/model.safetensors.index.json"),
        ),
    ),
    "cards": (
        _cards,
        (
            *(
                "run/results.json",
                "run/configs/run.json",
                "run/configs/sft.yml",
                "run/base/config.json",
                "run/base/README.md",
            ),
            *(f"run/models/paft-ties/{name}" for name in ("mergekit_config.yml", "README.md", "paft.json")),
        ),
    ),
}
"""What reads → how, and the files whose variants it is given."""
