"""When a run begins, steps, saves and ends, as the transformers Trainer says it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from paft_plugin.target import missed_target, too_few_steps

if TYPE_CHECKING:
    from paft_plugin.penalty.injector import PenaltyInjector

logger = logging.getLogger(__name__)

STATE_KEY = "paft"


class PenaltyCallback(TrainerCallback):
    """Drives the injector, keeps its state with every checkpoint, and `paft.json` true to what has run so far.

    The state lies in the checkpoint's `trainer_state.json`, under `stateful_callbacks`. transformers' `ExportableState` would put
    it there too, but restores it only on request, into a new callback built without arguments.
    """

    def __init__(self, injector: PenaltyInjector) -> None:
        self._injector = injector

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._injector.begin(state.stateful_callbacks.get(STATE_KEY))
        self._write(args, state)
        self._warn(state, too_few_steps(self._injector.record.settings, state.max_steps))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._injector.after_optimizer_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._injector.end_step()
        self._injector.inspect()
        state.stateful_callbacks[STATE_KEY] = self._injector.state()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._write(args, state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._injector.end()
        self._write(args, state)
        self._warn(state, missed_target(self._injector.record.content()))

    def _warn(self, state: TrainerState, what: str | None) -> None:
        if what and state.is_world_process_zero:
            logger.warning(what)

    def _write(self, args: TrainingArguments, state: TrainerState) -> None:
        if state.is_world_process_zero:
            self._injector.record.write(Path(args.output_dir))
