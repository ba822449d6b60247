"""Load initial weights strictly.

Weights that fail to load silently are a common mistake in transfer experiments: the run works, but its result is that
of random initialisation. So every tensor must match, in both directions, unless the user allows mismatches
(``start_anew``); these are then listed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import get_model_weights

from segloc.common.errors import InputError, one_line
from segloc.common.parse import shown
from segloc.models import foreign
from segloc.models.backbone import SegLocBackbone
from segloc.settings.backbone import ARCHS, FPN_CHANNELS, BackboneSettings
from segloc.settings.fields import check_limits
from segloc.settings.finetuning import REFUSE
from segloc.settings.loader import build
from segloc.training import checkpoint

RANDOM = "random"
IMAGENET = "imagenet"
# Parameters of `segloc.models.norm.ResidualScale`, which have the names of batch norm's scales and shifts.
_RESIDUAL_SCALE = re.compile(r"body\.layer\d\.\d+\.bn\d\.(weight|bias)")
BACKBONE_SETTINGS = ("arch", "norm", "sda_norm", "attention", "fpn_channels")
SHOWN = 8
COUNTER = "num_batches_tracked"


class Misfit(InputError):
    """The initial weights do not match the recipe's model."""


@dataclasses.dataclass(frozen=True)
class StoredBackbone:
    """Contents of a weights file.

    Attributes:
        source: name for error messages.
        settings: `BACKBONE_SETTINGS` by name; empty for a torchvision ResNet, which has batch norm.
        tensors: state dict of the backbone or of the torchvision ResNet.
        head: state dict of the RoI head; empty if the file has none.
        iteration: number of training steps; None if unknown.
        digest: SHA-256 of the file; empty for random and for downloaded weights.
    """

    source: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    head: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    iteration: int | None = None
    digest: str = ""

    def build(self) -> SegLocBackbone:
        """Build the backbone in eval mode, on the CPU.

        Raises:
            InputError: the tensors do not match the settings.
        """
        backbone = SegLocBackbone(**self.settings).eval()
        load_strict(backbone, self.tensors, self.source)
        return backbone


@dataclasses.dataclass(frozen=True)
class Started:
    """Which tensors of a backbone were loaded from initial weights.

    Attributes:
        summary: one line of text.
        loaded: names of the loaded tensors.
        anew: names of the tensors that kept the initialisation of a new layer.
        unused: tensors of the initial weights that were not loaded, each with the reason.
        digest: SHA-256 of the file they were loaded from; empty if there is none.
    """

    summary: str
    loaded: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    digest: str = ""


def read_backbone(path: str | Path) -> StoredBackbone:
    """Read the backbone of a pretraining or fine-tuning result, from a file or run folder.

    Raises:
        InputError: no such file, it contains no backbone, or the tensors do not match the settings.
    """
    file = checkpoint.find(path)
    content, digest = checkpoint.read_any(file)
    stored = _stored(checkpoint.require_readable(content, file), str(path), file, digest)
    with torch.device("meta"):  # takes no memory, whatever the settings say
        refuse_misfits(SegLocBackbone(**stored.settings), stored.tensors, stored.source)
    return stored


def load_backbone(path: str | Path) -> SegLocBackbone:
    """Load the backbone of a pretraining or fine-tuning result, file or run folder, in eval mode, on the CPU.

    Raises:
        InputError: no such file, it contains no backbone, or the tensors do not match the settings.
    """
    return read_backbone(path).build()


def _stored(content: dict[str, Any], source: str, file: Path, digest: str) -> StoredBackbone:
    content = {"fpn_channels": FPN_CHANNELS, **content}  # old files lack this setting; all had 256 channels
    missing = [key for key in ("backbone", *BACKBONE_SETTINGS) if key not in content]
    if missing:
        kind = checkpoint.kind_of(content)
        raise InputError(f"{file}: a {kind} checkpoint without {missing[0]!r}; use the backbone.pth of a finished run")
    settings, head = {name: content[name] for name in BACKBONE_SETTINGS}, content.get("head", {})
    for state in (content["backbone"], head):
        check_tensors(state, str(file))
    check_limits(build(BackboneSettings, settings, str(file)), f"{file}: ")
    iteration = None if content.get("iteration") is None else checkpoint.count_in(content, "iteration", file)
    return StoredBackbone(source, settings, content["backbone"], head, iteration, digest)


