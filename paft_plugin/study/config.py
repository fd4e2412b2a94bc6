"""`study.yml`: a `paft.yml` with seeds, controls, curves, a budget of trials, and the questions that are asked of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationInfo, field_validator

from paft_plugin.errors import PaftError, collecting, raise_if_any
from paft_plugin.evaluation.config import Names, held_out_measures, measure_names
from paft_plugin.evaluation.held_out_rows import KL
from paft_plugin.evaluation.results import VALIDATION
from paft_plugin.fusion.recipe.methods import METHODS
from paft_plugin.pipeline.arms import SUM
from paft_plugin.pipeline.config import PaftConfig
from paft_plugin.reading import MOST_YAML_BYTES, compose_yaml, read_text
from paft_plugin.schema import STRICT, MappingOfNames, known, raise_lines, read_yaml, suggestion, validate
from paft_plugin.study.design import PRIMARY, Contrast

HINT = "`axolotl paft demo --study` writes one with comments; the README explains it."
TRAINED_WAYS = ("sequential", "sequential-reverse", "joint")
OTHER_WAYS = ("alpha", "disjoint")
"""Ways that are tuned by fusing, and are no merge method's name."""
USUAL_WAYS = (*TRAINED_WAYS, *OTHER_WAYS, "task_arithmetic", "ties", "dare_ties", "ram")
WAYS = (*TRAINED_WAYS, *OTHER_WAYS, *METHODS)
STRENGTHS = {"paft_max_loss_increase": "bound", "paft_target_sparsity": "target", "paft_l1_lambda": "l1"}
"""What says how strong a penalty is → the word for it in an arm's name; of several the first one has the last word."""
_SEED = re.compile(r"\$(?:seed\b|\{seed\})")


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("empty. Name one or more, or leave it out.")
    return _once(values)


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    raise_lines([f"{value} is there twice. Name it once." for value in twice])
    return values


Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Strengths = Annotated[tuple[Strength, ...], AfterValidator(_different)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Shares = Annotated[tuple[Share, ...], AfterValidator(_different)]
Steps = Annotated[tuple[Annotated[int, Field(ge=1)], ...], AfterValidator(_different)]


class Untuned(BaseModel):
    """A control that has no settings."""

    model_config = STRICT


class EarlyStop(BaseModel):
    """SFT without the penalty, for fewer steps."""

    model_config = STRICT

    steps: Steps | None = Field(
        default=None, description="Optimizer steps of the candidates. [20, 40 and 60 % of the config's]"
    )


class Penalties(BaseModel):
    """Another penalty than that of the SFT branch."""

    model_config = STRICT

    strengths: Strengths | None = Field(default=None, description="Of the candidates. [around the config's own λ]")


class Scaled(BaseModel):
    """The dense delta, made smaller."""

    model_config = STRICT

    factors: Strengths = Field(default=(0.3, 0.5, 0.7), description="On the dense delta, of the candidates.")


class ControlsConfig(BaseModel):
    """What is under `controls:`: what else than the penalty could explain what it does."""

    model_config = STRICT

    rescale_l2: Untuned | None = Field(default=None, description="The dense delta at the L2 norm of the sparse one.")
    rescale_l1: Untuned | None = Field(default=None, description="The dense delta at the L1 norm of the sparse one.")
    prune: Untuned | None = Field(
        default=None, description="The dense delta's largest entries, as many as the sparse has."
    )
    prune_rescale: Untuned | None = Field(default=None, description="The same at the norm of the sparse one.")
    drop: Untuned | None = Field(default=None, description="The dense delta with as many entries dropped by chance.")
    early_stop: EarlyStop | None = Field(default=None, description="Dense SFT, stopped where it is as good.")
    l2: Penalties | None = Field(default=None, description="SFT with a penalty on ‖δ‖₂² where it is as good.")
    kl: Scaled | None = Field(default=None, description="The dense delta, scaled to be as far from the base.")
    factors: Penalties | None = Field(default=None, description="L1 on the adapter's factors, where it is as good.")
    preference_l1: Penalties | None = Field(default=None, description="L1 on the preference branch, too.")
    disjoint: Untuned | None = Field(default=None, description="Branches that train modules of their own.")

    @property
    def wanted(self) -> Mapping[str, Any]:
        """Control → its settings."""
        return {name: own for name in type(self).model_fields if (own := getattr(self, name)) is not None}


class CurvesConfig(BaseModel):
    """What is under `curves:`: what is varied alone."""

    model_config = STRICT

    paft_l1_lambda: Strengths | None = Field(default=None, description="λ of SFT trainings with the penalty.")
    paft_target_sparsity: Shares | None = Field(default=None, description="Sparsities that they are steered to.")
    paft_max_loss_increase: Strengths | None = Field(default=None, description="Nats that their loss may rise by.")
    density: Shares | None = Field(default=None, description="Of fusions by the methods that trim or drop.")


class StudyConfig(PaftConfig):
    """A whole `study.yml`, as it is for one seed."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31, strict=True)], ...], AfterValidator(_different)] = (
        Field(default=(1, 2, 3, 4, 5), description="A run for each; $seed stands for it in any text.")
    )
    controls: Annotated[ControlsConfig, MappingOfNames] = Field(
        default_factory=ControlsConfig, description="What else than the penalty could explain what it does, as words."
    )
    curves: Annotated[CurvesConfig, BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=CurvesConfig, description="What is varied alone, and where."
    )
    budget: int = Field(
        default=8, ge=1, le=64, description="Trials of every way of combining; the first is its default."
    )
    ways: Annotated[tuple[str, ...], AfterValidator(_different)] = Field(
        default=USUAL_WAYS, description=f"Ways of combining: {', '.join(WAYS)}."
    )
    contrasts: tuple[Contrast, ...] = Field(
        default=(), description="Questions that are asked before anything is scored."
    )
    retained: Annotated[Names, AfterValidator(_once)] = Field(
        default=(), description="The measures of what no branch teaches."
    )
    primary: Annotated[Names, AfterValidator(_once)] = Field(
        default=(),
        description="The measures whose mean decides; by it the best trials are chosen. [skill and preference]",
    )
    validation: bool = Field(
        default=True, description="Whether held-out rows are split, so that something can be chosen on validation rows."
    )

    @field_validator("ways")
    @classmethod
    def _known_ways(cls, ways: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(known("way of combining", way, WAYS) for way in ways)

    @field_validator("contrasts")
    @classmethod
    def _named_apart(cls, contrasts: tuple[Contrast, ...]) -> tuple[Contrast, ...]:
        names = [contrast.name for contrast in contrasts]
        raise_lines(
            [f"two are called {name}. Name them apart." for name in dict.fromkeys(names) if names.count(name) > 1]
        )
        return contrasts

    @field_validator("retained", "primary")
    @classmethod
    def _measured(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        measures = _measures(info.data)
        return tuple(known("measure", name, measures) for name in names) if measures else names

    @property
    def measures(self) -> list[str]:
        """The measures that the arms are scored on, as far as they are known before a run."""
        return _measures(dict(self))

    @property
    def decides(self) -> tuple[str, ...]:
        """The primary measures."""
        return self.primary or tuple(name for goal in self.goals for name in goal[:1])

    @property
    def goals(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The measures of what the SFT branch and the preference branch teach."""
        return (self.evaluation.skill, self.evaluation.preference) if self.evaluation else ((), ())

    def chosen_by(self, measure: str) -> str | None:
        """The measure by which is chosen what `measure` judges; None if nothing can be chosen by it."""
        own = [] if self.evaluation is None else measure_names(self.evaluation.measures)
        name = f"{measure}{VALIDATION}"
        return name if name in own or (self.validation and measure not in own and measure in self.measures) else None


def _measures(data: Mapping[str, Any]) -> list[str]:
    evaluation = data.get("evaluation")
    if evaluation is None:
        return []
    branches = list(data.get("branches") or ("sft", "preference"))
    held_out = [] if evaluation.held_out is False else held_out_measures(branches)
    return [*measure_names(evaluation.measures), *held_out]


def read_configs(file: Path) -> dict[int, StudyConfig]:
    """Read a `study.yml`: seed → what it says for that seed.

    Raises:
        PaftError: No such file, no YAML, or all that is wrong in it, each with its line.
    """
    content = read_yaml(file, HINT)
    with said_with_lines(file):
        listed = content.get("seeds")
        known = [seed for seed in listed if type(seed) is int] if isinstance(listed, list) else []
        seeds = _read(content, file, next(iter(known), 1)).seeds
        problems: list[str] = []
        found = {}
        for seed in seeds:
            with collecting(problems):
                found[seed] = _read(content, file, seed)
        raise_if_any(list(dict.fromkeys(problems)))
    return found


def _read(content: dict[str, Any], file: Path, seed: int) -> StudyConfig:
    problems: list[str] = []
    study = None
    with collecting(problems):
        study = validate(StudyConfig, filled(content, seed), file)
    if study is not None:
        problems += [f"{file}: {problem}" for problem in _lacking(study)]
    raise_if_any(problems)
    assert study is not None
    return study


def _lacking(study: StudyConfig) -> Iterator[str]:
    """What a study needs and a run does not."""
    if study.evaluation is None:
        yield "evaluation: false: a study compares scores. Say what is scored."
        return
    for (key, such), names in zip(
        (("skill", "sft_match"), ("preference", "preference_gained")), study.goals, strict=True
    ):
        if len(names) != 1:
            yield f"evaluation.{key}: {'missing' if not names else 'names several measures'}. Name one, such as {such}."
    for name in dict.fromkeys(study.decides):
        if study.chosen_by(name) is None:
            yield (
                f"evaluation.measures: none is called {name}{VALIDATION}, by which is chosen what {name} judges. Add the "
                f"task of its validation items under that name."
            )
    if study.arms is not None:
        yield "arms: a study knows its arms. Leave them out; what else is to be scored stands under compare and fusion.fused."
    if study.fusion.recipes:
        yield "fusion.recipes: a study fuses by ways, and by what stands under fusion.fused. Leave them out."
    methods = study.fusion.methods if "methods" in study.fusion.model_fields_set else {}
    for name in [*methods, *(["alpha"] if study.fusion.alpha is not None else [])]:
        if name not in study.ways:
            yield f"fusion.methods: {name}: is none of the ways, so nothing is fused by it. Add it to ways."
    if PRIMARY in study.measures:
        yield f"evaluation.measures: {PRIMARY}: is what the mean of several is called. Name it otherwise."
    if study.curves.density and not any(way in METHODS and METHODS[way].density is not None for way in study.ways):
        yield "curves.density: none of the ways has a density. Leave it out, or add one, such as ties."
    if study.controls.disjoint is not None and SUM not in study.ways:
        yield f"controls.disjoint: is compared with {SUM}, which is none of the ways. Add it."
    yield from _unmatched(study)
    for index, contrast in enumerate(study.contrasts):
        if contrast.measure.endswith(VALIDATION):
            yield f"contrasts.{index}.measure: {contrast.measure}: is what is chosen by. Name the measure of the test items."
        elif contrast.one == contrast.other:
            yield f"contrasts.{index}: {contrast.one} on both sides. Name two arms."
        elif contrast.measure not in (PRIMARY, *study.measures):
            yield f"contrasts.{index}.measure: no such measure. {suggestion(contrast.measure, [PRIMARY, *study.measures])}"


def _unmatched(study: StudyConfig) -> Iterator[str]:
    """Controls with several candidates, none of which could be chosen."""
    for control, settings in study.controls.wanted.items():
        (given,) = settings.model_dump().values() or ((0,),)
        is_one = control == "preference_l1" if given is None else len(given) == 1
        measure = ({"kl": (KL,), "preference_l1": study.goals[1]}.get(control, study.goals[0]) or (KL,))[0]
        if not is_one and study.chosen_by(measure) is None:
            yield (
                f"controls.{control}: is chosen by {measure} on validation items, and there are none. Set evaluation.held_out "
                f"and validation: true, or add a task as {measure}{VALIDATION}; or give the control one setting: "
                f"`{control}: {{{next(iter(type(settings).model_fields))}: […]}}`."
            )


def filled(value: Any, seed: int) -> Any:
    """A value of the file with the seed in it: a text that is nothing else is the number."""
    if isinstance(value, str):
        return seed if _SEED.fullmatch(value) else _SEED.sub(str(seed), value)
    if isinstance(value, dict):
        return {key: filled(each, seed) for key, each in value.items()}
    return [filled(each, seed) for each in value] if isinstance(value, list) else value


@contextmanager
def said_with_lines(file: Path) -> Iterator[None]:
    """What a `PaftError` of the block says of `file` and keys in it also names the line."""
    try:
        yield
    except PaftError as error:
        node = compose_yaml(read_text(file, MOST_YAML_BYTES), file)
        raise PaftError([_with_line(problem, file, node) for problem in error.problems]) from None


def _with_line(problem: str, file: Path, node: yaml.Node | None) -> str:
    said = problem.removeprefix(f"{file}: ")
    line = None if said == problem else _line(said.replace(": ", "."), node)
    return problem if line is None else f"{file}:{line}: {said}"


def _line(dotted: str, node: yaml.Node | None) -> int | None:
    """The line of the deepest thing below a node that a text leads to, which begins with keys and dots."""
    found: dict[str, tuple[int, yaml.Node]] = {}
    if isinstance(node, yaml.MappingNode):
        found = {str(key.value): (key.start_mark.line + 1, value) for key, value in node.value}
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            found[str(index)] = (item.start_mark.line + 1, item)
            if isinstance(item, yaml.ScalarNode):  # a word in a list of words
                found[item.value] = found[str(index)]
            elif isinstance(item, yaml.MappingNode):
                found |= {str(key.value): (key.start_mark.line + 1, value) for key, value in item.value}
    for key in sorted(found, key=len, reverse=True):
        if dotted.startswith(f"{key}."):
            line, below = found[key]
            return _line(dotted.removeprefix(f"{key}."), below) or line
    return None
