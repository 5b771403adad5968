"""The one place that imports torchvision.

With a CPU-only torch the compiled part of PyPI's torchvision cannot load, and `import torchvision`
fails with "operator torchvision::nms does not exist" although all that is written in Python would
work. Declaring the two operators it asks for, without an implementation, is enough.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from esnac.errors import EsnacError

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# Kept for the life of the process: the operators vanish with the object that declared them.
_declared: list[torch.library.Library] = []


def torchvision() -> ModuleType:
    """The module `torchvision`, imported so that its Python part works with any torch.

    Afterwards `import torchvision.models` and the like work as usual. Raises EsnacError when
    torchvision is not installed.
    """
    if "torchvision" not in sys.modules:
        spec = importlib.util.find_spec("torchvision")
        if spec is None or spec.origin is None:
            raise EsnacError("torchvision is not installed: pip install torchvision.")
        if not _loads(Path(spec.origin).parent):
            _declare()
    return importlib.import_module("torchvision")


def _loads(folder: Path) -> bool:
    """Whether the compiled operators of torchvision in `folder` fit this torch; loads them."""
    for library in sorted([*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]):
        try:
            torch.ops.load_library(str(library))
        except (OSError, RuntimeError):
            return False
    return hasattr(torch.ops.torchvision, "nms")


def _declare() -> None:
    if not _declared:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in SCHEMAS:
            if not hasattr(torch.ops.torchvision, schema.partition("(")[0]):
                library.define(schema)
        _declared.append(library)
