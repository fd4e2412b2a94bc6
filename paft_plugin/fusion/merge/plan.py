"""mergekit's plan of a merge, run by mergekit's executor in mergekit's order, one tensor in memory at a time.

The order decides what a random method draws for which tensor. So mergekit plans and orders its whole graph first. Only
then is the merge of each tensor joined with the loading of its inputs into one task: a tensor that no branch touches need
then not be loaded, or merged, at all. Of the others, the next one's inputs are loaded while one is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, reduce
from itertools import pairwise

import torch
from mergekit.architecture.conversion import can_convert_checkpoint_keys
from mergekit.common import ModelReference, dtype_from_name
from mergekit.graph import Task
from mergekit.io.tasks import GatherTensors, LoadTensor, SaveTensor
from mergekit.merge_methods import get as method_called
from mergekit.merge_methods.base import BasePolicy
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.plan import MergePlanner
from mergekit.tokenizer import TokenizerInfo
from torch import Tensor

from paft_plugin.errors import raise_if_any, some
from paft_plugin.fusion.merge.blocks import BlockedMerge, TrimOfDelta, blocked, is_worth_it
from paft_plugin.fusion.merge.global_trim import TIES_GLOBAL, largest_of_all
from paft_plugin.fusion.merge.loaders import ModelLoader
from paft_plugin.fusion.merge.untouched import draws, gives_base, gives_input_rounded, skip_draws
from paft_plugin.fusion.mergekit_internals import Graph, stored_name

Inputs = dict[str, Tensor | None]
Loaders = dict[ModelReference, ModelLoader]


class MergePlan:
    """All that is to be merged, in order; the loaders of the recipe's models must be in mergekit's cache.

    Raises:
        PaftError: Tensors that a model lacks, or that differ in shape.
    """

    def __init__(self, planner: MergePlanner, loaders: Loaders) -> None:
        self._loaders = loaders
        self._device = planner.options.device
        self._received = Received()
        targets = planner.plan_to_disk(out_path="")
        saves = [task for task in targets if isinstance(task, SaveTensor)]
        self.names = [save.tensor_name for save in saves]
        """Names of the merged tensors; optional ones may still not come."""
        self._merges = {save.tensor_name: save.tensor_task for save in saves}
        raise_if_any(_misfits(saves, loaders))
        self._graph = Graph(targets, self._device, self._received)
        merges = [(merge, save) for save in saves if (merge := _plain_merge(save))]
        joined = self._graph.replace(
            (merge, Joined(merge=merge, run=partial(self._one, merge, save))) for merge, save in merges
        )
        self._kept: Sequence[TrimOfDelta] = ()
        """Of a global trim: for each branch what is kept of its whole delta."""
        found = {id(merge): blocked(merge, merge.gather_tensors.arguments(), loaders) for merge, _ in merges}
        self._blocked = {key: each for key, each in found.items() if each is not None}
        if any(merge.method_name == TIES_GLOBAL for save in saves if (merge := save.tensor_task)):
            raise_if_any(_not_in_blocks(saves, self._blocked, loaders))
            self._kept = largest_of_all(list(self._blocked.values()))
        else:
            worth = self._device == "cpu"
            self._blocked = {key: each for key, each in self._blocked.items() if worth and is_worth_it(each)}
        self._ahead = LoadAhead([one.merge for one in joined if id(one.merge) not in self._blocked], loaders)

    def run(self, quiet: bool) -> Iterator[tuple[str, Tensor] | TokenizerInfo]:
        """Yield (name, tensor in its final dtype), and the tokenizer where the recipe builds one."""
        given = set()
        with self._ahead:
            for task, value in self._graph.run(quiet):
                if isinstance(task, SaveTensor):
                    tensor = self._received.take()
                    # mergekit's definition of Qwen2.5-VL lists some tensors twice, and it merges them as often.
                    if tensor is not None and task.tensor_name not in given:
                        given.add(task.tensor_name)
                        yield task.tensor_name, tensor
                elif isinstance(value, TokenizerInfo):
                    yield value

    def before(self, name: str) -> list[Tensor]:
        """What the base has in the place of a merged tensor, as stored; without a base, what each input has there."""
        merge = self._merges[name]
        # With a tokenizer the inputs are permuted on their way.
        gather = getattr(merge.gather_tensors, "gather_tensors", merge.gather_tensors)
        loads = {load.model: load for load in gather.arguments().values()}
        wanted = [merge.base_model] if merge.base_model in loads else list(loads)
        names = {model: stored_name(loads[model], self._loaders[model]) for model in wanted}
        return [self._loaders[model].store.tensor(stored) for model, stored in names.items() if stored]

    def _one(self, merge: ExecuteMergeMethodTask, save: SaveTensor) -> Tensor | None:
        in_blocks = self._blocked.get(id(merge))
        inputs = None if in_blocks else self._ahead.take(merge)
        if inputs is None:
            copy = _copy_if_untouched(merge, save, self._loaders, self._device)
            if copy is not None:
                return copy
            if in_blocks is not None:
                return in_blocks.run(self._kept or in_blocks.choose(), self._device)
            inputs = load_inputs(merge)
        # What mergekit's executor does with what it has loaded: move, gather, merge.
        if merge.uses_accelerator():
            inputs = {key: None if tensor is None else tensor.to(self._device) for key, tensor in inputs.items()}
        merged: Tensor | None = merge.execute(merge.gather_tensors.execute(**inputs))
        return merged


class Received:
    """Stands for mergekit's writer in its graph, and holds the tensor that was just merged."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None

    def save_tensor(self, name: str, tensor: Tensor, clone: bool = False) -> None:
        """What mergekit calls for each tensor."""
        self._tensor = tensor

    def finalize(self) -> None:
        """What mergekit calls in the end; whoever takes the tensors writes them."""

    def take(self) -> Tensor | None:
        """The tensor, which is forgotten here; None if the merge gave none (an optional one)."""
        tensor, self._tensor = self._tensor, None
        return tensor


