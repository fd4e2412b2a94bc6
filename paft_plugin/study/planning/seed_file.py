"""The `paft.yml` of a seed as text: what the study's file says, as it is seen from the seed's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from paft_plugin.fusion.recipe.settings import Filter
from paft_plugin.pipeline.branches import with_paths
from paft_plugin.pipeline.config import BranchSpec
from paft_plugin.schema import read_yaml
from paft_plugin.study.config import StudyConfig

Content = dict[str, Any]


@dataclass(frozen=True)
class SeedFile:
    """Where a seed's `paft.yml` lies, and the study's own file."""

    study: Path
    folder: Path

    def written(self, value: Any) -> Any:
        """A part of the study as it stands in a `paft.yml` in another folder: what was said, and no default."""
        if isinstance(value, BranchSpec):
            return self.written_branch(value)
        if isinstance(value, BaseModel):
            said = [
                *(name for name in type(value).model_fields if name in value.model_fields_set),
                *(value.model_extra or {}),
            ]
            named = {name: self.written(getattr(value, name)) for name in said}
            return {**named, "base": self.place(Path(value.base))} if isinstance(value, StudyConfig) else named
        if isinstance(value, Mapping):
            return {key: self.written(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.written(each) for each in value]
        return str(value) if isinstance(value, Filter) else self.place(value) if isinstance(value, Path) else value

    def written_branch(self, spec: BranchSpec) -> Content:
        """A branch; what its config names by paths that would lead nowhere from the other folder is named anew."""
        said = {name: getattr(spec, name) for name in type(spec).model_fields if name in spec.model_fields_set}
        here = [self.study.resolve().parent]
        if isinstance(spec.config, Path):
            own = read_yaml(spec.config, "Give an axolotl config.")
            beside = [spec.config.parent]
            lost = {
                key: with_paths(key, value, here, self.place)
                for key, value in own.items()
                if key not in spec.overrides
                and with_paths(key, value, [*here, *beside]) != with_paths(key, value, [self.folder, *beside])
            }
            said["overrides"] = {**self.relocated(spec.overrides), **lost}
        elif spec.config is not None:
            said |= {"config": self.relocated(spec.config), "overrides": self.relocated(spec.overrides)}
        if not said.get("overrides"):
            said.pop("overrides", None)
        return {key: self.place(value) if isinstance(value, Path) else value for key, value in said.items()}

    def relocated(self, content: Mapping[str, Any]) -> Content:
        """An axolotl config whose paths lead on from the other folder."""
        return {
            key: with_paths(key, value, [self.study.resolve().parent], self.place) for key, value in content.items()
        }

    def place(self, path: Path) -> str:
        """A path as it is seen from the other folder; a hub name as it is."""
        return os.path.relpath(path, self.folder) if path.is_absolute() else str(path)

    def text(self, seed: int, content: Mapping[str, Any]) -> str:
        """The whole file, with a head that says what it is."""
        origin = os.path.relpath(self.study, self.folder)
        head = (
            f"# Seed {seed} of the study in {origin}: `axolotl paft study` writes this file anew. By hand:\n"
            "#   axolotl paft run paft.yml            (--dry-run shows what it would do)\n"
        )
        return head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class FlowMap(dict):
    """A mapping on one line."""


class FlowList(list):
    """A list on one line."""


class _Dumper(yaml.SafeDumper):
    """YAML as people write it: nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    FlowMap, lambda dumper, value: dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), True)
)
_Dumper.add_representer(FlowList, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))
_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
)
