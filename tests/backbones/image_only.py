"""Random weights of real image-only towers, as files that `timm:NAME/FILE` and `osnet:WIDTH/FILE` take."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from clipreid.backbones.osnet import OSNet


def shaken(model: nn.Module) -> nn.Module:
    """The model in eval mode, no weight left at a special start (zeros, ones), where errors would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.1 * torch.rand(buffer.shape, generator=generator))
    return model.eval()


def timm_model(name: str, **kwargs: Any) -> nn.Module:
    """timm's own model; DINOv3 pools at CLS, as its authors do and timm advises."""
    pool = {"global_pool": "token"} if "_dinov3" in name else {}
    return timm.create_model(name, **pool, **kwargs).eval()


def save_timm(name: str, folder: Path, **kwargs: Any) -> tuple[Path, nn.Module]:
    """(weights file, timm's model that they are of)."""
    model = shaken(timm_model(name, **kwargs))
    file = folder / f"{name}.safetensors"
    save_file(model.state_dict(), file)
    return file, model


def save_osnet(width: str, folder: Path) -> tuple[Path, nn.Module]:
    """(weights file as in torchreid's model zoo, the network that they are of)."""
    net = shaken(OSNet(width))
    file = folder / f"osnet_{width}_imagenet.pth"
    classifier = {"classifier.weight": torch.zeros(1000, 512), "classifier.bias": torch.zeros(1000)}
    torch.save(OrderedDict(net.state_dict() | classifier), file)
    return file, net
