"""A folder of task files from somebody else runs nothing, unless its code was read and trusted; Python tags never run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.config import MeasureConfig
from paft_plugin.evaluation.task_code import check_tasks, task_inputs
from paft_plugin.evaluation.tasks import Catalogue, open_measures
from paft_plugin.search.validation import open_goals

from .items import make_items, make_task, write_rows

PYTHON = "task: other\nx: !!python/object/apply:os.system ['touch {}']\n"
TAGS = (
    *("python/object/apply:os.mkdir ['{}']", "python/object/new:os.mkdir ['{}']", "python/object:os.mkdir {{}}"),
    *("python/name:os.mkdir ''", "python/module:os ''", "python/tuple [a]"),
)
ESCAPE = "{{ cycler.__init__.__globals__.os.mkdir('%s') }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One task that is as it should be."""
    write_rows(tmp_path / "items.jsonl", make_items(1, 5))
    make_task(tmp_path / "tasks", "good", tmp_path / "items.jsonl")
    return tmp_path / "tasks"


def everywhere(folder: Path) -> list[Callable[[], object]]:
    """All that reads a folder of tasks: scores and preflight, a search, and its test tasks."""
    measures = {"good": MeasureConfig()}
    return [
        lambda: open_measures(measures, folder),
        lambda: open_goals(measures, folder),
        lambda: Catalogue(folder, "search"),
        lambda: check_tasks(folder, "evaluation", trusted=True),
    ]


def test_a_score_depends_on_what_a_task_includes_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    common = tmp_path / "common"
    common.mkdir()
    (common / "base.yaml").write_text(
        f"include: deeper\nprocess_results: !function code.score\ndataset_kwargs: {{data_files: {tmp_path / 'items.jsonl'}}}\n"
    )
    (common / "deeper").write_text(f"include: base.yaml\ndataset_path: {tmp_path / 'more.jsonl'}\n")
    (common / "code.py").write_text("")
    (tmp_path / "more.jsonl").write_text("{}")
    (folder / "another.yaml").write_text("include: _usual\n")
    (folder / "_usual").write_text("include: ../common/base.yaml\n")
    found = {path.resolve() for path in task_inputs(folder)}
    files = ("base.yaml", "deeper", "code.py", "../items.jsonl", "../more.jsonl")
    assert found == {folder, *((common / file).resolve() for file in files)}


@pytest.mark.parametrize("tag", TAGS)
def test_a_python_tag_is_refused_by_file_and_line_and_never_built(tag: str, folder: Path, tmp_path: Path) -> None:
    (folder / "unnamed.yaml").write_text(f"task: other\nx: !!{tag.format(tmp_path / 'made')}\n")
    for read in everywhere(folder):
        with pytest.raises(PaftError, match=r"unnamed\.yaml: .*tag .*line 2"):
            read()
    task_inputs(folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "where", ["below", "included", "included from outside", "included by an included", "in a group", "link"]
)
def test_wherever_it_stands(where: str, folder: Path, tmp_path: Path) -> None:
    bad = PYTHON.format(tmp_path / "made")
    outside = tmp_path / "outside.txt"
    outside.write_text(bad)
    if where == "below":
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "x.yaml").write_text(bad)
    elif where == "included":
        (folder / "x.cfg").write_text(bad)
        (folder / "y.yaml").write_text("task: y\ninclude: x.cfg\n")
    elif where == "included from outside":
        (folder / "y.yaml").write_text(f"task: y\ninclude: [{outside}]\n")
    elif where == "included by an included":
        (folder / "x.cfg").write_text("include: ../outside.txt\n")
        (folder / "y.yaml").write_text("task: y\ninclude: x.cfg\n")
    elif where == "in a group":
        (folder / "y.yaml").write_text("group: y\ntask:\n- task: z\n  include: ../outside.txt\n")
    else:
        (folder / "y.yaml").symlink_to(outside)
    for read in everywhere(folder):
        with pytest.raises(PaftError, match="python/object/apply"):
            read()
    assert not (tmp_path / "made").exists()


