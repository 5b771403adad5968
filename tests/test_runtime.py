from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import nn

from esnac import runtime
from esnac.errors import EsnacError, SettingsError
from esnac.runtime import (
    Numerics,
    derive_seed,
    evaluating,
    mean_width,
    resolve_device,
    resolve_precision,
    seeded,
    set_up_process,
    torch_generator,
    without_known_faults,
)

CPU = torch.device("cpu")


def test_resolve_device() -> None:
    assert resolve_device("cpu") == CPU
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:97", "tpu", "cpu:1", "cuda:", "cuda:x", ""])
def test_an_absent_or_unknown_device_is_a_users_error(name: str) -> None:
    with pytest.raises(EsnacError):
        resolve_device(name)


def test_derived_seeds_are_stable_and_apart() -> None:
    # written down once: a change would change every run that is resumed
    assert derive_seed(1, "a") == 2461651067226055738
    keys: list[tuple[Any, ...]] = [
        (1,),
        (1, "a"),
        (1, "a", 0),
        (1, "a", 1),
        (1, "a", "1"),
        (1, "b"),
        (2, "a"),
        (11, ""),
    ]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_of_equal_keys_draw_equal_numbers() -> None:
    a, b = (torch.rand(5, generator=torch_generator(3, "x", 1)) for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, torch.rand(5, generator=torch_generator(3, "x", 2)))


def test_precision_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_amx", lambda: False)
    assert resolve_precision("auto", CPU, 500.0).dtype == torch.float32
    monkeypatch.setattr(runtime, "has_amx", lambda: True)
    assert resolve_precision("auto", CPU, 500.0).dtype == torch.bfloat16
    assert resolve_precision("auto", CPU, 16.0).dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    numerics = resolve_precision("auto", torch.device("cuda"), 1.0)
    assert numerics.dtype == torch.bfloat16
    assert numerics.channels_last


def test_a_gpu_that_only_emulates_bfloat16_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(runtime, "has_amx", lambda: True)
    assert resolve_precision("auto", torch.device("cuda"), 500.0).dtype == torch.float32


def test_a_wanted_precision_is_given() -> None:
    assert resolve_precision("bfloat16", CPU, 1.0).dtype == torch.bfloat16
    assert resolve_precision("float32", torch.device("cuda"), 1.0).dtype == torch.float32
    with pytest.raises(SettingsError, match="float16"):
        resolve_precision("float16", CPU, 1.0)  # type: ignore[arg-type]


def test_no_amx_where_torch_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not runtime.has_amx()


def test_mean_width_weighs_by_macs() -> None:
    # 8x8: conv 3->4 3x3 has 27 * 4 * 64 = 6912 MACs; grouped conv 4->8 1x1, 2 groups, stride 2
    # has 2 * 8 * 16 = 256
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 1, stride=2, groups=2))
    assert mean_width(model, (3, 8, 8), CPU) == pytest.approx((6912 * 4 + 256 * 8) / 7168)
    assert not model[0]._forward_hooks
    assert mean_width(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2), CPU) == 0.0


def test_evaluating_restores_each_modules_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()  # a frozen norm inside a training network

    def fail() -> None:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [model.training, model[0].training, model[1].training] == [True, False, True]


def test_seeded_repeats_and_consumes_nothing() -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(5, CPU):
            draws.append(torch.rand(3))
    assert torch.equal(*draws)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("conv", "safe"),
    [
        (nn.Conv2d(16, 20, 1, stride=2), False),
        (nn.Conv2d(5, 8, 1, stride=2), False),
        (nn.Conv2d(16, 32, 1, stride=2), True),
        (nn.Conv2d(5, 7, 1), True),
        (nn.Conv2d(5, 7, 3, stride=2, padding=1), True),
    ],
)
def test_channels_last_is_avoided_where_it_damages_memory(conv: nn.Module, safe: bool) -> None:
    numerics = Numerics(torch.float32, channels_last=True)
    model = nn.Sequential(nn.ReLU(), conv)
    assert without_known_faults(numerics, model, CPU).channels_last is safe
    assert without_known_faults(numerics, model, torch.device("cuda")).channels_last


def test_threads_and_memory_of_a_process_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc is asked not to map tensors one by one; another C library is left as it is."""
    asked: list[tuple[int, int]] = []

    class Library:
        @staticmethod
        def mallopt(option: int, value: int) -> int:
            asked.append((option, value))
            return 1

    before = torch.get_num_threads()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    set_up_process(None)
    assert torch.get_num_threads() == before
    assert asked == [(-3, 2**31 - 1), (-1, 2**31 - 1)]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    set_up_process(None)
    assert len(asked) == 2


def test_few_images_at_a_time_on_a_cpu() -> None:
    shapes = [(1, 8, 8), (3, 32, 32), (3, 224, 224)]
    assert [runtime.inference_batch(CPU, shape) for shape in shapes] == [500, 32, 8]
    assert runtime.inference_batch(torch.device("cuda"), (3, 32, 32)) == 500
