"""Adding the penalty to a trainer's steps.

`subgradient`: the subgradient of λ‖δ‖₁ goes into `.grad` after the last micro-batch's backward: after gradient accumulation and
reduction over processes, before clipping and the optimizer, once per optimizer step. `proximal`: δ is soft-thresholded after the
optimizer step. Either way nothing enters the loss, so `loss`, `eval_loss` and whatever is derived from them stay pure, and no
autograd graph, DDP or gradient-checkpointing hook ever sees the penalty.

Under DeepSpeed's ZeRO-1 and 2 gradients lie in partitions of the optimizer's when a step is due, and accelerate calls
`engine.step()` from inside `backward`: that is where the subgradient has to come in, after the engine has reduced the gradients
over micro-batches and processes, before it clips them (`before_engine_step`). Why not through the loss: there the subgradient
would have to be taken in every micro-batch, divided by their number, and pass the hooks that reduce each gradient as soon as it
is ready, which reentrant checkpointing already strains. Here it is added once a step, to what the engine will read: the mean over
micro-batches and processes, still multiplied by the loss scale. That factor is given to it too, so that the engine, which takes
overflow, the norm, clipping and unscaling from these same gradients afterwards, sees the gradient of L + λ‖δ‖₁ and nothing else;
every process adds the same, so nothing is summed twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from paft_plugin.deltas.proof import Measurement, Record
from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.formats import plain_number
from paft_plugin.penalty.find import References, find_live_deltas, take_references, trained_themselves
from paft_plugin.penalty.inspector import Inspector
from paft_plugin.penalty.live import LiveDelta, Shrinkable, add_subgradients, gradient_norm, l2_norm, measure
from paft_plugin.penalty.proximal import step_sizes
from paft_plugin.penalty.settings import PenaltySettings
from paft_plugin.penalty.strength import (
    LossBound,
    ReferenceLoss,
    Schedule,
    Steering,
    TrainingProgress,
    exceeded_bound,
    missed_target,
    read_reference_loss,
    too_few_steps,
)
from paft_plugin.penalty.support import why_gradients_are_lost, why_no_gradient_is_left, why_unsupported

logger = logging.getLogger(__name__)

STATE_KEY = "paft"
"""Of the penalty's state in a checkpoint's `trainer_state.json`, under `stateful_callbacks`."""


class PenaltyInjector(TrainerCallback):
    """One run's penalty: its live deltas, θ_pre, λ and its record, which is kept true to what has run so far.

    Its state is saved with every checkpoint. transformers' `ExportableState` would put it into the same place, but restores it
    only on request, into a new callback built without arguments.
    """

    record: Record

    def __init__(self, trainer: Trainer, settings: PenaltySettings) -> None:
        """Refuse (`PaftError`) what can't be penalised exactly; `trainer`'s model still holds the base model's weights."""
        raise_if_any(why_unsupported(trainer, settings))
        self._trainer = trainer
        self._settings = settings
        self._references: References = {}
        self._deltas: list[LiveDelta] = []
        self._trained_tensors = 0
        self._reference: ReferenceLoss | None = None
        self._steering: Steering | None = None
        if settings.is_steered:
            self._steering = Steering(
                settings.strength, settings.target_sparsity, settings.target_threshold, self._bound()
            )
        self._strength = self._steering or Schedule(settings.strength, settings.warmup_ratio)
        self._inspector: Inspector | None = None
        if settings.inspect_steps:
            self._inspector = Inspector(trainer, settings.inspect_steps, settings.all_thresholds)
        self._lambda = 0.0
        self._loss: Tensor | None = None
        """The task's, of the step under way."""
        self._held: list[tuple[Shrinkable, list[Tensor]]] | None = None
        """What is zero and stays it, once the penalty has ended."""
        self._prepared = 0  # how often the step under way was: once, if all is well
        self._measured: Measurement | None = None
        # For its refusals alone: FSDP has neither sharded nor filled the parameters yet.
        trained_themselves(trainer.model)
        if not trainer.is_fsdp_enabled:
            self.take_references()

    def install(self) -> None:
        """Wrap the trainer *instance*, so that any trainer class, and any other plugin's, works the same."""
        trainer = self._trainer
        inner_step, inner_log, inner_scheduler = trainer.training_step, trainer.log, trainer.create_scheduler

        @wraps(inner_step)
        def training_step(*args: Any, **kwargs: Any) -> Tensor:
            loss = inner_step(*args, **kwargs)
            if self._reference is not None:
                self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
            # DeepSpeed has taken its step by now.
            if trainer.accelerator.sync_gradients and not trainer.is_deepspeed_enabled:
                raise_if_any(why_no_gradient_is_left(trainer.model))
                self.before_optimizer_step()
            return loss

        @wraps(inner_log)
        def log(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs.update(self._metrics())
                self.record.remember(trainer.state.global_step, self._lambda, self.measure())
            # The Trainer's last log, while all loggers are still open.
            if "train_runtime" in logs and self._inspector:
                self._inspector.after_last_step()
            inner_log(logs, *args, **kwargs)

        @wraps(inner_scheduler)
        def create_scheduler(*args: Any, **kwargs: Any) -> Any:
            # The one call between FSDP's sharding of the base model and the loading of a checkpoint into it.
            self.take_references()
            return inner_scheduler(*args, **kwargs)

        trainer.training_step = training_step
        trainer.log = log
        if trainer.is_fsdp_enabled:
            trainer.create_scheduler = create_scheduler
        trainer.add_callback(self)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        state = self._trainer.state
        self.begin(state.stateful_callbacks.get(STATE_KEY))
        self._write()
        self._warn(too_few_steps(self._settings.target_sparsity, self._part(state.max_steps)))

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.after_optimizer_step()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.end_step()
        self.inspect()
        self._trainer.state.stateful_callbacks[STATE_KEY] = self.state()

    def on_save(self, *_: Any, **__: Any) -> None:
        self._write()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        # The delta as training leaves it: the last step's, or that of the best checkpoint if it was loaded.
        self._measured = None
        self.record.final = self.measure()
        self.record.loss_increase = self._steering.increase if self._steering else None
        self._write()
        proof = self.record.proof()
        self._warn(missed_target(proof))
        self._warn(exceeded_bound(proof))

    def take_references(self) -> None:
        """Copy θ_pre of what is trained in full, while the model holds the base model's weights."""
        model = self._trainer.model
        self._references = take_references(trained_themselves(model), self._settings.reference)
        deltas = find_live_deltas(model, self._references, self._settings.l1_on)
        _refuse_nonzero_start(deltas)
        if self._settings.mode == "proximal":
            _refuse_unshrinkable(deltas, model, "paft_l1_mode: proximal")
        elif self._settings.end < 1:
            _refuse_unshrinkable(deltas, model, f"paft_l1_until: {self._settings.end:g}")

    def begin(self, saved: dict[str, Any] | None) -> None:
        """Start or, with what `state` once returned, resume; the model is on its devices, and loaded.

        Raises:
            PaftError: if the checkpoint that is resumed was written without the penalty, or the optimizer acts in backward.
        """
        step = self._trainer.state.global_step
        if step and saved is None:
            raise PaftError(
                f"the checkpoint of step {step} was written without the penalty, so what its steps did to δ is unknown: "
                "start anew, or resume from a checkpoint of a run with paft_plugin.PAFTPlugin"
            )
        self._deltas = find_live_deltas(self._trainer.model, self._references, self._settings.l1_on)
        if self._trainer.is_deepspeed_enabled:
            before_engine_step(self._trainer, self.before_optimizer_step)
        else:
            raise_if_any(why_gradients_are_lost(self._trainer.model))
        self._trained_tensors = self._count_trained()
        self._prepared = 0
        self._loss, self._held = None, None
        self._measured = None
        self.record = Record(
            settings=self._settings.for_record(),
            tensors=[delta.name for delta in self._deltas],
            entries=sum(delta.entries for delta in self._deltas),
        )
        if self._inspector:
            self._inspector.begin(self._deltas)
        progress = self._progress()
        if not progress.total:
            steps = self._trainer.state.max_steps
            raise PaftError(f"paft_l1_from, paft_l1_until: none of the {steps} steps lies between them: take others")
        if self._settings.end < 1 and not progress.done < progress.total:
            self._held = self._zeros(0.0)
        if self._steering:
            last = round(self._settings.end * self._trainer.state.max_steps)
            self._steering.begin(self._deltas, self._trainer.lr_scheduler, max(1, last - step))
            if self._reference is not None:
                raise_if_any(self._reference.why_not_of(self._trainer.state.max_steps))
        if saved is not None:
            self.record.restore(saved["record"], step)
            if self._steering:
                self._steering.restore(saved["steering"])

    def state(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint, as JSON."""
        return {"record": self.record.state(), "steering": self._steering.state() if self._steering else None}

    def before_optimizer_step(self) -> None:
        """Choose λ of this step, and add the subgradient to the gradients, which are those of the whole batch."""
        if self._count_trained() != self._trained_tensors:
            raise PaftError(
                "parameters were frozen or unfrozen during training, so the delta is not the one that is penalised: "
                "turn off what does that (LISA, gradual unfreezing)"
            )
        self._prepared += 1
        progress = self._progress()
        if self._steering and self._reference is not None:
            loss = self._trainer.accelerator.reduce(self._loss, reduction="mean").item()
            self._steering.take_loss(progress, loss, self._trainer.state.global_step + 1)
        self._loss = None
        self._lambda = self._strength.at(progress) if progress.is_within else 0.0
        if self._settings.mode == "subgradient":
            self._add_subgradient()
        if self._settings.l2_strength:
            self._add_decay()

    def after_optimizer_step(self) -> None:
        """Soft-threshold in proximal mode, and let λ be steered by where the step led."""
        self._measured = None
        if self._trainer.accelerator.optimizer_step_was_skipped:
            return
        if self._settings.mode == "proximal":
            self._shrink()
        if self._settings.end < 1:
            self._hold()
        self.record.steps_penalised += self._lambda > 0 or self._settings.l2_strength > 0
        if self._steering:
            self._steering.look(self._progress(), self._trainer.optimizer)

    def end_step(self) -> None:
        """Make sure that the step that ends had the penalty in it, once; a trainer that steps in its own way is a `PaftError`."""
        if self._prepared != 1:
            raise PaftError(
                f"{type(self._trainer).__name__}: the penalty went {self._prepared} times into the optimizer step that "
                "just ended instead of once: use a trainer whose training_step ends with backward, as transformers' does"
            )
        self._prepared = 0

    def inspect(self) -> None:
        """Log what δ looks like, if this step is one of those to be inspected."""
        if self._inspector:
            self._inspector.after_step()

    def _add_subgradient(self) -> None:
        if not self._lambda and not self._steering:
            return
        if self._trainer.is_deepspeed_enabled:  # which refuses to be steered
            add_to_partitions(
                self._trainer, self._deltas, lambda delta, scale: delta.add_subgradient(self._lambda * scale)
            )
            return
        scale = self._gradient_scale()
        task = gradient_norm(self._trainer.model) / scale if self._steering else 0.0
        penalty = add_subgradients(self._deltas, self._lambda * scale)
        if self._steering:
            self._steering.weigh_gradients(task, penalty)

    def _add_decay(self) -> None:
        strength = self._settings.l2_strength
        if self._trainer.is_deepspeed_enabled:
            add_to_partitions(self._trainer, self._deltas, lambda delta, scale: delta.add_decay(strength * scale))
            return
        for delta in self._deltas:
            delta.add_decay(strength * self._gradient_scale())

    def _gradient_scale(self) -> float:
        """What the gradients bear under fp16 until it is divided out, before clipping."""
        scaler = getattr(self._trainer.accelerator, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None else 1.0

    def _shrink(self) -> None:
        step_size = step_sizes(self._trainer.optimizer)
        if self._steering:
            self._steering.weigh_movement(float(self._trainer.optimizer.param_groups[0]["lr"]))
        if self._lambda:
            for delta in self._deltas:
                assert isinstance(delta, Shrinkable)
                delta.shrink(self._lambda, step_size)

    def _hold(self) -> None:
        """After the last step with the penalty, and all later ones, keep what is small or zero by then at zero."""
        progress = self._progress()
        if progress.done + 1 < progress.total:
            return
        if self._held is None:
            self._held = self._zeros(self._settings.target_threshold)
        for delta, zeros in self._held:
            delta.reset(zeros)

    def _zeros(self, threshold: float) -> list[tuple[Shrinkable, list[Tensor]]]:
        return [(delta, delta.zeros(threshold)) for delta in self._deltas if isinstance(delta, Shrinkable)]

    def measure(self) -> Measurement:
        """Norm and sparsity of δ as it is now; under FSDP2 every process must take part."""
        if self._measured is None:
            self._measured = measure(self._deltas, self._settings.all_thresholds)
        return self._measured

    def _metrics(self) -> dict[str, float]:
        now = self.measure()
        shares = {f"paft/sparsity@{plain_number(t)}": share for t, share in now.sparsity.items()}
        if self._steering and self._steering.forecast is not None:
            shares["paft/sparsity_forecast"] = self._steering.forecast
        if self._steering and self._steering.increase is not None:
            shares["paft/loss_increase"] = self._steering.increase
        penalty = {"paft/penalty": self._lambda * now.l1_norm, "paft/lambda": self._lambda}
        if self._settings.l2_strength:
            norm = l2_norm(self._deltas)
            penalty["paft/penalty"] += self._settings.l2_strength * norm**2
            penalty["paft/l2_norm"] = norm
        return {"paft/l1_norm": now.l1_norm, **penalty, **shares}

    def _progress(self) -> TrainingProgress:
        """In the part of the run that has a penalty."""
        whole = TrainingProgress(self._trainer.state.global_step, self._trainer.state.max_steps)
        return whole.part(self._settings.begin, self._settings.end)

    def _part(self, steps: int) -> int:
        return TrainingProgress(0, steps).part(self._settings.begin, self._settings.end).total

    def _bound(self) -> LossBound | None:
        bound, given = self._settings.max_loss_increase, self._settings.reference_loss
        if bound is None or given is None:
            return None
        self._reference = read_reference_loss(given)
        return LossBound(self._settings.strength, bound, self._reference)

    def _warn(self, what: str | None) -> None:
        if what and self._trainer.state.is_world_process_zero:
            logger.warning(what)

    def _write(self) -> None:
        if self._trainer.state.is_world_process_zero:
            self.record.write(Path(self._trainer.args.output_dir))

    def _count_trained(self) -> int:
        return sum(parameter.requires_grad for parameter in self._trainer.model.parameters())


def _refuse_nonzero_start(deltas: Sequence[LiveDelta]) -> None:
    moved = [delta.name for delta in deltas if delta.measure((0.0,)).small.item() < delta.entries]
    if moved:
        raise PaftError(
            "the delta is not zero before training, so it is not θ − θ_pre: start from a fresh adapter with "
            f"peft_init_lora_weights: true. Not zero: {some(moved)}"
        )


def _refuse_unshrinkable(deltas: Sequence[LiveDelta], model: nn.Module, setting: str) -> None:
    products = [delta.name for delta in deltas if not isinstance(delta, Shrinkable)]
    if products:
        raise PaftError(
            f"{setting}: the entries of a product s·BA can be neither shrunk nor held one by one: set paft_l1_on: factors, or "
            f"train without an adapter. Products: {some(products)}"
        )
    fine = (torch.float32, torch.float64)
    coarse = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype not in fine]
    if coarse:
        raise PaftError(
            f"{setting}: λ × learning rate is less than half a step of a parameter in low precision, so it would be rounded "
            f"away, and what is zero could not be told: train in fp32, or remove it. In low precision: {some(coarse)}"
        )


def add_to_partitions(trainer: Trainer, deltas: Sequence[LiveDelta], add: Callable[[LiveDelta, float], object]) -> None:
    """Gather partitioned gradients, of one delta at a time, have `add` add to them, at their loss scale, and put them back."""
    from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

    # What the gradients bear until the engine's step divides it out.
    loss_scale = float(getattr(trainer.model_wrapped.optimizer, "loss_scale", 1.0))
    for delta in deltas:
        trained = [parameter for parameter in delta.parameters if parameter.requires_grad]
        dtypes = [parameter.grad_dtype for parameter in trained]
        for parameter in trained:
            parameter.grad_dtype = None  # DeepSpeed hands out fp32, whatever the parameter's dtype
            parameter.grad = safe_get_full_grad(parameter)
        add(delta, loss_scale)
        for parameter, dtype in zip(trained, dtypes, strict=True):
            whole, parameter.grad = parameter.grad, None
            parameter.grad_dtype = dtype
            safe_set_full_grad(parameter, whole)


def before_engine_step(trainer: Trainer, act: Callable[[], None]) -> None:
    """Have `act` called before each of the engine's optimizer steps; the engine exists once training begins."""
    engine = trainer.model_wrapped
    inner = engine.step

    @wraps(inner)
    def step(*args: Any, **kwargs: Any) -> Any:
        act()
        return inner(*args, **kwargs)

    engine.step = step
