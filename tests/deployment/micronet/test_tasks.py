from __future__ import annotations

import pytest

from esnac.deployment.micronet import PUBLISHED, TASKS, task
from esnac.deployment.micronet.published import OFFICIAL
from esnac.errors import UnknownNameError


def test_the_example_of_the_rules_page() -> None:
    """3 M parameters and 500 M operations on ImageNet."""
    assert task("imagenet").score(3e6, 500e6) == pytest.approx(0.862133, abs=5e-7)


def test_the_readme_s_own_arithmetic() -> None:
    """0.112096 + 0.066296, and no word of it being official; the official score follows it."""
    readme, official = PUBLISHED[:2]
    assert round(readme.score, 6) == 0.178392
    assert readme.score == 773_464 / 6.9e6 + 77_565_880 / 1.17e9
    assert "README's own arithmetic, not the official rules" in readme.arithmetic
    assert (official.score, official.arithmetic) == (0.3772, OFFICIAL)
    assert {row.task for row in PUBLISHED} == set(TASKS)


@pytest.mark.parametrize(
    ("name", "enough", "short"),
    [
        ("imagenet", 0.75, 37_499 / 50_000),
        ("cifar100", 0.80, 7_999 / 10_000),
        ("wikitext103", 35.0, 35.01),
    ],
)
def test_targets_are_not_rounded(name: str, enough: float, short: float) -> None:
    assert task(name).shortfall(enough) is None
    assert name in (task(name).shortfall(short) or "")


def test_words_of_a_shortfall() -> None:
    text = "Accuracy 79.99 % is below 80 %, the least for cifar100."
    assert task("cifar100").shortfall(0.7999) == text
    text = "Perplexity 40.5 exceeds 35, the most for wikitext103."
    assert task("wikitext103").shortfall(40.5) == text


def test_unknown_task() -> None:
    with pytest.raises(UnknownNameError, match=r"'cifar10'.*Known: cifar100, imagenet, wikitext"):
        task("cifar10")
