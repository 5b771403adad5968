"""A long list of image files in little memory, cheap to hand to other processes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class FileList:
    """n files below the folder `root`: their paths there, one after another in `text` (uint8, as
    the file system encodes them), the i-th up to `ends[i]` (n, int64)."""

    root: str
    text: Tensor
    ends: Tensor

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> FileList:
        """`names` relative to `root`, which may be relative to the current directory."""
        text, ends = bytearray(), []
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        return cls(os.path.abspath(root), _bytes(text), torch.tensor(ends, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Path:
        start = int(self.ends[index - 1]) if index else 0
        name = self.text[start : int(self.ends[index])].numpy().tobytes()
        return Path(self.root, os.fsdecode(name))

    def __add__(self, other: FileList) -> FileList:
        """Both, one after the other, of one root."""
        assert self.root == other.root
        ends = torch.cat([self.ends, other.ends + len(self.text)])
        return FileList(self.root, torch.cat([self.text, other.text]), ends)


def _bytes(text: bytearray) -> Tensor:
    # `frombuffer` refuses an empty one.
    return torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
