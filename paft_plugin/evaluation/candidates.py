"""What is to be scored: a model, or an adapter on its base model.

It is checked before anything heavy is imported, and then loaded as lm-eval's model, whole or not at all.
"""

from __future__ import annotations

import gc
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from paft_plugin.errors import PaftError, collecting, one_line, raise_if_any
from paft_plugin.files import ADAPTER_CONFIG, ADAPTER_FILE, read_json_or_nothing
from paft_plugin.machine import free_memory, is_fast_on_cpu

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)
ARM_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Candidate:
    """One arm: the folder of a model, and of the adapter on it if there is one."""

    arm: str
    model: Path
    adapter: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Candidate:
        """Read `ARM=PATH`; an adapter's base model is the one that its own config names.

        Raises:
            PaftError: There is no `ARM=`, or the adapter's base model isn't a folder.
        """
        arm, equals, path = text.partition("=")
        if not equals or not path or not ARM_NAME.fullmatch(arm):
            raise PaftError(f"{text!r} should be ARM=PATH, e.g. sft=outputs/sft")
        if not (Path(path) / ADAPTER_CONFIG).is_file():
            return cls(arm, Path(path))
        base = read_json_or_nothing(Path(path) / ADAPTER_CONFIG).get("base_model_name_or_path")
        if not base or not Path(base).is_dir():
            raise PaftError(
                f"arm {arm}: the adapter {path} doesn't name a base model that is a folder here; "
                f"say which one it is: --adapter {arm} BASE {path}"
            )
        return cls(arm, Path(base), Path(path))

    def problems(self) -> list[str]:
        """Why this arm can't be scored: nothing there, no weights, weights that are cut short or garbled."""
        parts = [("model", self.model, "config.json", "model*.safetensors")]
        if self.adapter is not None:
            parts.append(("adapter", self.adapter, ADAPTER_CONFIG, ADAPTER_FILE))
        problems = []
        for what, folder, config, pattern in parts:
            weights = sorted(folder.glob(pattern))
            if not (folder / config).is_file():
                problems.append(f"no {what} in {folder} (no {config})")
            elif not weights:
                problems.append(f"no weights in {folder} (no {pattern})")
            else:
                problems += [problem for file in weights if (problem := _damage(file))]
        return [f"arm {self.arm}: {problem}" for problem in problems]


