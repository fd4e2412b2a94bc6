"""`paft.yml`: one base model, its two branches, how they are fused, what is scored, and where it all runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from paft_plugin.errors import PaftError
from paft_plugin.evaluation.arms import ControlKind, Role
from paft_plugin.evaluation.config import EvaluationConfig, held_out_measures, measure_names
from paft_plugin.files import is_hub_name
from paft_plugin.fusion.recipe.setting_problems import number_problems, setting_problems
from paft_plugin.fusion.recipe.settings import NAME, ROLES, TWO, BranchName, MethodName, RecipeSettings
from paft_plugin.schema import (
    STRICT,
    MappingOfNames,
    OutputFolder,
    given_file,
    in_folder,
    raise_lines,
    read_yaml,
    suggestion,
    validate,
)
from paft_plugin.search.config import SearchConfig

BASELINES = ("joint", "sequential", "disjoint")
ALPHA = "alpha"
HINT = "`axolotl paft init` writes one with comments; the README explains it."


def _base(value: str, info: ValidationInfo) -> str:
    """A folder's absolute path, or a hub name as it is."""
    folder = in_folder(Path(value), info)
    if folder.is_dir():
        return str(folder)
    if is_hub_name(value, folder):
        return value
    raise ValueError(f"{value} is neither a folder (there is no {folder}) nor a hub name like org/model.")


def _branch(value: Any, info: ValidationInfo) -> Any:
    """A path alone is a config's file, or a trained branch's folder."""
    if not isinstance(value, str):
        return value
    folder = in_folder(Path(value), info)
    return {"trained": value} if folder.is_dir() else {"config": value}


def _config(value: Any, info: ValidationInfo) -> Any:
    """A config is its file's path, or the mapping itself."""
    return given_file(Path(value), info) if isinstance(value, str) else value


def _trained(path: Path, info: ValidationInfo) -> Path:
    """A folder's absolute path, or a hub name as it is."""
    folder = in_folder(path, info)
    if folder.is_dir():
        return folder
    if is_hub_name(str(path), folder):
        return path
    raise ValueError(f"{folder} is no folder. Give the output folder of a finished training, or a hub name.")


Order = tuple[str, ...]
"""Branches, one trained on what the other came to; of no names: SFT first, then preferences, each as the file has them."""
Orders = tuple[Order, ...]


def _orders(value: Any) -> Any:
    """`true`, a name after the other, or several such lists."""
    if value in (None, True, False, {}):
        return () if value is False else ((),)
    return (value,) if isinstance(value, list) and all(isinstance(name, str) for name in value) else value


def _word(value: Any) -> Any:
    """A baseline is wanted by its name alone, or with settings."""
    return {} if value in (None, True) else None if value is False else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _words(value: Any) -> Any:
    """A list of words, and of mappings of one or more, is one mapping."""
    entries = value if isinstance(value, list) else [value]
    pairs = [pair for each in entries for pair in (each.items() if isinstance(each, dict) else [(str(each), None)])]
    names = [name for name, _ in pairs]
    twice = [f"{name} is there twice. Name it once." for name in dict.fromkeys(names) if names.count(name) > 1]
    strange = [name for name, said in pairs if said in (None, True) and name not in BASELINES]
    raise_lines(twice + [f"{name}: {_no_baseline(name)}" for name in strange])
    return dict(pairs)


def _no_baseline(name: str) -> str:
    if name == ALPHA:
        return f"is a way to fuse. Name it under `fusion: {{methods: [{ALPHA}]}}`."
    return f"no baseline, and nothing says how it is trained. {suggestion(name, BASELINES)}"


def _role(name: str, spec: BranchSpec) -> Role | None:
    """What a branch says that it teaches, in its name if it must be."""
    return spec.role or next((role for role in ROLES if role == name), None)


