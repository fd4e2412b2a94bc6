"""LoRA adapters as PEFT saves them: which tensors they hold, and the delta s·BA of each adapted weight.

Shapes: `r` rank, `O` output features, `I` input features, `V` vocabulary, `D` model dimension.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from paft_plugin.deltas.store import TensorStore, open_adapter_weights
from paft_plugin.errors import raise_if_any, some
from paft_plugin.files import ADAPTER_CONFIG, fingerprint, read_json

PREFIX = "base_model.model."
# Layers that PEFT wraps around a module: below them is what the base calls by the same name.
WRAPPER = re.compile(r"(\.base_layer|\.token_adapter\.base_layer)+(?=\.|$)")
# With a resized vocabulary PEFT saves the inside of its wrapper too; the trained copy comes a second time, by its plain name.
INSIDE = re.compile(r"\.(modules_to_save|original_module)\.")
TOKENS = ".token_adapter.trainable_tokens_delta"
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.(?P<part>weight|bias))?")

_MERGE = (
    "Merge it into an unquantised base with `axolotl merge-lora` and give the merged model as the branch, "
    "or retrain with plain LoRA."
)
_RETRAIN = "Retrain with plain LoRA."
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
        matching = (pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", key))
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
    unknown = [key for key in adapter.store.names if not _file_under(adapter, key)]
    problems = [f"{folder}: tensor {key} is of no kind known here. {_RETRAIN}" for key in unknown[:3]]
    problems += [f"{folder}: {problem}" for problem in _factor_problems(adapter) + _token_problems(adapter)]
    if config.get("bias") == "lora_only" and not any(name.endswith(".bias") for name in adapter.copies):
        problems.append(
            f"{folder}: trained with bias: lora_only, but PEFT did not save the biases. Retrain with bias: none."
        )
    if not adapter.names:
        problems.append(f"{folder}: its adapter file holds no tensors. Repeat the run that writes it.")
    raise_if_any(problems)
    return adapter


def _factor_problems(adapter: Adapter) -> list[str]:
    problems = []
    for module, factors in adapter.factors.items():
        if not (factors.A and factors.B):
            problems.append(f"{module} has one LoRA factor without the other. Repeat the run that writes it.")
        elif any(len(adapter.store.shape(key)) != 2 for key in (factors.A, factors.B)):
            problems.append(f"{module} is no linear layer or embedding. {_MERGE}")
        elif adapter.store.shape(factors.A)[0] != adapter.store.shape(factors.B)[1]:
            problems.append(f"the LoRA factors of {module} differ in rank. Repeat the run that writes it.")
    return problems


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
    problems = [f"{where}: {key} is set: {way_out}" for key, way_out in REFUSED_KEYS.items() if config.get(key)]
    initial = config.get("init_lora_weights", True)
    if (initial.lower() if isinstance(initial, str) else initial) not in KEEP_BASE:
        problems.append(
            f"{where}: init_lora_weights is {initial!r}, which changes the base that the adapter starts from. "
            "Convert it (PEFT: save_pretrained(…, path_initial_model_for_weight_conversion=…)), or retrain with the default."
        )
    if not isinstance(config.get("lora_alpha"), (int, float)):
        problems.append(f"{where}: lora_alpha is missing, so its scale is unknown. Repeat the run that writes it.")
    return problems + [f"{where}: {problem}" for problem in _pattern_problems(config.get("alpha_pattern") or {})]


def _pattern_problems(patterns: Any) -> list[str]:
    if not isinstance(patterns, dict):
        return ["alpha_pattern is no table of patterns. Repeat the run that writes it."]
    problems = []
    for pattern, alpha in patterns.items():
        if not isinstance(alpha, (int, float)):
            problems.append(f"alpha_pattern: {pattern!r} has the value {alpha!r}, which is no number. Correct it.")
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            problems.append(f"alpha_pattern: {pattern!r} is no regular expression ({error}). Correct it.")
    return problems


def _file_under(adapter: Adapter, key: str) -> bool:
    """Enter one tensor of the adapter file among its factors or copies; False if it is neither."""
    name = key.removeprefix(PREFIX)
    if match := FACTOR.fullmatch(name):
        factors = adapter.factors.setdefault(match["module"], Factors(embedding=bool(match["embedding"])))
        slot = "bias" if match["part"] == "bias" else match["which"]
        setattr(factors, slot, key)
        return slot != "bias" or match["which"] == "B"
    if name.endswith(TOKENS):
        adapter.tokens[f"{name.removesuffix(TOKENS)}.weight"] = key
        return True
    if INSIDE.search(name):
        return f"{PREFIX}{INSIDE.sub('.', name)}" in adapter.store
    plain = WRAPPER.sub("", name)
    if "lora_" in plain or "token_adapter" in plain:
        return False
    adapter.copies[plain] = key
    return True
