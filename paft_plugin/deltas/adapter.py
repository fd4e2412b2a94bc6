"""LoRA adapters as PEFT saves them: which tensors they hold, and the delta s·BA of each adapted weight.

Shapes: `r` rank, `O` output features, `I` input features, `V` vocabulary, `D` model dimension.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from paft_plugin.deltas.store import TensorStore, hollow, open_adapter_weights
from paft_plugin.errors import as_written, raise_if_any, some
from paft_plugin.files import ADAPTER_CONFIG, fingerprint, read_json
from paft_plugin.reading import matches

PREFIX = "base_model.model."
# Layers that PEFT wraps around a module: below them is what the base calls by the same name.
WRAPPER = re.compile(r"(\.base_layer|\.token_adapter\.base_layer)+(?=\.|$)")
# With a resized vocabulary PEFT saves the inside of its wrapper too; the trained copy comes a second time, by its plain name.
INSIDE = re.compile(r"\.(modules_to_save|original_module)\.")
TOKENS = ".token_adapter.trainable_tokens_delta"
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.(?P<part>weight|bias))?")
# What torch.compile, FSDP and activation checkpointing put around a module, and leave in the names of a state dict.
AROUND = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Inside a model PEFT's tensors bear their adapter's name, which it takes out of those that it saves itself.
NAMED = re.compile(
    r"(?<=\.)(lora_(?:embedding_)?[AB]|token_adapter\.trainable_tokens_delta)\.(?P<adapter>(?!(?:weight|bias)$)[^.]+)(?=\.|$)"
)

_MERGE = (
    "Merge it into an unquantised base with `axolotl merge-lora` and give the merged model as the branch, "
    "or retrain with plain LoRA."
)
_RETRAIN = "Retrain with plain LoRA."
_NO_SCALE = "has the value {!r:.40}, which is no finite number, so its delta would not be finite either. Correct it."
# Config keys that make a change which is not s·BA on base weights, and the way out.
REFUSED_KEYS = {
    "use_dora": f"DoRA also rescales each row. {_MERGE}",
    "alora_invocation_tokens": f"aLoRA acts on some tokens only, so no merged weight equals it. {_RETRAIN}",
    "use_qalora": f"QA-LoRA pools its inputs. {_RETRAIN}",
    "arrow_config": f"Arrow routes each token to another adapter, so no merged weight equals it. {_RETRAIN}",
    "monteclora_config": f"MonteCLoRA samples its weights. {_RETRAIN}",
    "velora_config": f"VeLoRA keeps more than its factors. {_MERGE}",
    "use_bdlora": f"BD-LoRA's factors are block-diagonal. {_MERGE}",
    "kasa_config": f"KaSA cuts small singular values off the base. {_RETRAIN}",
    "layer_replication": f"it has more layers than the base. {_RETRAIN}",
}
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) subtract from it.
KEEP_BASE = (True, False, None, "true", "gaussian", "eva", "orthogonal", "mica")
# What of the config decides the delta; the rest (paths, dropout, versions …) does not.
DECISIVE_KEYS = (
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out"),
    *("target_parameters", "trainable_token_indices"),
)


KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("base_model_name_or_path", "bias"), (str, NoneType)),
    **dict.fromkeys(("use_rslora", "fan_in_fan_out"), (bool, NoneType)),
    **dict.fromkeys(("alpha_pattern", "rank_pattern"), (dict, NoneType)),
    **dict.fromkeys(("target_modules", "modules_to_save", "target_parameters"), (str, list, NoneType)),
    "trainable_token_indices": (dict, list, NoneType),
}
"""Of the config's values that are read here."""


@dataclass
class Factors:
    """Where one module's LoRA factors lie in the adapter file."""

    A: str = ""
    B: str = ""
    bias: str = ""
    embedding: bool = False


