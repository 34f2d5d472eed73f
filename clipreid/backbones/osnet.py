"""OSNet, the small supervised baseline of the field (Zhou et al., ICCV 2019, arXiv 1905.00953).

The modules carry the names of the public torchreid model zoo, whose state dicts load by path.
"""

import torch
from torch import Tensor, nn

from clipreid.backbones.build import DEFAULT_SIZE
from clipreid.backbones.imageonly import ImageBackbone, ImageTower, check_weights, read_weights
from clipreid.backbones.vision import Tokens
from clipreid.errors import UserError

# channels of the stem and of the three stages
WIDTHS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
FEATURE = 512
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConvBN(nn.Module):
    """Convolution, batch norm and, unless `linear`, ReLU."""

    def __init__(self, inside: int, out: int, kernel: int = 1, stride: int = 1, *, linear: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w] -> [B, C', h', w']
        x = self.bn(self.conv(x))
        return x if self.linear else x.relu()


class LiteConv(nn.Module):
    """A 3x3 convolution in two steps: across channels, then within each (section 3.1, "Lite 3x3")."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w] -> the same
        return self.bn(self.conv2(self.conv1(x))).relu()


class Gate(nn.Module):
    """Weights of the channels, from their means over the image; one gate for all streams (eq. 3)."""

    def __init__(self, width: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1)
        self.fc2 = nn.Conv2d(width // reduction, width, 1)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w] -> the same
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class OSBlock(nn.Module):
    """Residual block of four streams with receptive fields of 3, 5, 7 and 9, summed through one gate (eq. 1-3)."""

    def __init__(self, inside: int, out: int) -> None:
        super().__init__()
        middle = out // 4
        self.conv1 = ConvBN(inside, middle)
        self.conv2a = LiteConv(middle)
        self.conv2b = nn.Sequential(*(LiteConv(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LiteConv(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LiteConv(middle) for _ in range(4)))
        self.gate = Gate(middle)
        self.conv3 = ConvBN(middle, out, linear=True)
        self.downsample = ConvBN(inside, out, linear=True) if inside != out else None

    def forward(self, x: Tensor) -> Tensor:  # [B, C, h, w] -> [B, C', h, w]
        narrow = self.conv1(x)
        streams = (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        summed = torch.stack([self.gate(stream(narrow)) for stream in streams]).sum(0)
        same = x if self.downsample is None else self.downsample(x)
        return (self.conv3(summed) + same).relu()


def stage(inside: int, out: int, *, halve: bool) -> nn.Sequential:
    """Two blocks and, between stages, a 1x1 convolution with average pooling."""
    blocks: list[nn.Module] = [OSBlock(inside, out), OSBlock(out, out)]
    if halve:
        blocks.append(nn.Sequential(ConvBN(out, out), nn.AvgPool2d(2)))
    return nn.Sequential(*blocks)


class OSNet(ImageTower):
    """OSNet of one of the widths in `WIDTHS`; the feature is the 512-d layer before the classifier."""

    embed_dim, stride, pooling = FEATURE, 16, "mean, fc"
    lora_targets = None

    def __init__(self, width: str, image_size: tuple[int, int] = DEFAULT_SIZE) -> None:
        super().__init__()
        stem, first, second, third = WIDTHS[width]
        self.image_size = image_size
        self.conv1 = ConvBN(3, stem, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = stage(stem, first, halve=True)
        self.conv3 = stage(first, second, halve=True)
        self.conv4 = stage(second, third, halve=False)
        self.conv5 = ConvBN(third, third)
        self.fc = nn.Sequential(nn.Linear(third, FEATURE), nn.BatchNorm1d(FEATURE), nn.ReLU())

    def tokens(self, pixels: Tensor) -> Tokens:
        x = self.maxpool(self.conv1(pixels))  # [B, C, H/4, W/4]
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))  # [B, C, H/16, W/16]
        pooled = self.fc(x.mean((2, 3)))  # [B, 512]
        return Tokens(None, x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3]), {}, pooled)


def load_osnet(
    spec: str, image_size: int | tuple[int, int] | None = None, gradient_checkpointing: bool = False
) -> ImageBackbone:
    """`WIDTH/FILE`: x1_0, x0_75, x0_5 or x0_25, and a state dict of the torchreid model zoo (.pth or safetensors).

    Raises:
        UserError: unknown width, no file, a file that is not a state dict of this model, gradient checkpointing.
    """
    width, _, path = spec.partition("/")
    if width not in WIDTHS or not path:
        raise UserError(
            f"osnet:{spec}: give a width and a weights file, osnet:WIDTH/FILE, with WIDTH one of {', '.join(WIDTHS)}; "
            "the files are in torchreid's model zoo"
        )
    if gradient_checkpointing:
        raise UserError(f"osnet:{spec}: OSNet is small and has no gradient checkpointing: leave it out")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size or DEFAULT_SIZE
    if min(size) < 16:
        raise UserError(f"image_size {size[0]}x{size[1]}: OSNet needs at least 16 pixels a side")
    state = {k: v for k, v in read_weights(path, f"osnet:{spec}").items() if not k.startswith("classifier.")}
    tower = OSNet(width, size)
    counters = {k: v for k, v in tower.state_dict().items() if k.endswith("num_batches_tracked")}
    state = counters | state  # files of torch before 0.4.1 lack them
    check_weights(tower, state, f"osnet:{spec}")
    tower.load_state_dict(state)
    # torchreid resizes with torchvision's default, bilinear
    return ImageBackbone(
        tower.eval(), name=f"osnet:{spec}", mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear"
    )
