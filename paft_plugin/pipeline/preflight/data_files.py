"""Local data files, looked into: their first and last rows, and all that would keep `datasets` from reading them."""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paft_plugin.errors import Findings, PaftError, collecting, printable
from paft_plugin.files import looks_local
from paft_plugin.formats import without_password
from paft_plugin.pipeline.branches import Branch, entries
from paft_plugin.pipeline.hub import access, offline
from paft_plugin.reading import parse_json

FIRST, LAST = 64, 16
"""Rows that are looked at, at either end of a file."""
MOST_BYTES = 64 << 20
"""Of a text file, what is parsed before its last rows are looked for from its end."""
_TAIL_BYTES = 1 << 20
_TYPES = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".txt": "text"}
SUFFIXES = (".json", ".jsonl", ".ndjson", *_TYPES)


@dataclass(frozen=True)
class DataRow:
    """One row and where it is, such as `sft.jsonl, line 3`."""

    place: str
    content: dict[str, Any]


@dataclass
class Sample(Findings):
    """The rows at both ends of some files, and why some could not be read."""

    rows: list[DataRow] = field(default_factory=list)
    count: int = 0
    """How many rows there are, or of a very large file how many were read."""


def file_type(entry: Mapping[str, Any], name: str) -> str:
    """How axolotl reads a file of a data set: by `ds_type`, else by what is in its name, else as JSON."""
    return str(entry.get("ds_type") or next((kind for suffix, kind in _TYPES.items() if suffix in name), "json"))


def local_files(entry: Mapping[str, Any]) -> list[Path]:
    """The files of a data set that are on this disk; a folder that `datasets` saved counts as one."""
    path = Path(str(entry.get("path") or ""))
    named = entry.get("data_files") or []
    files = [Path(name) for name in ([named] if isinstance(named, str) else named)]
    if path.is_file():
        return [path]
    if files:
        return [path / file if path.is_dir() and not file.exists() else file for file in files]
    if not path.is_dir() or (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return [path] if path.exists() else []
    return sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)


def read_sample(entry: Mapping[str, Any], files: list[Path]) -> Sample:
    """Look into `files` of one data set."""
    sample = Sample()
    in_folder = Path(str(entry.get("path") or "")).is_dir() and not entry.get("data_files")
    for file in files:
        try:
            _read(file, file_type(entry, file.name if in_folder else str(entry.get("path") or file)), sample)
        except OSError as error:
            sample.problem(f"{file}: cannot be read ({error.strerror or error}). Check the path and its rights.")
    kinds: dict[str, tuple[str, str]] = {}
    mixed = filter(None, (_other_kind(row, kinds) for row in sample.rows))  # across files, too
    sample.problem(*list(mixed)[:1])
    split = str(entry.get("split") or "train")
    if Path(str(entry.get("path") or "")).is_file() and split.partition("[")[0] != "train":
        sample.problem(f"{files[0]}: split: {split}: a file has one split, train. Set split: train.")
    return sample


def _read(file: Path, kind: str, sample: Sample) -> None:
    if file.is_dir():
        _read_saved(file, sample)
    elif not file.exists():
        sample.problem(f"{file}: no such file. Check the path.")
    elif not file.stat().st_size:
        sample.problem(f"{file}: is empty. Give a file with rows.")
    elif file.suffix in (".gz", ".zst", ".xz", ".bz2", ".zip"):
        sample.warn(f"{file}: is compressed, so its rows are not looked at before training.")
    elif kind in _READERS:
        before = len(sample.rows), len(sample.problems)
        with collecting(sample.problems):
            _READERS[kind](file, sample)
        if before == (len(sample.rows), len(sample.problems)):
            sample.problem(f"{file}: has no rows. Give a file with rows.")
    else:
        sample.warn(f"{file}: ds_type: {kind} is not looked into before training.")


def _read_json(file: Path, sample: Sample) -> None:
    with file.open("rb") as opened:
        first = next((line for line in opened if line.strip()), b"").lstrip()
    _ends(_array(file) if first.startswith(b"[") else _lines(file), sample)


def _lines(file: Path) -> Iterator[DataRow]:
    """The rows of a file of JSON lines; of a large one the beginning and the end."""
    for place, line in _lines_at_the_ends(file):
        if line.strip():
            content = _parsed(place, line, "Write one JSON object a line.")
            if not isinstance(content, dict):
                raise PaftError(f"{place}: is no JSON object. Write one object with the row's fields a line.")
            yield DataRow(place, content)


def _lines_at_the_ends(file: Path) -> Iterator[tuple[str, bytes]]:
    read = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            read += len(line)
            yield f"{file}, line {number}", line
            if read > MOST_BYTES:
                break
        size = file.stat().st_size
        if read < size:
            opened.seek(max(read, size - _TAIL_BYTES))
            last = opened.read().split(b"\n")[1:]
            for number, line in enumerate(last, -len(last)):
                yield f"{file}, line {number} from the end", line


def _array(file: Path) -> Iterator[DataRow]:
    for number, row in enumerate(
        _parsed(str(file), file.read_bytes(), "Write a list of objects, or one object a line."), 1
    ):
        if not isinstance(row, dict):
            raise PaftError(f"{file}, row {number}: is no JSON object. Write a list of objects.")
        yield DataRow(f"{file}, row {number}", row)


