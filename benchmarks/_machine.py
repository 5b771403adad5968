"""What a benchmark ran on, for its first line."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version


def print_machine(threads: int, *packages: str) -> None:
    """One line on standard error: versions, threads, processor."""
    import torch

    from esnac.deployment.stopwatch import device_name

    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    versions += f", Python {platform.python_version()}"
    processor = device_name(torch.device("cpu"))
    capability = torch.backends.cpu.get_cpu_capability()
    where = f"{threads} of {os.cpu_count()} threads, {processor} ({capability})"
    print(f"{versions}; {where}, {platform.system()}", file=sys.stderr)
