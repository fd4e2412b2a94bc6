"""What we use of mergekit beyond what it documents: private names, and the insides of its objects. As of mergekit 0.1.5.

A new mergekit may rename any of it. Then this is the one file to change, and its test says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from typing import Any, TypeVar

from mergekit import sparsify
from mergekit.architecture.auto import infer_architecture_info
from mergekit.architecture.conversion import _expanded_target_keys as expanded_target_keys
from mergekit.common import ModelReference
from mergekit.graph import ExecutionSchedule, Executor, Task, TaskHandle, TaskUniverse
from mergekit.io.tasks import LoaderCache, LoadTensor, TensorWriterTask
from mergekit.merge import _copy_tagalong_files as copy_tagalong_files
from mergekit.merge import _copy_tokenizer as copy_tokenizer
from mergekit.merge import _model_out_config as model_out_config
from mergekit.merge import _set_chat_template as set_chat_template
from mergekit.merge import _update_config_vocab as update_config_vocab
from mergekit.options import MergeOptions
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

__all__ = ["copy_tagalong_files", "copy_tokenizer", "model_out_config", "set_chat_template", "update_config_vocab"]

USED = {
    "mergekit.merge._model_out_config": "the config of the merged model",
    "mergekit.merge._update_config_vocab": "its vocabulary, once a tokenizer was built",
    "mergekit.merge._set_chat_template": "the recipe's `chat_template` in it, and whether there is such a template",
    "mergekit.merge._copy_tokenizer": "the base's tokenizer beside the merged weights",
    "mergekit.merge._copy_tagalong_files": "what else an architecture wants beside them",
    "mergekit._data.chat_templates": "the chat templates that a recipe may name",
    "mergekit.common.ModelPath._unique_id": "where plain `mergekit-yaml` finds an adapter that it wrote out as a model",
    "mergekit.io.tasks.LoadTensor._resolve_name": "which of a tensor's names a model has",
    "mergekit.io.tasks.LoaderCache.loaders": "the open models of the process, in whose place ours are put",
    "mergekit.architecture.auto.infer_architecture_info.cache_clear": "architectures, remembered by a path alone",
    "mergekit.architecture.conversion._expanded_target_keys": "what transformers makes of a checkpoint's tensor",
    "mergekit.graph.TaskUniverse.get_handle": "the graph, in which a merge and the loading of its inputs become one task",
    "mergekit.graph.TaskHandle.arguments": "the graph's edges",
    "mergekit.graph.ExecutionSchedule": "the order of tasks, without those that are no longer needed",
    "mergekit.sparsify.magnitude": "the trim of TIES, put in whose place ours gives the same sooner",
    "mergekit.sparsify.magnitude_outliers": "that of Breadcrumbs",
    "mergekit.sparsify.bernoulli": "that of DARE",
    "mergekit.sparsify.della_magprune": "that of DELLA",
}
"""Name in mergekit → what it is to us."""
Replacement = TypeVar("Replacement", bound=Task)


def chat_templates() -> list[str]:
    """The names of mergekit's chat templates, which it lists nowhere but in this folder."""
    files = [file.name.removesuffix(".jinja") for file in resources.files("mergekit._data.chat_templates").iterdir()]
    return sorted(name for name in files if not name.startswith("__"))


def name_in_cache(reference: ModelReference) -> str:
    """The folder in `--lora-merge-cache` of an adapter that was written out as a model: named by the paths alone."""
    assert reference.lora is not None
    return f"{reference.model._unique_id()}_{reference.lora._unique_id()}"


def stored_name(load: LoadTensor, loader: Any) -> str | None:
    """Which of a tensor's names (its own, aliases, tied ones) a model has; None if it has none of them."""
    name: str | None = load._resolve_name(loader)
    return name


def converted_names(model_type: str, name: str) -> list[str]:
    """The tensors of the loaded model that transformers 5 makes of one in a checkpoint, alone or with others."""
    names, found = [name], []
    for transform in get_checkpoint_conversion_mapping(model_type) or ():
        for one in list(names):
            renamed, pattern = transform.rename_source_key(one)
            if pattern is not None:
                names.append(renamed)
                found += sorted(expanded_target_keys(renamed, transform.target_patterns))
    return found


def forget_architectures() -> None:
    """mergekit remembers which architecture it found at a path, whatever is there now."""
    infer_architecture_info.cache_clear()


@contextmanager
def open_models(loaders: Mapping[ModelReference, Any], options: MergeOptions) -> Iterator[None]:
    """For the time of the context mergekit's tasks find these models, whatever it had open before."""
    cache = LoaderCache()
    before, settings = LoaderCache.loaders, dict(vars(cache))
    LoaderCache.loaders = dict(loaders)
    try:
        cache.setup(options)
        yield
    finally:
        LoaderCache.loaders = before
        vars(cache).clear()
        vars(cache).update(settings)


@contextmanager
def trimming_by(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """For the time of the context mergekit's methods trim with these, by their names in `mergekit.sparsify`."""
    before = {name: getattr(sparsify, name) for name in functions}
    for name, function in functions.items():
        setattr(sparsify, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(sparsify, name, function)


class Graph:
    """mergekit's tasks (what the targets ask for) in mergekit's order, of which some may be replaced before they are run.

    `writer` takes the merged tensors in the place of mergekit's own.
    """

    def __init__(self, targets: list[Task], device: str, writer: Any) -> None:
        self._universe = TaskUniverse(targets)
        tasks = self._universe.tasks
        self._given = {self._universe.get_handle(task): writer for task in tasks if isinstance(task, TensorWriterTask)}
        self._targets = [self._universe.add_task(task) for task in targets]
        self._executor = Executor(self._targets, device, "cpu", cached_values=self._given)

    def replace(self, tasks: Iterable[tuple[Task, Replacement]]) -> list[Replacement]:
        """Put tasks without arguments in the place of others. What only fed the others is dropped, and the order stays.

        Returns the new tasks in the order in which they will be run.
        """
        new = {}
        for task, replacement in tasks:
            index = self._universe.task_to_index[task]
            self._universe.tasks[index] = replacement
            self._universe.task_arguments[index] = {}
            new[id(replacement)] = replacement
        self._executor.schedule = self._needed(self._executor.schedule)
        order = (id(handle.task()) for handle in self._executor.schedule.tasks)
        return [new[which] for which in order if which in new]

    def run(self, quiet: bool) -> Iterator[tuple[Task, Any]]:
        """Run all of it; yields each target with what it gave."""
        yield from self._executor.run(quiet=quiet, desc="Merging")

    def _needed(self, schedule: ExecutionSchedule) -> ExecutionSchedule:
        """The schedule without the tasks that nothing asks for any more."""
        wanted: set[TaskHandle] = set()
        to_see = list(self._targets)
        while to_see:
            handle = to_see.pop()
            if handle not in wanted:
                wanted.add(handle)
                to_see += handle.arguments().values()
        tasks = [handle for handle in schedule.tasks if handle in wanted]
        last_use = dict.fromkeys(self._given, len(tasks) + 1)
        for index, handle in enumerate(tasks):
            used = (handle, *handle.arguments().values())
            last_use.update({one: index for one in used if one not in self._given})
        return ExecutionSchedule(tasks, last_use)