class BranchSpec(BaseModel):
    """A training: an axolotl config, or the folder of one that is done."""

    model_config = STRICT

    config: Annotated[Path | dict[str, Any] | None, BeforeValidator(_config)] = Field(
        default=None, description="Path of an axolotl config, or the config itself."
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Keys of the axolotl config that are other here; null removes one."
    )
    trained: Annotated[Path, AfterValidator(_trained)] | None = Field(
        default=None,
        description="A branch that is trained already, by any trainer: folder or hub name of an adapter or a model.",
    )
    role: Role | None = Field(default=None, description="What it teaches: sft (a skill) or preference.")
    devices: int = Field(default=1, ge=1, description="GPUs that its training takes.")
    launcher: Literal["python", "accelerate", "torchrun"] | None = Field(
        default=None, description="axolotl's own launcher. Left out: python on one GPU or none, accelerate on more."
    )
    launcher_args: list[str] = Field(
        default_factory=list, description="What the launcher gets, such as [--num_machines, '2']."
    )

    @model_validator(mode="after")
    def _one_source(self) -> BranchSpec:
        if (self.config is None) == (self.trained is None):
            raise ValueError("give either `config:` (a path, or the axolotl config itself) or `trained:` (a folder).")
        if self.trained is not None and (self.overrides or self.launcher or self.launcher_args or self.devices != 1):
            raise ValueError("a `trained:` branch is not trained again: it takes no other key but `role:`.")
        return self

    @property
    def is_remote(self) -> bool:
        """Whether it is trained already, and on the hub."""
        return self.trained is not None and not self.trained.is_absolute()


class JointConfig(BaseModel):
    """What is under `compare: {joint: …}`."""

    model_config = STRICT

    sft_weight: float | None = Field(
        default=None, gt=0, description="Of the SFT loss; the preference loss has 1. [1, or what the config says]"
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys of the axolotl config, which is the preference branch's, that are other here; null removes one.",
    )


class FurtherJoint(BaseModel):
    """What is under `compare: {NAME: {joint: …}}`: the joint training in another form."""

    model_config = STRICT

    joint: Annotated[JointConfig, BeforeValidator(_word)] = Field(description="As under `compare: {joint: …}`.")


class ControlSpec(BaseModel):
    """What is under `compare: {NAME: {control: …}}`: made of trained deltas, without a training."""

    model_config = STRICT

    control: ControlKind = Field(description=f"What is done to the delta: {', '.join(get_args(ControlKind))}.")
    of: str = Field(description="The arm of the branch whose delta is changed: a dense one.")
    like: str | None = Field(default=None, description="The arm of the branch that it is matched to.")
    sparsity: float | None = Field(
        default=None, gt=0, lt=1, description="prune, drop: the share of entries to set to zero, instead of `like`."
    )
    threshold: float = Field(
        default=1e-5, ge=0, description="prune, prune_rescale, drop: to the share of entries with |δ| ≤ threshold."
    )
    factor: float | None = Field(default=None, gt=0, description="scale: what the delta is multiplied by.")
    seed: int = Field(default=42, ge=0, lt=2**32, description="drop: of what is dropped by chance.")

    @model_validator(mode="after")
    def _of_its_kind(self) -> ControlSpec:
        by_share = self.sparsity is not None and self.control in ("prune", "drop")
        takes = {"of", "factor" if self.control == "scale" else "sparsity" if by_share else "like"}
        missing = [
            f"{key}: missing. `control: {self.control}` needs it." for key in takes if getattr(self, key) is None
        ]
        takes |= {"control", *(["seed"] if self.control == "drop" else []), *(["threshold"] if self.is_sparse else [])}
        strange = [
            f"{key}: is not for `control: {self.control}`. Leave it out."
            for key in sorted(self.model_fields_set - takes)
        ]
        same = [f"like: is {self.like}, as `of` is. Name another branch."] if self.of == self.like else []
        raise_lines([*missing, *strange, *same])
        return self

    @property
    def is_sparse(self) -> bool:
        """Whether entries are set to zero."""
        return self.control in ("prune", "prune_rescale", "drop")

    @property
    def sources(self) -> tuple[str, ...]:
        """The arms of the branches that it is made from."""
        return (self.of,) if self.like is None else (self.of, self.like)


def _form(value: Any) -> str:
    """Which form something under `compare:` has."""
    return next((f"[{word}]" for word in ("control", "joint") if isinstance(value, dict) and word in value), "[branch]")


Compared = Annotated[
    Annotated[BranchSpec, Tag("[branch]")]
    | Annotated[ControlSpec, Tag("[control]")]
    | Annotated[FurtherJoint, Tag("[joint]")],
    Discriminator(_form),
]


