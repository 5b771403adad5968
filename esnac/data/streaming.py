"""Images that stay on disk and are decoded when they are needed, by processes of their own.

A batch comes out as the same uint8 values as from memory, and is augmented in the same place, so
that a training does not depend on where its images lie.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from esnac.data.decode import decode
from esnac.data.file_list import FileList
from esnac.errors import DataError, EsnacError


@dataclass(frozen=True)
class Decoder:
    """Decodes `files` to C x `size` x `size`; C is `channels`, or that of each batch where None.

    `workers` processes (0: none) decode ahead of whoever takes the images. They start with the
    first batch and stay until the decoder is let go of, through all epochs and splits. They are
    started afresh, not forked, so that a process with threads of its own (Ray, CUDA) may have them.
    """

    files: FileList
    size: int
    workers: int
    channels: int | None = None
    _pool: _Pool = field(default_factory=lambda: _Pool(), compare=False, repr=False)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each of the `parts` (indices into `files`, on the CPU) its images, uint8.

        One iteration at a time. Raises DataError for a damaged image.
        """
        found = self._pool.run(_Images(self.files, self.size), self.workers, parts)
        for part, images in zip(parts, found, strict=True):
            yield self._fitted(part, images)

    def _fitted(self, part: Tensor, images: Tensor) -> Tensor:
        if self.channels is None or images.shape[1] == self.channels:
            return images
        if self.channels == 1:
            raise DataError(
                f"The image {self._coloured(part)} has colours, but the training images looked at "
                "first have none. Convert it, or set data.stream=false."
            )
        return images.expand(-1, self.channels, -1, -1)

    def _coloured(self, part: Tensor) -> Path:
        paths = [self.files[index] for index in part.tolist()]
        return next(p for p in paths if decode([p], [str(p)], self.size).shape[1] > 1)


@dataclass(frozen=True)
class StreamedSet:
    """The images of `decoder` at `rows` (n, int64, on the CPU), as `data.sets.Images` has them.

    Its device is that of `labels` (n, int64). The splits of a set share their decoder.
    """

    decoder: Decoder
    rows: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        assert self.decoder.channels is not None
        assert self.rows.shape == self.labels.shape

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        assert self.decoder.channels is not None
        return self.decoder.channels, self.decoder.size, self.decoder.size

    def to(self, device: torch.device | str) -> StreamedSet:
        return dataclasses.replace(self, labels=self.labels.to(device))

    def subset(self, indices: Tensor) -> StreamedSet:
        here = indices.to(self.labels.device)
        return StreamedSet(self.decoder, self.rows[indices.cpu()], self.labels[here])

    def batches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        device = self.labels.device
        for images in self.decoder.batches([self.rows[part.cpu()] for part in parts]):
            yield images.to(device)


class _Pool:
    """The loader of a decoder; a copy in another process starts without."""

    def __init__(self) -> None:
        self._order = _Order()
        self._loader: DataLoader[Tensor | DataError] | None = None
        self._turn = 0

    def __reduce__(self) -> Any:
        return _Pool, ()

    def run(self, images: _Images, workers: int, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        self._turn += 1
        turn = self._turn
        self._order.parts = parts
        if self._loader is None:
            self._loader = _loader(images, self._order, workers)
        found = iter(self._loader)
        for _ in parts:
            if turn != self._turn:
                raise EsnacError(
                    "Two iterations over one streamed data set at a time. End the first, or load "
                    "the set twice."
                )
            yield self._next(found)

    def _next(self, found: Iterator[Tensor | DataError]) -> Tensor:
        try:
            images = next(found)
        except RuntimeError as error:
            self._loader = None
            if "DataLoader worker" not in str(error):
                raise
            raise EsnacError(
                "A process that decodes images ended unexpectedly. It may have run out of memory "
                "or of shared memory (/dev/shm): lower data.workers. With data.workers=0 there are "
                "none. A program of your own must start under `if __name__ == '__main__':`."
            ) from None
        if isinstance(images, DataError):
            raise images
        return images


def _loader(images: _Images, order: _Order, workers: int) -> DataLoader[Tensor | DataError]:
    return DataLoader(
        images,
        sampler=order,
        batch_size=None,  # an index is that of a whole batch
        collate_fn=_as_it_is,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_interrupts,
        # Its own, for else each epoch would draw a number from torch's.
        generator=torch.Generator(),
    )


class _Order(Sampler[list[int]]):
    """The batches of one iteration."""

    def __init__(self) -> None:
        self.parts: Sequence[Tensor] = ()

    def __iter__(self) -> Iterator[list[int]]:
        # Lists, for a tensor would take all its memory along to another process.
        return (part.tolist() for part in self.parts)


class _Images(Dataset["Tensor | DataError"]):
    """Whole batches; a damaged image is returned as its error, which keeps to one line so."""

    def __init__(self, files: FileList, size: int) -> None:
        self._files, self._size = files, size

    def __getitem__(self, indices: list[int]) -> Tensor | DataError:
        paths = [self._files[index] for index in indices]
        threads = None if get_worker_info() is None else 1
        try:
            return decode(paths, list(map(str, paths)), self._size, threads)
        except DataError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _ignore_interrupts(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the one that takes the images ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def require_here(files: FileList) -> None:
    """Raises DataError where the folder is missing, as it may be on another node of a cluster."""
    if not os.path.isdir(files.root):
        raise DataError(
            f"There is no folder {files.root} on {platform.node()}. Streamed images are read by "
            "each node itself: put them there on all nodes, or set data.stream=false."
        )
