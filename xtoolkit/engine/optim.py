"""AdamW with its parameter groups, and the learning rate of each step. No torch until the optimizer is built."""

import math

from xtoolkit.recipe.settings import Optim, warmup_steps
from xtoolkit.registry import ConfigError


def lr_at(step: int, optim: Optim, steps: int) -> float:
    """The learning rate of a step, before ``lr_mult``.

    Linear from 0 to the peak over the warm-up, then ``decay`` to ``min_lr`` at the last step. The curve is read at
    ``step + 1``: the released X-FM, whose scheduler starts at 0, spends its first update on a rate of 0 and never
    reaches the end of the decay; here the first update has ``lr / warmup``, update number ``warmup`` the peak, the last
    one ``min_lr``; a run of one update, which is the first and the last, has the peak.

    Args:
        step: counted from 0.
        steps: optimizer steps of the whole run.

    Source: X-FM release, ``scheduler.py`` (linear warm-up and decay by iteration); cosine: Loshchilov and Hutter, 2017.
    """
    done, warm = step + 1, warmup_steps(optim, steps)
    if done < warm:
        return optim.lr * done / warm
    if optim.decay == "constant" or steps == 1:
        return optim.lr
    passed = min(1.0, (done - warm) / max(1, steps - warm))
    left = 1 - passed if optim.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2
    return optim.min_lr + (optim.lr - optim.min_lr) * left


def set_lr(optimizer, step: int, optim: Optim, steps: int) -> float:
    """Sets the rate of every group for this step and returns the rate before ``lr_mult``."""
    rate = lr_at(step, optim, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_mult"]
    return rate


def build_optimizer(model, optim: Optim):
    """torch's fused AdamW over groups {decay, no decay} x rate factor; master weights keep the model's type (fp32).

    A parameter's factor is its owner's ``lr_mult`` times its ``layer_decay``. Fused on CPU as on CUDA: on one thread and
    10.5M parameters it took 15 ms a step where the plain loop took 50 and foreach 67, and it alone can leave an update
    out on the device itself (``found_inf``), without asking the host.

    Args:
        model: has ``encoders`` and ``losses``; a parameter belongs to the encoder or loss whose name is the second word
            of its own. What ``requires_grad`` is False for (a frozen encoder, a teacher) is left out.

    Returns:
        The optimizer; its groups carry ``name`` and ``lr_mult``.

    Raises:
        ConfigError: ``layer_decay`` names an encoder without repeated layers.
    """
    import torch

    groups: dict[tuple, list] = {}
    exempt, decays_of = no_decay(model), layer_decays(model, optim)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner = owner_of(name)
            factor = float(optim.lr_mult[owner]) if owner in optim.lr_mult else 1.0
            factor *= decays_of[name] if name in decays_of else 1.0
            groups.setdefault((factor, name not in exempt), []).append((name, parameter))
    settings = [{"params": [p for _, p in members], "names": [n for n, _ in members], "lr_mult": factor,
                 "weight_decay": optim.weight_decay if decays else 0.0,
                 "name": f"{'decay' if decays else 'no_decay'}_x{factor:g}"}
                for (factor, decays), members in sorted(groups.items(), key=lambda item: item[0])]
    return torch.optim.AdamW(settings, lr=optim.lr, betas=tuple(optim.betas), eps=optim.eps, fused=True)


def layer_decays(model, optim: Optim) -> dict[str, float]:
    """{parameter: factor of its rate} of every encoder that ``layer_decay`` shrinks: decay ** (depth of the top - its own).

    What is not listed keeps its rate: losses (they are heads, and so the top), and encoders without repeated layers.
    """
    factors, given = {}, optim.layer_decay
    for encoder, module in model.encoders.items():
        decay = given[encoder] if isinstance(given, dict) and encoder in given else 1 if isinstance(given, dict) else given
        if decay == 1:
            continue
        found = depths(module)
        if isinstance(given, dict) and not found:
            raise ConfigError(f"optim.layer_decay.{encoder}: encoder `{encoder}` ({type(module).__name__}) has no repeated "
                              f"layers; change its rate with `lr_mult: {{{encoder}: ...}}`")
        top = max(found.values(), default=0)
        factors |= {f"encoders.{encoder}.{name}": decay ** (top - depth) for name, depth in found.items()}
    return factors


def depths(module) -> dict[str, int]:
    """{parameter: depth} of an encoder: 0 before its layers, 1, 2, ... in them, one more after the last.

    Its layers are the members of its outermost ``nn.ModuleList`` (whose members have modules of their own) or
    ``nn.Sequential`` (of several modules of one such class); several lists count on. What is no layer is placed by the
    order in which the encoder creates its modules: before its first layer (embeddings, patch embedding; its own tokens
    and positions always), it is depth 0; after its last one, the top; between two lists as the layer before. A
    relative-position table in a layer has that layer's depth. Empty where nothing repeats.

    Source: ``get_num_layer_for_vit`` of BEiT's ``optim_factory.py``, whose depths for BEiT's names these are, except that
    a table which all layers share is depth 0, as in timm, and not the top.
    """
    layers, others = {}, {}

    def walk(parent, prefix, count):
        others.update({prefix + name: count for name, _ in parent.named_parameters(recurse=False)})
        for name, child in parent.named_children():
            if _repeats(child):
                for number, layer in child.named_children():
                    count += 1
                    layers.update({f"{prefix}{name}.{number}.{n}": count for n, _ in layer.named_parameters()})
            else:
                count = walk(child, f"{prefix}{name}.", count)
        return count

    total = walk(module, "", 0)
    return layers | {name: total + 1 if depth == total else depth for name, depth in others.items()} if total else {}


def _repeats(module) -> bool:
    from torch import nn

    members = list(module.children())
    of_modules = bool(members) and all(any(True for _ in m.children()) for m in members)
    if isinstance(module, nn.Sequential):
        return of_modules and len(members) > 1 and len({type(m) for m in members}) == 1
    return of_modules and isinstance(module, nn.ModuleList)


def owner_of(name: str) -> str | None:
    """The encoder or loss that a parameter name belongs to: ``encoders.vision.blocks.0...`` is ``vision``'s."""
    head, _, rest = name.partition(".")
    return rest.partition(".")[0] if head in ("encoders", "losses") else None


def no_decay(model) -> set[str]:
    """Names of the parameters that weight decay leaves alone.

    Biases, everything that a norm layer owns, relative-position tables, and whatever has fewer than two dimensions or a
    single element: norms by any other name, layer scale, the temperature. Tokens (``cls_token``, ``mask_token``) and
    embeddings decay, as do all matrices.

    The released X-FM picks by substrings of names (``optim.py``), and so also decays the temperature and layer scale.
    """
    from torch import nn

    norms = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    owned_by_norms = {f"{path}.{name}" for path, module in model.named_modules() if isinstance(module, norms)
                      for name, _ in module.named_parameters(recurse=False)}
    return {name for name, parameter in model.named_parameters()
            if name in owned_by_norms or parameter.ndim < 2 or parameter.numel() == 1
            or name.rpartition(".")[2].endswith("bias") or "relative_position" in name}