class DisjointConfig(BaseModel):
    """What is under `compare: {disjoint: …}`: branch → what it trains; what is not named goes by its role."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]]

    @property
    def modules(self) -> Mapping[str, Sequence[str]]:
        """Branch → `attention`, `mlp` or modules by name."""
        return self.model_extra or {}


class CompareConfig(BaseModel):
    """What is under `compare:`: baselines, each a word, and by name further branches, controls and joint trainings."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Annotated[Compared, BeforeValidator(_branch)]]

    joint: Annotated[JointConfig | None, BeforeValidator(_word)] = Field(
        default=None, description="One training on the rows of all branches, with the losses of both."
    )
    sequential: Annotated[Orders, BeforeValidator(_orders)] = Field(
        default=(), description="One training after the other; true, or the order of the branches, or several orders."
    )
    disjoint: Annotated[DisjointConfig | None, BeforeValidator(_word)] = Field(
        default=None, description="Branches that train modules of their own, and are fused by a plain sum."
    )

    @property
    def branches(self) -> Mapping[str, BranchSpec]:
        """Those that are trained and scored, but not fused, by name."""
        return {name: spec for name, spec in self.named.items() if isinstance(spec, BranchSpec)}

    @property
    def controls(self) -> Mapping[str, ControlSpec]:
        """Those that are made of trained deltas, by name."""
        return {name: spec for name, spec in self.named.items() if isinstance(spec, ControlSpec)}

    @property
    def joints(self) -> Mapping[str, JointConfig]:
        """The joint trainings, by name."""
        first = {} if self.joint is None else {"joint": self.joint}
        return first | {name: spec.joint for name, spec in self.named.items() if isinstance(spec, FurtherJoint)}

    @property
    def named(self) -> Mapping[str, BranchSpec | ControlSpec | FurtherJoint]:
        """Everything that has a name of its own."""
        return self.model_extra or {}


def _bad_names(key: str, names: Iterable[str]) -> list[str]:
    """Those of the names that cannot be a file's; `key` leads to them."""
    return [f"{key}{name}: use letters, digits, '.', '_' and '-'." for name in names if not NAME.fullmatch(name)]


class AlphaConfig(BaseModel):
    """What is under `fusion: {methods: {alpha: …}}`."""

    model_config = STRICT

    points: int = Field(
        default=11, ge=2, le=101, description="From the SFT branch to the preference branch, both included."
    )


class FusedConfig(RecipeSettings):
    """What is under `fusion: {fused: {NAME: …}}`: branches, method, and the settings of that method."""

    branches: Annotated[tuple[str, ...], BeforeValidator(_as_list), Field(min_length=1)]
    """Names of arms, in the order in which they are merged."""
    method: MethodName
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Of a method that drops by chance; `fusion.seed` if it is left out."""

    @property
    def settings(self) -> RecipeSettings:
        """The method's alone."""
        return RecipeSettings.model_validate(self.model_dump(include=set(RecipeSettings.model_fields)))


class FusionConfig(BaseModel):
    """What is under `fusion:`."""

    model_config = STRICT

    methods: Annotated[dict[MethodName, RecipeSettings], MappingOfNames] = Field(
        default_factory=lambda: {name: RecipeSettings() for name in ("ties", "dare_ties", "ram")},
        description="Merge methods, as a list or with settings for each; each makes one recipe.",
    )
    recipes: dict[str, Annotated[Path, AfterValidator(given_file)]] = Field(
        default_factory=dict,
        description="Name → a mergekit YAML of your own, in which $base, and $sft, $preference or whatever the branches are "
        "called, stand for the folders.",
    )
    fused: dict[str, FusedConfig] = Field(
        default_factory=dict,
        description="Arm → branches (names of arms), method, and settings of it: further fusions, merged in memory to be scored, "
        "and never written.",
    )
    seed: int = Field(default=42, ge=0, lt=2**32, description="Of methods that drop by chance.")
    alpha: AlphaConfig | None = Field(
        default=None, description="What stands under `methods` for alpha: the way from one branch to the other."
    )

    @model_validator(mode="before")
    @classmethod
    def _alpha_by_itself(cls, content: Any) -> Any:
        """Among the methods it is a word like them, but no merge: the point is searched first."""
        methods = content.get("methods") if isinstance(content, dict) else None
        if not isinstance(methods, (list, dict)) or ALPHA not in methods:
            return content
        own = methods[ALPHA] if isinstance(methods, dict) else None
        rest: Any = (
            {name: said for name, said in methods.items() if name != ALPHA}
            if isinstance(methods, dict)
            else [name for name in methods if name != ALPHA]
        )
        return {**content, "methods": rest, "alpha": {} if own is None else own}

    @model_validator(mode="after")
    def _names(self) -> FusionConfig:
        twice = [
            f"recipes.{name}: is also a method here. Name it otherwise."
            for name in self.recipes
            if name in self.methods
        ]
        raise_lines([*_bad_names("recipes.", self.recipes), *twice, *_bad_names("fused.", self.fused)])
        return self


