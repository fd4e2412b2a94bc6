"""axolotl's hooks: each hands over to code that knows nothing of axolotl."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import yaml
from axolotl.integrations.base import BasePlugin
from transformers import Trainer, set_seed

from paft_plugin.errors import raise_if_any
from paft_plugin.penalty.injector import PenaltyInjector, PenaltySettings


class PAFTPlugin(BasePlugin):
    """Adds λ‖δ‖₁ to an SFT run: `plugins: [paft_plugin.PAFTPlugin]`."""

    def register(self, cfg: dict) -> None:
        """Seed before anything is initialised.

        axolotl leaves the adapter's initialisation unseeded, so the same `seed` would give different weights.
        """
        refuse_lost_options(sys.argv, cfg)
        if cfg.get("seed") is not None:
            set_seed(cfg["seed"])

    def get_input_args(self) -> str:
        """Where axolotl finds the plugin's keys."""
        return "paft_plugin.PAFTArgs"

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:
        """Put the penalty into the trainer's steps."""
        settings = PenaltySettings(
            strength=cfg.paft_l1_lambda,
            l1_on=cfg.paft_l1_on,
            thresholds=tuple(sorted(set(cfg.paft_sparsity_thresholds))),
        )
        PenaltyInjector(trainer, settings).install()


def refuse_lost_options(arguments: Sequence[str], config: dict) -> None:
    """Refuse a `--paft_…` option that never reached the config: `axolotl train --launcher python` drops it silently.

    Raises:
        PaftError: naming each such option.
    """
    lost = []
    for argument in arguments:
        option, given, value = argument.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if not argument.startswith("--") or not key.startswith("paft_"):
            continue
        if key not in config or (given and str(config[key]) != str(yaml.safe_load(value))):
            lost.append(
                f"{argument} on the command line does not reach the run: axolotl drops it; write it into the config, "
                f"or use python -m axolotl.cli.train CONFIG {argument}"
            )
    raise_if_any(lost)