def check_tensors(state: Any, source: str) -> None:
    """Check that `state` maps names to tensors of finite values.

    Raises:
        InputError: it does not.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"{source}: the weights are a {type(state).__name__}, not a dict of tensors by name")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{source}: the weight {shown(name)} is a {type(tensor).__name__}, not a tensor by name")
        # Other types would be converted in silence; integers count the batches of batch norm.
        if not tensor.is_floating_point() and tensor.dtype != torch.int64:
            raise InputError(f"{source}: {name} holds {tensor.dtype}, not floating-point numbers")
        if not checkpoint.is_finite(tensor):
            raise InputError(f"{source}: {name} has values that are not finite; its training diverged")


def read_start(weights: str) -> StoredBackbone:
    """Read initial weights: a checkpoint of this project or the state dict of a torchvision ResNet, file or run folder.

    Results for ``random`` and ``imagenet`` have no tensors; nothing is downloaded.

    Raises:
        InputError: the weights cannot be read.
    """
    if weights in (RANDOM, IMAGENET):
        return StoredBackbone(weights)
    file = checkpoint.find(weights)
    content, digest = checkpoint.read_any(file)
    if isinstance(content, dict) and {*content} >= foreign.RESNET_TENSORS:
        check_tensors(content, weights)
        return StoredBackbone(weights, tensors=content, digest=digest)
    if not checkpoint.is_ours(content):
        raise InputError(
            f"{weights}: neither a segloc checkpoint of format {checkpoint.READABLE_NAMES} nor the state dict of a "
            f"torchvision ResNet{foreign.describe(content, file)}"
        )
    return _stored(content, weights, file, digest)


def check_start(stored: StoredBackbone, settings: Mapping[str, Any], node: str, unmatched: str) -> None:
    """With ``refuse``, check that initial weights were made with the recipe's settings; see `load_start`.

    Raises:
        Misfit: they were not.
    """
    if unmatched == REFUSE and stored.source != RANDOM:
        if not stored.settings and settings["norm"] != "bn":
            raise Misfit(f"{stored.source}: has batch norm and needs {node}.norm=bn, the recipe has {settings['norm']}")
        if stored.tensors and not stored.settings:
            _check_arch(stored, settings["arch"], node)
        for name, value in stored.settings.items():
            if value != settings[name]:
                raise Misfit(
                    f"{stored.source}: was pretrained with {name}={value}, the recipe has {settings[name]}; "
                    f"set {node}.{name}={value}"
                )


def _check_arch(stored: StoredBackbone, arch: str, node: str) -> None:
    """Check that a torchvision ResNet is of the recipe's architecture."""
    found = foreign.resnet_arch(stored.tensors)
    if found in ("", arch):
        return
    if found in ARCHS:
        raise Misfit(f"{stored.source}: is a {found}, the recipe has {arch}; set {node}.arch={found}")
    kind = found if found.startswith("a ") else f"a {found}"
    raise Misfit(f"{stored.source}: is {kind}, which is not supported; use one of {', '.join(ARCHS)}")


def load_start(
    backbone: SegLocBackbone,
    weights: str | StoredBackbone,
    settings: Mapping[str, Any],
    node: str = "model.backbone",
    head: nn.Module | None = None,
    unmatched: str = REFUSE,
) -> Started:
    """Load initial weights into a new backbone and, if they match, into a new RoI head.

    Args:
        backbone: changed in place.
        weights: ``random`` (no change), ``imagenet`` (torchvision's for the ResNet, downloaded), or the path of a
            segloc run or checkpoint, or of a torchvision ResNet's state dict; or what `read_start` read of these.
        settings: the recipe's settings of the backbone.
        node: dotted key of these settings, for messages.
        head: changed in place if the file has a head with the same tensors.
        unmatched: ``refuse``: every tensor must match; ``start_anew``: tensors that match by name and shape are
            loaded, the others keep their new initialisation. FPN and attention always do so for a torchvision ResNet,
            which lacks them. Where batch norm replaces the residual scale of norm-free weights, it keeps the scale if
            its statistics are fixed, so the function stays the same. If it uses batch statistics, it keeps its own
            initialisation, because the small learned scale would nearly switch off the branch.

    Raises:
        Misfit: the weights do not match the recipe; nothing is loaded.
        InputError: the weights cannot be read or downloaded.
    """
    stored, strict = read_start(weights) if isinstance(weights, str) else weights, unmatched == REFUSE
    if stored.source == RANDOM:
        return Started("random initialisation", anew=tuple(backbone.state_dict()))
    check_start(stored, settings, node, unmatched)
    if not stored.settings:
        # Files of old torchvision releases lack the batch counters, which are not weights.
        state = {name: count for name, count in backbone.body.state_dict().items() if name.endswith(COUNTER)}
        resnet = stored.tensors or _download(settings["arch"])
        state |= {name: tensor for name, tensor in resnet.items() if not name.startswith("fc.")}
        return dataclasses.replace(_load(backbone, "body.", state, stored.source, strict), digest=stored.digest)
    dropped: dict[str, str] = {}
    if stored.settings["norm"] == "none" != settings["norm"]:
        trained = (name for name in stored.tensors if name.rpartition(".")[0] not in backbone.evaluating)
        reason = "is a residual scale, replaced by new batch norm"
        dropped = {name: f"{name} {reason}" for name in filter(_RESIDUAL_SCALE.fullmatch, trained)}
    state = {name: tensor for name, tensor in stored.tensors.items() if name not in dropped}
    started = _load(backbone, "", state, stored.source, strict, tuple(dropped.values()))
    started = dataclasses.replace(started, digest=stored.digest)
    if head is None:
        return started
    fits = not misfits(head, stored.head)
    if fits:
        head.load_state_dict(dict(stored.head))
    return dataclasses.replace(started, summary=f"{started.summary}; RoI head {'loaded' if fits else 'random'}")


