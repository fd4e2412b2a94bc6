"""What a real training sees of its rows: axolotl's own road, up to the trainer that it would start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml


def seen_by_training(content: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The rows of the trainer that `axolotl train` makes of a config, as they go into its collator."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets, load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    folder.mkdir(parents=True)
    file = folder / "training.yml"
    own = {"output_dir": str(folder / "out"), "dataset_prepared_path": str(folder / "prepared"), "dataset_num_proc": 1}
    file.write_text(yaml.safe_dump({**content, **own}), encoding="utf-8")
    cfg = load_cfg(str(file))
    load = load_preference_datasets if cfg.rl else load_datasets
    trainer = setup_model_and_trainer(cfg, load(cfg=cfg))[0]
    return list(trainer.train_dataset)


def answer_of(row: dict[str, Any]) -> str:
    """A row of SFT as prompt and answer, by its labels: for conversations of one question."""
    start = next(place for place, label in enumerate(row["labels"]) if label != -100)
    end = len(row["labels"])
    return json.dumps([row["input_ids"][:start], row["input_ids"][start:end]])


def pair_of(row: dict[str, Any]) -> str:
    """A pair, whatever the trainer calls its parts."""
    if "prompt_ids" in row:
        return json.dumps([row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]])
    sides = []
    for side in ("chosen", "rejected"):
        labels, ids = row[f"{side}_labels"], row[f"{side}_input_ids"]
        start = next(place for place, label in enumerate(labels) if label != -100)
        sides.append((ids[:start], ids[start:]))
    (prompt, chosen), (_, rejected) = sides
    return json.dumps([prompt, chosen, rejected])
