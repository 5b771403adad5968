"""Presets: named starting points for the settings of a run."""

from __future__ import annotations

from typing import Any

from esnac.errors import UnknownNameError

PRESETS = ("quick", "full", "paper")


def preset(name: str, train_images: int) -> dict[str, Any]:
    """Plain settings on top of the defaults.

    "full": the published budget with esnac's own engine, which are the defaults. "paper": the same
    budget with the published engine. "quick": that engine with a budget that follows the size of
    the training split, for a first look in minutes.
    """
    if name == "paper":
        return {"search": {"engine": "paper", "mode": "synchronous"}}
    if name == "full":
        return {}
    if name == "quick":
        return _quick(train_images)
    raise UnknownNameError("preset", name, PRESETS)


def _quick(train_images: int) -> dict[str, Any]:
    return {
        "search": {"steps": 4, "batch": 4, "pool": 500},
        # For --engine paper: a small kernel.
        "surrogate": {"hidden": 32, "layers": 1, "steps": 50},
        "evaluation": {
            "epochs": _epochs(train_images, images=30_000, least=1, most=20),
            "schedule": "one_cycle",
            "learning_rate": 4e-3,
        },
        "finish": {
            "finalists": 2,
            "training": {
                "epochs": _epochs(train_images, images=80_000, least=5, most=100),
                "learning_rate": 0.05,
                "clip_norm": 2.0,
                "nesterov": True,
                "schedule": "one_cycle",
                "milestones": [],
                "distillation": "soft_targets",
            },
        },
    }


def _epochs(train_images: int, images: int, least: int, most: int) -> int:
    """Passes that show about `images` images, within bounds."""
    return min(max(round(images / train_images), least), most)
