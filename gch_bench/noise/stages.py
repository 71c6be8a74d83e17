"""The stages L1..L4 of a network, and the modules in a stage at which a mechanism is attached."""

import inspect
import itertools
import math
from collections.abc import Iterator

from torch import nn

from gch_bench.noise.hooks import Placement
from gch_bench.noise.mechanism import Mechanism

HEAD = ("global_pool", "attn_pool", "fc_norm", "head_drop", "pre_logits", "head", "fc", "classifier")  # timm's
BRANCH_ENDS = ("drop_path", "drop_path1", "drop_path2")  # timm's modules that a block's residual branches end in


def feature_stages(model: nn.Module) -> dict[str, str]:
    """The module names of L1..L4 (early..late) by timm's `feature_info`; {} for a network that has no `feature_info`.

    In a hierarchical backbone these are the modules that end its last four resolutions. In a backbone with one resolution
    throughout (ViT, Mixer) they are the blocks that end each quarter of the depth. A backbone with fewer than four such
    modules has only the last stages, for example L3 and L4.
    """
    info = getattr(model, "feature_info", None) or []
    entries = list(getattr(info, "info", info))
    names = [entry["module"] for entry in entries]
    if len({entry["reduction"] for entry in entries}) == 1:
        names = [names[math.ceil(quarter * len(names) / 4) - 1] for quarter in (1, 2, 3, 4)]
    names = names[-4:]
    return {f"L{5 - len(names) + i}": name for i, name in enumerate(names)}


def stage_modules(model: nn.Module) -> dict[str, str]:
    """The names of the modules whose outputs get the noise at L1..L4; {} for a network without timm's `feature_info`.

    L1..L3 are the backbone's own stages (`feature_stages`). L4 is the last place where one scalar per site still reaches the
    logits. This is a definition of this project (docs/definitions.md).
    """
    stages = feature_stages(model)
    return stages | {"L4": _last_place(model, stages["L4"])} if stages else {}


def _last_place(model: nn.Module, last_stage: str) -> str:
    """The name of the last module whose output holds one vector per site, each of which the logits depend on.

    If the classifier reads only the class token, this is the first norm of the last block whose attention mixes tokens (in
    CaiT and XCiT the last class-attention block). Otherwise it is the last module before the pooling, possibly a final norm.
    """
    children = dict(model.named_children())
    if getattr(model, "global_pool", None) == "token":
        for name, blocks in reversed(children.items()):
            if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) and hasattr(blocks[-1], "norm1"):
                return f"{name}.{len(blocks) - 1}.norm1"
        return last_stage
    names = list(children)
    following = names[names.index(last_stage.split(".")[0]) + 1 :] if last_stage.split(".")[0] in names else []
    before_pooling = itertools.takewhile(lambda name: name not in HEAD, following)
    acting = [name for name in before_pooling if not isinstance(children[name], nn.Identity)]
    return acting[-1] if acting else last_stage


def find_stage(model: nn.Module, stage: str) -> str:
    """The module name of a stage: one of L1..L4, or a module's own name.

    Raises:
        ValueError: there is no such stage; the message lists the choices.
    """
    stages = stage_modules(model)
    name = stages.get(stage, stage)
    if name and name in dict(model.named_modules()):
        return name
    known = [f"{key} ({module})" for key, module in stages.items()]
    children = [child for child, _ in model.named_children()]
    raise ValueError(
        f"unknown stage {stage!r} of {type(model).__name__}: choose one of {', '.join(known) or '(no L1..L4 here)'},"
        f" or a module name inside {', '.join(children)}"
    )


def places_of(model: nn.Module, mechanism: Mechanism, stage: str) -> list[Placement]:
    """Where a mechanism is attached for a stage: at the stage's module, or at several modules inside it.

    Noise on residual branches is attached to the modules of timm that end them (`drop_path`), and noise on attentions to the
    attention modules. Inside L4 means inside the backbone's own last stage there. A block of timm's ResNet, which has None in
    the place of an idle `drop_path`, gets an identity module there; this adds nothing to the state dict. Tokens are removed
    between two blocks: where the stage's module is the first norm of a block, at the output of the block before.

    Raises:
        ValueError: there is no such stage, or no such module inside it.
    """
    if mechanism.place == "output":
        return [Placement(stage, find_stage(model, stage))]
    if mechanism.place == "tokens":
        return [Placement(stage, _block_before(model, find_stage(model, stage)))]
    name = feature_stages(model).get(stage) or find_stage(model, stage)
    module = model.get_submodule(name)
    inside = list(_branch_ends(module) if mechanism.place == "branch" else _attentions(module))
    if not inside:
        needs = {
            "branch": "noise on residual branches needs timm blocks with a drop_path",
            "attention": "noise on attentions needs timm's Attention modules, which take an attn_mask (as in ViT and DeiT)",
        }
        raise ValueError(f"{needs[mechanism.place]}: stage {stage} ({name}) of {type(model).__name__} has none")
    return [Placement(stage, f"{name}.{each}") for each in inside]


def _block_before(model: nn.Module, name: str) -> str:
    """The module itself, or, if it is the first norm of block k, block k - 1."""
    blocks, _, inside = name.partition(".")
    number, _, norm = inside.partition(".")
    if norm != "norm1" or not number.isdigit():
        return name
    if number == "0":
        raise ValueError(f"tokens are removed between two blocks: no block comes before {name} of {type(model).__name__}")
    return f"{blocks}.{int(number) - 1}"


def _branch_ends(stage: nn.Module) -> Iterator[str]:
    """The names of the modules inside a stage that a residual branch ends in."""
    for name, block in stage.named_modules():
        for end in BRANCH_ENDS:
            if not hasattr(block, end) or not getattr(block, "has_skip", True):
                continue
            if getattr(block, end) is None:
                setattr(block, end, nn.Identity().train(block.training))
            yield f"{name}.{end}".lstrip(".")


def _attentions(stage: nn.Module) -> Iterator[str]:
    """The names of the attention modules inside a stage that take an `attn_mask`."""
    for name, module in stage.named_modules():
        takes = "attn_mask" in inspect.signature(module.forward).parameters
        if takes and hasattr(module, "num_heads") and hasattr(module, "qkv"):
            yield name