def _parsed(place: str, content: bytes, remedy: str) -> Any:
    rows = parse_json(content, place, remedy)
    if b"\\ud" in content.lower():
        try:
            json.dumps(rows, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = printable(error.object[error.start])
            raise PaftError(f"{place}: half of a character ({half}), which no tokenizer takes. Remove it.") from None
    return rows


def _csv(file: Path) -> Iterator[DataRow]:
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened)
            for row in reader:
                yield DataRow(f"{file}, line {reader.line_num}", dict(row))
    except (csv.Error, UnicodeDecodeError) as error:
        raise PaftError(f"{file}: no valid CSV in UTF-8 ({error}). Save it again.") from None


def _text(file: Path) -> Iterator[DataRow]:
    try:
        with file.open(encoding="utf-8") as opened:
            for number, line in enumerate(opened, 1):
                yield DataRow(f"{file}, line {number}", {"text": line.rstrip("\n")})
    except UnicodeDecodeError as error:
        raise PaftError(f"{file}: is not UTF-8 ({error}). Save it again.") from None


def _read_parquet(file: Path, sample: Sample) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        opened = pyarrow.parquet.ParquetFile(file)
        first = next(opened.iter_batches(FIRST), None)
        head = first.to_pylist() if first is not None else []
        last = []
        if opened.num_row_groups:
            group = opened.read_row_group(opened.num_row_groups - 1)
            last = group.slice(max(0, group.num_rows - LAST)).to_pylist()
    except pyarrow.ArrowException as error:
        sample.problem(f"{file}: no valid Parquet ({error}). Save it again.")
        return
    count = opened.metadata.num_rows
    sample.count += count
    tail = last[-(count - FIRST) :] if count > FIRST else []
    numbered = [*enumerate(head, 1), *enumerate(tail, count - len(tail) + 1)]
    sample.rows += [DataRow(f"{file}, row {number}", row) for number, row in numbered]


def _read_saved(folder: Path, sample: Sample) -> None:
    """A folder from `Dataset.save_to_disk`."""
    from datasets import DatasetDict, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except Exception as error:  # datasets raises all kinds
        sample.problem(f"{folder}: `datasets` cannot load it ({error}). Save it again.")
        return
    found = next(iter(saved.values())) if isinstance(saved, DatasetDict) else saved
    indices = dict.fromkeys([*range(min(FIRST, len(found))), *range(max(0, len(found) - LAST), len(found))])
    sample.count += len(found)
    if not indices:
        sample.problem(f"{folder}: has no rows. Give a data set with rows.")
    sample.rows += [DataRow(f"{folder}, row {index + 1}", found[index]) for index in indices]


def _ends(rows: Iterator[DataRow], sample: Sample) -> None:
    """Keep the first and last of `rows`; all of them are read."""
    first: list[DataRow] = []
    last: deque[DataRow] = deque(maxlen=LAST)
    kinds: dict[str, tuple[str, str]] = {}
    for row in rows:
        if problem := _other_kind(row, kinds):
            sample.problem(problem)
            break
        sample.count += 1
        (first if len(first) < FIRST else last).append(row)
    sample.rows += [*first, *last]


def _other_kind(row: DataRow, kinds: dict[str, tuple[str, str]]) -> str | None:
    """A problem if a field of `row` holds another kind of thing than in an earlier row; `kinds` is brought up to date."""
    for name, value in row.content.items():
        if value is None:
            continue
        kind, place = kinds.setdefault(name, (_kind(value), row.place))
        if kind != _kind(value):
            return (
                f"{row.place}: {name} is {_kind(value)}, but {kind} in {place}. A column holds one kind of thing: "
                "`datasets` refuses the file. Write all rows alike."
            )
    return None


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    kinds = ((str, "text"), (list, "a list"), (dict, "an object"), ((int, float), "a number"))
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


_READERS: dict[str, Callable[[Path, Sample], None]] = {
    "json": _read_json,
    "csv": lambda file, sample: _ends(_csv(file), sample),
    "text": lambda file, sample: _ends(_text(file), sample),
    "parquet": _read_parquet,
}


def remote_data(branch: Branch) -> Findings:
    """Whether they can be had: the hub is asked, unless it must not be."""
    findings = Findings()
    keys = ("datasets", "test_datasets")
    for place, entry in ((f"{key}[{index}]", entry) for key in keys for index, entry in entries(branch.content, key)):
        path = str(entry.get("path") or "")
        where = f"{branch.where}: {place}"
        if local_files(entry):
            continue
        if "://" in path:
            findings.warn(f"{where}: {without_password(path)} is not looked at before training.")
        elif Path(path).exists():
            findings.problem(f"{where}: {path} has no files that can be read ({', '.join(SUFFIXES)}). Check the path.")
        elif not path or looks_local(path) or Path(path).suffix in SUFFIXES:
            findings.problem(f"{where}: {path}: no such file. Paths are meant from the folder of {branch.where}.")
        elif offline():
            if not _cached(path):
                findings.warn(
                    f"{where}: {path} could not be checked: HF_HUB_OFFLINE is set, and it is not in the local cache. "
                    f"Fetch it with `hf download --repo-type dataset {path}`, or give a file."
                )
        else:
            findings.take(access(path, "dataset"), f"{where}: ")
    return findings


def _cached(name: str) -> bool:
    """Whether the hub's cache, or that of `datasets`, knows a data set."""
    from huggingface_hub import constants

    home = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    return (Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}").is_dir() or (
        home / name.replace("/", "___")
    ).is_dir()
