import math

import numpy as np
import pytest

from esnac.objective import compression, log_ratio, reward


@pytest.mark.parametrize(
    ("accuracy", "ratio", "teacher", "f"),
    [
        (71.64, 0.8470, 73.71, 0.9492),
        (71.91, 0.8876, 78.68, 0.9024),
        (75.47, 0.8664, 78.71, 0.9417),
        (68.17, 0.8298, 71.14, 0.9305),
    ],
)
def test_published_rewards(accuracy, ratio, teacher, f):
    """The four rows of the published table (CIFAR-100, seed 127)."""
    assert reward(ratio, accuracy / 100, teacher / 100) == pytest.approx(f, abs=1e-4)


def test_published_ratio_from_its_parameters():
    assert compression(1_261_000, 11_220_132) == pytest.approx(0.8876, abs=1e-4)


def test_the_teacher_itself_earns_nothing():
    assert reward(compression(10, 10), 0.9, 0.9) == 0


def test_log_ratio_ends_at_half_of_guessing():
    """Three classes: at 1/6."""
    found = log_ratio(np.array([0.0, 0.1, 1 / 6, 0.45, 0.9]), 0.9, 3)
    floor = math.log(1 / 6 / 0.9)
    np.testing.assert_allclose(found, [floor, floor, floor, math.log(0.5), 0], atol=1e-12)
