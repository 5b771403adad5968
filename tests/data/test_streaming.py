from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from esnac import data as data_room
from esnac.data import DataSet, DataSettings, decode, from_tensors, source, streaming
from esnac.data.arrays import pack, unpack
from esnac.data.batches import evaluation_batches, training_batches
from esnac.data.streaming import StreamedSet
from esnac.errors import DataError, EsnacError
from esnac.group import Group

SETTINGS = DataSettings(size=8, stream=False)
SPLITS = ("train", "validation", "test")


def paint(folder: Path, count: int, seed: int, mode: str = "RGB", form: str = "png") -> None:
    """Noise of different sizes, so that some images are scaled and cropped."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        side = 8 + 5 * (index % 3)
        shape = (side, side + index % 2, 3) if mode == "RGB" else (side, side)
        pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{mode}{index}.{form}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with grey and coloured images, and test images of their own."""
    root = tmp_path_factory.mktemp("photos")
    for seed, part in enumerate(("train", "test")):
        paint(root / part / "cat", 20, seed, form="jpg")
        paint(root / part / "cat", 4, seed, mode="L")
        paint(root / part / "dog", 17, seed + 2)
    return root


def load(folder: Path, stream: bool | str, workers: int = 0, **more: object) -> DataSet:
    changed = {"stream": stream, "workers": workers, **more}
    return data_room.load(f"images:{folder}", None, dataclasses.replace(SETTINGS, **changed))  # type: ignore[arg-type]


def everything(data: DataSet) -> list[torch.Tensor]:
    """Two epochs of training batches, and the other two splits."""
    tensors = []
    for epoch in range(2):
        order = torch.Generator().manual_seed(epoch)
        for batch in training_batches(
            data, 7, order_generator=order, augmentation_seed=3, epoch=epoch
        ):
            tensors += batch
    for part in (data.validation, data.test):
        for inputs, labels in evaluation_batches(part, data, 10):
            tensors += [inputs, labels]
    return tensors


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_streamed_is_as_from_memory(photos: Path) -> None:
    memory, streamed = load(photos, False), load(photos, True)
    assert (memory.streamed, streamed.streamed) == (False, True)
    for key in ("input_shape", "mean", "std", "padding", "flip", "class_names"):
        assert getattr(memory, key) == getattr(streamed, key), key
    assert_same(everything(memory), everything(streamed))


@pytest.mark.slow
def test_processes_decode_the_same(photos: Path) -> None:
    """And leave torch's own random numbers alone."""
    memory, streamed = load(photos, False), load(photos, True, workers=2)
    before = torch.get_rng_state()
    assert_same(everything(memory), everything(streamed))
    assert torch.equal(torch.get_rng_state(), before)
    broken_off = streamed.train.batches(torch.arange(30).split(3))
    first = next(broken_off)
    assert torch.equal(first, next(memory.train.batches([torch.arange(3)])))
    assert_same(everything(memory), everything(streamed))
    with pytest.raises(EsnacError, match="Two iterations"):
        next(broken_off)


def test_without_test_images_of_their_own(photos: Path) -> None:
    memory, streamed = (load(photos / "train", stream, limit=20) for stream in (False, True))
    assert len(streamed.train) + len(streamed.validation) == 20
    assert_same(everything(memory), everything(streamed))


def test_grey_images(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        paint(tmp_path / name, 15, seed, mode="L")
    memory, streamed = load(tmp_path, False), load(tmp_path, True)
    assert streamed.input_shape == (1, 8, 8)
    assert_same(everything(memory), everything(streamed))
    image = first_file(streamed)
    Image.new("RGB", (8, 8), (255, 0, 0)).save(image)
    with pytest.raises(DataError, match=f"{image.name} has colours"):
        list(streamed.train.batches([torch.arange(len(streamed.train))]))


def first_file(data: DataSet) -> Path:
    """Of the training images."""
    assert isinstance(data.train, StreamedSet)
    return data.train.decoder.files[int(data.train.rows[0])]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_image_is_named(tmp_path: Path, workers: int) -> None:
    for seed, name in enumerate(("a", "b")):
        paint(tmp_path / name, 15, seed)
    data = load(tmp_path, True, workers)
    image = first_file(data)
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(DataError, match=f"^Cannot read the image {image}: .*\\.$"):
        everything(data)
    image.unlink()
    with pytest.raises(DataError, match=f"{image}: No such file or directory"):
        everything(data)


def test_a_rank_reads_its_own_images_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(photos, True)
    read: list[str] = []

    def watched(paths: list[Path], *rest: object) -> torch.Tensor:
        read.extend(map(str, paths))
        return decode.decode(paths, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(streaming, "decode", watched)
    parts = []
    for rank in range(2):
        read.clear()
        for batch in training_batches(
            data, 10, order_generator=None, augmentation_seed=None, epoch=0, group=Group(rank, 2)
        ):
            assert len(batch[0]) <= 5
        parts.append(set(read))
    assert sum(map(len, parts)) == len(data.train)
    assert not parts[0] & parts[1]


def test_auto_streams_what_takes_too_much_memory(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = 41 + 41  # of 3 x 8 x 8 bytes
    for memory, streamed in ((4 * images * 192, False), (4 * images * 192 - 4, True)):
        monkeypatch.setattr(source, "memory", lambda memory=memory: memory)
        assert load(photos, "auto").streamed is streamed


def test_other_sets_are_not_streamed(tmp_path: Path) -> None:
    images = torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2
    assert not from_tensors(images).streamed
    with pytest.raises(DataError, match="only images in a folder can"):
        from_tensors(images, settings=DataSettings(stream=True))


def test_another_process_reads_the_files_itself(photos: Path, tmp_path: Path) -> None:
    data = load(photos, True)
    packed = pickle.loads(pickle.dumps(pack(data)))
    assert sum(len(packed[split]["rows"]) for split in SPLITS) == 82
    assert len(pickle.dumps(packed)) < 6000, "names, and no image"
    assert_same(everything(data), everything(unpack(packed)))
    packed["files"]["list"]["root"] = str(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"no folder {tmp_path / 'elsewhere'} on .* all nodes"):
        unpack(packed)


def test_a_subset_of_streamed_images(photos: Path) -> None:
    memory, streamed = load(photos, False), load(photos, True)
    some = torch.tensor([5, 0, 5])
    one, other = memory.train.subset(some), streamed.train.subset(some)
    assert torch.equal(one.labels, other.labels)
    everywhere = [torch.arange(3)]
    assert_same(list(one.batches(everywhere)), list(other.batches(everywhere)))


PROGRAM = """
import sys, time
import torch
from pathlib import Path
from esnac import data
if __name__ == "__main__":
    settings = data.DataSettings(size=8, stream=True, workers=2)
    own = data.load(f"images:{sys.argv[1]}", None, settings)
    print("ready", flush=True)
    while True:
        for _ in own.train.batches(torch.arange(len(own.train)).split(4)):
            time.sleep(0.05)
"""


@pytest.mark.slow
def test_an_interrupt_ends_all_processes_quietly(photos: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, program, photos], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=60)
    assert errors.count("Traceback") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert not wait_for_the_end(process.pid)


def wait_for_the_end(group: int) -> bool:
    """Whether a group of processes is left after some seconds."""
    for _ in range(50):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.2)
    return True
