"""Files written whole or not at all, JSON files with one model each, locks, fingerprints, and what is a path or a hub name."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from paft_plugin.errors import PaftError, as_written, one_line, printable
from paft_plugin.reading import MissingFileError, UnreadableError, read_json_file, read_text

PROOF_FILE = "paft.json"
"""Beside a branch that the penalty shaped: what ran (`deltas/proof.py`)."""
ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's names of what an adapter's folder holds."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*")
RECIPE_FILE, LINT_FILE = "recipe.yml", "lint.json"
"""Beside a fused model: the recipe that it was merged by, and what the linter found in it."""
_PLACES_BEFORE = {RECIPE_FILE: "recipes/*/*.yml", LINT_FILE: "lint/*/lint.json"}
"""Where runs kept them until one stage did the whole fusion of an arm."""


def inside(folder: Path, place: Path | str) -> Path:
    """`folder / place`, where a file of somebody else names `place`, or what lies there may be a link.

    Raises:
        PaftError: It is absolute, has `..` in it, or a link leads out of `folder`.
    """
    path = folder / place
    try:
        leads_out = ".." in Path(place).parts or not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL
        leads_out = True
    if leads_out:
        raise PaftError(
            f"{folder}: {place} leads out of the folder. Correct the file that names it, or put the link's target there."
        )
    return path


def seen_from(run_dir: Path, path: Path) -> str:
    """A path relative to the run's folder if it lies in it, so that the folder can be moved."""
    return path.relative_to(run_dir).as_posix() if path.is_relative_to(run_dir) else str(path)


def below(folder: Path, pattern: str) -> list[Path]:
    """What of `pattern` lies in `folder`, sorted.

    Raises:
        PaftError: One of them is a link that leads out of it.
    """
    return [inside(folder, path.relative_to(folder)) for path in sorted(folder.glob(pattern))]


