"""1,797 real handwritten digits of 8x8 pixels, which come with scikit-learn: no download.

UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, 1998), its test part.
"""

from __future__ import annotations

from pathlib import Path

import torch

from esnac.data.settings import DataSettings
from esnac.data.source import Labelled, Source


def source(root: Path | None, settings: DataSettings) -> Source:
    """The digits with their 17 grey levels spread over 0..255; `root` is not used."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    levels = torch.from_numpy(bunch.images)  # 1797 x 8 x 8, float64, whole numbers 0..16
    images = (levels * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    return Source(
        train=Labelled(labels, lambda indices: images.index_select(0, indices)),
        test=None,
        class_names=tuple(map(str, range(10))),
        padding=1,
        flip=False,
    )
