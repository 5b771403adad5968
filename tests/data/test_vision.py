from __future__ import annotations

import subprocess
import sys

import torch

from esnac.data import vision
from esnac.data.vision import torchvision

FRESH = """
from esnac.data import vision
from esnac.data.vision import torchvision
assert torchvision().__name__ == "torchvision"
import torch
from torchvision import datasets, models, transforms
assert models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
assert torchvision() is torchvision()
"""


def test_imports_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_operators_it_asks_for_are_there() -> None:
    torchvision()
    assert torch.ops.torchvision.nms is not None
    if vision._declared:  # its own operators do not fit this torch; older ones have no qnms
        assert torch.ops.torchvision.qnms is not None


def test_resnet18_has_its_published_parameters() -> None:
    models = torchvision().models
    assert sum(p.numel() for p in models.resnet18().parameters()) == 11_689_512