def test_files_that_include_each_other_come_to_an_end(folder: Path) -> None:
    (folder / "x.cfg").write_text("include: y.cfg\n")
    (folder / "y.cfg").write_text("include: x.cfg\n")
    (folder / "z.yaml").write_text("task: z\ninclude: x.cfg\n")
    check_tasks(folder, "evaluation")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: other\nprocess_docs: !function code.process\n", "line 2: !function code.process"),
        ("task: other\nclass: !function code.Task\n", "line 2: !function code.Task"),
        ("task: other\nmetric_list:\n- metric: ./mine\n", "metric: ./mine"),
        ("task: other\nmetric_list:\n- {metric: acc, hf_evaluate: true}\n", "hf_evaluate"),
        ("task: other\ndataset_kwargs: {trust_remote_code: true}\n", "trust_remote_code"),
    ],
)
def test_code_wants_trust(text: str, said: str, folder: Path) -> None:
    (folder / "other.yaml").write_text(text)
    with pytest.raises(PaftError) as caught:
        check_tasks(folder, "search")
    assert said in caught.value.problems[0]
    assert "trust_task_code: true` under `search:`" in caught.value.problems[-1]
    check_tasks(folder, "search", trusted=True)


def test_trusted_code_runs(folder: Path) -> None:
    (folder / "code.py").write_text("def text(doc):\n    return 'asked ' + doc['prompt']\n")
    task = (folder / "good.yaml").read_text()
    (folder / "good.yaml").write_text(task.replace("doc_to_text: prompt", "doc_to_text: !function code.text"))
    measures = {"good": MeasureConfig()}
    with pytest.raises(PaftError, match="would run code"):
        open_measures(measures, folder)
    _, tasks = open_measures(measures, folder, trusted=True)
    assert tasks["good"].parts["good"].doc_to_text({"prompt": "x"}) == "asked x"


FILTERED = "filter_list: [{name: match, filter: [{function: regex, regex_pattern: a}, {function: take_first}]}]"


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        ("return {'acc': 1.0}", "", None),
        (
            "return {'acc': 1.0, 'each': [True, False]}",
            "",
            "each: the task's own code cannot score an answer: unsupported",
        ),
        ("return {'acc': results[3]}", "", "process_results: the task's own code cannot score an answer: list index"),
        ("return {'acc': results[0]['right']}", FILTERED, None),
        ("return {'acc': (1, 2)}", "metric_list: [{metric: acc, aggregation: f1, higher_is_better: true}]", None),
    ],
)
def test_code_that_fails_on_an_answer_is_said_before_anything_is_trained(
    code: str, more: str, said: str | None, folder: Path, tmp_path: Path
) -> None:
    (folder / "code.py").write_text(f"def score(doc, results):\n    {code}\n")
    make_task(folder, "coded", tmp_path / "items.jsonl", output_type="generate_until")
    with (folder / "coded.yaml").open("a") as file:
        file.write(f"process_results: !function code.score\n{more}\n")
    if said is None:
        open_measures({"coded": MeasureConfig()}, folder, trusted=True)
        return
    with pytest.raises(PaftError) as caught:
        open_measures({"coded": MeasureConfig()}, folder, trusted=True)
    assert said in str(caught.value)


@pytest.mark.parametrize("key", ["doc_to_text", "doc_to_target", "doc_to_choice", "description"])
def test_a_template_stays_in_its_sandbox(key: str, folder: Path, tmp_path: Path) -> None:
    task = yaml.safe_load((folder / "good.yaml").read_text())
    task[key] = ESCAPE % (tmp_path / "made")
    (folder / "good.yaml").write_text(json.dumps(task))
    with contextlib.suppress(Exception):  # lm-eval's, of what such a template comes to
        _, tasks = open_measures({"good": MeasureConfig()}, folder)
        tasks["good"].parts["good"].build_all_requests(limit=1, rank=0, world_size=1)
    assert not (tmp_path / "made").exists()
