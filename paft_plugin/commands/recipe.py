"""`axolotl paft recipe`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from paft_plugin.commands import PATH, SEEDS, Decorator
from paft_plugin.errors import did_you_mean, print_warnings, raise_if_any
from paft_plugin.fusion.recipe.methods import MEANINGS, METHODS, extra_names
from paft_plugin.fusion.recipe.settings import ROLES, SETTINGS, RecipeSettings

if TYPE_CHECKING:
    from paft_plugin.fusion.recipe.render import RecipeBranch

BY_BRANCH = [name for name, setting in SETTINGS.items() if setting.by_branch and name == setting.name]
"""Settings of which a branch can have its own value."""


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each field of `RecipeSettings`, and for each parameter that few methods take."""
    options = [_of_setting(name) for name in RecipeSettings.model_fields if name != "extras"]
    for option in reversed([*options, *map(_of_extra, extra_names())]):
        command = option(command)
    return command


def _of_setting(name: str) -> Decorator:
    field = RecipeSettings.model_fields[name]
    if name == "filter":
        return click.option("--filter", multiple=True, metavar="NAME:SETTING=VALUE", help=field.description)
    if name in BY_BRANCH:
        return click.option(f"--{name}", multiple=True, metavar="[NAME=]VALUE", help=field.description)
    (kind, _none) = get_args(field.annotation)
    return _option(name, kind if kind in (bool, float) else str, field.description or "")


def _of_extra(name: str) -> Decorator:
    defaults = {method.name: extra.default for method in METHODS.values() if (extra := method.extra_called(name))}
    shown = " or ".join(dict.fromkeys(map(str, defaults.values())))
    kind = type(next(iter(defaults.values())))
    return _option(name, kind, f"For {', '.join(defaults)}: {MEANINGS[name]}. [{shown}]")


def _option(name: str, kind: type, description: str) -> Decorator:
    option = f"--{name.replace('_', '-')}"
    both = f"{option}/--no-{option[2:]}" if kind is bool else option
    return click.option(both, name, type=kind, default=None, help=description)


def branch_options(command: Callable[..., None]) -> Callable[..., None]:
    """`--sft`, `--preference` and `--branch`."""
    for option in (
        click.option(
            "--branch",
            "branches",
            multiple=True,
            metavar=f"NAME=DIR[,role=ROLE]{''.join(f'[,{name}=…]' for name in BY_BRANCH)}",
            help="A further branch, or instead of --sft and --preference each branch; may be repeated. [role: the name, "
            "else sft]",
        ),
        click.option("--preference", type=PATH, help="The preference branch: adapter or model."),
        click.option("--sft", type=PATH, help="The SFT branch: adapter or model."),
    ):
        command = option(command)
    return command


def read_branches(
    sft: Path | None, preference: Path | None, texts: tuple[str, ...]
) -> tuple[list[RecipeBranch], dict[str, list[str]], list[str]]:
    """The branches in the order given, what is said of single ones (setting → texts like `math=0.5`), and what is wrong."""
    from paft_plugin.fusion.recipe.render import RecipeBranch

    pair = {"sft": sft, "preference": preference}
    found = [RecipeBranch(role, role, folder) for role in ROLES if (folder := pair[role]) is not None]
    problems = []
    if len(found) == 1 and not texts:
        (missing,) = set(ROLES) - {found[0].name}
        problems.append(f"Missing --{missing}. Give it, or give each branch as --branch NAME=DIR.")
    own: dict[str, list[str]] = {name: [] for name in BY_BRANCH}
    for text in texts:
        name, place, keys = _taken_apart(text)
        strange = [key for key in keys if key not in ("role", *BY_BRANCH)]
        role = keys.get("role", name if name in ROLES else "sft")
        if not name or not place:
            problems.append(f"--branch {text}: not of the form NAME=DIR. Write it like math=runs/math,role=sft.")
        elif strange:
            hint = did_you_mean(strange[0], ["role", *BY_BRANCH], f"It takes role, {', '.join(BY_BRANCH)}.")
            problems.append(f"--branch {text}: a branch has no {strange[0]}. {hint}")
        elif role not in ROLES:
            hint = did_you_mean(role, ROLES, f"There are {' and '.join(ROLES)}.")
            problems.append(f"--branch {text}: {role} is no role. {hint}")
        else:
            found.append(RecipeBranch(name, role, Path(place)))
            for key in keys.keys() & own.keys():
                own[key].append(f"{name}={keys[key]}")
    return found, own, problems


def _taken_apart(text: str) -> tuple[str, str, dict[str, str]]:
    """`math=runs/math,weight=0.5` as name, folder and keys; a folder that is there may have such a name itself."""
    name, _, rest = text.partition("=")
    keys: dict[str, str] = {}
    while not Path(rest).exists() and (found := re.fullmatch(r"(.*),\s*(\w+)=([^,/]*)", rest)):
        rest, key, value = found.groups()
        keys = {key: value.strip(), **keys}
    return name.strip(), rest, keys


@click.command()
@click.option("--base", type=PATH, required=True, help="Folder of the base model.")
@branch_options
@click.option("--method", required=True, metavar="METHOD", help=f"Merge method: {', '.join(METHODS)}.")
@setting_options
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="For methods that drop by chance.")
@click.option("--output", type=PATH, required=True, help="The recipe's file, such as ties.yml.")
@click.option("--merged", type=PATH, help="Where the merged model goes. [OUTPUT without its suffix]")
@click.option(
    "--materialize",
    is_flag=True,
    help="Write adapters as whole models beside the recipe, so that mergekit needs no flags for them.",
)
def recipe(**options: Any) -> None:
    """Write a mergekit recipe that fuses branches of one base model.

    Its header holds the command that runs it.
    """
    import shlex

    from paft_plugin.fusion.recipe.methods import how_it_trims
    from paft_plugin.fusion.recipe.render import build_recipe, merge_command
    from paft_plugin.fusion.recipe.write import RecipeRequest, write_recipe

    given = {name: options.pop(name) for name in RecipeSettings.model_fields if name != "extras"}
    extras = {name: value for name in extra_names() if (value := options.pop(name)) is not None}
    pair = options.pop("sft"), options.pop("preference")
    branches, own, problems = read_branches(*pair, options.pop("branches"))
    if not branches:
        raise_if_any(problems)
    given |= {name: [*given[name], *values] for name, values in own.items()}
    settings, unread = RecipeSettings.read({**given, "extras": extras})
    request = RecipeRequest(**options, branches=tuple(branches), settings=settings)
    written = write_recipe(request, [*problems, *unread])
    print_warnings(written.warnings)
    for folder in (branch.whole for branch in written.branches if branch.whole is not None):
        size = sum(file.stat().st_size for file in folder.iterdir())
        click.echo(f"Whole model: {folder} ({size / 1e9:.2f} GB). Delete it after the merge.")
    if said := how_it_trims(str(build_recipe(written)["merge_method"])):
        click.echo(said)
    click.echo(f"Wrote {written.file}. Run it with:\n{shlex.join(merge_command(written))}")
