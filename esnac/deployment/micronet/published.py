"""Published figures to compare with, and by which arithmetic each was reached."""

from __future__ import annotations

from dataclasses import dataclass

from esnac.deployment.micronet.tasks import TASKS

OFFICIAL = "by the official rules"


@dataclass(frozen=True)
class Published:
    """`arithmetic` says by which rules; only scores by the official ones can be compared."""

    task: str
    entry: str
    score: float
    arithmetic: str = OFFICIAL


#: Raw numbers of the first README of dISTiller-micronet (EfficientNet-B1 at 224x224): parameters
#: and operations as its script counted them.
README_STORAGE, README_OPERATIONS = 773_464, 77_565_880

#: What that script does that the rules do not.
README_ARITHMETIC = (
    "that README's own arithmetic, not the official rules: a multiply-add is one operation and all "
    "of it narrow, 16 bits are one parameter, sparse tensors have no mask"
)

PUBLISHED = (
    Published(
        "imagenet",
        "dISTiller-micronet, first README",
        TASKS["imagenet"].score(README_STORAGE, README_OPERATIONS),
        README_ARITHMETIC,
    ),
    Published("imagenet", "dISTiller-micronet, leaderboard", 0.3772),
    Published("imagenet", "RIAIR, leaderboard", 0.1295),
    Published("cifar100", "RIAIR, leaderboard", 0.0044),
    Published("cifar100", "KAIST, leaderboard", 0.0054),
    Published("wikitext103", "MIT-HAN, leaderboard", 0.0475),
)
