"""Where a fused model comes from, as far as its base and its branches say: hub names, licence, data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from paft_plugin.report.repeat import read_record

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    def hub_names(self) -> tuple[str, ...]:
        """Those of the paths that name a data set on the hub."""
        return tuple(path for path in self.paths if is_hub_name(path) and not _DATA_FILE.search(path))


def is_hub_name(path: str) -> bool:
    """Whether `path` reads as `owner/name` and is no folder or file here."""
    return bool(_HUB_NAME.fullmatch(path)) and not Path(path).exists()


def read_base(path: str) -> Base:
    """What is known of the base model at `path`, a folder or a name on the hub; asks no network."""
    folder = Path(path)
    config, card = read_record(folder / "config.json"), _card_metadata(folder / "README.md")
    licence = {}
    for key in ("license", "license_name", "license_link"):
        stated = card.get(key) or config.get(key)
        if isinstance(stated, str) and stated:
            licence[key] = stated
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
        block = _METADATA.match(file.read_text(encoding="utf-8"))
        content = yaml.safe_load(block[1]) if block else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def read_data(run: Path) -> list[Data]:
    """The data sets of each branch, from the axolotl configs of the run."""
    found = []
    for file in sorted(run.glob("configs/*.yml"), key=lambda config: config.stem):
        if not (run / "branches" / file.stem).is_dir():
            continue
        try:
            config = yaml.safe_load(file.read_text(encoding="utf-8"))
            paths = [str(entry["path"]) for entry in config.get("datasets") or []]
        except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
            continue
        if paths:
            found.append(Data(file.stem, tuple(dict.fromkeys(paths))))
    return found
