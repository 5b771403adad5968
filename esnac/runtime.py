"""Device, numerics and random numbers: chosen once at the top, then passed down."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from esnac.errors import EsnacError, SettingsError

WantedPrecision = Literal["auto", "float32", "bfloat16"]

#: Narrowest mean width for which "auto" takes bfloat16 on a CPU with AMX: a tile holds 32 bfloat16
#: values per row, and a convolution narrower than two of them is bound by memory. From the geometry
#: of the tiles; not measured, the machine of the table below has none.
AMX_WIDTH = 64.0

#: Options of mallopt(3): from which size on memory is mapped for one use, and how much may lie
#: unused at the end of the heap. As compiled into all versions of glibc.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1


@dataclass(frozen=True)
class Numerics:
    """`dtype` of autocast (float32: no autocast; weights stay float32) and the memory format."""

    dtype: torch.dtype
    channels_last: bool

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def resolve_device(name: str) -> torch.device:
    """The device of "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".

    Raises EsnacError for another name or a device that is absent.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, separator, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (separator and not (kind == "cuda" and number.isdecimal())):
        raise EsnacError(f"Unknown device {name!r}. Known: auto, cpu, cuda, cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number) if separator else 0
    if index >= count:
        met = f"torch sees {count} CUDA devices" if count else "torch finds no usable CUDA device"
        raise EsnacError(f"No device {name!r}: {met}. Use --device cpu or auto.")
    return torch.device("cuda", index)


def derive_seed(seed: int, *keys: int | str) -> int:
    """A seed in [0, 2**63) for the purpose named by `keys`; the same on every machine."""
    text = repr((int(seed), *keys)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator seeded with `derive_seed(seed, *keys)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *keys))


def resolve_precision(
    wanted: WantedPrecision, device: torch.device, mean_width: float = AMX_WIDTH
) -> Numerics:
    """The numerics of training and teacher runs: a rule, so that a run can be repeated.

    CUDA: bfloat16, or float32 where the GPU only emulates it. CPU: float32, or bfloat16 where the
    processor has AMX and the network's `mean_width` (see there) is at least AMX_WIDTH. Always
    channels-last. `wanted` other than "auto" overrides the dtype. Raises SettingsError for another
    value.

    Measured: training images/s (forward, backward, SGD step; best of some seconds), torch 2.13.0,
    AMD EPYC with AVX2 (no AVX-512, no AMX), 1 thread, batch 128 (ResNet-18 at 32x32: 32):

    | network (mean width) | input | float32 NCHW | float32 channels-last | bfloat16 channels-last |
    | --- | --- | --- | --- | --- |
    | ResNet-20 (37)       | 32x32 |  173 |  226 |  18 |
    | ResNet-20            | 8x8   | 1806 | 2697 | 305 |
    | ResNet-18 (234)      | 32x32 |   11 |   13 |   1 |
    | ResNet-18            | 8x8   |  137 |  145 |  18 |
    | ResNet-18 / 2 (117)  | 32x32 |   35 |   39 |   4 |
    | ResNet-18 / 2        | 8x8   |  203 |  337 |  42 |
    | ResNet-18 / 4 (58)   | 32x32 |  199 |  234 |  22 |
    | ResNet-18 / 4        | 8x8   | 2009 | 2440 | 188 |

    With 2 threads: ResNet-20 293 / 388 / 28 at 32x32 and 3302 / 4163 / 436 at 8x8, ResNet-18
    27 / 35 / 2 at 32x32, ResNet-18 / 4 311 / 366 / 29 and 3147 / 3877 / 400; the other cells were
    disturbed by other work and are left out. So channels-last is never slower, and bfloat16 without
    hardware for it is 8 to 17 times slower.
    """
    if wanted not in get_args(WantedPrecision):
        known = ", ".join(get_args(WantedPrecision))
        raise SettingsError(f"precision is one of {known}; got {wanted!r}.")
    if wanted == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = has_amx() and mean_width >= AMX_WIDTH
        wanted = "bfloat16" if fast else "float32"
    return Numerics(torch.bfloat16 if wanted == "bfloat16" else torch.float32, channels_last=True)


def without_known_faults(numerics: Numerics, model: nn.Module, device: torch.device) -> Numerics:
    """`numerics`, but contiguous where channels-last is known to damage memory.

    On CPUs, the backward pass of a strided 1x1 convolution in channels-last writes past its
    buffers when a channel count is no multiple of 8 (torch 2.13, AVX2: stride 2, 4 to 33 channels,
    sides 8 and 32 crash; 3x3, stride 1, multiples of 8 and the forward pass do not). Layers with an
    attribute `trains_in_channels_last` go round it.
    """
    if device.type != "cpu" or not numerics.channels_last:
        return numerics
    for layer in model.modules():
        if getattr(layer, "trains_in_channels_last", False):
            continue
        if isinstance(layer, nn.Conv2d) and set(layer.kernel_size) == {1}:
            odd = layer.in_channels % 8 or layer.out_channels % 8
            if odd and set(layer.stride) != {1}:
                return replace(numerics, channels_last=False)
    return numerics


def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 tiles; False where torch cannot tell."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    try:
        return bool(probe()) if probe is not None else False
    except RuntimeError:
        return False


def mean_width(model: nn.Module, input_shape: Sequence[int], device: torch.device) -> float:
    """Mean of the convolutions' output channels, weighted by their multiply-accumulates.

    Runs `model` (on `device`) once on one zero image of `input_shape` (C, H, W), in eval mode. A
    network without convolutions has width 0.
    """
    macs: list[tuple[int, int]] = []

    def count(layer: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        macs.append((layer.weight[0].numel() * output[0].numel(), layer.out_channels))

    convs = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in convs]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, *input_shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
    total = sum(weight for weight, _ in macs)
    return sum(weight * width for weight, width in macs) / total if total else 0.0


def memory() -> int:
    """Bytes of memory for this process: of the machine, or of its control group where that is less.

    8 GiB where the system does not tell.
    """
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 * 2**30
    limits = [machine]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of versions 2 and 1
        with suppress(OSError, ValueError):  # "max"
            limits.append(int(Path("/sys/fs/cgroup", file).read_text()))
    return min(limits)


def inference_batch(device: torch.device, input_shape: Sequence[int]) -> int:
    """How many images (C x H x W) to run at a time without gradients.

    On a CPU few, so that what a layer hands on is still in the cache when the next one reads it: 32
    of 32x32 (`benchmarks/memory.py`), as many pixels of others.
    """
    if device.type != "cpu":
        return 500
    return min(max(2**15 // math.prod(input_shape[1:]), 8), 500)


def set_up_process(threads: int | None) -> None:
    """At the start of a process of ours: its number of threads (None: as torch has it), and memory.

    glibc maps each tensor above 32 MB anew; here they come from memory that was freed before.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(AttributeError, OSError, TypeError):  # another C library
        adjust = ctypes.CDLL(None).mallopt
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            adjust(option, 2**31 - 1)


def set_up_worker() -> None:
    """The same on a worker of Ray, whose number of cores Ray leaves in a variable."""
    set_up_process(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators (CPU and `device`) start from `seed` inside, and are restored."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
