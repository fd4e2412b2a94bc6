"""The fused model's `README.md`: a model card with the comparison it comes from, its recipe and its provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from paft_plugin import __version__
from paft_plugin.drawing import Plot, as_png, joined
from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import Arm, arm_named
from paft_plugin.evaluation.results import ArmResult, Results, read_results
from paft_plugin.files import (
    ADAPTER_CONFIG,
    PROOF_FILE,
    below,
    inside,
    is_hub_name,
    read_json_or_nothing,
    write_bytes,
    write_text,
)
from paft_plugin.formats import without_password
from paft_plugin.inspection.inspected import INSPECTION_FILE, read_inspection
from paft_plugin.inspection.plots import sparsity_by_layer
from paft_plugin.reading import parse_yaml, read_text, read_yaml_file
from paft_plugin.report.arm_tables import arm_table
from paft_plugin.report.choice import Choice, choose
from paft_plugin.tables import as_markdown
from paft_plugin.templates import render

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")
_METADATA = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*(?:\n|\Z)", re.DOTALL)
_DATA_FILE = re.compile(r"\.(jsonl?|csv|parquet|arrow|txt)(\.\w+)?$")


@dataclass(frozen=True)
class Base:
    """A base model."""

    path: str
    """As the recipe names it."""
    hub_name: str | None
    licence: Mapping[str, str]
    """`license`, `license_name` and `license_link` as its card or config states them; empty if neither does."""


@dataclass(frozen=True)
class Data:
    """What a branch was trained on."""

    branch: str
    paths: tuple[str, ...]

    @property
    def said(self) -> str:
        """The paths in a sentence."""
        return joined([f"`{path}`" for path in self.paths])

    @property
    def hub_names(self) -> tuple[str, ...]:
        """Those of the paths that name a data set on the hub."""
        return tuple(path for path in self.paths if is_hub_name(path) and not _DATA_FILE.search(path))


def read_base(path: str) -> Base:
    """What is known of the base model at `path`, a folder or a name on the hub; asks no network."""
    folder = Path(path)
    config, card = read_json_or_nothing(folder / "config.json"), _card_metadata(folder / "README.md")
    stated = {key: card.get(key) or config.get(key) for key in ("license", "license_name", "license_link")}
    licence = {key: text for key, text in stated.items() if isinstance(text, str) and text}
    return Base(path, _hub_name(path, config), licence)


def _hub_name(path: str, config: Mapping[str, Any]) -> str | None:
    if is_hub_name(path):
        return path
    if cached := _CACHED.search(PurePath(path).as_posix()):  # a snapshot in the hub's own cache
        return f"{cached[1]}/{cached[2]}"
    stated = config.get("_name_or_path")
    return stated if isinstance(stated, str) and is_hub_name(stated) else None


def _card_metadata(file: Path) -> Mapping[str, Any]:
    """The block at the head of a model card; empty if there is none that can be read."""
    try:
        block = _METADATA.match(read_text(file))
        content = parse_yaml(block[1], file) if block else None
    except PaftError:
        return {}
    return content if isinstance(content, dict) else {}


def read_data(run: Path, arm: Arm) -> list[Data]:
    """The data sets of each training that an arm is made of, or where that is not known of all, by the run's own configs."""
    found, held_out = [], _before_holding_out(run)
    for name in sorted(arm.order or arm.branches or [file.stem for file in below(run, "configs/*.yml")]):
        try:
            paths = _paths(read_yaml_file(inside(run, Path("configs") / f"{name}.yml")))
        except (PaftError, AttributeError, KeyError, TypeError):
            continue
        given = [
            held_out.get(PurePath(path).name, path) if "training" in PurePath(path).parts else path for path in paths
        ]
        if paths and (run / "branches" / name).is_dir():
            found.append(Data(name, tuple(dict.fromkeys(given))))
    return found


def _paths(config: Mapping[str, Any]) -> list[str]:
    return [without_password(str(entry["path"])) for entry in config.get("datasets") or []]


def _before_holding_out(run: Path) -> dict[str, str]:
    """Name of a file with what is left of a data set → what the user calls that data set."""
    found: dict[str, str] = {}
    for file in below(run, "configs/hold-out*.json"):
        with suppress(AttributeError, KeyError, TypeError):
            for branch in read_json_or_nothing(file)["branches"]:
                for index, path in enumerate(_paths(branch["content"])):
                    found[f"{branch['name']}-{index}.parquet"] = path
    return found


