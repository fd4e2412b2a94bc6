"""The shipped configs, in pairs of an SFT and a preference branch, pass the preflight of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from paft_plugin.pipeline.arms import resolve
from paft_plugin.pipeline.config import read_config
from paft_plugin.pipeline.preflight import preflight
from tests.axolotl_configs.stand_ins import (
    CONFIGS,
    DIALOGUES,
    argilla_rows,
    make_base,
    ultrachat_rows,
    ultrafeedback_rows,
    write_rows,
)


def pairs() -> list[tuple[Path, Path]]:
    """Every config at least once, each with one of its kind where there is one."""
    sft = [path for path in CONFIGS if path.name.startswith("sft-")]
    found = []
    for path in CONFIGS:
        if path in sft:
            continue
        kind = path.stem.rpartition("-")[2]
        found.append((path.with_name(f"sft-l1-{kind}.yml"), path))
    rest = [path for path in sft if path not in {one for one, _ in found}]
    return [*found, *((path, path.with_name("dpo-lora.yml")) for path in rest)]


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("sft", "preference"), pairs(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_healthy(sft: Path, preference: Path, tmp_path: Path) -> None:
    contents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (sft, preference)]
    base = make_base(contents[0]["base_model"], tmp_path)
    save_file({}, base / "model.safetensors")
    pair_rows = argilla_rows() if contents[1]["rl"] == "orpo" else ultrafeedback_rows()
    for content, name, rows in zip(
        contents, ("sft", "preference"), (ultrachat_rows(DIALOGUES), pair_rows), strict=True
    ):
        content["datasets"][0].update(path=str(write_rows(tmp_path / f"{name}.jsonl", rows)), split="train")
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    paft = {
        "base": str(base),
        "sft": "sft.yml",
        "preference": "preference.yml",
        "output_dir": "run",
        "evaluation": False,
        "executor": "ray",  # trained elsewhere: this machine's lack of a GPU does not count
    }
    file = tmp_path / "paft.yml"
    file.write_text(yaml.safe_dump(paft), encoding="utf-8")
    found = preflight(resolve(read_config(file), file, base))
    assert found.problems == []
    precision = sft.stem.rpartition("-")[2] != preference.stem.rpartition("-")[2] and "qlora" in f"{sft}{preference}"
    assert [warning for warning in found.warnings if "different precisions" not in warning] == []
    assert bool(found.warnings) == precision
