"""What all seeds of a study scored, in files small enough to be committed: `items/<seed>.npz` and `figures.json`.

Every table and figure follows from these and `design.json` alone. Right and wrong are kept as bits; other values as whole numbers
of a step, a power of two no larger than 1/256 of their standard deviation, so that no value is off by more than half a step.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tokenize
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paft_plugin.errors import PaftError, raise_if_any
from paft_plugin.evaluation.results import VALIDATION, ItemValues, Measure, Results, Sparsity, read_results
from paft_plugin.evaluation.statistics import Values, clusters, is_right_or_wrong
from paft_plugin.files import JsonFile, fingerprint, inside, write_bytes
from paft_plugin.inspection.inspected import INSPECTION_FILE, read_inspection
from paft_plugin.reading import UnreadableError, parse_json, read_bytes
from paft_plugin.report.collect import INSPECTIONS
from paft_plugin.report.differences import silent_measures
from paft_plugin.study.design import DESIGN_FILE, PRIMARY, Design

ITEMS, FIGURES_FILE = Path("items"), Path("figures.json")
"""Below the study's folder."""
FINENESS = 256
"""Steps in a standard deviation."""
MOST_BYTES, MOST_VALUES = 64 << 20, 1 << 27
"""Of a file with items, and of what it unpacks to."""
AGAIN = "Run `axolotl paft study` again."
DAMAGED = (ValueError, KeyError, OSError, EOFError, RuntimeError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)
"""What zipfile and numpy raise at a file that is no `.npz`, or that was made to look like one."""


class ArmFigures(BaseModel):
    """What else than its items is known of an arm, in the run of one seed."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    scores: dict[str, float] = Field(default_factory=dict)
    """Measure → mean over its items, of those whose items are not kept."""
    sparsity: Sparsity = Field(default_factory=dict)
    """Threshold → share of the delta's entries that are no larger."""
    l1: float | None = None
    l2: float | None = None
    """Norms of the delta."""


class StudyFigures(JsonFile):
    """`figures.json`, in the study's folder."""

    SCHEMA: ClassVar[int] = 1
    AGAIN: ClassVar[str] = AGAIN

    measures: tuple[Measure, ...]
    seeds: dict[int, dict[str, ArmFigures]]
    """Seed → arm → its figures."""
    cost: tuple[dict[str, Any], ...] = ()
    """What each way costs, a row each."""
    notes: tuple[str, ...] = ()
    """What is missing, in sentences."""
    items: dict[int, str] = Field(default_factory=dict)
    """Seed → digest of the file of its items; empty in files of older versions."""


@dataclass(frozen=True)
class MeasureItems:
    """What every arm of one seed came to on the items of one measure."""

    items: str
    """Fingerprint of the items' names: seeds with the same have the same items."""
    arms: Mapping[str, Values]
    names: NDArray[np.int64] | None = None
    """A number for each item, the same for the same item in every seed and measure; None in files of older versions."""
    sources: NDArray[np.int64] | None = None
    """A number for each item's source, where items of a source are a cluster (see `clusters`)."""

    def __len__(self) -> int:
        return len(next(iter(self.arms.values()), ()))


Scores = Mapping[str, MeasureItems]
"""Of one seed: measure → items."""


@dataclass(frozen=True)
class StudyScores:
    """All that the analysis of a study needs."""

    design: Design
    figures: StudyFigures
    items: Mapping[int, Scores]
    """By seed."""
    rounding: Mapping[str, float] = field(default_factory=dict)
    """Measure → how far a kept value may be from what was scored."""

    @cached_property
    def are_named(self) -> bool:
        """Whether items can be told from others in all seeds and measures."""
        return all(kept.names is not None for scores in self.items.values() for kept in scores.values())

    def units(self, seed: int, measure: str) -> NDArray[np.int64]:
        """What of a measure's items counts singly: a number for each item, or its cluster, that others of the study have, too.

        Where items have no names, two measures or seeds have all items in common (by their fingerprint), or none.
        """
        kept = self.items[seed][measure]
        if self.are_named:
            assert kept.names is not None
            return kept.names if kept.sources is None else kept.sources
        first = np.arange(len(kept)) if kept.sources is None else _in_order(kept.sources)
        return first + (int(kept.items[:8], 16) << 24)

    def measure(self, name: str) -> Measure | None:
        """The measure of that name, if any seed was scored by it."""
        return next((one for one in self.figures.measures if one.name == name), None)


