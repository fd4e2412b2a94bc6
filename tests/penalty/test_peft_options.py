"""Each option of PEFT: penalised as the change that it makes to the merged model, or seen and refused, never wrong in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import (
    ArrowConfig,
    EvaConfig,
    LoraConfig,
    LoraGAConfig,
    PeftModel,
    create_arrow_model,
    get_peft_model,
    initialize_lora_eva_weights,
)
from peft.tuners.lora.config import BdLoraConfig, CordaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.gptq import GPTQLoraLinear
from peft.tuners.lora.loraga import preprocess_loraga
from torch import nn

from paft_plugin.errors import PaftError
from paft_plugin.penalty.live import measure
from tests.offered import LORA_OPTIONS, NEW_LINE
from tests.penalty.models import LINEAR, copies, live, move, tiny_llama, token_rows, with_lora


def with_eva(model: nn.Module) -> PeftModel:
    """Ranks and scales are redistributed over the modules by what the activations need."""
    adapted = with_lora(model, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0))
    batch = {"input_ids": token_rows(), "attention_mask": torch.ones(4, 30)}
    initialize_lora_eva_weights(adapted, dataloader=[batch] * 3, show_progress_bar=False)
    return adapted


def with_corda(model: nn.Module) -> PeftModel:
    config = LoraConfig(r=4, target_modules=LINEAR, init_lora_weights="corda", corda_config=CordaConfig())
    preprocess_corda(model, config, run_model=lambda: [model(input_ids=row[None]) for row in token_rows()])
    return get_peft_model(model, config)


def with_lora_ga(model: nn.Module) -> PeftModel:
    config = LoraConfig(r=4, target_modules=LINEAR, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
    ids = token_rows()
    preprocess_loraga(model, config, lambda: model(input_ids=ids, labels=ids).loss.backward())
    return get_peft_model(model, config)


def options(**settings: Any) -> Callable[[nn.Module], PeftModel]:
    return lambda model: with_lora(model, **settings)


RIGHT: dict[str, Callable[[nn.Module], PeftModel]] = {
    "gaussian": options(init_lora_weights="gaussian"),
    "eva": with_eva,
    "lora_ga without gradients": options(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()),
    "dropout": options(lora_dropout=0.3),
    "layers": options(layers_to_transform=[1], layers_pattern="layers"),
    "excluded modules": options(exclude_modules=["v_proj"]),
    "all linear": options(target_modules="all-linear"),
    "bias": options(bias="lora_only"),
    "qalora without GPTQ": options(use_qalora=True),  # PEFT ignores it
    "megatron without megatron": options(megatron_config={}, megatron_core="none"),  # PEFT ignores it
    "parameters": options(target_parameters=["k_proj.weight", "up_proj.weight"]),
    "modules to save": options(modules_to_save=["norm", "lm_head"]),
    "tokens": options(trainable_token_indices=[3, 1]),
}


@pytest.mark.parametrize("option", RIGHT)
def test_the_norm_is_that_of_the_change_in_the_merged_model(option: str) -> None:
    """Against the model as it was before PEFT touched it, so an initialisation that moves the base would show."""
    original = tiny_llama(attention_bias=True)
    base = copies(original)
    model = RIGHT[option](original)
    deltas = live(model)
    assert measure(deltas, (0.0,)).sparsity == {0.0: 1.0}
    move(model)
    measured = measure(deltas, ())
    merged = copies(model.merge_and_unload())
    assert merged.keys() == base.keys()
    change = torch.cat([(merged[name] - base[name]).flatten() for name in base])
    assert measured.l1_norm == pytest.approx(change.abs().sum().item(), rel=1e-5)


STARTS_ELSEWHERE: dict[str, Callable[[nn.Module], PeftModel]] = {
    "random": options(init_lora_weights=False),
    "pissa": options(init_lora_weights="pissa"),
    "pissa by iteration": options(init_lora_weights="pissa_niter_4"),
    "olora": options(init_lora_weights="olora"),
    "orthogonal": options(init_lora_weights="orthogonal"),
    "corda": with_corda,
    "lora_ga": with_lora_ga,
}


@pytest.mark.parametrize("l1_on", ["delta", "factors"])
@pytest.mark.parametrize("option", STARTS_ELSEWHERE)
def test_an_adapter_that_does_not_start_at_zero_shows(option: str, l1_on: Any) -> None:
    """Not zero all over, or the injector would take it for a fresh adapter: the most of it is not.

    An orthogonal start is zero but for rounding, which leaves some entries at zero on some processors.
    """
    for delta in live(STARTS_ELSEWHERE[option](tiny_llama()), l1_on):
        assert delta.measure((0.0,)).small.item() < delta.entries / 2


def with_arrow(folder: Path) -> PeftModel:
    for expert in ("0", "1"):
        with_lora(tiny_llama()).save_pretrained(folder / expert)
    return create_arrow_model(tiny_llama(), [str(folder / "0"), str(folder / "1")], ArrowConfig(top_k=1))


def with_qalora(_: Path) -> nn.Module:
    """PEFT's layer for GPTQ weights, around a plain one."""
    base = nn.Linear(32, 8)
    base.qweight = base.weight
    config = LoraConfig(use_qalora=True, qalora_group_size=16)
    return nn.ModuleDict({"q_proj": GPTQLoraLinear(base, "default", config, r=2, lora_alpha=2)})


