"""A run put together: opened, searched, its finalists finished; every step recorded as it ends."""

from esnac.session._base import Session

__all__ = ["Session"]