def _in_order(sources: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same sources, numbered as they come."""
    _, places, found = np.unique(sources, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(places))[found]


def kept_measures(design: Design) -> list[str]:
    """The measures whose items are kept: those that the design names, and those that they are chosen by."""
    return [name + end for name in design.measures for end in ("", VALIDATION)]


# --- from the runs ------------------------------------------------------------------------------------------------------


def collect(folder: Path, design: Design, cost: Sequence[Mapping[str, Any]] = (), failed: Sequence[int] = ()) -> None:
    """Write the small files of the study in `folder` from the runs of its seeds; seeds without results are left out, and said.

    So are those whose runs `failed`: what lies there may be older than the others' results.

    Raises:
        PaftError: What a run left cannot be read, its seeds were scored by different measures, or no seed has results.
    """
    found: dict[int, Results] = {}
    for seed in design.seeds:
        results = read_results(design.run_dir(folder, seed))
        if results is not None and seed not in failed:
            found[seed] = results
    if not found:
        raise PaftError(f"{folder}: no seed has results yet. {AGAIN}")
    measures = _common_measures(folder, found)
    wanted = {arm.name for arm in design.arms}
    items = {seed: _items_of(results, kept_measures(design), wanted) for seed, results in found.items()}
    figures = {
        seed: _figures_of(design.run_dir(folder, seed), results, wanted, items[seed]) for seed, results in found.items()
    }
    why = {seed: "failed" if seed in failed else "has no results" for seed in design.seeds if seed not in found}
    notes = [f"Seed {seed} {said}, and is left out." for seed, said in why.items()]
    notes += [*_missing_arms(design, found), *_silent(design, found)]
    write_scores(
        folder, items, StudyFigures(measures=measures, seeds=figures, cost=tuple(map(dict, cost)), notes=tuple(notes))
    )


def write_scores(folder: Path, items: Mapping[int, Scores], figures: StudyFigures) -> None:
    """Write the small files of a study: the items of each seed, then the rest, which knows the files that it belongs to."""
    digests = {}
    for seed, scores in items.items():
        content = packed(scores)
        write_bytes(inside(folder, ITEMS / f"{seed}.npz"), content)
        digests[seed] = _digest(content)
    figures.model_copy(update={"items": digests}).write(inside(folder, FIGURES_FILE))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _common_measures(folder: Path, found: Mapping[int, Results]) -> tuple[Measure, ...]:
    """Those of test items and of validation items, which all seeds have in common."""
    measures = {seed: (*results.measures, *results.validation) for seed, results in found.items()}
    first, *others = measures
    for seed in others:
        if {measure.name for measure in measures[seed]} != {measure.name for measure in measures[first]}:
            raise PaftError(f"{folder}: seed {seed} was scored by other measures than seed {first}. {AGAIN}")
    return measures[first]


def _missing_arms(design: Design, found: Mapping[int, Results]) -> list[str]:
    notes = []
    for name in dict.fromkeys(arm.name for arm in design.arms):
        lacking = [str(seed) for seed, results in found.items() if not _is_scored(results, name)]
        if lacking:
            notes.append(f"{name} was not scored with seed{'s' * (len(lacking) > 1)} {', '.join(lacking)}.")
    return notes


def _silent(design: Design, found: Mapping[int, Results]) -> Iterator[str]:
    """Named measures that tell nothing, and why, by the first seed that it is so with."""
    silent = {seed: silent_measures(results) for seed, results in found.items()}
    for name in kept_measures(design):
        if seeds := [seed for seed, why in silent.items() if name in why]:
            which = f" with seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
            where = which if len(seeds) < len(found) else ""
            counted = f", and {PRIMARY} counts it" if name in design.primary else ""
            yield f"{name} tells nothing{where}, because {silent[seeds[0]][name]}{counted}."


def _is_scored(results: Results, name: str) -> bool:
    arm = results.arm(name)
    return arm is not None and bool(arm.scores)


def _items_of(results: Results, measures: Sequence[str], wanted: set[str]) -> dict[str, MeasureItems]:
    kept = {}
    for measure in measures:
        by_arm: dict[str, ItemValues] = {
            arm.name: arm.items[measure] for arm in results.arms if arm.name in wanted and measure in arm.items
        }
        names = {each.names for each in by_arm.values()}
        if len(names) > 1:
            raise PaftError(f"The arms of a seed were scored on different items of {measure}. Score them again.")
        if by_arm:
            first = next(iter(by_arm.values()))
            own = [name if of is None else f"\0{of}" for name, of in zip(first.names, first.sources, strict=True)]
            kept[measure] = MeasureItems(
                fingerprint(first.names),
                {name: each.values for name, each in by_arm.items()},
                numbers(first.names),
                None if clusters(first.sources) is None else numbers(own),
            )
    return kept


def numbers(names: Sequence[str]) -> NDArray[np.int64]:
    """A number of 32 bits for each name."""
    return np.array([int(fingerprint([name])[:8], 16) for name in names], dtype=np.int64)


def _figures_of(run: Path, results: Results, wanted: set[str], items: Scores) -> dict[str, ArmFigures]:
    norms: dict[str, dict[str, float]] = {}
    for place in INSPECTIONS:
        if (run / place / INSPECTION_FILE).is_file():
            for delta in read_inspection(inside(run, place)).deltas:
                norms[delta.name] = {"l1": delta.figures.total.l1, "l2": delta.figures.total.l2}
    return {
        arm.name: ArmFigures(
            scores={
                name: score
                for name, score in arm.scores.items()
                if name not in items or arm.name not in items[name].arms
            },
            sparsity=arm.sparsity,
            **norms.get(arm.name, {}),
        )
        for arm in results.arms
        if arm.name in wanted
    }


# --- packed -------------------------------------------------------------------------------------------------------------


class _Packed(BaseModel):
    """What the file says of one measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    measure: str
    items: str = Field(pattern="^[0-9a-f]{16}$")
    count: int = Field(ge=1, le=1 << 24)
    arms: tuple[str, ...] = Field(min_length=1)
    """The rows of its array."""
    step: float | None = None
    """What the numbers are counted in; None: the array holds bits."""
    has_names: bool = False
    has_sources: bool = False


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: int = Field(alias="schema")
    measures: tuple[_Packed, ...]


SCHEMA, READABLE = 2, (1, 2)
"""Files of schema 1 have no names."""


def packed(scores: Scores) -> bytes:
    """The items of one seed as a compressed `.npz` without pickles: the same items give the same bytes."""
    arrays: dict[str, NDArray[Any]] = {}
    said = []
    for place, (measure, kept) in enumerate(scores.items()):
        values = np.stack(list(kept.arms.values()))
        step = None if is_right_or_wrong(values) else _step(values)
        arrays[f"values_{place}"] = _whole(values, step) if step else np.packbits(values.astype(np.uint8), axis=1)
        numbers = {"names": kept.names, "sources": kept.sources}
        arrays |= {f"{what}_{place}": each.astype("<u4") for what, each in numbers.items() if each is not None}
        said.append(
            {
                "measure": measure, "items": kept.items, "count": len(kept), "arms": list(kept.arms), "step": step,
                **{f"has_{what}": each is not None for what, each in numbers.items()},
            }
        )  # fmt: skip
    header = json.dumps({"schema": SCHEMA, "measures": said}, ensure_ascii=False).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, header=np.frombuffer(header, dtype=np.uint8), **arrays)
    return buffer.getvalue()


