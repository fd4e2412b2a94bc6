"""The merged model as a folder: weights, configuration, tokenizer, and what they were made of."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mergekit.card import generate_card
from mergekit.common import ModelPath, ModelReference

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.store import INPUT_EMBEDDINGS, open_model
from paft_plugin.errors import PaftError, raise_if_any, some
from paft_plugin.files import PROOF_FILE, write_json, write_text
from paft_plugin.fusion.merge.configuration import references, without_adapters
from paft_plugin.fusion.merge.fusion import Fusion
from paft_plugin.fusion.merge.loaders import AdapterLoader
from paft_plugin.fusion.merge.writer import ShardedWriter, whole_folder
from paft_plugin.fusion.mergekit_internals import (
    copy_tagalong_files,
    copy_tokenizer,
    set_chat_template,
    update_config_vocab,
)
from paft_plugin.machine import installed
from paft_plugin.templates import render

SCHEMA_VERSION = 1
SHARD_SIZE = "5GB"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
GENERATION_CONFIG = "generation_config.json"
LIBRARIES = ("paft-plugin", "mergekit", "torch", "transformers", "peft", "safetensors")


def write_fusion(
    fusion: Fusion,
    out: Path,
    shard_size: str = SHARD_SIZE,
    findings: Sequence[str] = (),
    quiet: bool = True,
) -> list[str]:
    """Merge, and write the model to `out`: the whole of it or nothing. Returns warnings: what the folder lacks.

    Args:
        out: A folder that does not exist yet, or is empty.
        shard_size: Most bytes in one file of weights, as a number with or without K, M, G (or mergekit's B: 10⁹).
        findings: What a check of the recipe said, a sentence each; kept with the model.

    Raises:
        PaftError: As `Fusion.tensors`; or `out` is taken or cannot be written.
    """
    with whole_folder(out) as folder:
        return fill_folder(fusion, folder, out.absolute().name, shard_size, findings, quiet)


def fill_folder(
    fusion: Fusion,
    folder: Path,
    name: str,
    shard_size: str = SHARD_SIZE,
    findings: Sequence[str] = (),
    quiet: bool = True,
) -> list[str]:
    """`write_fusion` into a folder that is there; its card calls the model by this name."""
    most = shard_bytes(shard_size)
    check_chat_template(fusion)
    before = fingerprints(fusion)
    with fusion.planned() as plan:
        writer = ShardedWriter(folder, [*plan.names, *fusion.whole_numbers], most)
        # One tensor is written while the next is merged.
        with closing(writer), ThreadPoolExecutor(1) as pool:
            under_way: Future[None] | None = None
            for tensor_name, tensor in fusion.run(plan, quiet):
                if under_way is not None:
                    under_way.result()
                under_way = pool.submit(writer.add, tensor_name, tensor)
            if under_way is not None:
                under_way.result()
            writer.finish()
    check_whole(fusion, writer.names)
    check_unchanged(fusion, before)
    warnings = [*fusion.notes, *write_tokenizer(fusion, folder)]
    fusion.model_config.save_pretrained(folder)
    record = provenance_record(fusion, before, [*findings, *fusion.notes])
    write_json(folder / PROOF_FILE, record)
    write_text(folder / "mergekit_config.yml", fusion.text)
    card = generate_card(fusion.config.model_copy(deep=True), fusion.text, name=name)
    write_text(folder / "README.md", f"{card}\n{provenance_text(record)}")
    return warnings


def shard_bytes(text: str) -> int:
    """`5GB`, `5G`, `5B`, `500M`, `500MB` or a number of bytes, in bytes (powers of ten).

    Raises:
        PaftError: Nothing of the kind.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(b?)", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise PaftError(f"--out-shard-size {text}: not a size. Give one like 5GB or 500MB.")
    return int(float(match[1]) * UNITS[match[2] or match[3]])


def check_chat_template(fusion: Fusion) -> None:
    """Refuse a chat template that mergekit would refuse, before the work rather than after it."""
    if fusion.config.chat_template and fusion.config.chat_template != "auto":
        try:
            set_chat_template(SimpleNamespace(chat_template=None), fusion.config)
        except RuntimeError:
            raise PaftError(
                f"{fusion.recipe}: chat_template is none of mergekit's, `auto`, or a Jinja template. Correct it."
            ) from None


def write_tokenizer(fusion: Fusion, folder: Path) -> list[str]:
    """Tokenizer, chat template and generation config, as the recipe says or from the base."""
    config = without_adapters(fusion.config)
    first = fusion.config.base_model or references(fusion.config)[0]
    donor = fusion.loaders[first].store.folder
    # With a base model named, mergekit's functions take that one, whose files are here already.
    config.base_model = ModelReference(model=ModelPath(path=str(donor)))
    warnings = []
    if fusion.tokenizer is not None:
        padding = config.tokenizer.pad_to_multiple_of if config.tokenizer else None
        update_config_vocab(fusion.model_config, fusion.architecture, fusion.tokenizer, padding)
        warnings += _cut_vocabularies(fusion, padding)
        set_chat_template(fusion.tokenizer, config)
        fusion.tokenizer.save_pretrained(folder)
    else:
        try:
            copy_tokenizer(config, str(folder), fusion.options)
        except (OSError, ValueError, ImportError, TypeError):  # the last from classes that open a file without a name
            warnings.append(f"{donor} has no tokenizer, so the merged model has none either. Copy one into its folder.")
    copy_tagalong_files(config, str(folder), fusion.architecture.tagalong_files or [], fusion.options)
    if (donor / GENERATION_CONFIG).is_file():
        shutil.copy(donor / GENERATION_CONFIG, folder)
    return warnings


def _cut_vocabularies(fusion: Fusion, padding: int | None) -> list[str]:
    """A warning if the tokenizer that was built has fewer tokens than a model has rows for them."""
    rows = len(fusion.tokenizer.get_vocab()) if fusion.tokenizer else 0
    rows += -rows % (padding or 1)
    stores = {loader.store.folder: loader.store for loader in fusion.loaders.values()}
    named = [(store, name) for store in stores.values() for name in store.names if name.endswith(INPUT_EMBEDDINGS)]
    found = {store.folder: store.shape(name)[0] for store, name in named}
    longer = [f"{folder} ({count})" for folder, count in found.items() if count > rows]
    said = (
        f"the merged vocabulary has {rows} rows, fewer than {some(longer)}: as in mergekit it is that of the recipe's "
        "tokenizer, without padding or other models' tokens. Branches of one base need no `tokenizer` in the recipe; "
        "`pad_to_multiple_of` under it pads."
    )
    return [said] if longer else []


def fingerprints(fusion: Fusion) -> dict[Path, str]:
    """Folder of each model and adapter that is merged → fingerprint of what it holds now."""
    loaders = fusion.loaders.values()
    models = {loader.store.folder for loader in loaders}
    adapters = {loader.delta.branch for loader in loaders if isinstance(loader, AdapterLoader)}
    found = {folder: open_model(folder).fingerprint for folder in models}
    return found | {folder: open_adapter(folder).fingerprint for folder in adapters}


def check_whole(fusion: Fusion, written: set[str]) -> None:
    """Refuse a merged model that lacks tensors of its base: it would load, and transformers would make them up.

    Raises:
        PaftError: Some are lacking.
    """
    lost = [name for name, place in fusion.places.items() if place not in written]
    if lost and fusion.config.models is not None:
        raise PaftError(
            f"{fusion.recipe}: the merged model would lack {some(lost)} of its base. mergekit does not give them."
        )


def check_unchanged(fusion: Fusion, before: Mapping[Path, str]) -> None:
    """Refuse a merge of what was written meanwhile: it may be of the old tensors, the new ones, or some of each.

    Raises:
        PaftError: A folder does not hold what it held `before` any more.
    """
    after = fingerprints(fusion)
    changed = [str(folder) for folder in before if after[folder] != before[folder]]
    raise_if_any(
        [f"{name}: changed while it was merged. Merge again once nothing writes it any more." for name in changed]
    )


def provenance_record(fusion: Fusion, contents: Mapping[Path, str], findings: Sequence[str]) -> dict[str, Any]:
    """What a merge is made of (its `fingerprints`) and by, as `paft.json` beside its result holds it."""
    models = []
    for reference, loader in fusion.loaders.items():
        model: dict[str, Any] = {"path": str(reference.model), "fingerprint": contents[loader.store.folder]}
        if isinstance(loader, AdapterLoader):
            adapter = {"path": str(reference.lora), "fingerprint": contents[loader.delta.branch]}
            model = {**model, "adapter": adapter}
        models.append({**model, "is_base": reference == fusion.config.base_model})
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "fusion",
        "method": fusion.config.merge_method,
        "seed": fusion.seed,
        "device": fusion.options.device,
        "models": models,
        "versions": {name.replace("-", "_"): number for name, number in installed(LIBRARIES).items()},
        "findings": list(findings),
        "recipe": fusion.text,
    }


def provenance_text(record: dict[str, Any]) -> str:
    """The section of a model card on what a `provenance_record` holds."""
    parts = [part for model in record["models"] for part in (model, model.get("adapter")) if part]
    fingerprints = {part["path"]: part["fingerprint"] for part in parts}
    return render("paft_plugin.fusion", "provenance.md", record=record, fingerprints=fingerprints)