def _load(
    backbone: SegLocBackbone,
    prefix: str,
    state: Mapping[str, torch.Tensor],
    source: str,
    strict: bool,
    unused: tuple[str, ...] = (),
) -> Started:
    """Load the tensors that match by name and shape; with `strict`, all must match.

    With the prefix ``body.``, `state` is a ResNet alone, whose names lack the prefix. `unused` lists the file's tensors
    that are not in `state`, each with the reason.
    """
    module = backbone.body if prefix else backbone
    wanted, faults = module.state_dict(), misfits(module, state)
    fitting = {name: x for name, x in state.items() if name in wanted and wanted[name].shape == x.shape}
    if strict or not faults:
        load_strict(module, state, source)
    elif not any(tensor.dim() > 1 for tensor in fitting.values()):  # counters always match
        raise InputError(f"{source}: no weight matches the model by name and shape")
    else:
        module.load_state_dict(fitting, strict=False)
    loaded = tuple(prefix + name for name in (fitting if faults else wanted))
    anew = tuple(name for name in backbone.state_dict() if name not in loaded)
    unused = (*(fault for fault in faults if fault.partition(" ")[0] in state), *unused)
    if not faults and not unused:
        done = "ResNet loaded, FPN and attention random" if prefix else "backbone loaded"
    else:
        done = f"{len(loaded)} of {len(loaded) + len(anew)} tensors loaded"
        done += f"; {len(anew)} newly initialised ({_some(anew)})" if anew else ""
        done += f"; {len(unused)} of the file not used ({_some(unused)})" if unused else ""
    return Started(f"{source}: {done}", loaded, anew, unused)


def load_strict(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state dict; all names and shapes must match.

    Raises:
        Misfit: some do not match; nothing is loaded.
        InputError: an entry is not a tensor, or has values that are not finite.
    """
    check_tensors(state, source)
    refuse_misfits(module, state, source)
    module.load_state_dict(dict(state))


def refuse_misfits(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Check that all names and shapes of a state dict match a module, on any device.

    Raises:
        Misfit: some do not match.
    """
    if faults := misfits(module, state):
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise Misfit(f"{source}: does not match the model: {', '.join(faults[:SHOWN])}{more}")


def misfits(module: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """List the mismatches of a state dict: tensors that are missing, not in the module, or of another shape."""
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in state]
    faults += [f"{name} is not in the model" for name in state if name not in wanted]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults += [
        f"{name} is {state[name].dtype}, not {tensor.dtype}"
        for name, tensor in wanted.items()
        if name in state and state[name].is_floating_point() != tensor.is_floating_point()
    ]
    return faults


def _some(names: tuple[str, ...]) -> str:
    """Join the names; of many, only the first and last few."""
    few = SHOWN // 2
    return ", ".join(names if len(names) <= SHOWN else (*names[:few], "...", *names[-few:]))


def _download(arch: str) -> Mapping[str, torch.Tensor]:
    try:
        return get_model_weights(arch).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights cannot be downloaded ({one_line(error)})") from error
