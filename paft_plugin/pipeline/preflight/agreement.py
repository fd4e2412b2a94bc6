"""What the branches of one run must share: base, tokenizer, chat template, precision."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paft_plugin.deltas.quantised import without_twin
from paft_plugin.deltas.tokenizer import Tokenizer, compare, conflicts, read_tokenizer
from paft_plugin.errors import Findings, PaftError, collecting, some
from paft_plugin.pipeline.arms import Setup
from paft_plugin.pipeline.branches import Branch
from paft_plugin.pipeline.estimate.shapes import model_config_of
from paft_plugin.pipeline.preflight.ask import Answer


def same_base(setup: Setup, branch: Branch) -> Findings:
    """Whether a config that names a base model names the run's; and keys that would make another model of it."""
    findings = Findings()
    said = branch.content.get("base_model")
    if said is not None and not _is_base(setup, str(said)):
        if _is_base(setup, without_twin(str(said))):
            findings.warn(
                f"{branch.where}: base_model: {said} is a quantised copy of the run's base, {setup.config.base}, which the "
                "run trains on. Set load_in_4bit: true with adapter: qlora if it is to take as little memory."
            )
            return findings
        findings.problem(
            f"{branch.where}: base_model: {said} is not the base of {setup.file}, {setup.config.base}. Both branches start "
            "from that one: remove the key here, or correct `base:` there."
        )
    for key in ("base_model_config", "revision_of_model"):
        value = branch.content.get(key)
        if value and not (key == "base_model_config" and _is_base(setup, str(value))):
            findings.warn(
                f"{branch.where}: {key}: {value} is about a base that is not the run's folder {setup.base}. It does not "
                "matter if that holds the same; otherwise remove the key."
            )
    return findings


def _is_base(setup: Setup, said: str) -> bool:
    """The same folder, the same content, or the same hub name."""
    from paft_plugin.deltas.belongs import is_model
    from paft_plugin.deltas.store import open_model

    if said == setup.config.base:
        return True
    if setup.config.base_is_remote and not Path(said).is_dir():
        return said.lower() == setup.config.base.lower()
    try:
        return is_model(open_model(setup.base), said)
    except PaftError:
        return False


def agree(setup: Setup, answers: Mapping[str, Answer], tokenizers: Path) -> Findings:
    """Compare what axolotl makes of the branches, by their names; `tokenizers` is a folder with that of each."""
    findings = Findings()
    names = {name: setup.branches[name].where for name in answers}
    _compare_tokenizers(setup, answers, tokenizers, findings)
    rendered = {name: answer.rendered for name, answer in answers.items() if answer.rendered is not None}
    if first := _two(rendered):
        one, other = first
        findings.problem(
            f"{names[one]} and {names[other]} are trained with different chat templates: a small conversation begins "
            f"{_difference(rendered[one], rendered[other])} A fused model would know half of each: set the same "
            "chat_template in both."
        )
    endings = {name: answer.ending for name, answer in answers.items() if answer.ending}
    if not first and (second := _two(endings)):
        one, other = second
        findings.warn(
            f"{names[one]} and {names[other]} lead over to an answer differently, with {endings[one]!r} and "
            f"{endings[other]!r}. It matters: a fused model is prompted in one way. Give both the same chat template, or a "
            "data set type that writes the same."
        )
    _compare_precision(answers, names, findings)
    return findings


