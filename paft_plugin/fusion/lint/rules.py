"""Every code of the linter, in one table: what `axolotl paft lint --explain CODE` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paft_plugin.errors import PaftError, did_you_mean
from paft_plugin.fusion.lint.findings import Finding, Severity, wrapped


@dataclass(frozen=True)
class Code:
    """One kind of finding."""

    code: str
    name: str
    severity: Severity
    explanation: str
    plain_only: bool = False
    """Whether it matters to plain `mergekit-yaml` alone."""


_ERROR: Severity = "error"
_WARNING: Severity = "warning"
_ROWS: tuple[tuple[int, Severity, str, str], ...] = (
    # 1xx: the file's structure
    (101, _ERROR, "not-yaml", "The file is missing, no valid YAML, or its top level is no mapping of keys to values."),
    (102, _ERROR, "unknown-key", "mergekit ignores keys that it does not know, at every level and without a word."),
    (103, _ERROR, "duplicate-key", "A key that stands twice in one mapping: YAML silently keeps the last one."),
    (104, _ERROR, "wrong-kind", "A value is of another kind than mergekit reads there, or a required key is missing."),
    (105, _ERROR, "unknown-method", "The installed mergekit has no merge method of this name."),
    (106, _ERROR, "one-of-three", "A recipe has exactly one of `models`, `slices` and `modules`."),
    (107, _ERROR, "two-tokenizers", "A recipe has `tokenizer` or `tokenizer_source`, not both."),
    (108, _WARNING, "without-effect", "mergekit accepts this key or parameter here, but nothing reads it."),
    (
        109,
        _ERROR,
        "wrong-models",
        "The method takes another number of models, needs a base model, or got a model twice.",
    ),
    (
        110,
        _ERROR,
        "base-averaged",
        "This method knows no base model: it would average the base in as one more model, or stop.",
    ),
    (
        111,
        _ERROR,
        "unknown-chat-template",
        "mergekit has no chat template of this name, and notices after the whole merge.",
    ),
    (112, _ERROR, "unknown-dtype", "mergekit knows float32, bfloat16, float16 and float64 by these names alone."),
    # 2xx: parameters
    (201, _ERROR, "unknown-parameter", "The method does not take this parameter, so mergekit ignores it."),
    (
        202,
        _ERROR,
        "wrong-scope",
        "A parameter of the whole recipe stands under a model, where mergekit never looks for it.",
    ),
    (203, _ERROR, "missing-parameter", "A parameter without a default is missing for a model, so mergekit stops."),
    (204, _ERROR, "wrong-value", "A parameter's value is of the wrong kind, such as a word where a number belongs."),
    (205, _ERROR, "out-of-range", "A parameter's value is outside of what it can mean."),
    (
        206,
        _WARNING,
        "parameter-on-base",
        "A weight or density of the base model itself: it has no delta, so nothing reads it.",
    ),
    (207, _ERROR, "weights-cancel", "The weights add up to 0 where they are divided by their sum."),
    (
        208,
        _ERROR,
        "nothing-merged",
        "Every weight, or the factor on the merged delta, is 0: the result is the base model.",
    ),
    (209, _WARNING, "gradient", "A list of numbers is a gradient over the layers, not one value for each model."),
    (
        210,
        _WARNING,
        "no-default",
        "Conditions without a last one for the rest: other tensors get mergekit's own default.",
    ),
    (211, _WARNING, "unreachable", "A condition that stands after one which takes the same tensors is never reached."),
    (212, _WARNING, "filter-without-tensors", "No tensor of the base model has the filter's text in its name."),
    (
        213,
        _WARNING,
        "nothing-dropped",
        "The method lives on dropping entries, and at density 1 (mergekit's default) drops none.",
    ),
    (
        214,
        _ERROR,
        "della-window",
        "DELLA needs density − epsilon and density + epsilon within (0, 1); mergekit stops otherwise.",
    ),
    # 3xx: folders and what lies in them
    (301, _ERROR, "folder-missing", "A model's or an adapter's folder is not there."),
    (302, _WARNING, "not-checked", "Something could not be looked at, so what depends on it was not checked."),
    (
        303,
        _WARNING,
        "relative-path",
        "A relative path means another folder wherever the merge is run, or a name on the hub.",
    ),
    (304, _ERROR, "separator-in-path", "In a text, mergekit reads `+` as model+adapter and `@` as path@revision."),
    (305, _ERROR, "home-in-path", "mergekit does not expand `~`: it looks for a folder of that name."),
    (306, _ERROR, "wrong-folder", "An adapter where a model belongs, or a model where an adapter belongs."),
    (
        307,
        _ERROR,
        "unreadable",
        "The folder's weights cannot be read: pickled, truncated, quantised or of an unknown kind.",
    ),
    (308, _ERROR, "other-base", "The adapter says that it was trained on another base model."),
    (
        309,
        _ERROR,
        "vocabulary-grew",
        "Training added tokens, so the branch's embedding no longer has the base's shape.",
    ),
    (310, _ERROR, "does-not-fit", "The branch's tensors are not those of the base model."),
    (
        311,
        _WARNING,
        "two-bases",
        "An adapter stands on another model than base_model: its delta holds their difference, too.",
    ),
    (312, _WARNING, "unproven", "No branch has a paft.json that proves that the L1 penalty shaped it."),
    (313, _WARNING, "tokenizer-union", "A union of tokenizers reorders and resizes the embeddings; padding rows go."),
    (314, _WARNING, "tokenizer-open", "Without base_model and tokenizer, the tokenizer comes from any of the models."),
    (315, _WARNING, "out-dtype-missing", "Merged in float32 and written so: twice the size of a bf16 base."),
    (
        316,
        _WARNING,
        "dtype-rounds",
        "A dtype narrower than a branch: base + δ is rounded before the delta is taken.",
    ),
    # 4xx: what the deltas hold
    (401, _ERROR, "not-finite", "NaN or infinity in a branch: its training diverged, and the merge would hold it too."),
    (
        402,
        _WARNING,
        "weights-idle",
        "With normalize, an entry that one branch alone changes is divided by its own weight.",
    ),
    (
        403,
        _WARNING,
        "trims-nothing",
        "density counts all entries: a delta with fewer non-zeros keeps every one of them.",
    ),
    (
        404,
        _ERROR,
        "breadcrumbs-zeroes",
        "gamma counts all entries: it takes every non-zero entry of so sparse a delta.",
    ),
    (
        405,
        _WARNING,
        "breadcrumbs-guts",
        "gamma counts all entries: it takes at least half of the non-zero entries of a delta.",
    ),
    (
        406,
        _WARNING,
        "della-ranks-zeros",
        "DELLA ranks zeros too: the non-zeros of a sparse delta all rank alike, as in DARE.",
    ),
    (407, _WARNING, "sce-uniform", "SCE weighs branches equally where their mean squares add up to less than 1e-6."),
    (
        408,
        _WARNING,
        "stock-returns-base",
        "Model Stock goes by the angle of the deltas: at a right angle it stays at the base.",
    ),
    (409, _WARNING, "ram-drops", "RAM takes entries up to epsilon for unchanged; most of a delta lies below."),
    (410, _WARNING, "zero-delta", "A branch equals the base: it adds nothing to the merge."),
    # 5xx: plain `mergekit-yaml`
    (
        501,
        _WARNING,
        "adapter-flags",
        "mergekit-yaml stops at an adapter without --lora-merge-cache for it as a model.",
    ),
    (
        502,
        _WARNING,
        "adapter-rounded",
        "Without --lora-merge-dtype float32, base + adapter is rounded to the base's dtype.",
    ),
    (
        503,
        _ERROR,
        "cache-broken",
        "A merge that was cut off left half a model in the adapter cache; mergekit takes it as whole.",
    ),
    (
        504,
        _ERROR,
        "cache-stale",
        "The adapter cache holds another adapter's weights: mergekit knows it by the path alone.",
    ),
    (
        505,
        _WARNING,
        "cache-rounded",
        "The adapter cache was written in a narrower dtype, and mergekit would use it as it is.",
    ),
)

CODES = {
    name: Code(f"PAFT{number}", name, severity, explanation, plain_only=number >= 500)
    for number, severity, name, explanation in _ROWS
}


def explanation(codes: list[Code], width: int) -> list[str]:
    """What codes mean, for people."""
    lines = []
    for code in codes:
        where = " (plain mergekit-yaml only)" if code.plain_only else ""
        lines.append(f"{code.code} {code.name}: {code.severity}{where}")
        lines += wrapped(code.explanation, width)
    return lines


def explain(asked: str) -> list[Code]:
    """The code that is asked for by number or name, or `all`.

    Raises:
        PaftError: There is none.
    """
    if asked == "all":
        return list(CODES.values())
    found = [code for code in CODES.values() if asked.upper() == code.code or asked == code.name]
    if not found:
        known = [*CODES, *(code.code for code in CODES.values())]
        hint = did_you_mean(asked, known)
        raise PaftError(
            " ".join(filter(None, [f"--explain {asked}: no such code.", hint, "`--explain all` lists them."]))
        )
    return found


Keys = tuple[str | int, ...]
"""Keys and list positions that lead to a value in the recipe."""


def dotted(keys: Keys) -> str:
    """`models[0].parameters.weight`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def make(name: str, file: Path, line: int | None, keys: Keys, message: str, fix: str) -> Finding:
    """A finding of the code with this name."""
    code = CODES[name]
    return Finding(
        code=code.code,
        name=name,
        severity=code.severity,
        file=file,
        line=line,
        where=dotted(keys),
        message=message,
        fix=fix,
        plain_only=code.plain_only,
    )
