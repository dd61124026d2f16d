"""Trainable parameters of a classifier in a stage, and the mode of its batch norm."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from counterpoise import config
from counterpoise.config.trainable import (
    All,
    AllButBlocks,
    Blocks,
    LastLayer,
    Lora,
    RandomTensors,
    Selective,
)
from counterpoise.core.rng import stream
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.training.models import Classifier, last_linear


def prepare(model: Classifier, stage: config.Stage, seed: int, mask: Sequence[str] | None = None) -> None:
    """Make exactly the parameters that ``stage.trainable`` names require a gradient, in place.

    An optimizer must take only parameters that require a gradient, because weight decay would move the others. With
    ``lora`` the model has adapters afterwards: :func:`merged_state_dict` merges them. All errors are also raised on the
    meta device, before any weights exist.

    Args:
        model: A classifier without adapters.
        stage: The stage; its ``trainable`` selects, and ``batch_norm`` = frozen excludes batch norm's scales and
            shifts.
        seed: Seed of the tensors of ``random`` and of the first factors of ``lora``.
        mask: For ``selective``: names of parameters; see
            :func:`counterpoise.training.parameters.gradient_mask.ranked_mask`.

    Raises:
        ConfigError: There is no block of that name, no linear last layer where one is needed, or nothing to train.
    """
    selected = _selected(model, stage, seed, mask)
    if isinstance(stage.trainable, Lora):
        _add_lora(model.backbone, stage.trainable, seed)  # sets requires_grad: only what it adds moves
    else:
        model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name in selected:
            parameter.requires_grad_()


def candidates(model: Classifier, stage: config.Stage) -> dict[str, nn.Parameter]:
    """Return the parameter tensors that the stage may select, by name: all but frozen batch norm's."""
    frozen = {id(parameter) for module in _batch_norms(model, stage, "frozen") for parameter in module.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in frozen}


def set_mode(model: Classifier, stage: config.Stage) -> None:
    """Set training mode, except for batch norm with frozen statistics.

    With ``batch_norm`` = train the running statistics move even where no parameter does, as in AIM-Fair's code.
    """
    model.train()
    for module in _batch_norms(model, stage, "frozen", "frozen_statistics"):
        module.eval()


def trainable_mask(model: Classifier, stage: config.Stage) -> dict[str, bool] | None:
    """Return for each parameter tensor of a prepared model True if it moves, in the model's order.

    None means that all move, or adapters instead.
    """
    if isinstance(stage.trainable, All | Lora):
        return None
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def merged_state_dict(model: Classifier) -> dict[str, Tensor]:
    """Return the state dict, on the CPU, of a :class:`Classifier` without adapters that gives the same logits.

    LoRA's updates are added to their weights, W + alpha / rank · B A (Hu et al. 2022, §4.1).
    """
    state = {
        name.replace(".base_layer.", "."): value.detach().cpu().clone()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):  # an adapter; no isinstance, because importing peft is slow
            weight = f"{name}.{getattr(layer, 'parameter_name', 'weight')}"
            state[weight] += layer.get_delta_weight("default").detach().cpu()
    return state


def _selected(model: Classifier, stage: config.Stage, seed: int, mask: Sequence[str] | None) -> list[str]:
    """Return names of the parameters that move, in the model's order; with ``lora`` those beside the adapters."""
    settings, names = stage.trainable, list(candidates(model, stage))
    where = f"stage {stage.name!r}, trainable"
    if isinstance(settings, LastLayer | Lora):
        prefix = f"backbone.{last_linear(model.backbone)[0]}."
        selected = [name for name in names if name.startswith(prefix)]
    elif isinstance(settings, Blocks | AllButBlocks):
        _check_blocks(model.backbone, settings.blocks, where)
        inside = tuple(f"backbone.{block}." for block in settings.blocks)
        selected = [name for name in names if name.startswith(inside) == isinstance(settings, Blocks)]
    elif isinstance(settings, RandomTensors):
        selected = _draw(names, settings.share, seed)
    elif isinstance(settings, Selective):
        if mask is None:
            raise ValueError("selective training needs a mask")
        selected = [name for name in names if name in set(mask)]
    else:
        selected = names
    if not selected:
        found = ", ".join(settings.blocks) if isinstance(settings, Blocks | AllButBlocks) else settings.name
        remedy = "name blocks that hold weights, or let batch norm's scales and shifts train (batch_norm)"
        raise ConfigError("no parameters are left to train", where=where, found=found, remedy=remedy)
    return selected


def _draw(names: list[str], share: float, seed: int) -> list[str]:
    """Draw the nearest whole number of tensors, at least one; as in AIM-Fair the head is not exempt."""
    count = max(1, round(share * len(names)))
    drawn = stream(seed).choice(len(names), count, replace=False)
    return [names[position] for position in sorted(drawn)]


def _check_blocks(backbone: nn.Module, blocks: Sequence[str], where: str) -> None:
    known = [name for name, _ in backbone.named_modules() if name]
    for block in blocks:
        if block not in known:
            top = [name for name, _ in backbone.named_children()]
            raise ConfigError(
                "the backbone has no such block",
                where=f"{where}.blocks",
                found=block,
                allowed=one_of(top, limit=24) + "; and their inner modules, such as layer4.1.conv1",
                remedy=did_you_mean(block, known),
            )


def _batch_norms(model: Classifier, stage: config.Stage, *policies: str) -> list[nn.Module]:
    """Return the batch norm modules, if the stage's policy is one of these."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and stage.batch_norm in policies]


def _add_lora(backbone: nn.Module, settings: Lora, seed: int) -> None:
    """Give every weight that peft can adapt, except the head's, a low-rank update, initially 0."""
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    modules, parameters = _adaptable(backbone)
    adapters = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # it is only divided by the rank
        target_modules="|".join(re.escape(name) for name in modules),  # whole names: of a list, endings would do
        target_parameters=parameters or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(adapters, backbone)


def _adaptable(backbone: nn.Module) -> tuple[list[str], list[str]]:
    """Return names of the modules and of the single parameters that get adapters.

    Modules: linear layers and convolutions except grouped ones, whose adapters peft 0.21 cannot merge. Parameters:
    queries, keys and values of attention. Attention reads its output projection's weight (Swin's that of all
    projections) without calling the module, so an adapter there would do nothing; peft's own adapter for attention as
    a whole adds the output projection's update twice and rounds the frozen weights in every pass.
    """
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    modules, parameters, uncalled = list[str](), list[str](), {last_linear(backbone)[0]}
    for name, module in backbone.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            parameters.append(f"{name}.in_proj_weight")
            uncalled.add(f"{name}.out_proj")
        elif isinstance(module, ShiftedWindowAttention):
            uncalled |= {f"{name}.qkv", f"{name}.proj"}
        elif isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            modules.append(name)
    return [name for name in modules if name not in uncalled], parameters
