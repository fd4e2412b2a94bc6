"""Loads what is to be scored as lm-eval's model, whole or not at all."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from paft_plugin.errors import PaftError, one_line
from paft_plugin.evaluation.candidates import Candidate

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM


def load(
    candidate: Candidate, *, batch_size: int, device: str = "cpu", dtype: str = "float32", chat_template: bool = True
) -> HFLM:
    """Load a candidate as lm-eval's model.

    It's loaded here and not by lm-eval, which would score a model with randomly initialised tensors, or an adapter that fits
    nowhere, as if nothing were wrong.

    Args:
        candidate: A model, or an adapter on its base.
        batch_size: Prompts at once.
        device: torch's name of it.
        dtype: torch's name of it, or auto: the checkpoint's own, but bfloat16 for a float32 checkpoint on a GPU.
        chat_template: Whether the tokenizer must have one.

    Raises:
        PaftError: It can't be loaded, or not all of it; names the arm.
    """
    import torch
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = f"arm {candidate.arm}: {candidate.adapter or candidate.model}"
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            candidate.model,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            local_files_only=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(candidate.model, local_files_only=True)
        if dtype == "auto" and device.startswith("cuda") and model.dtype == torch.float32:
            model = model.bfloat16()
        if candidate.adapter is not None:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="(?s).*Found missing adapter keys")
                model = PeftModel.from_pretrained(model, candidate.adapter)
    except Exception as error:  # transformers and PEFT raise almost anything for a bad folder
        raise PaftError(f"{where} can't be loaded: {one_line(error, 300)}") from error
    if lacking := sorted(info["missing_keys"]):
        raise PaftError(
            f"{where} lacks {len(lacking)} tensors of the model that its config describes, e.g. {lacking[0]}"
        )
    if chat_template and tokenizer.chat_template is None:
        raise PaftError(
            f"{where}: the tokenizer in {candidate.model} has no chat template. Add the one of its training, or set "
            "evaluation.apply_chat_template: false to ask in plain text."
        )
    # In half precision, the log-likelihoods of two answers to choose from would often come out equal.
    return HFLM(pretrained=model.to(device), tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