def _step(values: Values) -> float:
    largest = float(np.abs(values).max()) or 1.0
    # Of values that hardly differ the spread may be nothing but rounding; what is counted must fit into 32 bits.
    return 2.0 ** math.floor(math.log2(max(float(values.std()) / FINENESS, largest / (1 << 30))))


def _whole(values: Values, step: float) -> NDArray[Any]:
    counted = np.rint(values / step)
    return counted.astype("<i2" if np.abs(counted).max() < 2**15 else "<i4")


def items_in(content: bytes, file: Path) -> tuple[Scores, dict[str, float]]:
    """The items in what a `.npz` file of ours holds, and how far each measure's values may be from what was scored.

    Raises:
        PaftError: It is damaged, too large, or holds anything else.
    """
    try:
        arrays = dict(_arrays(content))
        header = _Header.model_validate(parse_json(arrays.pop("header").tobytes(), file))
        if header.schema_ not in READABLE:
            raise PaftError(f"{file}: schema {header.schema_}, and this version reads up to {SCHEMA}. {AGAIN}")
        if sum(len(one.arms) * one.count for one in header.measures) > MOST_VALUES:
            raise ValueError("it unpacks to more than any study needs")
        found = {one.measure: _unpacked(one, place, arrays) for place, one in enumerate(header.measures)}
        if arrays or len(found) < len(header.measures):
            raise ValueError("arrays that belong to no measure, or a measure twice")
    except PaftError:
        raise
    except (*DAMAGED, ValidationError) as error:
        what = "its header" if isinstance(error, ValidationError) else str(error) or type(error).__name__
        what = what.strip("'\"").splitlines()[0][:100]
        raise UnreadableError(file, f"damaged ({what})", hint=AGAIN) from None
    return found, {one.measure: (one.step or 0.0) / 2 for one in header.measures}