def _damage(weights: Path) -> str | None:
    """Why a file of weights cannot be used: its header says how long it must be."""
    try:
        with safe_open(weights, framework="pt"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{weights} is corrupt or unreadable ({error}); write it again"


def parse_all(texts: Sequence[str]) -> list[Candidate]:
    """`Candidate.parse` of each text; raises one `PaftError` with all that is wrong."""
    candidates: list[Candidate] = []
    problems: list[str] = []
    for text in texts:
        with collecting(problems):
            candidates.append(Candidate.parse(text))
    raise_if_any(problems)
    return candidates


def problems_of(candidates: Sequence[Candidate]) -> list[str]:
    """Everything that is wrong with any of `candidates`, or with all of them together."""
    arms = [candidate.arm for candidate in candidates]
    problems = [] if arms else ["nothing to score: name at least one ARM=PATH"]
    problems += [f"arm {arm}: named {arms.count(arm)} times" for arm in dict.fromkeys(arms) if arms.count(arm) > 1]
    return problems + [problem for candidate in candidates for problem in candidate.problems()]


def as_lm_eval(model: Any, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> HFLM:
    """A loaded model as lm-eval's."""
    from lm_eval.models.huggingface import HFLM

    # In half precision, the log-likelihoods of two answers to choose from would often come out equal.
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


def load_model(
    candidate: Candidate, device: str, dtype: str, chat_template: bool
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A candidate and its tokenizer, by a `Loader` of its own."""
    return Loader(device, dtype, chat_template).load(candidate)


class Loader:
    """Loads candidates one after another, and a base model that several adapters are for only once.

    They are loaded here and not by lm-eval, which would score a model with randomly initialised tensors, or an adapter that fits
    nowhere, as if nothing were wrong. The `dtype` auto is the checkpoint's own, but bfloat16 for a float32 checkpoint on a GPU,
    and float32 on a CPU that is no faster in half precision; `chat_template` says whether the tokenizer must have one.
    """

    def __init__(self, device: str, dtype: str, chat_template: bool) -> None:
        self._device, self._dtype, self._chat_template = device, dtype, chat_template
        self._folder: Path | None = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._tensors: dict[str, int] = {}

    def load(self, candidate: Candidate) -> tuple[Any, PreTrainedTokenizerBase]:
        """A candidate's model and tokenizer; of the one before nothing may be used any more.

        Raises:
            PaftError: It can't be loaded, or not all of it; names the arm.
        """
        from peft import PeftModel

        where = f"arm {candidate.arm}: {candidate.adapter or candidate.model}"
        if self._folder != candidate.model or not self._is_untouched():
            self._forget()
            self._load_whole(candidate.model, where)
        if self._chat_template and self._tokenizer.chat_template is None:
            raise PaftError(
                f"{where}: the tokenizer in {candidate.model} has no chat template. Add the one of its training, or set "
                "evaluation.apply_chat_template: false to ask in plain text."
            )
        if candidate.adapter is not None:
            self._folder = None  # until it is said to be done, or if it fails half-way
            with warnings.catch_warnings(), _loading(where):
                warnings.filterwarnings("error", message="(?s).*Found missing adapter keys")
                self._model = PeftModel.from_pretrained(self._model, candidate.adapter)
            self._folder = candidate.model
        return self._model, self._tokenizer

    def _load_whole(self, folder: Path, where: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        with _loading(where):
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=self._dtype if self._dtype == "auto" else getattr(torch, self._dtype),
                output_loading_info=True,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if lacking := sorted(info["missing_keys"]):
            said = f"lacks {len(lacking)} tensors of the model that its config describes, e.g. {lacking[0]}"
            raise PaftError(f"{where} {said}")
        if self._dtype == "auto":
            model = _in_best_dtype(model, self._device)
        self._model, self._tokenizer, self._folder = model.to(self._device), tokenizer, folder
        self._tensors = _places(self._model)

    def _is_untouched(self) -> bool:
        """Take off the adapter, if there is one; whether the base is then what it was, by where its tensors lie."""
        unload = getattr(self._model, "unload", None)
        if unload is not None:
            self._model = unload()
        return _places(self._model) == self._tensors  # an adapter that brings whole modules along leaves them behind

    def _forget(self) -> None:
        """Make room for the next model."""
        import torch

        self._model = self._tokenizer = self._folder = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _loading(where: str) -> Iterator[None]:
    """Transformers and PEFT raise almost anything for a bad folder."""
    try:
        yield
    except Exception as error:
        raise PaftError(f"{where} can't be loaded: {one_line(error, 300)}") from error


def _places(model: Any) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}


def _in_best_dtype(model: Any, device: str) -> Any:
    """The model in the dtype that `auto` is for its checkpoint and the device."""
    import torch

    name = dtype_name(model)
    if device.startswith("cuda"):
        return model.bfloat16() if model.dtype == torch.float32 else model
    if device != "cpu" or model.dtype.itemsize != 2 or is_fast_on_cpu(name):
        return model
    free, more = free_memory(), 2 * sum(parameter.numel() for parameter in model.parameters())
    if free is not None and more > free:
        lacking = f"{more / 2**30:.1f} GiB more memory, and {free / 2**30:.1f} are free"
        LOG.warning("Scored in %s, in which this CPU is slow: float32 would take %s.", name, lacking)
        return model
    return model.float()


def dtype_name(model: Any) -> str:
    """In what a model's weights are, as torch calls it."""
    return str(model.dtype).removeprefix("torch.")