CARD, PICTURE, RECIPE = "README.md", "sparsity.png", "mergekit_config.yml"
_HEADER_BASE = re.compile(r"^# base model: (.+)$", re.MULTILINE)  # what `axolotl paft recipe` writes above every recipe
_PROVENANCE = re.compile(r"^## Provenance\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def write_model_cards(run: Path) -> list[Path]:
    """Write `README.md`, and the plot that it shows, into the folder of every fused model that the run kept; returns the cards.

    What the merge wrote there under `## Provenance` is kept.

    Raises:
        PaftError: What the run left cannot be read.
    """
    results = read_results(run)
    own = [] if results is None else [one for one in results.arms if _is_own(run, one)]
    if results is None or not own:
        return []
    picture = sparsity_picture(run)
    for arm in own:
        if isinstance(picture, Plot):
            write_bytes(run / arm.model / PICTURE, as_png(picture))
        write_text(run / arm.model / CARD, card_text(run, results, arm, picture))
    return [run / arm.model / CARD for arm in own]


def _is_own(run: Path, arm: ArmResult) -> bool:
    """Whether the run merged this arm: what was there before, such as a base that is a merge itself, lies elsewhere."""
    return bool(arm.model) and not Path(arm.model).is_absolute() and (inside(run, arm.model) / RECIPE).is_file()


def card_text(run: Path, results: Results, arm: ArmResult, picture: Plot | str) -> str:
    """The card of a fused arm as Markdown; `picture` is the plot of the branches' sparsity, or why there is none."""
    folder = inside(run, arm.model)
    recipe = read_text(inside(folder, RECIPE)).strip()
    method, base, data = *_recipe_says(recipe), read_data(run, arm.arm)
    choice = choose(results)
    table = arm_table(results, choice)
    text = render(
        "paft_plugin.report",
        "model_card.md",
        metadata=_metadata(results, arm, method, base, data, folder).to_yaml(),
        arm=arm,
        made=f"{_named(base)} {made(results, arm.arm, method)}",
        table=as_markdown(table),
        verdict=_said(choice, arm),
        note=table.note,
        picture=picture,
        picture_file=PICTURE,
        data=data,
        recipe=recipe,
        provenance=_provenance(folder),
        licence=base.licence.get("license_name") or base.licence.get("license"),
    )
    return _seen_from(run, text)


def _seen_from(run: Path, text: str) -> str:
    """`text` with the paths below the run's folder as they are seen from there: a card is for other machines."""
    for root in sorted({str(run.absolute()), str(run.resolve())}, key=len, reverse=True):
        text = text.replace(f"{root}/", "")
    return text


def _recipe_says(recipe: str) -> tuple[str, Base]:
    """Merge method and base model of a mergekit recipe."""
    try:
        content = parse_yaml(recipe, RECIPE)
    except PaftError:
        content = None
    content = content if isinstance(content, dict) else {}
    header = _HEADER_BASE.search(recipe)  # some methods, such as linear, must not name the base anywhere else
    base = header[1].strip() if header else content.get("base_model")
    while isinstance(base, dict):  # mergekit's long form: {model: {path: …}}
        base = base.get("path") or base.get("model")
    return str(content.get("merge_method", "merging")), read_base(str(base or ""))


def _metadata(
    results: Results, arm: ArmResult, method: str, base: Base, data: Sequence[Data], folder: Path
) -> ModelCardData:
    datasets = list(dict.fromkeys(name for each in data for name in each.hub_names))
    scored: list[EvalResult] = [
        EvalResult(
            task_type="text-generation",
            dataset_type=measure.task,
            dataset_name=measure.task,
            metric_type=measure.metric,
            metric_name=measure.name,
            metric_value=arm.scores[measure.name],
        )
        for measure in results.measures
        if measure.task and measure.metric and measure.name in arm.scores
    ]
    licence: dict[str, Any] = dict(base.licence)
    return ModelCardData(
        base_model=base.hub_name,
        datasets=datasets or None,
        library_name="peft" if (folder / ADAPTER_CONFIG).is_file() else "transformers",
        pipeline_tag="text-generation",
        tags=["merge", "mergekit", "paft", method],
        model_name=arm.name if scored else None,
        eval_results=scored or None,
        **licence,
    )


def _named(base: Base) -> str:
    if base.hub_name is not None:
        return f"[{base.hub_name}](https://huggingface.co/{base.hub_name})"
    if not base.path:
        return "A base model"
    return f"The base model `{base.path}` (a local folder that names no model on the hub)"


def made(results: Results, arm: Arm, method: str) -> str:
    """How an arm was made of its base, in the rest of a sentence; a branch of each role by what it is, others by their names."""
    if arm.kind == "sequential":
        names = joined([f"`{name}`" for name in arm.order])
        return f"trained as its branches {names}, one on top of the other; adapters were folded in by mergekit."
    penalty = " trained with an L1 penalty on its delta"
    found = [one.arm if (one := results.arm(name)) else arm_named(name) for name in arm.branches]
    branches = f"an SFT branch{penalty if arm.penalised else ''} and a preference branch"
    if len(found) > 2 or {one.role for one in found} in ({"sft"}, {"preference"}):
        branches = joined([f"`{one.name}`{penalty if one.penalised else ''}" for one in found])
    paper = "[PAFT, arXiv 2406.17923](https://arxiv.org/abs/2406.17923)"
    return (
        f"with the deltas of {branches} fused into it by {method.upper()}: trained in parallel, then merged ({paper})."
    )


def _said(choice: Choice, arm: ArmResult) -> str:
    """What the comparison says of this arm."""
    if choice.arm is arm:
        return f"This is the arm that the run recommends. {choice.explanation}"
    if arm.name in choice.tied and choice.arm is not None:
        how = "equivalent to it" if choice.tied[arm.name] == "equivalent" else "not told apart from it"
        return f"The run recommends {choice.arm.name}; on its items this arm is {how}."
    return f"The run's own verdict: {choice.headline[0].lower()}{choice.headline[1:]}. {choice.explanation}"


def sparsity_picture(run: Path) -> Plot | str:
    """The plot of the branches' sparsity by layer, or why there is none."""
    folder = inside(run, "inspection/branches")
    if not (folder / INSPECTION_FILE).is_file():
        return "The branches were not inspected, so there is no plot of their sparsity."
    plot = sparsity_by_layer(read_inspection(folder))
    return plot if isinstance(plot, Plot) else f"No plot of the sparsity: {plot.why}"


def _provenance(folder: Path) -> str:
    """What the merge wrote of its inputs; it alone knows their fingerprints."""
    card = inside(folder, CARD)
    kept = _PROVENANCE.search(read_text(card)) if card.is_file() else None
    if kept:
        return kept[0].strip()
    record = read_json_or_nothing(folder / PROOF_FILE)
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    return f"## Provenance\n\nThe merge left no fingerprints of its inputs. {versions or f'paft-plugin {__version__}'}."
