"""axolotl's hooks: each hands over to code that knows nothing of axolotl."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import yaml
from axolotl.integrations.base import BasePlugin, PluginManager
from transformers import Trainer, set_seed

from paft_plugin.args import DEFAULT_SEED, DEFAULT_START, names_plugin
from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.penalty.injector import PenaltyInjector
from paft_plugin.penalty.settings import PenaltySettings


class PAFTPlugin(BasePlugin):
    """Adds λ‖δ‖₁ to an SFT run: `plugins: [paft_plugin.PAFTPlugin]`.

    axolotl calls a plugin's hooks for every later config of the process: only those that name the plugin are touched.

    It is not in the entry-point group `axolotl.plugins` of axolotl 0.20 and later, which loads a plugin for every run: a run
    without paft_* keys would pay some 80 ms of imports for it (measured with 0.21), and a plugin that fails to load from there
    is skipped with a warning, so that a run with such keys could train without the penalty.
    """

    def register(self, cfg: dict) -> None:
        """Seed before anything is initialised.

        axolotl leaves the adapter's initialisation unseeded before 0.21: the same `seed` would give different weights.
        """
        if not names_plugin(cfg):
            return
        refuse_lost_options(sys.argv, cfg)
        seed = cfg.get("seed")
        set_seed(DEFAULT_SEED if seed is None else seed)

    def get_input_args(self) -> str | None:
        """Where axolotl finds the plugin's keys."""
        return "paft_plugin.PAFTArgs" if self._is_first() else None

    def post_trainer_create(self, cfg: Any, trainer: Trainer) -> None:
        """Put the penalty into the trainer's steps."""
        if not names_plugin(cfg) or not self._is_first():
            return
        # Not a check of the config: `axolotl merge-lora` and `inference` rightly set this key on the same config.
        if cfg.lora_model_dir:
            raise PaftError(
                f"lora_model_dir: {cfg.lora_model_dir}: a run that continues an adapter starts from δ ≠ 0, so δ is not "
                "θ − θ_pre: remove it, or remove the plugin"
            )
        settings = PenaltySettings(
            strength=start_of(cfg),
            l1_on=cfg.paft_l1_on,
            mode=cfg.paft_l1_mode,
            thresholds=tuple(cfg.paft_sparsity_thresholds),
            l2_strength=cfg.paft_l2_lambda or 0.0,
            warmup_ratio=cfg.paft_l1_warmup_ratio,
            target_sparsity=cfg.paft_target_sparsity,
            target_threshold=cfg.paft_target_threshold,
            max_loss_increase=cfg.paft_max_loss_increase,
            reference_loss=cfg.paft_reference_loss,
            begin=cfg.paft_l1_from,
            end=cfg.paft_l1_until,
            reference=cfg.paft_reference,
            inspect_steps=cfg.paft_inspect_steps,
        )
        PenaltyInjector(trainer, settings).install()

    def _is_first(self) -> bool:
        """Whether no other one acts: axolotl makes a plugin for each name that it has met, and this class has two."""
        known = PluginManager.get_instance().plugins.values()
        return next((plugin for plugin in known if isinstance(plugin, PAFTPlugin)), self) is self


def start_of(cfg: Any) -> float:
    """λ that a run starts with: a controller needs one, an L2 penalty alone has none."""
    if cfg.paft_l1_lambda is None:
        return 0.0 if cfg.paft_target_sparsity is None and cfg.paft_max_loss_increase is None else DEFAULT_START
    return float(cfg.paft_l1_lambda)


def refuse_lost_options(arguments: Sequence[str], config: dict) -> None:
    """Refuse a `--paft_…` option that never reached the config: `axolotl train --launcher python` drops it silently.

    Raises:
        PaftError: naming each such option.
    """
    lost = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        option, given, value = argument.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if not argument.startswith("--") or not key.startswith("paft_"):
            continue
        if not given and not following.startswith("--"):
            given, value, argument = " ", following, f"{argument} {following}"
        if key not in config or (given and not _same(config[key], value)):
            lost.append(
                f"{argument} on the command line does not reach the run: axolotl drops it; write it into the config, "
                f"or use python -m axolotl.cli.train CONFIG {argument}"
            )
    raise_if_any(lost)


def _same(configured: object, written: str) -> bool:
    # YAML 1.1 reads 1e-4 as text, so numbers are compared as numbers.
    try:
        return float(str(configured)) == float(written)
    except ValueError:
        return str(configured) == str(yaml.safe_load(written))
