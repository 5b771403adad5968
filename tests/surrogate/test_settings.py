from __future__ import annotations

import pytest

from esnac.errors import SettingsError
from esnac.settings import build
from esnac.surrogate.settings import SurrogateSettings


def test_defaults_are_the_published_ones():
    settings = SurrogateSettings()
    assert (settings.hidden, settings.layers, settings.steps) == (64, 4, 100)
    assert 2 * settings.length_scale**2 == pytest.approx(2 * 0.01)
    assert (settings.noise, settings.learning_rate, settings.weight_decay) == (0.05, 1e-3, 5e-4)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden", 0),
        ("layers", 0),
        ("chunk", 0),
        ("length_scale", 0.0),
        ("noise", -0.1),
        ("noise", float("nan")),
        ("learning_rate", float("inf")),
        ("steps", -1),
        ("tolerance", -1.0),
        ("averaging", 0.0),
    ],
)
def test_a_value_out_of_range_is_named(key, value):
    with pytest.raises(SettingsError, match=key):
        build(SurrogateSettings, {key: value})
