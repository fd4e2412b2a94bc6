"""The demo's `paft.yml`, the file that a run of one's own would begin with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paft_plugin.demo.configs import FULL, LAMBDA, QUICK, SEED, Effort

TASKS, VALIDATION_TASKS = Path("evaluation") / "tasks", Path("evaluation") / "validation_tasks"


@dataclass(frozen=True)
class Demo:
    """One size of the demo."""

    effort: Effort
    arms: tuple[str, ...]
    methods: tuple[str, ...]
    items: int
    """Scored items a measure."""


FULL_DEMO = Demo(
    FULL,
    ("base", "sft", "sft-l1", "dpo", "orpo", "sequential", "parallel-*", "paft-*"),
    ("ties: {density: 0.5}", "dare_ties:", "linear:"),
    items=200,
)
QUICK_DEMO = Demo(
    QUICK, ("base", "sft", "sft-l1", "dpo", "parallel-ties", "paft-ties"), ("ties: {density: 0.5}",), items=100
)


def paft_yml(demo: Demo) -> str:
    """The text of the demo's `paft.yml`."""
    methods = "\n".join(f"    {method}" for method in demo.methods)
    return f"""\
# What `axolotl paft demo` runs, which writes this file anew each time: copy it to change it. By hand:
#   axolotl paft run paft.yml            (--dry-run shows what it would do)
#   axolotl paft search paft.yml         (better merge settings, chosen by validation items)
description: |
  PAFT on a small base model: an SFT branch with an L1 penalty on its delta and a preference branch, trained in parallel and
  fused (arXiv 2406.17923).

  - **Skill**: additions answered right; what the SFT branch teaches. The base model evades most of them.
  - **Preference**: how often the polite answer is likelier than a plain or rude one, on held-out pairs.
  - **Style**: how many answers to prompts of all kinds are polite; what the preference branch teaches.
  - **Retained**: copying, reversing, sorting and saying twice, which the base model can do and should still be able to.

  λ = {LAMBDA:g}. All prompts scored here were held out of every training, that of the base model included.

base: base
sft: axolotl/sft.yml                  # with the plugin's keys; its twin without them makes the arm `sft`
preference: axolotl/dpo.yml
compare:
  orpo: axolotl/orpo.yml              # trained and scored, not fused
output_dir: .

arms: [{", ".join(f"'{arm}'" if "*" in arm else arm for arm in demo.arms)}]
fusion:
  methods:
{methods}
  seed: {SEED}

evaluation:
  tasks: {TASKS.as_posix()}             # lm-eval's YAML files
  measures:
    paft_skill: {{name: skill}}
    paft_preference: {{name: preference}}
    paft_style: {{name: style}}
    paft_retained: {{name: retained}}
  skill: skill                        # the alignment tax is paid in it
  preference: preference
  batch_size: 64
  device: cpu
  dtype: float32

inspection:
  thresholds: [1.0e-5, 1.0e-3]

executor:
  kind: local
  workers: 2                          # stages at once
  threads: 1                          # a model this small is slower with two
  devices: []                         # no GPU, even if there is one: the same numbers everywhere

search:
  # Validation items are searched on; the tasks of the test items judge what was found.
  tasks: {VALIDATION_TASKS.as_posix()}
  test_tasks: {TASKS.as_posix()}
  objectives:
    paft_skill: {{name: skill}}
    # The preference as it shows in answers. paft_preference, the choice between two given answers, is 1.00 in every fused arm.
    paft_style: {{name: style}}
    paft_retained: {{name: retained}}
  trials: 40
  seed: {SEED}
"""
