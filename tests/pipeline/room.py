"""A `paft.yml` beside the demo's files, with configs in which a test changes a key or two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.pipeline.arms import Setup, resolve
from paft_plugin.pipeline.config import read_config

Content = dict[str, Any]


class Room:
    """Writes a `paft.yml` whose configs are the demo's, changed."""

    def __init__(self, folder: Path, demo: Path) -> None:
        self.folder = folder
        self.demo = demo

    def config(self, name: str, changes: Mapping[str, Any]) -> Content:
        content: Content = yaml.safe_load((self.demo / "axolotl" / f"{name}.yml").read_text(encoding="utf-8"))
        content["datasets"][0]["path"] = str(self.demo / content["datasets"][0]["path"])
        content |= {"base_model": str(self.demo / "base"), "save_steps": 40, **changes}
        return {key: value for key, value in content.items() if value is not None}

    def setup(
        self,
        sft: Mapping[str, Any] | None = None,
        preference: Mapping[str, Any] | None = None,
        rl: str = "dpo",
        **paft: Any,
    ) -> Setup:
        for file, name, changes in (("sft.yml", "sft", sft), ("preference.yml", rl, preference)):
            (self.folder / file).write_text(yaml.safe_dump(self.config(name, changes or {})), encoding="utf-8")
        content = {
            "base": str(self.demo / "base"),
            **({} if "branches" in paft else {"sft": "sft.yml", "preference": "preference.yml"}),
            "output_dir": "run",
            "evaluation": False,
            **paft,
        }
        file = self.folder / "paft.yml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        config = read_config(file)
        return resolve(config, file, Path(config.base))

    def data(self, name: str, rows: list[Any], **entry: Any) -> list[Content]:
        """`datasets:` with one file of `rows`."""
        file = self.folder / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return [{"path": str(file), "ds_type": "json", "split": "train", **entry}]