@dataclass
class Adapter:
    """A LoRA adapter on disk."""

    folder: Path
    config: dict[str, Any]
    store: TensorStore
    factors: dict[str, Factors] = field(default_factory=dict)
    """Module, as the adapter's file names it → its factors."""
    copies: dict[str, str] = field(default_factory=dict)
    """Tensor's name → name in the adapter file of a full trained (or resized) copy of it."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Tensor's name → name in the adapter file of the trained rows of single tokens."""
    notes: list[str] = field(default_factory=list)
    """What its file does not say as PEFT does, and how it is understood, in full sentences."""

    @property
    def names(self) -> list[str]:
        """The tensors that the adapter can change, as itself calls them, sorted.

        A base's files may call them otherwise, and hold fused experts one by one: `fit_adapter` knows.
        """
        weights = {f"{module}.weight" for module in self.factors}
        biases = {f"{module}.bias" for module, factors in self.factors.items() if factors.bias}
        return sorted(weights | biases | set(self.copies) | set(self.tokens))

    @property
    def fingerprint(self) -> str:
        """Of the tensors and of what in the config decides the delta."""
        # PEFT writes a set of parameters as a list in any order.
        decisive = {key: self.config.get(key) for key in DECISIVE_KEYS}
        decisive["target_parameters"] = sorted(decisive["target_parameters"] or [])
        return fingerprint([self.store.fingerprint, json.dumps(decisive, sort_keys=True)])

    def scale(self, module: str) -> float:
        """s of one module: α/r, or α/√r with rsLoRA; rank and alpha patterns as PEFT matches them."""
        return self.scale_of(module, self.store.shape(self.factors[module].A)[0])

    def scale_of(self, key: str, rank: int) -> float:
        """s of what PEFT's patterns know as `key` (a module, or a parameter with its module) and has this rank."""
        patterns = self.config.get("alpha_pattern") or {}
        matching = (pattern for pattern in patterns if matches(rf"(.*\.)?({pattern})", key))
        alpha = float(patterns.get(next(matching, key), self.config["lora_alpha"]))
        return alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank

    def token_indices(self, module: str) -> list[int]:
        """The tokens that `trainable_token_indices` names for a module, in the order of their trained rows."""
        indices = self.config.get("trainable_token_indices") or []
        if isinstance(indices, dict):
            return next((tokens for target, tokens in indices.items() if module.endswith(target)), [])
        return list(indices)

    def shape(self, module: str) -> tuple[int, ...]:
        """Shape of a module's B·A before any transposition: ``(O, I)``, or ``(D, V)`` for an embedding."""
        factors = self.factors[module]
        return self.store.shape(factors.B)[0], self.store.shape(factors.A)[1]

    def matrices(self, module: str) -> tuple[Tensor, Tensor]:
        """The factors A ``(r, I)`` and B ``(O, r)`` of one module in fp32; its change is ``scale(module) * B @ A``."""
        factors = self.factors[module]
        return self.store.tensor(factors.A).float(), self.store.tensor(factors.B).float()


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter; broken files, and kinds whose delta is not s·BA (plus full copies), are a `PaftError`."""
    config = read_json(folder / ADAPTER_CONFIG)
    raise_if_any(unsupported(folder, config))
    adapter = Adapter(folder, config, open_adapter_weights(folder))
    plain = plain_names(adapter.store.names)
    raise_if_any(_empty_problems(adapter) + _name_problems(folder, plain))
    names = set(plain.values())
    unknown = [key for key, name in plain.items() if not _file_under(adapter, key, name, names)]
    problems = [f"{folder}: tensor {some(unknown)} is of no kind known here. {_RETRAIN}"] if unknown else []
    with as_written(folder / ADAPTER_CONFIG, "Repeat the run that writes it."):
        problems += [f"{folder}: {problem}" for problem in _factor_problems(adapter) + _token_problems(adapter)]
    if odd := [key for key, name in plain.items() if name not in (key, key.removeprefix(PREFIX))]:
        adapter.notes.append(
            f"{folder}: {len(odd)} of its tensors have names like {odd[0]}, read as {PREFIX}{plain[odd[0]]}. PEFT, so plain "
            "mergekit-yaml, leaves such tensors out: merge it with `axolotl paft merge`, or materialize it."
        )
    if config.get("bias") == "lora_only" and not any(name.endswith(".bias") for name in adapter.copies):
        problems.append(
            f"{folder}: trained with bias: lora_only, but PEFT did not save the biases. Retrain with bias: none."
        )
    if not adapter.names:
        problems.append(f"{folder}: its adapter file holds no tensors. Repeat the run that writes it.")
    raise_if_any(problems)
    return adapter


def plain_names(keys: Sequence[str]) -> dict[str, str]:
    """Tensor of an adapter's file → what the base calls it, without all that PEFT and wrappers put around that.

    The prefix comes twice where a PeftModel was wrapped once more, as by a trainer that is given a `peft_config` as well. An
    adapter's name is dropped if it is the only one, and kept otherwise.
    """
    short = {key: _without_prefixes(AROUND.sub("", key)) for key in keys}
    adapters = {match["adapter"] for name in short.values() if (match := NAMED.search(name))}
    if len(adapters) > 1:
        return short
    saved = f".modules_to_save.{next(iter(adapters), 'default')}."
    return {key: NAMED.sub(r"\1", name).replace(saved, ".modules_to_save.") for key, name in short.items()}


def _without_prefixes(name: str) -> str:
    name = name.removeprefix("module.") if name.startswith(f"module.{PREFIX}") else name
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    return name


def _name_problems(folder: Path, plain: Mapping[str, str]) -> list[str]:
    """A problem if names cannot be told apart, or are of several adapters."""
    adapters = sorted({match["adapter"] for name in plain.values() if (match := NAMED.search(name))})
    if adapters:
        return [
            f"{folder}: holds several adapters, {some(adapters)}. Save the one that is meant: "
            f"save_pretrained(…, selected_adapters=[{adapters[0]!r}])."
        ]
    keys: dict[str, list[str]] = defaultdict(list)
    for key, name in plain.items():
        keys[name].append(key)
    twice = [several for several in keys.values() if len(several) > 1]
    if not twice:
        return []
    return [
        f"{folder}: {' and '.join(twice[0])} mean one tensor ({len(twice)} such cases), so which one was trained is "
        "unknown. Repeat the run that writes it."
    ]


def _empty_problems(adapter: Adapter) -> list[str]:
    """A problem if tensors are empty, and why."""
    store = adapter.store
    # A of a module without rank is (0, I), its B (O, 0).
    ranks = {".lora_A": 0, ".lora_B": 1}
    without_rank = [
        name
        for name in store.names
        for kind, place in ranks.items()
        if kind in name and len(shape := store.shape(name)) == 2 and shape[place] == 0 < shape[1 - place]
    ]
    if not without_rank:
        return hollow(adapter.folder, store.names, store)
    return [
        f"{adapter.folder}: {len(without_rank)} of its LoRA factors have rank 0 ({some(without_rank)}), as mergekit-extract-lora "
        "writes them where nothing changed, and PEFT loads none. Extract it again with --skip-undecomposable."
    ]


def _factor_problems(adapter: Adapter) -> list[str]:
    problems: dict[str, list[str]] = defaultdict(list)
    for module, factors in adapter.factors.items():
        if not (factors.A and factors.B):
            problems["{} has one LoRA factor without the other. Repeat the run that writes it."].append(module)
        elif any(len(adapter.store.shape(key)) != 2 for key in (factors.A, factors.B)):
            problems[f"{{}} is no linear layer or embedding. {_MERGE}"].append(module)
        elif adapter.store.shape(factors.A)[0] != adapter.store.shape(factors.B)[1]:
            problems["the LoRA factors of {} differ in rank. Repeat the run that writes it."].append(module)
    return [text.format(some(modules)) for text, modules in problems.items()]


def _token_problems(adapter: Adapter) -> list[str]:
    problems = []
    if adapter.config.get("trainable_token_indices") and not adapter.tokens:
        problems.append("trainable_token_indices is set, but its file has no rows. Repeat the run that writes it.")
    for name, key in adapter.tokens.items():
        told, rows = adapter.token_indices(name.removesuffix(".weight")), adapter.store.shape(key)[0]
        if not all(isinstance(token, int) and token >= 0 for token in told):
            problems.append(
                f"trainable_token_indices names {some([str(token) for token in told])}: no token ids. Correct it."
            )
        elif len(told) != rows or len(set(told)) != rows:
            problems.append(
                f"trainable_token_indices names {len(set(told))} tokens, its file holds {rows} rows ({key}). "
                "Repeat the run that writes it."
            )
    return problems


def unsupported(folder: Path, config: dict[str, Any]) -> list[str]:
    """What in an adapter's config makes a delta that is not s·BA; one message each."""
    where = folder / ADAPTER_CONFIG
    kind = str(config.get("peft_type", "missing")).upper()
    if kind != "LORA":
        return [f"{where}: peft_type is {kind}, and only LORA is supported. {_MERGE}"]
    problems = [
        f"{where}: {key} has the value {str(config[key])[:60]}, which is of a wrong kind. Repeat the run that writes it."
        for key, kinds in KINDS.items()
        if key in config and not isinstance(config[key], kinds)
    ]
    if problems:
        return problems
    problems = [f"{where}: {key} is set: {way_out}" for key, way_out in REFUSED_KEYS.items() if config.get(key)]
    initial = config.get("init_lora_weights", True)
    if (initial.lower() if isinstance(initial, str) else initial) not in KEEP_BASE:
        problems.append(
            f"{where}: init_lora_weights is {initial!r}, which changes the base that the adapter starts from. "
            "Convert it (PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)), or retrain with the default."
        )
    if config.get("lora_alpha") is None:
        problems.append(f"{where}: lora_alpha is missing, so its scale is unknown. Repeat the run that writes it.")
    elif not _is_scale(config["lora_alpha"]):
        problems.append(f"{where}: lora_alpha {_NO_SCALE.format(config['lora_alpha'])}")
    ranks = [config["r"]] if "r" in config else []
    ranks += config["rank_pattern"].values() if isinstance(config.get("rank_pattern"), dict) else []
    problems += [
        f"{where}: r or rank_pattern has the value {rank!r}, which is no rank: those are whole numbers from 1 up. Correct it."
        for rank in ranks
        if type(rank) is not int or rank < 1
    ]
    return problems + [f"{where}: {problem}" for problem in _pattern_problems(config.get("alpha_pattern") or {})]