class InspectionConfig(BaseModel):
    """What is under `inspection:`."""

    model_config = STRICT

    thresholds: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default=[1e-5], min_length=1, description="Sparsity is the share of entries with |δ| ≤ threshold."
    )


def _evaluation(value: Any) -> Any:
    """`false`: nothing is scored; nothing behind it: as if it were left out."""
    return None if value is False else {} if value is None else value


def _executor(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


class ExecutorConfig(BaseModel):
    """What is under `executor:`; a word alone is its kind."""

    model_config = STRICT

    kind: Literal["local", "ray"] = Field(
        default="local", description="This machine, or a Ray cluster that shares output_dir (extra `ray`)."
    )
    workers: int = Field(default=2, ge=1, description="local: stages at once.")
    threads: int | None = Field(default=None, ge=1, description="local: CPU threads of each stage. [cores / workers]")
    devices: list[str] | Literal["auto"] = Field(default="auto", description="local: GPUs to use; auto: all; []: none.")
    share_device: Literal["auto", "never"] = Field(
        default="auto", description="local: two branches on one GPU at once, if their estimated memory fits."
    )
    address: str = Field(
        default="auto", description="ray: HOST:PORT of the cluster's head; auto: the one that Ray finds."
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> ExecutorConfig:
        own = {"local": {"workers", "threads", "devices", "share_device"}, "ray": {"address"}}[self.kind]
        strange = sorted(self.model_fields_set - own - {"kind"})
        raise_lines(
            [f"{key}: is not for `kind: {self.kind}`, which takes {', '.join(sorted(own))}." for key in strange]
        )
        return self


class PaftConfig(BaseModel):
    """A whole `paft.yml`. Paths in it are meant from the file's own folder, and are absolute here."""

    model_config = STRICT

    base: Annotated[str, AfterValidator(_base)] = Field(description="The base model θ_pre: a folder, or a hub name.")
    branches: dict[str, Annotated[BranchSpec, BeforeValidator(_branch)]] = Field(
        default_factory=dict,
        description="Instead of `sft` and `preference`: any number of branches by name, each with its `role`.",
    )
    sft: Annotated[BranchSpec, BeforeValidator(_branch)] | None = Field(
        default=None,
        validate_default=True,
        description="The SFT branch, with paft_* keys or without: path of an axolotl config, or folder of a trained branch.",
    )
    preference: Annotated[BranchSpec, BeforeValidator(_branch)] | None = Field(
        default=None,
        validate_default=True,
        description="The preference branch (rl: dpo, orpo …): path of an axolotl config, or folder of a trained branch.",
    )
    output_dir: OutputFolder = Field(description="Where everything goes.")
    description: str = Field(default="", description="What the run is about, in Markdown; stands in its README.md.")
    compare: Annotated[CompareConfig, BeforeValidator(_words)] = Field(
        default_factory=lambda: CompareConfig.model_validate({}),
        description="Baselines, each a word (joint, sequential, disjoint), and further branches by name, trained and scored "
        "but not fused.",
    )
    fusion: FusionConfig = Field(default_factory=lambda: FusionConfig(), description="How the branches are fused.")
    sequential: Annotated[Orders, BeforeValidator(_orders)] = Field(
        default=(), description="As under `compare:`; true: SFT without the penalty, then the preference training."
    )
    arms: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The arms to make and score, such as paft-*. [base, both branches, paft-*]",
    )
    inspection: InspectionConfig = Field(
        default_factory=lambda: InspectionConfig(), description="What is measured of the deltas."
    )
    evaluation: Annotated[EvaluationConfig | None, BeforeValidator(_evaluation)] = Field(
        default_factory=lambda: EvaluationConfig(),
        description="What every arm is scored on: rows that are held out of the branches' own data unless it is said, lm-eval's "
        "tasks; false: nothing is scored.",
    )
    executor: Annotated[ExecutorConfig, BeforeValidator(_executor)] = Field(
        default_factory=lambda: ExecutorConfig(), description="Where it runs: local or ray."
    )
    search: SearchConfig | None = Field(default=None, description="For `axolotl paft search`.")

    @field_validator("evaluation")
    @classmethod
    def _knows_the_branches(cls, evaluation: EvaluationConfig | None, info: ValidationInfo) -> EvaluationConfig | None:
        if evaluation is None or evaluation.held_out is False:
            return evaluation
        branches = list(info.data.get("branches") or ("sft", "preference"))
        measures = [*measure_names(evaluation.measures), *held_out_measures(branches)]
        goals = [("skill", name) for name in evaluation.skill] + [
            ("preference", name) for name in evaluation.preference
        ]
        wrong = [
            f"held_out.{name}: no such branch. {suggestion(name, branches)}"
            for name in evaluation.held_out
            if name not in branches
        ]
        wrong += [
            f"{key}: no such measure. {suggestion(name, measures)}" for key, name in goals if name not in measures
        ]
        raise_lines(wrong)
        return evaluation

    @field_validator("sft", "preference")
    @classmethod
    def _one_form(cls, spec: BranchSpec | None, info: ValidationInfo) -> BranchSpec | None:
        if "branches" in info.data and bool(info.data["branches"]) == (spec is not None):
            raise ValueError(
                "missing." if spec is None else "stands under `branches:` where that is there. Move it there."
            )
        return spec

    @field_validator("branches")
    @classmethod
    def _whole(cls, branches: dict[str, BranchSpec]) -> dict[str, BranchSpec]:
        """Each with its role, which `sft` and `preference` have by their names; at least one of each."""
        found = {name: spec.model_copy(update={"role": _role(name, spec)}) for name, spec in branches.items()}
        roles = {name: spec.role for name, spec in found.items()}
        unknown = [
            f"{name}: role: missing. Say what it teaches: sft or preference."
            for name, role in roles.items()
            if not role
        ]
        lacking = [
            f"none has `role: {role}`. Add one; branches of one role are fused by `axolotl paft recipe --branch NAME=DIR …`."
            for role in ROLES
            if roles and not unknown and role not in roles.values()
        ]
        raise_lines([*_bad_names("", branches), *unknown, *lacking])
        return found

    @field_validator("compare")
    @classmethod
    def _names_of_files(cls, compare: CompareConfig) -> CompareConfig:
        raise_lines(_bad_names("", compare.named))
        return compare

    @field_validator("fusion")
    @classmethod
    def _fitting_settings(cls, fusion: FusionConfig, info: ValidationInfo) -> FusionConfig:
        """What a method does not take is said now, not after the trainings."""
        branches = [BranchName(name, spec.role or "sft") for name, spec in (info.data.get("branches") or {}).items()]
        problems = {
            name: [*setting_problems(name, own, branches or TWO), *number_problems(name, len(branches or TWO))]
            for name, own in fusion.methods.items()
        }
        raise_lines([f"methods.{name}: {problem}" for name, several in problems.items() for problem in several])
        return fusion

    @property
    def fused(self) -> Mapping[str, BranchSpec]:
        """The branches that are fused, by name, in the file's order; `sft:` and `preference:` are two of these names."""
        short = {"sft": self.sft, "preference": self.preference}
        named = {key: spec.model_copy(update={"role": key}) for key, spec in short.items() if spec is not None}
        # Two that are called so are the short form, whichever comes first.
        return named or {name: self.branches[name] for name in sorted(self.branches, key="sft".__ne__)}

    @property
    def orders(self) -> Orders:
        """In which orders branches are trained one after the other, each once."""
        return tuple(dict.fromkeys((*self.sequential, *self.compare.sequential)))

    @property
    def base_is_remote(self) -> bool:
        """Whether `base` is a hub name."""
        return not Path(self.base).is_absolute()


def read_config(file: Path) -> PaftConfig:
    """Read a `paft.yml`.

    Raises:
        PaftError: No such file, no YAML, or all that is wrong in it.
    """
    content = read_yaml(file, HINT)
    if {"seeds", "contrasts"} & content.keys():
        raise PaftError(f"{file}: is a study, which has seeds. Run it with `axolotl paft study {quote(str(file))}`.")
    return validate(PaftConfig, content, file)
