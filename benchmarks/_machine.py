"""What a benchmark ran on, for its first line."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def print_machine(threads: int, *packages: str) -> None:
    """One line on standard error: versions, threads, processor."""
    import torch

    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    versions += f", Python {platform.python_version()}"
    capability = torch.backends.cpu.get_cpu_capability()
    where = f"{threads} of {os.cpu_count()} threads, {processor()} ({capability})"
    print(f"{versions}; {where}, {platform.system()}", file=sys.stderr)


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
