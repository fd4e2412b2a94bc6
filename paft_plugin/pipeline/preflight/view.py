"""What axolotl makes of one config: validation, precision, tokenizer, chat template, rows. Needs axolotl; runs in the probe.

Each step adds what is wrong to the answer; the ones that can still be taken are taken, so that all of it is said at once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from paft_plugin.deltas.skeleton import build_model
from paft_plugin.errors import Findings, closest, one_line
from paft_plugin.files import read_json_or_nothing
from paft_plugin.pipeline.branches import entries
from paft_plugin.pipeline.preflight.ask import Answer
from paft_plugin.pipeline.preflight.data_files import Sample, file_type, local_files, read_sample
from paft_plugin.pipeline.preflight.shape import common_ending, shape_of
from paft_plugin.schema import dotted, names_of, unknown_keys

CLOSE = 0.8
"""How alike a key and one that exists must be, 0 to 1, for the key to be a slip of the pen."""
CONVERSATION = [
    {"role": "user", "content": "Name a prime."},
    {"role": "assistant", "content": "7"},
    {"role": "user", "content": "And another?"},
    {"role": "assistant", "content": "11"},
]


def view(content: dict[str, Any], where: str, tokenizer_folder: Path, here: bool) -> Answer:
    """Everything about a config as axolotl will get it; this machine's GPU counts if it is to be trained `here`.

    `tokenizer_folder` gets the tokenizer as the branch would be trained with it; messages begin with `where`.
    """
    answer = Answer()
    schema = schema_of(content, where, answer)
    samples = _samples(content, where, answer)
    cfg = validated(content, where, here, answer) if schema else None
    if schema:
        answer.take(lost_keys(schema, content, where, answer.problems))
    if cfg is None:
        return answer
    answer.precision = _precision(cfg, content, here)
    answer.problem(*_tied_head(cfg, where))
    tokenizer = load_tokenizer_of(cfg, where, answer)
    if tokenizer is None:
        return answer
    tokenizer.save_pretrained(tokenizer_folder)
    answer.tokenizer_saved = True
    _processor(cfg, tokenizer, where, answer)
    answer.rendered = _rendered(cfg, tokenizer, where, answer)
    prompts: list[str] = []
    for index, sample in samples.items():
        if sample.rows and not sample.problems:
            shape = shape_of(cfg, tokenizer, index, sample.rows, where)
            answer.take(shape)
            prompts += shape.prompts
    answer.ending = common_ending(prompts)
    return answer


def schema_of(content: Mapping[str, Any], where: str, answer: Answer) -> type[BaseModel] | None:
    """axolotl's schema with the plugins' keys. None, and a problem, if one cannot be imported: axolotl 0.19 goes on without."""
    from paft_plugin.pipeline.preflight.axolotl_internals import (
        DictDefault,
        load_plugin,
        merge_input_args,
        prepare_plugins,
    )

    for name in content.get("plugins") or []:
        try:
            load_plugin(name)
        except Exception as error:  # whatever an import raises
            answer.problem(
                f"{where}: plugins: {name} cannot be loaded ({error}), and axolotl 0.19 would train without it. Install "
                "it, or remove it here."
            )
    if answer.problems:
        return None
    prepare_plugins(DictDefault(copy.deepcopy(dict(content))))
    return merge_input_args()[1]


def validated(content: Mapping[str, Any], where: str, here: bool, answer: Answer) -> Any:
    """The config as `axolotl train` would see it; None if it is not valid."""
    from paft_plugin.pipeline.preflight.axolotl_internals import (
        DictDefault,
        gpu_capabilities,
        normalize_cfg_datasets,
        normalize_config,
        validate_config,
    )

    raw = DictDefault(copy.deepcopy(dict(content)))
    machine = gpu_capabilities() if here else (None, None)
    try:
        cfg = validate_config(raw, *machine)
        normalize_config(cfg)
        normalize_cfg_datasets(cfg)
    except ValidationError as error:
        answer.problems += [f"{where}: {line}" for fault in error.errors() for line in _lines(dict(fault))]
        return None
    except Exception as error:  # axolotl's validators raise all kinds
        answer.problem(f"{where}: axolotl refuses this config: {one_line(error)}")
        return None
    cfg.dataset_num_proc = None  # in this process
    return cfg


def _lines(fault: dict[str, Any]) -> list[str]:
    """One of pydantic's errors in axolotl's words; a plugin of ours may say several things at once."""
    place = ".".join(str(part) for part in fault["loc"])
    text = str(fault["msg"]).removeprefix("Value error, ")
    return [f"{place}: {line}" if place else line for line in text.splitlines() if line.strip()]


def _precision(cfg: Any, content: Mapping[str, Any], here: bool) -> dict[str, str]:
    """What is computed in (on another machine: what the config says of it), and how the base's weights are kept."""
    written = ", ".join(f"{key}: {content[key]}" for key in ("bf16", "fp16") if content.get(key)) or "no half precision"
    compute = str(cfg.torch_dtype).removeprefix("torch.") if here else written
    return {"compute": compute, "weights": "4 bits" if cfg.load_in_4bit else "8 bits" if cfg.load_in_8bit else "whole"}


def _tied_head(cfg: Any, where: str) -> Iterator[str]:
    """An output head that is tied and `lora_target_linear` trains: axolotl 0.19 looks for another name of that of NeoX."""
    from paft_plugin.pipeline.preflight.axolotl_internals import find_all_linear_names

    base = Path(cfg.base_model)
    if not (
        cfg.adapter and cfg.lora_target_linear and read_json_or_nothing(base / "config.json").get("tie_word_embeddings")
    ):
        return
    with suppress(Exception):  # transformers raises all kinds; a model that it cannot build is named elsewhere
        model = build_model(base)
        named = find_all_linear_names(model)
        heads = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
        if head := next((name for name in heads if name.rpartition(".")[2] in named), None):
            others = ", ".join(sorted({*named} - {head}))
            yield (
                f"{where}: lora_target_linear: axolotl trains {head}, too, which is tied to the embedding here. Such a branch "
                f"cannot be merged, or not even be saved. Name lora_target_modules: [{others}] instead."
            )


