"""The trainings of a run: each an axolotl config as it will be given to axolotl, whatever the user wrote it as."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paft_plugin.args import STRATEGIES, is_plugin, names_plugin
from paft_plugin.deltas.proof import why_unproven
from paft_plugin.errors import PaftError, some
from paft_plugin.evaluation.arms import Role
from paft_plugin.files import ADAPTER_CONFIG, resolved
from paft_plugin.pipeline.config import BranchSpec, ControlSpec
from paft_plugin.pipeline.secrets import handed_over
from paft_plugin.schema import read_yaml

PLUGIN = "paft_plugin.PAFTPlugin"
OURS = ("output_dir", "dataset_prepared_path")
"""Keys that the run sets itself."""
OF_ONE_TRAINING = ("hub_model_id", "wandb_run_id")
"""Keys that name a place for the outcome of one training; a run makes several of a config: dense twin, joint, sequential."""

BOUND, REFERENCE = "paft_max_loss_increase", "paft_reference_loss"
"""A penalty's bound, and what it is a bound over: the run gives it the folder of the dense twin."""

# Keys whose values are paths where such a file or folder exists, and hub names otherwise.
_PATHS = ("deepspeed", "tokenizer_config", "base_model_config", "chat_template_jinja", "lora_model_dir", REFERENCE)
_DATA, _IN_DATA = ("datasets", "test_datasets", "pretraining_dataset"), ("path", "data_files")


@dataclass(frozen=True)
class Branch:
    """One training, or one that is done (then it has no content)."""

    name: str
    """Its arm's."""
    spec: BranchSpec
    source: Path | None
    """The user's file, for messages; None for an inline config."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """The axolotl config with absolute paths, without what the run sets."""
    notes: tuple[str, ...] = ()
    """What the run replaces of the user's config, a sentence each."""
    control: ControlSpec | None = None
    """How it is made of trained deltas, if it is no training."""
    made_of: tuple[str, ...] = ()
    """Of a training for a baseline: the arms of the branches whose configs and rows it takes."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variable → value: what the user typed into the config, and the run hands over in the environment instead."""

    @property
    def trained(self) -> Path | None:
        """The folder of a branch that is done."""
        return self.spec.trained

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on its base, rather than a whole model."""
        if self.trained is not None:
            return (self.trained / ADAPTER_CONFIG).is_file()
        return bool(self.content.get("adapter"))

    @property
    def is_joint(self) -> bool:
        """Whether it is trained on the rows of several branches, which the run writes anew."""
        return len(self.made_of) > 1

    @property
    def strategy(self) -> str:
        """axolotl's `rl`, or `sft`."""
        return str(self.content.get("rl") or "sft")

    @property
    def role(self) -> Role | None:
        """What it teaches; None where only its outcome is known."""
        if self.spec.role is not None or self.trained is not None or self.control is not None:
            return self.spec.role
        return "preference" if self.strategy in STRATEGIES else "sft"

    @property
    def penalised(self) -> bool:
        """Whether the plugin is there, with one of its keys; of one that is done, whether it says so."""
        if self.trained is not None:
            return why_unproven(self.trained) is None
        return names_plugin(self.content) and any(key.startswith("paft_") for key in self.content)

    @property
    def where(self) -> str:
        """For messages."""
        return str(self.source or self.name)

    def data(self) -> list[Path]:
        """The local files and folders that it is trained on."""
        named = (Path(name) for entry in self._data_sets() for name in _named(entry))
        return list(dict.fromkeys(path for path in named if path.is_absolute() and path.exists()))

    def settings(self) -> list[Path]:
        """The local files and folders beside its data that its config names, such as a chat template."""
        named = [Path(str(self.content[key])) for key in _PATHS if key in self.content and key != REFERENCE]
        return [path for path in named if path.is_absolute() and path.exists()]

    def remote_data(self) -> list[str]:
        """The hub names and addresses of what it is trained on."""
        named = (name for entry in self._data_sets() for name in _named(entry) if not entry.get("data_files"))
        return list(dict.fromkeys(name for name in named if not Path(name).is_absolute()))

    def _data_sets(self) -> list[dict[str, Any]]:
        return [entry for key in _DATA for _, entry in entries(self.content, key)]


