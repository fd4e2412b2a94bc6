"""What `axolotl paft search paft.yml` needs in a finished run of the demo: the file itself, and tasks of validation items."""

from __future__ import annotations

from pathlib import Path

from paft_plugin.demo.configs import SEED
from paft_plugin.demo.data import write_tasks
from paft_plugin.files import write_text

VALIDATION_TASKS = Path("evaluation") / "validation_tasks"

PAFT_YML = f"""\
# Search for the merge settings of the sparse SFT branch and the DPO branch:
#   axolotl paft search paft.yml
base: base
sft: branches/sft-l1
preference: branches/dpo
output_dir: .

search:
  # Validation items are searched on; the tasks of the test items judge what was found.
  tasks: {VALIDATION_TASKS.as_posix()}
  test_tasks: evaluation/tasks
  objectives:
    paft_skill: {{name: skill}}
    # The preference as it shows in answers. paft_preference, the choice between two given answers, is 1.00 in every fused arm.
    paft_style: {{name: style}}
    paft_retained: {{name: retained}}
  trials: 40
  seed: {SEED}
"""


def write_search(run_dir: Path) -> None:
    """Write `paft.yml` and the lm-eval tasks of the validation items into the run directory."""
    write_tasks(run_dir / VALIDATION_TASKS, run_dir / "data" / "validation", "validation")
    write_text(run_dir / "paft.yml", PAFT_YML)
