"""`python -m paft_plugin.pipeline.controls REQUEST`: write a control, a trained delta changed to another one's norm or sparsity.

It lies where a trained branch would, as an adapter if only its scale is another, else as a whole model. `control.json` beside
it says what it was to come to, and what it came to as it is read from its files.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from paft_plugin.deltas.adapter import open_adapter
from paft_plugin.deltas.controls import (
    CONTROL_FILE,
    ControlFile,
    DeltaSize,
    Tensors,
    dropped,
    factor_to,
    measured,
    pruned,
    scaled,
)
from paft_plugin.deltas.delta import Delta, delta_of
from paft_plugin.deltas.store import open_model, tied_names
from paft_plugin.deltas.tokenizer import TOKENIZER_FILES
from paft_plugin.errors import PaftError, raise_if_any, run_request, some
from paft_plugin.files import ADAPTER_CONFIG, ADAPTER_FILE, read_json, write_json
from paft_plugin.fusion.merge.write import SHARD_SIZE, shard_bytes
from paft_plugin.fusion.merge.writer import ShardedWriter, whole_folder
from paft_plugin.pipeline.baselines import ControlRequest
from paft_plugin.pipeline.config import ControlSpec
from paft_plugin.reading import read_json_file

FAR = 1e-3
"""From which relative distance on it is said that a norm or a share is not what was wanted."""


def make_control(request: ControlRequest) -> ControlFile:
    """Write a control into its folder, which must not be there yet.

    Raises:
        PaftError: The branches change different tensors, one of them is zero, or `of` is sparser than `like` already.
    """
    spec, base = request.spec, open_model(request.base)
    of = delta_of(base, request.of)
    like = delta_of(base, request.like) if request.like else None
    raise_if_any([*_grown(of, spec.of), *(_different(of, like, spec) if like else [])])
    before = measured(of.tensors, spec.threshold)
    model = measured(like.tensors, spec.threshold) if like else None
    control, wanted = _changed(of.tensors, spec, before, model)
    with whole_folder(request.folder) as folder:
        if request.as_adapter:
            _write_scaled(request.of, folder, wanted["factor"])
        else:
            _write_model(of, control, folder)
        written = replace(delta_of(base, folder), names=of.names)
        made = ControlFile(
            **spec.model_dump(include={"control", "of", "like", "threshold"}),
            before=before,
            like_size=model,
            wanted=wanted,
            reached=measured(written.tensors, spec.threshold),
            tensors=of.names,
        )
        made.write(folder / CONTROL_FILE)
    return made


def _grown(of: Delta, name: str) -> list[str]:
    said = f"{name} has a larger vocabulary than the base ({some(list(of.grown))}). Name another branch."
    return [said] if of.grown else []


def _different(of: Delta, like: Delta, spec: ControlSpec) -> list[str]:
    """A problem if the two do not change the same tensors, so that norms and shares are not of the same entries."""
    odd = sorted(set(of.names) ^ set(like.names))
    if not odd:
        return []
    return [
        f"{spec.of} and {spec.like} change different tensors ({some(odd)}), so their norms and shares cannot be compared. Train "
        "both as adapters of the same modules, or both as whole models."
    ]


def _changed(
    of: Tensors, spec: ControlSpec, before: DeltaSize, like: DeltaSize | None
) -> tuple[Tensors, Mapping[str, float]]:
    """The control, and what it is to come to.

    `prune_rescale` has the norm of `like` as well as its share: whatever is claimed of either is matched, and what is left of a
    difference is what was learnt. (Pruned to the norm before pruning is `rescale_l2`, `of` a pruned control, `like` the dense
    branch.)
    """
    if spec.factor is not None:
        return scaled(of, spec.factor), {"factor": spec.factor}
    if like is None:  # the share that is said stands in for another delta's
        like = before.model_copy(update={"small": round((spec.sparsity or 0.0) * before.entries)})
    if not spec.is_sparse:
        norm = "l1" if spec.control == "rescale_l1" else "l2"
        wanted = getattr(like, norm)
        factor = factor_to(wanted, getattr(before, norm))
        return scaled(of, factor), {norm: wanted, "factor": factor}
    if before.small > like.small:
        raise PaftError(
            f"{spec.of} is sparser than {spec.like or 'that'} already: {before.share:.4f} of its entries are at or under "
            f"{spec.threshold:g}, and {like.share:.4f} are wanted. Name a sparser `like`, or a larger `sparsity`."
        )
    share = {"share": like.share}
    if spec.control == "drop":
        return dropped(of, like.small, spec.seed), {**share, "factor": before.entries / (before.entries - like.small)}
    without = pruned(of, like.small)
    if spec.control == "prune":
        return without, share
    factor = factor_to(like.l2, measured(without, spec.threshold).l2)
    return scaled(without, factor), {**share, "l2": like.l2, "factor": factor}


def _write_scaled(source: Path, folder: Path, factor: float) -> None:
    """The adapter with another scale: its factors stay as they are, bit for bit."""
    adapter = open_adapter(source)
    if beside := [*adapter.copies, *adapter.tokens, *(f.bias for f in adapter.factors.values() if f.bias)]:
        raise PaftError(
            f"{source}: holds more than LoRA factors ({some(beside)}), which a scale does not reach. Name it as a whole model."
        )
    content = read_json(source / ADAPTER_CONFIG)
    patterns = {pattern: alpha * factor for pattern, alpha in (content.get("alpha_pattern") or {}).items()}
    content |= {"lora_alpha": content["lora_alpha"] * factor, "alpha_pattern": patterns}
    _copy_files(source, folder, TOKENIZER_FILES)
    shutil.copyfile(source / ADAPTER_FILE, folder / ADAPTER_FILE)
    write_json(folder / ADAPTER_CONFIG, content)


def _write_model(of: Delta, control: Tensors, folder: Path) -> None:
    """The base with a delta on it. What it changes is in fp32 as the delta is, the rest in the base's dtype, as it was."""
    base = of.base
    tied = tied_names(base)
    with closing(ShardedWriter(folder, base.names, shard_bytes(SHARD_SIZE))) as writer:
        for name, delta in control():
            after = base.tensor(name).float() + delta
            writer.add(name, after)
            if tied and name == tied[0] and tied[1] in base:
                writer.add(tied[1], after)
        for name in base.names:
            if name not in writer.names:
                writer.add(name, base.tensor(name))
        writer.finish()
    _copy_files(base.folder, folder, ("config.json", "generation_config.json", "*.py", "*.model", *TOKENIZER_FILES))


