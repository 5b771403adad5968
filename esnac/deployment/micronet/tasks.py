"""The three tasks of the challenge: what is divided by, and how good an entry must be."""

from __future__ import annotations

from dataclasses import dataclass

from esnac.errors import UnknownNameError


@dataclass(frozen=True)
class Task:
    """`storage`: 32-bit parameters; `operations`: multiplies and additions of one example.

    `target`: the accuracy that an entry must reach (a fraction, not rounded), or with
    `perplexity` the perplexity that it must not exceed.
    """

    name: str
    storage: float
    operations: float
    target: float
    perplexity: bool = False

    def score(self, storage: float, operations: float) -> float:
        return storage / self.storage + operations / self.operations

    def shortfall(self, quality: float) -> str | None:
        """A sentence if a network of this accuracy (or perplexity) is no valid entry."""
        if self.perplexity:
            if quality <= self.target:
                return None
            return f"Perplexity {quality:.10g} exceeds {self.target:g}, the most for {self.name}."
        if quality >= self.target:
            return None
        return (
            f"Accuracy {100 * quality:.10g} % is below {100 * self.target:g} %, the least for "
            f"{self.name}."
        )


# The normalisers are constants of the rules. They were taken from MobileNetV2-1.4, WRN-28-10 and a
# language model, but a count of those networks gives other numbers.
TASKS = {
    row.name: row
    for row in (
        Task("imagenet", 6.9e6, 1.17e9, target=0.75),
        Task("cifar100", 36.5e6, 10.49e9, target=0.80),
        Task("wikitext103", 159e6, 318e6, target=35.0, perplexity=True),
    )
}


def task(name: str) -> Task:
    """Raises UnknownNameError, with the known names."""
    if name not in TASKS:
        raise UnknownNameError("MicroNet task", name, TASKS)
    return TASKS[name]
