"""Fixtures for all rooms. One thread, because results are compared bit for bit between runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from esnac.data import DataSet, DataSettings, from_tensors

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In several processes (-n 2) the long files come first, so that all end together."""
    if config.getoption("numprocesses", None):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """A test that calls the command line with --threads leaves no trace in the next."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """$ESNAC_TEST_DEVICE, or the processor."""
    device = torch.device(os.environ.get("ESNAC_TEST_DEVICE", "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        pytest.fail(f"ESNAC_TEST_DEVICE={device}, but PyTorch sees no such device.")
    return device


@pytest.fixture(scope="session")
def make_bars(device: torch.device) -> Callable[..., DataSet]:
    """make_bars(count, contrast, settings): three classes, each a bright bar somewhere else on a
    noisy 8x8 image."""

    def make(count: int, contrast: int, settings: DataSettings | None = None) -> DataSet:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(count) % 3
        images = torch.randint(120, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for label in range(3):
            images[labels == label, :, 2 * label + 1, 2:6] += contrast
        return from_tensors((images, labels), None, settings).to(device)

    return make


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Real data sets: $ESNAC_DATA, or shared/data beside the checkout; else a skip."""
    named = os.environ.get("ESNAC_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if named and not folder.is_dir():
        pytest.fail(f"ESNAC_DATA={named} is not a folder.")
    if not folder.is_dir():
        pytest.skip("no real data: set ESNAC_DATA to a folder with cifar10/ and cifar100/")
    return folder.resolve()
