"""Packages that only some formats need: an error that names the extra, before anything is done."""

from __future__ import annotations

from importlib.util import find_spec

from esnac.errors import EsnacError

#: The modules of each extra of setup.cfg.
EXTRAS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "mnn": ("MNN",)}


def require_extra(extra: str) -> None:
    """Raises EsnacError unless all modules of the extra are installed. Imports none of them."""
    missing = [name for name in EXTRAS[extra] if find_spec(name) is None]
    if missing:
        raise EsnacError(
            f"This needs {', '.join(missing)}. Install the extra: pip install 'esnac[{extra}]'."
        )