def load_tokenizer_of(cfg: Any, where: str, answer: Answer) -> Any:
    from paft_plugin.pipeline.preflight.axolotl_internals import load_tokenizer

    try:
        return load_tokenizer(cfg)
    except Exception as error:
        answer.problem(f"{where}: axolotl cannot load the tokenizer: {one_line(error)}")
    return None


def _processor(cfg: Any, tokenizer: Any, where: str, answer: Answer) -> None:
    """Of a multimodal base axolotl loads the processor, too, even if it is trained on texts alone."""
    from paft_plugin.pipeline.preflight.axolotl_internals import load_processor

    if not cfg.is_multimodal:
        return
    try:
        load_processor(cfg, copy.deepcopy(tokenizer))
    except Exception as error:  # transformers raises all kinds
        answer.problem(
            f"{where}: the base is multimodal, and axolotl cannot load its processor ({one_line(error, 200)}). Put the files "
            "that belong to it (preprocessor_config.json, processor_config.json …) beside its config.json, from where the model "
            "is from."
        )


def _rendered(cfg: Any, tokenizer: Any, where: str, answer: Answer) -> str | None:
    """A conversation as the data's chat templates put it; a warning if there are several, a problem if one cannot be used."""
    from paft_plugin.pipeline.preflight.axolotl_internals import get_chat_template_from_config

    texts: dict[str, int] = {}
    for index, entry in enumerate(cfg.datasets or []):
        if not isinstance(entry.type, str) or "chat_template" not in entry.type:
            continue
        try:
            # Preference strategies do not look at a data set's own chat_template.
            template = get_chat_template_from_config(cfg=cfg, ds_cfg=None if cfg.rl else entry, tokenizer=tokenizer)
            text = tokenizer.apply_chat_template(CONVERSATION, chat_template=template, tokenize=False)
        except Exception as error:  # templates raise what they like
            answer.problem(
                f"{where}: datasets[{index}]: the chat template cannot be used ({one_line(error)}). Name one that "
                "exists, such as chat_template: chatml, or give chat_template_jinja."
            )
            continue
        texts.setdefault(text, index)
    if len(texts) > 1:
        first, second = list(texts.values())[:2]
        answer.warn(
            f"{where}: datasets[{first}] and datasets[{second}] are read with different chat templates. It matters if the "
            "model is to be prompted in one of them: set chat_template once, for the whole config."
        )
    return next(iter(texts), None)


def _samples(content: Mapping[str, Any], where: str, answer: Answer) -> dict[int, Sample]:
    """Rows of every data set that is trained on and on this disk, by its index. Files of all data sets are looked into."""
    from paft_plugin.pipeline.preflight.axolotl_internals import DPODataset, KTODataset

    # What axolotl turns a data set into before it looks at it, where that knows less than its schema.
    models = {"dpo": DPODataset, "ipo": DPODataset, "simpo": DPODataset, "kto": KTODataset}
    rl = str(content.get("rl") or "")
    if known := models.get(rl):
        answer.problems += dropped_keys([entry for _, entry in entries(content, "datasets")], known, rl, where)
    samples = {}
    for key in ("datasets", "test_datasets"):
        for index, entry in entries(content, key):
            if files := local_files(entry):
                sample = read_sample(entry, files)
                answer.take(sample, f"{where}: {key}[{index}]: ")
                if key == "datasets":
                    samples[index] = sample
    return samples


# --- keys that axolotl drops without a word ----------------------------------------------------------------------------


def lost_keys(schema: type[BaseModel], content: Mapping[str, Any], where: str, said: Sequence[str]) -> Findings:
    """Keys of a config that `schema` (axolotl's, with the plugins' keys) does not know, at any depth.

    One that is close to a known key is a mistake; another one may be meant for somebody else, such as a YAML anchor. What has
    been `said` is not said again: a plugin may have refused its own misspelt keys, and knows better what was meant.
    """
    findings = Findings()
    for keys, models in unknown_keys([schema], content):
        start = f"{where}: {dotted(keys)}: "
        if any(problem.startswith(start) for problem in said):
            continue
        if close := closest(str(keys[-1]), names_of(models), CLOSE):
            findings.problem(f"{start}axolotl has no such key and would drop it. Did you mean {close}?")
        else:
            findings.warn(f"{start}axolotl has no such key and drops it. Remove it if it was to do something.")
    return findings


def dropped_keys(datasets: Sequence[Mapping[str, Any]], known: type[BaseModel], strategy: str, where: str) -> list[str]:
    """Keys of data sets that axolotl knows elsewhere, but drops under `rl: strategy`, where it turns each into a `known`."""
    problems = []
    for index, entry in enumerate(datasets):
        lost = [key for key, value in entry.items() if key not in known.model_fields and value not in (None, False)]
        guessed = file_type({}, str(entry.get("path") or ""))
        lost = [key for key in lost if not (key == "ds_type" and entry[key] == guessed)]
        problems += [
            f"{where}: datasets[{index}].{key}: axolotl drops this key under rl: {strategy}, whose data sets know "
            f"{', '.join(known.model_fields)} and no more. Remove it, and bring the data into the shape that its type reads."
            for key in lost
        ]
    return problems