def _is_scale(alpha: object) -> bool:
    """Whether a value of the config is a number that fp32 can hold, in which deltas are computed; JSON's NaN is none."""
    return type(alpha) in (int, float) and abs(alpha) <= torch.finfo(torch.float32).max  # type: ignore[arg-type]


def _pattern_problems(patterns: Any) -> list[str]:
    if not isinstance(patterns, dict):
        return ["alpha_pattern is no table of patterns. Repeat the run that writes it."]
    problems = []
    for pattern, alpha in patterns.items():
        if not _is_scale(alpha):
            problems.append(f"alpha_pattern: {pattern!r} {_NO_SCALE.format(alpha)}")
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            problems.append(f"alpha_pattern: {pattern!r} is no regular expression ({error}). Correct it.")
    return problems


def _file_under(adapter: Adapter, key: str, name: str, names: Collection[str]) -> bool:
    """Enter one tensor of the adapter file, plainly `name` of `names`, among its factors or copies; False if it is neither."""
    if match := FACTOR.fullmatch(name):
        factors = adapter.factors.setdefault(match["module"], Factors(embedding=bool(match["embedding"])))
        slot = "bias" if match["part"] == "bias" else match["which"]
        setattr(factors, slot, key)
        return slot != "bias" or match["which"] == "B"
    if name.endswith(TOKENS):
        adapter.tokens[f"{name.removesuffix(TOKENS)}.weight"] = key
        return True
    if inside := INSIDE.search(name):
        outside = INSIDE.sub(".", name)
        if outside in names:
            return True
        if inside[1] == "original_module":
            return outside in adapter.copies or INSIDE.sub(".modules_to_save.", name) in names
        name = outside
    plain = WRAPPER.sub("", name)
    if "lora_" in plain or "token_adapter" in plain:
        return False
    adapter.copies[plain] = key
    return True