def _two(values: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first two names whose values differ."""
    items = list(values.items())
    return next(((items[0][0], name) for name, value in items[1:] if value != items[0][1]), None)


def _difference(one: str, other: str) -> str:
    """The first place at which two texts differ, for a person."""
    start = max(0, len(os.path.commonprefix([one, other])) - 10)
    return f"{one[start : start + 40]!r} in the one and {other[start : start + 40]!r} in the other."


def _compare_tokenizers(setup: Setup, answers: Mapping[str, Answer], folder: Path, findings: Findings) -> None:
    """What `deltas` says about branches after the training, before it. The chat template is looked at elsewhere."""
    base = _tokenizer(setup.base, findings)
    if base is None:
        return
    saved = [name for name, answer in answers.items() if answer.tokenizer_saved]
    read = {setup.branches[name].where: _tokenizer(folder / name, findings) for name in saved}
    present = [(where, tokenizer) for where, tokenizer in read.items() if tokenizer is not None]
    rows = model_config_of(setup.base).get("vocab_size")
    evaluation = setup.config.evaluation
    in_chat = bool(evaluation and evaluation.by_task and evaluation.apply_chat_template)
    for where, tokenizer in present:
        _against_base(base, tokenizer, where, findings)
        if in_chat and base.template and tokenizer.template not in (None, base.template):
            findings.warn(
                f"{where}: is trained in another chat template than the base's own, in which adapters and fused models are asked "
                "the tasks. It matters: they were never trained on such prompts. Put that template into the base's folder, as "
                "chat_template.jinja, or set evaluation.apply_chat_template: false."
            )
    for name in saved:
        branch = setup.branches[name]
        tokens = read[branch.where]
        if tokens is not None and tokens.tokens.keys() <= base.tokens.keys() and isinstance(rows, int):
            findings.problem(*_resized(branch, len(tokens.tokens), rows))
    for (first, one), (second, other) in itertools.combinations(present, 2):
        _against_each_other(base, one, other, first, second, findings)


def _tokenizer(folder: Path, findings: Findings) -> Tokenizer | None:
    with collecting(findings.problems):
        return read_tokenizer(folder)
    return None


def _against_base(base: Tokenizer, branch: Tokenizer, where: str, findings: Findings) -> None:
    findings.problem(*(text.replace(str(branch.folder), where) for text in compare(base, branch).problems))
    new = sorted(branch.tokens.keys() - base.tokens.keys()) if base.tokens else []
    ends = [tokenizer.special.get("eos_token") for tokenizer in (branch, base)]
    if new:
        words = some([repr(branch.tokens[token_id]) for token_id in new])
        findings.problem(
            f"{where}: its tokenizer gets {len(new)} tokens that the base's does not have ({words}), so that its "
            "embeddings are resized and it no longer fits the base. Use tokens of the base's vocabulary in "
            "special_tokens and tokens, and a chat_template of plain text such as alpaca."
        )
    elif ends[0] != ends[1]:
        findings.warn(
            f"{where}: it learns to end with {ends[0]!r}, the base's EOS token is {ends[1]!r}. It matters: a fused model "
            "gets the base's tokenizer, and may not stop."
        )


def _resized(branch: Branch, tokens: int, rows: int) -> list[str]:
    """Why axolotl would give a branch another number of embeddings than the base's `rows`, as it does on loading the model."""
    keys = [key for key in ("resize_token_embeddings_to_32x", "shrink_embeddings") if branch.content.get(key)]
    wanted = -(-tokens // 32) * 32 if "resize_token_embeddings_to_32x" in keys else tokens
    if wanted == rows or (wanted < rows and "shrink_embeddings" not in keys):
        return []
    if keys:
        return [
            f"{branch.where}: {' and '.join(keys)}: the {rows} embeddings of the base become {wanted}, so that what is trained "
            "no longer fits the base and cannot be fused. Remove it here; for another size, resize the base itself first, and "
            "give that as `base:`."
        ]
    return [
        f"{branch.where}: the tokenizer has {tokens} tokens, the base only {rows} embeddings, so that axolotl resizes them and "
        "what is trained no longer fits the base. Resize the base itself first (`model.resize_token_embeddings` of "
        "transformers, then `save_pretrained`), and give that as `base:`."
    ]


def _against_each_other(
    base: Tokenizer, one: Tokenizer, other: Tokenizer, first: str, second: str, findings: Findings
) -> None:
    keys = [key for key in ("bos_token", "eos_token") if one.special.get(key) != other.special.get(key)]
    if keys:
        shown = ", ".join(f"{key} {one.special.get(key)!r} and {other.special.get(key)!r}" for key in keys)
        findings.problem(
            f"{first} and {second} are trained with different special tokens ({shown}): a fused model would not know when "
            "to stop. Set the same special_tokens in both."
        )
    for text in conflicts(base, one, other):
        findings.problem(text.replace(str(one.folder), first).replace(str(other.folder), second))


def _compare_precision(answers: Mapping[str, Answer], names: Mapping[str, str], findings: Findings) -> None:
    """Different precisions are no failure: both deltas are added to the same base. But they are not alike, so it is said."""
    for key, what in (("compute", "compute in"), ("weights", "keep the base's weights in")):
        values = {name: answer.precision[key] for name, answer in answers.items() if key in answer.precision}
        if pair := _two(values):
            one, other = pair
            findings.warn(
                f"{names[one]} and {names[other]} {what} different precisions ({values[one]} and {values[other]}). A delta "
                "also makes up for the rounding that it was trained under, which fusion does not see: choose one for both "
                "if memory allows."
            )
