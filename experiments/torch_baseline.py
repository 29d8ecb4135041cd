"""A training step of the CIFAR ResNet written by hand in PyTorch, as a yardstick for Keras.

    python -m experiments.torch_baseline DEPTH BATCH STEPS [POLICY]

For each line of its input a repeat of STEPS steps, on random images that lie on the device, random
crop and flip included; prints the seconds it took. POLICY is float32 or mixed_bfloat16 (autocast).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.extra or self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
            half = self.extra // 2
            x = functional.pad(x, (0, 0, 0, 0, half, self.extra - half))
        return functional.relu(x + y)


def resnet(depth: int, num_classes: int = 10) -> nn.Module:
    """The ResNet for 32x32 images of He et al., section 4.2; depth 6n + 2."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    width = 16
    for outputs in (16, 32, 64):
        for i in range((depth - 2) // 6):
            layers.append(Block(width, outputs, 2 if outputs > 16 and i == 0 else 1))
            width = outputs
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def training(depth: int, batch: int, steps: int, policy: str = "float32") -> Callable[[], float]:
    """A function that trains `steps` steps and returns the seconds of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    network = resnet(depth).to(device)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=2e-4)
    images = torch.randint(0, 256, (batch * 8, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (batch * 8,), device=device)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            chosen = torch.randint(0, len(images), (batch,), device=device)
            x = functional.pad(images[chosen], (4, 4, 4, 4))
            row, column = (torch.randint(0, 9, (batch, 1), device=device) for _ in range(2))
            places = torch.arange(32, device=device)
            columns = torch.where(torch.rand(batch, 1, device=device) < 0.5, places, 31 - places)
            rows, columns = row + places, column + columns
            each = torch.arange(batch, device=device)[:, None, None]
            x = x[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            x = (x.float() / 255 - 0.5) / 0.25
            with torch.autocast(device, torch.bfloat16, enabled=policy == "mixed_bfloat16"):
                loss = functional.cross_entropy(network(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()
        return time.perf_counter() - start

    return run


if __name__ == "__main__":
    repeat = training(*map(int, sys.argv[1:4]), *sys.argv[4:])
    for _ in sys.stdin:
        print(repeat(), flush=True)