def _arrays(content: bytes) -> Iterator[tuple[str, NDArray[Any]]]:
    """The arrays in a `.npz`, none of them an object, and none larger than its bytes."""
    import zlib

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > MOST_VALUES:
            raise ValueError("it unpacks to more than any study needs")
        for member in members:
            try:
                raw = archive.read(member)
            except zlib.error as error:
                raise ValueError(str(error)) from None
            stream = io.BytesIO(raw)
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError(f"{member.filename} is no array of version 1.0")
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype.str not in ("|u1", "<i2", "<i4", "<u4") or is_fortran:
                raise ValueError(f"{member.filename} has the type {dtype}")
            flat = np.frombuffer(raw[stream.tell() :], dtype=dtype)
            yield member.filename.removesuffix(".npy"), flat.reshape(shape)


def _unpacked(one: _Packed, place: int, arrays: dict[str, NDArray[Any]]) -> MeasureItems:
    stored = arrays.pop(f"values_{place}")
    width = one.count if one.step else -(-one.count // 8)
    if stored.shape != (len(one.arms), width) or len(set(one.arms)) < len(one.arms):
        raise ValueError(f"{one.measure} has the shape {stored.shape}, or an arm twice")
    if (stored.dtype == np.uint8) != (one.step is None) or (one.step is not None and one.step <= 0):
        raise ValueError(f"{one.measure} has the type {stored.dtype} with a step of {one.step}")
    values = (
        np.unpackbits(stored, axis=1, count=one.count).astype(np.float64)
        if one.step is None
        else stored.astype(np.float64) * one.step
    )
    numbers = {what: arrays.pop(f"{what}_{place}") for what in ("names", "sources") if getattr(one, f"has_{what}")}
    for what, each in numbers.items():
        if each.shape != (one.count,):
            raise ValueError(f"{one.measure} has {what} of the shape {each.shape}")
    named = {what: each.astype(np.int64) for what, each in numbers.items()}
    return MeasureItems(one.items, dict(zip(one.arms, values, strict=True)), **named)


def read_study(folder: Path) -> StudyScores:
    """What `collect` wrote into `folder`, and the design.

    Raises:
        PaftError: A file is missing, damaged, or contradicts the others; all that is wrong.
    """
    design, figures = Design.read(inside(folder, DESIGN_FILE)), StudyFigures.read(inside(folder, FIGURES_FILE))
    problems, items, rounding = [], {}, dict[str, float]()
    known = {measure.name for measure in figures.measures}
    names = {arm.name for arm in design.arms}
    for seed, arms in figures.seeds.items():
        file = inside(folder, ITEMS / f"{seed}.npz")
        if seed not in design.seeds:
            problems.append(f"{folder / FIGURES_FILE}: seed {seed} is none of the design's. {AGAIN}")
        try:
            packed_items = read_bytes(file, MOST_BYTES, hint=AGAIN)
            items[seed], steps = items_in(packed_items, file)
            if figures.items.get(seed, "") not in ("", _digest(packed_items)):
                problems.append(f"{file}: is of another time than {FIGURES_FILE}. {AGAIN}")
        except PaftError as error:
            problems.append(str(error))
            continue
        rounding = {name: max(rounding.get(name, 0.0), step) for name, step in {**rounding, **steps}.items()}
        for measure, kept in items[seed].items():
            if measure not in known:
                problems.append(f"{file}: {measure} is no measure of {FIGURES_FILE}. {AGAIN}")
            if strange := sorted(set(kept.arms) - names | set(kept.arms) - set(arms)):
                problems.append(f"{file}: {strange[0]} is no arm of the study. {AGAIN}")
    raise_if_any(problems)
    return StudyScores(design, figures, items, rounding)