class Joined(Task[torch.Tensor]):
    """One tensor: its inputs loaded, and merged or copied."""

    merge: ExecuteMergeMethodTask
    run: Callable[[], Tensor | None]

    def arguments(self) -> dict[str, Task]:
        """Nothing is prepared by other tasks."""
        return {}

    def execute(self) -> Tensor | None:
        """The tensor; None if it is optional and no model has it."""
        return self.run()


class LoadAhead:
    """Loads one merge ahead, in a thread. It draws nothing at random, so the order of draws stays mergekit's.

    Only what an adapter changes is loaded ahead: the rest may turn out to be a copy, of which nothing need be loaded.
    The merges stand in the order in which they will be asked for.
    """

    def __init__(self, merges: Sequence[ExecuteMergeMethodTask], loaders: Loaders) -> None:
        self._next = {id(merge): following for merge, following in pairwise(merges)}
        self._loaders = loaders
        self._under_way: tuple[ExecuteMergeMethodTask, Future[Inputs]] | None = None

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def __exit__(self, *_error: object) -> None:
        self._under_way = None
        self._pool.shutdown()

    def take(self, merge: ExecuteMergeMethodTask) -> Inputs | None:
        """What was loaded for `merge`, None if nothing was; the loading of what follows it begins."""
        under_way, self._under_way = self._under_way, None
        inputs = under_way[1].result() if under_way and under_way[0] is merge else None
        following = self._next.get(id(merge))
        if following is not None and self._is_changed(following):
            self._under_way = following, self._pool.submit(load_inputs, following)
        return inputs

    def _is_changed(self, merge: ExecuteMergeMethodTask) -> bool:
        loads = ((load, self._loaders[load.model]) for load in merge.gather_tensors.arguments().values())
        return any(loader.changes(stored_name(load, loader) or "") for load, loader in loads)


def load_inputs(merge: ExecuteMergeMethodTask) -> Inputs:
    """Every tensor that a merge takes, as mergekit's own tasks load it."""
    return {key: load.execute() for key, load in merge.gather_tensors.arguments().items()}