def fused_files(run_dir: Path, name: str) -> dict[str, Path]:
    """Fused arm of the run in `run_dir` → its `RECIPE_FILE` or `LINT_FILE`, in runs of older versions, too."""
    found = [*below(run_dir, _PLACES_BEFORE[name]), *below(run_dir, f"models/*/{name}")]
    return {file.parent.name: file for file in found}


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part (temporary file, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; a file that a user reads and shares has the permissions of any other.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of `text` as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; NaN and infinity are refused (`ValueError`)."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """`content` as indented JSON; NaN and infinity are refused (`ValueError`)."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        PaftError: The file is missing, or holds no JSON object.
    """
    again = "or repeat the run that writes it."
    try:
        content = read_json_file(path, hint=f"Download it again, {again}")
    except MissingFileError:
        raise PaftError(f"{path}: missing. Copy or download it again, {again}") from None
    if not isinstance(content, dict):
        raise UnreadableError(path, "not a JSON object", hint=f"Download it again, {again}")
    return content


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where there is none that can be read."""
    try:
        return read_json(path)
    except (OSError, ValueError):  # PaftError is a ValueError
        return {}


def resolved(path: Path) -> Path:
    """The absolute path that is meant: `~` is the home, links are followed.

    Raises:
        PaftError: There is no such path: a loop of links, an unknown user, a NUL.
    """
    try:
        return path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise PaftError(f"{path}: no path ({one_line(error).rstrip('.')}). Check it.") from None


def is_hub_name(text: str, path: Path | None = None) -> bool:
    """Whether `text` reads as `owner/name`, and nothing lies at `path`, which is what it would be as a path here."""
    return bool(_HUB_NAME.fullmatch(text)) and not (path or Path(text)).exists()


def looks_local(text: str) -> bool:
    """Whether a text can only be a path: `org/name` and `name` may also be on the hub."""
    return text.startswith(("/", ".", "~")) or text.count("/") > 1 or "\\" in text


def shown(content: Any) -> Any:
    """`content` of a JSON file that we show, with no text in it that a terminal would obey."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, dict):
        return {printable(key): shown(value) for key, value in content.items()}
    return [shown(value) for value in content] if isinstance(content, list) else content


Stored = TypeVar("Stored", bound="JsonFile")


class JsonFile(BaseModel):
    """A file format of ours: a subclass is its schema, and `write` and `read` are the only ways to it.

    A newer reader takes what older versions wrote (`upgraded`); fields that it does not know are left out.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
    SCHEMA: ClassVar[int]
    AGAIN: ClassVar[str] = "Repeat the run that writes it."
    """What to do about a file that cannot be read."""

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return {"schema": self.SCHEMA, **self.model_dump(mode="json")}

    def write(self, path: Path) -> None:
        """Write the file, atomically."""
        write_json(path, self.content())

    @classmethod
    def read(cls: type[Stored], path: Path) -> Stored:
        """Read the file.

        Raises:
            PaftError: It is missing, damaged, or of a version that cannot be read.
        """
        content = shown(read_json(path))
        schema = content.pop("schema", None)
        with as_written(path, cls.AGAIN):  # for `upgraded` and validators
            try:
                return cls.model_validate(content if schema == cls.SCHEMA else cls.upgraded(content, schema, path))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise PaftError(f"{path}: damaged ({where}: {first['msg']}). {cls.AGAIN}") from None

    @classmethod
    def read_or_nothing(cls: type[Stored], path: Path) -> Stored | None:
        """The file's content, or None where there is none that can be read."""
        try:
            return cls.read(path)
        except (OSError, ValueError):  # PaftError is a ValueError
            return None

    @classmethod
    def upgraded(cls, content: dict[str, Any], schema: object, path: Path) -> dict[str, Any]:  # noqa: ARG003
        """`content` of another schema in today's; subclasses that can read older files override it.

        Raises:
            PaftError: It cannot be read.
            ValidationError: It is damaged.
        """
        raise PaftError(f"{path}: schema {schema}, and this version reads {cls.SCHEMA}. {cls.AGAIN}")


Line = TypeVar("Line", bound=BaseModel)
MOST_LINES_BYTES = 1 << 30


def write_json_lines(path: Path, lines: Iterable[BaseModel], schema: int) -> None:
    """Write a JSON object a line, after a line with their schema; atomically."""
    texts = (line.model_dump_json(exclude_none=True) for line in lines)
    write_text(path, "\n".join([json.dumps({"schema": schema}), *texts]) + "\n")


def read_json_lines(path: Path, kind: type[Line], schema: int, again: str) -> list[Line]:
    """The lines of a file of `write_json_lines`, each of which must be of `kind`; `again`: what to do about another.

    Raises:
        PaftError: It is missing, damaged, of another kind or version; names the line.
    """
    first, *texts = read_text(path, MOST_LINES_BYTES, again).removesuffix("\n").split("\n")
    lines: list[Line] = []
    number = 1
    try:
        if json.loads(first) != {"schema": schema}:
            raise UnreadableError(path, f"not of schema {schema}", number, again)
        for text in texts:
            number += 1
            lines.append(kind.model_validate(shown(json.loads(text, parse_constant=_no_number))))
    except UnreadableError:
        raise
    except (ValueError, RecursionError):
        raise UnreadableError(path, f"line {number} is damaged", number, again) from None
    return lines


def _no_number(constant: str) -> float:
    """NaN and infinity are no JSON, though Python reads them."""
    raise ValueError(constant)


def lock_file(path: Path) -> int:
    """Make `path` if need be, lock it against all others, and return its descriptor; closing that, or dying, lets go.

    Who has the lock may delete the file before letting go: whoever opened it in between locks the new one instead.

    Raises:
        BlockingIOError: It is locked already.
        OSError: It cannot be opened, or not be locked where it lies (some network file systems).
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether somebody has locked `path`. Writes nothing; meanwhile, for an instant, `lock_file` finds it locked, too."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would be waited for
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # shared: two that look do not take each other for a holder
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(parts: Iterable[str]) -> str:
    """A short fingerprint (16 hex digits) of a sequence of strings; order and boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()[:16]
