"""Loading the inputs of the next merge while one is under way: reading, widening and B·A keep a second core busy."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType

from mergekit.common import ModelReference
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from torch import Tensor

from paft_plugin.fusion.merge.loaders import ModelLoader

Inputs = dict[str, Tensor | None]


class LoadAhead:
    """Loads one merge ahead, in a thread. It draws nothing at random, so the order of draws stays mergekit's.

    Only what an adapter changes is loaded ahead: the rest may turn out to be a copy, of which nothing need be loaded.

    Args:
        merges: in the order in which they will be asked for.
        loaders: of every model in the recipe.
    """

    def __init__(self, merges: Sequence[ExecuteMergeMethodTask], loaders: dict[ModelReference, ModelLoader]) -> None:
        self._next = {id(merge): following for merge, following in pairwise(merges)}
        self._loaders = loaders
        self._under_way: tuple[ExecuteMergeMethodTask, Future[Inputs]] | None = None

    def __enter__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        for load in merge.gather_tensors.arguments().values():
            loader = self._loaders[load.model]
            name = load._resolve_name(loader)
            if name and loader.changes(name):
                return True
        return False


def load_inputs(merge: ExecuteMergeMethodTask) -> Inputs:
    """Every tensor that a merge takes, as mergekit's own tasks load it."""
    return {key: load.execute() for key, load in merge.gather_tensors.arguments().items()}