def _copy_if_untouched(merge: ExecuteMergeMethodTask, save: SaveTensor, loaders: Loaders, device: str) -> Tensor | None:
    """The tensor that all inputs have alike, if the method gives that very tensor then; its draws are skipped."""
    loads = {load.model: load for load in merge.gather_tensors.arguments().values()}
    names = {model: name for model, load in loads.items() if (name := stored_name(load, loaders[model]))}
    if len(names) < len(loads):
        return None
    method = method_called(merge.method_name)
    if device != "cpu" and draws(method):
        return None
    first = merge.model_order[0]
    stored = loaders[first].stored_dtype(names[first])
    merged = dtype_from_name(loads[first].dtype) or _promoted([loaders[model].dtype(names[model]) for model in names])
    out = dtype_from_name(save.dtype) or merged
    shared = dict(merge.parameters.items())
    per_input = {model: dict(merge.input_parameters[model].items()) for model in merge.model_order}
    per_branch = [values for model, values in per_input.items() if model != merge.base_model]
    with_base = merge.base_model in merge.model_order and method.spec.contract.base != BasePolicy.IGNORED
    exact = with_base and gives_base(method, shared, per_branch)
    if not exact and not gives_input_rounded(method, shared, list(per_input.values()), {stored, out}):
        return None
    tensor = _alike([(loaders[model], names[model]) for model in merge.model_order])
    if tensor is None or not tensor.is_floating_point():
        return None
    skip_draws(method, per_branch, tensor.numel())
    # Widening and then rounding is rounding at once; only where `dtype` is the narrower one must it come first.
    widened = _promoted([stored, merged]) == merged
    return tensor.to(out) if widened else tensor.to(merged).to(out)


def _alike(inputs: list[tuple[ModelLoader, str]]) -> Tensor | None:
    """The one tensor, as stored, that all inputs are; None if an adapter changes one, or models differ."""
    if any(loader.changes(name) for loader, name in inputs):
        return None
    loader, name = inputs[0]
    tensor = loader.store.tensor(name)
    others = {(other.store.folder, key): other for other, key in inputs}
    del others[loader.store.folder, name]
    for (_, key), other in others.items():
        second = other.store.tensor(key)
        if second.dtype != tensor.dtype or not torch.equal(second, tensor):
            return None
    return tensor


def _misfits(saves: list[SaveTensor], loaders: Loaders) -> list[str]:
    """Tensors that a model lacks or has in another shape: said at once, not in the middle of the merge."""
    problems: list[str] = []
    for merge in filter(None, map(_plain_merge, saves)):
        name = merge.output_weight.name
        lacking, shapes = [], {}
        for load in merge.gather_tensors.arguments().values():
            loader = loaders[load.model]
            if found := stored_name(load, loader):
                shapes[loader] = loader.store.shape(found)
            elif not load.optional and not _converts(load, loader):
                lacking.append(str(load.model))
        if lacking:
            problems.append(f"{name}: {some(lacking)} has no such tensor. Give models that were trained from one base.")
        elif len(set(shapes.values())) > 1:
            said = ", ".join(f"{loader.store.folder} {shape}" for loader, shape in shapes.items())
            problems.append(
                f"{name}: differs in shape ({said}). Give models that were trained from one base; "
                "for other vocabularies, set `tokenizer: {source: base}` in the recipe."
            )
    more = [f"The same of {len(problems) - 3} more tensors."] if len(problems) > 3 else []
    return problems[:3] + more


def _not_in_blocks(saves: list[SaveTensor], blocked: Mapping[int, BlockedMerge], loaders: Loaders) -> list[str]:
    """Why a global trim cannot be: a tensor that is not merged entry by entry, as the files hold it, would be trimmed alone."""
    names = [
        save.tensor_name for save in saves if id(save.tensor_task) not in blocked and not _is_absent(save, loaders)
    ]
    if not names:
        return []
    return [
        f"{TIES_GLOBAL}: {some(names)} cannot be trimmed with all others: it merges the models' tensors as they are, in "
        "`dtype: float32`, without a tokenizer. Change that, or take ties, which trims each tensor by itself."
    ]


def _is_absent(save: SaveTensor, loaders: Loaders) -> bool:
    """Whether a tensor is optional, and no model has it."""
    merge = _plain_merge(save)
    loads = merge.gather_tensors.arguments().values() if merge else ()
    return bool(loads) and all(load.optional and not stored_name(load, loaders[load.model]) for load in loads)


def _plain_merge(save: SaveTensor) -> ExecuteMergeMethodTask | None:
    """The task that merges this tensor, unless its vocabulary is permuted first: that needs the tokenizer's task."""
    task = save.tensor_task
    plain = isinstance(task, ExecuteMergeMethodTask) and isinstance(task.gather_tensors, GatherTensors)
    return task if plain else None


def _converts(load: LoadTensor, loader: ModelLoader) -> bool:
    targets = (load.tensor, *(load.aliases or ()))
    present = set(loader.index.tensor_paths)
    return any(can_convert_checkpoint_keys(load.model.config().model_type, present, target) for target in targets)


def _promoted(dtypes: list[torch.dtype]) -> torch.dtype:
    return reduce(torch.promote_types, dtypes)