def read_branch(name: str, spec: BranchSpec, folder: Path) -> Branch:
    """A branch of a `paft.yml` in `folder`.

    Relative paths in an axolotl config are looked for from that folder, then from the config's own.

    Raises:
        PaftError: its file is not there, or no YAML.
    """
    if spec.trained is not None:
        return Branch(name, spec, spec.trained)
    if isinstance(spec.config, Path):
        content, source = read_yaml(spec.config, "Give an axolotl config."), spec.config
        folders = [folder, spec.config.parent]
    else:
        assert spec.config is not None
        content, source, folders = dict(spec.config), None, [folder]
    content = {**content, **spec.overrides}
    content = {key: value for key, value in content.items() if value is not None}
    replaced, shared = ([key for key in keys if key in content] for keys in (OURS, OF_ONE_TRAINING))
    notes = (f"{source or name}: {some(replaced)} of the config is replaced by the run's own.",) if replaced else ()
    if shared:
        said = (
            "is left out: every training that the run makes of this config would write there, the last over the others."
        )
        notes = (*notes, f"{source or name}: {some(shared)} {said} Push the model that you take, with `hf upload`.")
    handed = handed_over(content)
    secrets = {variable: str(content[key]) for key, variable in handed.items()}
    left_out = {*OURS, *OF_ONE_TRAINING, *handed}
    content = {key: with_paths(key, value, folders) for key, value in content.items() if key not in left_out}
    return Branch(name, spec, source, content, notes, secrets=secrets)


def without_penalty(branch: Branch, name: str) -> Branch:
    """The same training without the plugin: the dense twin."""
    content = {key: value for key, value in branch.content.items() if not key.startswith("paft_")}
    others = [plugin for plugin in content.get("plugins") or [] if not is_plugin(plugin)]
    content.pop("plugins", None)
    content |= {"plugins": others} if others else {}
    return Branch(name, branch.spec, branch.source, content, secrets=branch.secrets)


def check_strategy(branch: Branch) -> None:
    """A preference branch is trained on preferences.

    Raises:
        PaftError: its config trains something else.
    """
    if branch.trained is None and branch.role == "preference" and branch.strategy not in STRATEGIES:
        raise PaftError(
            f"{branch.where} has rl: {branch.content.get('rl')}, which is no preference training. "
            f"Set rl to one of {', '.join(STRATEGIES)}."
        )


def config_text(branch: Branch, base: str, name: str, output: Path) -> str:
    """The axolotl config of the training `name` as `branch` describes it, from the model `base` into the folder `output`."""
    content = {
        **branch.content,
        "base_model": base,
        "output_dir": str(output),
        # Within the output folder, which a new attempt finds empty: axolotl would reuse what it prepared from other data.
        "dataset_prepared_path": str(output / "prepared"),
    }
    # A killed training goes on from its last checkpoint, unless the user says where from.
    content.setdefault("auto_resume_from_checkpoints", "resume_from_checkpoint" not in content)
    source = f"from {branch.source}" if branch.source else "given inline"
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
    return f"# The training {name}, as axolotl gets it; {source}.\n{text}"


def entries(content: Mapping[str, Any], key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The data sets under a key of an axolotl config, numbered; a path alone is one, too."""
    value = content.get(key) or []
    for index, entry in enumerate(value if isinstance(value, list) else [value]):
        yield index, entry if isinstance(entry, dict) else {"path": entry}


def _named(entry: Mapping[str, Any]) -> list[str]:
    """What an entry of `datasets` names: a path or hub name, and files."""
    files = entry.get("data_files") or []
    named = [entry.get("path"), *([files] if isinstance(files, str) else files)]
    return [name for name in named if isinstance(name, str)]


def with_paths(key: str, value: Any, folders: Sequence[Path], shown: Callable[[Path], str] = str) -> Any:
    """The value of a key of an axolotl config with the paths in it as `shown`, those that exist in one of `folders`."""
    if isinstance(value, list):
        return [with_paths(key, each, folders, shown) for each in value]
    if isinstance(value, dict) and key in _DATA:
        return {
            name: with_paths("path", each, folders, shown) if name in _IN_DATA else each for name, each in value.items()
        }
    if not isinstance(value, str) or key not in (*_PATHS, *_DATA, *_IN_DATA, "base_model"):
        return value
    places = (_place(value, folder) for folder in folders)
    return next((shown(place) for place in places if place is not None), value)


def _place(value: str, folder: Path) -> Path | None:
    """What `value` is the path of, if there is such a thing: a whole template is longer than any file's name."""
    try:
        place = resolved(folder / Path(value).expanduser())
        return place if place.exists() else None
    except (OSError, RuntimeError, PaftError):
        return None
