"""`python -m studies.smollm2 DIR`: the model, the rows, the tasks and the configs of the study of a real model (README.md)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from paft_plugin.files import write_text
from studies.smollm2 import bigbench, preference, skill
from studies.smollm2.model import END, download, write_model

Row = Mapping[str, Any]
Families = Mapping[str, Mapping[skill.Split, list[skill.Item]]]
"""Family → split → the items of the skill that are scored."""

SFT_ROWS, CONSTRAINT_ROWS, ANSWER_ROWS = 2_400, 600, 400
SKILL_ITEMS: Mapping[skill.Split, int] = {"validation": 20, "test": 60, "ood": 15, "long": 15}
"""Of each family. Generators make more for nothing, but on two CPU cores an arm takes minutes to answer these."""
CONSTRAINT_ITEMS: Mapping[preference.Split, int] = {"validation": 40, "test": 100}
ANSWER_ITEMS, RETAINED_ITEMS, DIALOGUES = 100, 24, 20
ITEMS_SEED = 0
TRIED = 60
"""Pairs of answers on which settings were tried (README.md): neither scored nor trained on."""
HERE = Path(__file__).parent


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--model", type=click.Path(path_type=Path, exists=True, file_okay=False), help="SmolLM2 as a hub has it. [a wheel]"
)
@click.option(
    "--bigbench", "archive", type=click.Path(path_type=Path, exists=True), help="BIG-bench's source archive. [fetched]"
)
@click.option("--seed", "seeds", type=int, multiple=True, default=(1, 2, 3, 4), show_default=True)
def main(folder: Path, model: Path | None, archive: Path | None, seeds: tuple[int, ...]) -> None:
    """Write everything that `axolotl paft study DIR/study.yml` needs into DIR. A model that is there already is left as it is."""
    if not (folder / "base" / "config.json").exists():
        write_model(model, folder / "base")
    with TemporaryDirectory() as scratch:
        file = archive or download(bigbench.ARCHIVE, Path(scratch), "--no-binary", ":all:")
        tasks = bigbench.read_tasks(file)
    families = {family: skill.scored_items(family, SKILL_ITEMS) for family in skill.FAMILIES}
    answers = bigbench.answer_pairs(tasks[bigbench.QASC], ITEMS_SEED)[TRIED:]
    _write_scored(folder, families, answers[:ANSWER_ITEMS], tasks)
    _write_training(folder, families, answers[ANSWER_ITEMS:], seeds)
    for file in sorted([*HERE.glob("*.yml"), *HERE.glob("axolotl/*.yml")]):
        place = folder / file.relative_to(HERE)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
    click.echo(f"Written. Go on with:\n  axolotl paft study {quote(str(folder / 'study.yml'))} --dry-run")


# --- what is trained on ---------------------------------------------------------------------------------------------------


def _write_training(folder: Path, scored: Families, answers: Sequence[Row], seeds: Sequence[int]) -> None:
    for seed in seeds:
        own = folder / "data" / str(seed)
        sums = (
            skill.training_rows(family, SFT_ROWS // len(skill.FAMILIES), seed, scored[family])
            for family in skill.FAMILIES
        )
        _write_rows(own / "sft.jsonl", _blended(*map(list, sums)))
        start = seed * ANSWER_ROWS
        pairs = _blended(preference.pairs("train", CONSTRAINT_ROWS, seed), answers[start : start + ANSWER_ROWS])
        _write_rows(own / "preference.jsonl", map(preference.as_conversations, pairs))


def _blended(*lists: Sequence[Row]) -> list[Row]:
    """One list, of which any beginning has as much of each."""
    placed = [((at + 0.5) / len(rows), row) for rows in lists for at, row in enumerate(rows)]
    return [row for _, row in sorted(placed, key=lambda each: each[0])]


# --- what is scored -------------------------------------------------------------------------------------------------------


def _write_scored(folder: Path, families: Families, answers: Sequence[Row], tasks: Mapping[str, bigbench.Task]) -> None:
    for split in skill.SCORED:
        rows = [
            {"family": family, "prompt": item["question"].strip(), "answer": item["answer"]}
            for family, each in families.items()
            for item in each.get(split, [])
        ]
        _write_task(folder, _named("skill", split), rows, SKILL)
    for part, size in CONSTRAINT_ITEMS.items():
        _write_task(
            folder, _named("constraints", part), map(_as_ifeval, preference.pairs(part, size, ITEMS_SEED)), CONSTRAINTS
        )
    write_text(folder / TASKS / "verifiers.py", VERIFIERS)
    rows = [{"prompt": row["prompt"], "choices": [row["rejected"], row["chosen"]], "label": 1} for row in answers]
    _write_task(folder, "answers", rows, CHOICE)
    for name in bigbench.RETAINED:
        _write_task(
            folder, name.rpartition("/")[2], bigbench.choice_rows(tasks[name], RETAINED_ITEMS, ITEMS_SEED), CHOICE
        )
    _write_task(folder, "dialogue", bigbench.dialogues(tasks[bigbench.DIALOGUE], DIALOGUES, ITEMS_SEED), TEXT)


def _named(name: str, split: str) -> str:
    return name if split == "test" else f"{name}_{split}"


def _as_ifeval(row: Row) -> Row:
    """A row as lm-eval's own scoring of IFEval reads it."""
    return {"key": 0, "prompt": row["prompt"], "instruction_id_list": [row["constraint"]], "kwargs": [row["kwargs"]]}


class _Function(str):
    """What lm-eval looks up in a file beside the task."""


class _Dumper(yaml.SafeDumper):
    """YAML with lm-eval's own tag, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(_Function, lambda dumper, value: dumper.represent_scalar("!function", str(value)))


TASKS = "evaluation/tasks"
VERIFIERS = """from lm_eval.tasks.ifeval import utils


def process_results(doc, results):
    # Of what lm-eval's own gives, a mean can be taken of this alone.
    return {"prompt_level_strict_acc": utils.process_results(doc, results)["prompt_level_strict_acc"]}
"""
SKILL: Row = {
    "output_type": "generate_until",
    "doc_to_text": "prompt",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": [END], "max_gen_toks": 64, "do_sample": False},
    "filter_list": [
        {"name": "answer", "filter": [{"function": "regex", "regex_pattern": skill.ANSWER}, {"function": "take_first"}]}
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CONSTRAINTS: Row = {
    "output_type": "generate_until",
    "doc_to_text": "prompt",
    "doc_to_target": 0,
    "generation_kwargs": {"until": [END], "max_gen_toks": 48, "do_sample": False},
    "process_results": _Function("verifiers.process_results"),
    "metric_list": [{"metric": "prompt_level_strict_acc", "aggregation": "mean", "higher_is_better": True}],
}
CHOICE: Row = {
    "output_type": "multiple_choice",
    "doc_to_text": "prompt",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
TEXT: Row = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}],
}


def _write_task(folder: Path, name: str, rows: Iterable[Row], how: Row) -> None:
    """The rows of one of lm-eval's tasks, and its file; lm-eval takes a path for one below the folder it is started in."""
    items = (folder / "evaluation" / "items" / f"{name}.jsonl").resolve()
    _write_rows(items, rows)
    content = {
        "task": f"smollm2_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(items)},
            "cache_dir": str((folder / "evaluation" / "cache").resolve()),
        },
        "test_split": "test",
        "num_fewshot": 0,
        "target_delimiter": "",
        **how,
        "metadata": {"version": 1.0},
    }
    write_text(folder / TASKS / f"{name}.yaml", yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=120))


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