def _copy_files(source: Path, folder: Path, patterns: Sequence[str]) -> None:
    for file in (file for pattern in patterns for file in source.glob(pattern) if file.is_file()):
        shutil.copyfile(file, folder / file.name)


def _said(made: ControlFile) -> list[str]:
    """What it came to, and a warning where that is not what was wanted: rounding, or entries that were small before."""
    reached = {"l1": made.reached.l1, "l2": made.reached.l2, "share": made.reached.share}
    lines = [
        f"l1 {made.reached.l1:.6g}, l2 {made.reached.l2:.6g}, {made.reached.share:.4f} of {made.reached.entries} entries at or "
        f"under {made.threshold:g}, {made.reached.zeros} of them zero."
    ]
    off = {
        key: wanted
        for key, wanted in made.wanted.items()
        if key in reached and abs(reached[key] - wanted) > FAR * wanted
    }
    return lines + [f"Warning: {key} is {reached[key]:.6g}, not {wanted:.6g} as wanted." for key, wanted in off.items()]


def work(file: Path) -> None:
    """Make the control that a request asks for."""
    made = make_control(ControlRequest.model_validate(read_json_file(file, ControlFile.AGAIN)))
    print("\n".join(_said(made)))


if __name__ == "__main__":
    sys.exit(run_request(sys.argv[1:], "paft_plugin.pipeline.controls", work))