def refused(**settings: Any) -> Callable[[Path], nn.Module]:
    return lambda _: with_lora(tiny_llama(attention_bias=True), **settings)


def on_convolution(layer: nn.Module) -> Callable[[Path], nn.Module]:
    return lambda _: with_lora(nn.ModuleDict({"conv": layer}), target_modules=["conv"])


WAY_OUT = "use plain LoRA"
REFUSED: dict[str, tuple[Callable[[Path], nn.Module], str]] = {
    "dora": (refused(use_dora=True), f"q_proj: .*DoraLinearVariant: {WAY_OUT}"),
    "dora on an embedding": (
        refused(use_dora=True, target_modules=["embed_tokens"]),
        f"embed_tokens: .*DoraEmbeddingVariant: {WAY_OUT}",
    ),
    "alora": (
        refused(alora_invocation_tokens=[1, 2], task_type="CAUSAL_LM"),
        f"q_proj: .*ALoraLinearVariant: {WAY_OUT}",
    ),
    "velora": (refused(velora_config=VeloraConfig(num_groups=4)), f"q_proj: .*VeloraLinearVariant: {WAY_OUT}"),
    "monteclora": (refused(monteclora_config=MontecloraConfig()), f"q_proj: .*MontecloraLinearVariant: {WAY_OUT}"),
    "bdlora": (
        refused(use_bdlora=BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2), target_modules=["q_proj"]),
        f"q_proj: .*BdLoraLinearVariant: {WAY_OUT}",
    ),
    "mica": (refused(init_lora_weights="mica"), f"q_proj: .*MiCALinearVariant: {WAY_OUT}"),
    "arrow": (with_arrow, f"q_proj: .*ArrowLinearVariant: {WAY_OUT}"),
    "qalora": (with_qalora, f"q_proj: .*QALoraLinearVariant: {WAY_OUT}"),
    "bias of lora": (refused(lora_bias=True, target_modules=["q_proj"]), r"q_proj\.lora_B\.default\.bias: .*freeze"),
    "conv1d": (on_convolution(nn.Conv1d(3, 4, 3)), "conv: .*Conv1d: leave it out"),
    "conv2d": (on_convolution(nn.Conv2d(3, 4, 3)), "conv: .*Conv2d: leave it out"),
    "conv3d": (on_convolution(nn.Conv3d(3, 4, 3)), "conv: .*Conv3d: leave it out"),
    "adalora": (
        lambda _: get_peft_model(tiny_llama(), peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9)),
        "q_proj: the penalty does not cover",
    ),
}
if NEW_LINE:
    from peft.tuners.lora.config import KasaConfig

    # It cuts the smallest singular values off the base, so δ is more than what its factors hold.
    REFUSED["kasa"] = (refused(kasa_config=KasaConfig()), f"q_proj: .*KasaLinearVariant: {WAY_OUT}")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_s_times_ba_is_refused_by_name_with_a_way_out(kind: str, tmp_path: Path) -> None:
    build, message = REFUSED[kind]
    with pytest.raises(PaftError, match=message):
        live(build(tmp_path))


OTHER_METHODS: dict[str, Any] = {
    "loha": lambda: peft.LoHaConfig(target_modules=["q_proj"]),
    "lokr": lambda: peft.LoKrConfig(target_modules=["q_proj"]),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"]),
    "oft": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_methods_than_lora_are_refused(method: str) -> None:
    """Their parameters are trained themselves, but what they change in the model is another δ."""
    with pytest.raises(PaftError, match=r"q_proj|prompt_encoder"):
        live(get_peft_model(tiny_llama(), OTHER_METHODS[method]()))


def test_an_adapter_that_peft_ties_is_one_delta_or_refused() -> None:
    """With `ensure_weight_tying`, the adapter of a tied lm_head is the embedding's, seen transposed."""
    model = with_lora(tiny_llama(tie=True), target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True)
    try:
        deltas = live(model)
    except PaftError as refusal:
        assert "lm_head" in str(refusal)  # noqa: PT017 either is right
    else:
        assert sum(delta.entries for delta in deltas) == model.get_input_embeddings().weight.numel()


def test_no_option_of_lora_went_unread() -> None:
    """A PEFT that has learnt a new way to write δ fails here, rather than being penalised wrongly in silence."""
    own = {option.name for option in dataclasses.fields(LoraConfig)}
    assert own - {option.name for option in dataclasses.fields(peft.PeftConfig)} == LORA_OPTIONS
