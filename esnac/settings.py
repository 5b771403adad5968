"""Settings as nested frozen dataclasses: from TOML and `--set`, checked, and back to plain data.

Later sources win: defaults < preset < TOML file < `--set KEY=VALUE`. An unknown key is an error
that names the nearest known one.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from esnac.errors import SettingsError, did_you_mean, nearest

T = TypeVar("T")

_NAMES = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}


def build(cls: type[T], values: Mapping[str, Any], where: str = "settings", prefix: str = "") -> T:
    """Make the dataclass `cls` from nested plain data; `where` names the source in errors.

    A nested table changes the keys it names in the default of its field and leaves the others.
    `prefix` is the dotted place of this table ("search."). Raises SettingsError for an unknown key
    (with the nearest match), a value of the wrong type or out of range, and a missing key.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise SettingsError(f"{where}: {_unknown(cls, key, prefix)}")
    missing = [
        key
        for key, field in fields.items()
        if _default(field) is dataclasses.MISSING and key not in values
    ]
    if missing:
        raise SettingsError(f"{where}: {', '.join(prefix + key for key in missing)} must be given.")
    arguments = {}
    for key, value in values.items():
        default = _default(fields[key])
        if isinstance(value, Mapping) and dataclasses.is_dataclass(default):
            value = merge(to_plain(default), value)
        arguments[key] = _convert(hints[key], value, where, prefix + key)
    try:
        return cls(**arguments)
    except SettingsError as error:  # from __post_init__, which may not know its place
        place = "" if str(error).startswith(prefix) else f"{prefix[:-1]}: "
        raise SettingsError(f"{where}: {place}{error}") from None


def to_plain(settings: Any) -> dict[str, Any]:
    """The nested plain data (dicts, lists, numbers, strings) that `build` reads back."""
    return {f.name: _plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, later ones on top of earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                below = merged.get(key)
                merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
            else:
                merged[key] = value
    return merged


def load_toml(path: Path) -> dict[str, Any]:
    """The table of a TOML file. Raises SettingsError when it is missing or malformed."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from None


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """`["search.steps=5", "data.limit=500"]` as nested plain data.

    A value is read as TOML (numbers, booleans, lists, quoted strings) and else as a bare string;
    `none` stands for "not set" where a setting allows that.
    """
    layers = []
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key, text = key.strip(), text.strip()
        if not separator or not key or not text:
            raise SettingsError(
                f"--set takes KEY=VALUE, as in --set search.steps=5; got {assignment!r}."
            )
        nested = _toml_value(text)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        layers.append(nested)
    return merge(*layers)


def require(holds: bool, name: str, expected: str, met: object) -> None:
    """For checks in `__post_init__`: SettingsError unless the setting `name` is as `expected`."""
    if not holds:
        raise SettingsError(f"{name} must be {expected}; got {met}.")


def require_used(settings: Any, unused: Iterable[str], when: str) -> None:
    """For checks in `__post_init__`: SettingsError if one of `unused` is not at its default."""
    defaults = {field.name: _default(field) for field in dataclasses.fields(settings)}
    for name in unused:
        if getattr(settings, name) != defaults[name]:
            raise SettingsError(f"{name} has no effect {when}: leave it out.")


def _toml_value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text  # a line break ended the value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, or MISSING."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _unknown(cls: type, key: str, prefix: str) -> str:
    names = sorted(field.name for field in dataclasses.fields(cls))
    deeper = [name for name in _leaves(cls, prefix) if name.endswith(f".{key}")]
    # Compared without the prefix, which alone would make any two keys of a table look alike.
    near = deeper[:1] or [prefix + name for name in [nearest(key, names)] if name]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = ", ".join(prefix + name for name in names)
    return f"unknown key {prefix + key!r}.{hint} Known: {known}."


def _leaves(cls: type, prefix: str) -> Iterator[str]:
    """The dotted keys of all settings in `cls` and the tables below it."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """`value` as the annotated type; int is accepted for float, a list for a tuple."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(options, value, where, key)
    if origin is typing.Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            names = ", ".join(map(str, options))
            near = did_you_mean(value, map(str, options)) if isinstance(value, str) else ""
            raise SettingsError(f"{where}: {key} must be one of {names}; got {value!r}.{near}")
        return value
    if dataclasses.is_dataclass(hint) or origin is dict:
        if not isinstance(value, Mapping):
            raise SettingsError(f"{where}: {key} is a table of settings; got {value!r}.")
        if origin is dict:
            return dict(value)
        return build(typing.cast(type, hint), value, where, key + ".")
    if origin is tuple:
        return _convert_tuple(options, value, where, key)
    if hint is float and type(value) is int:
        return float(value)
    if hint in _NAMES and not _fits(hint, value):
        raise SettingsError(f"{where}: {key} must be {_NAMES[hint]}; got {value!r}.")
    return value


def _fits(hint: type, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, hint):  # True is an int for Python
        return hint is bool and isinstance(value, bool)
    return not isinstance(value, float) or math.isfinite(value)


def _convert_tuple(options: tuple[Any, ...], value: Any, where: str, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise SettingsError(f"{where}: {key} must be a list, as in [1, 2]; got {value!r}.")
    if options[-1] is Ellipsis:
        options = options[:1] * len(value)
    if len(value) != len(options):
        raise SettingsError(f"{where}: {key} must have {len(options)} values; got {value!r}.")
    pairs = zip(options, value, strict=True)
    return tuple(_convert(hint, item, where, key) for hint, item in pairs)


def _convert_union(options: tuple[Any, ...], value: Any, where: str, key: str) -> Any:
    """The first option that takes `value`, one of exactly its type before the others."""
    optional = type(None) in options
    rest = [option for option in options if option is not type(None)]
    literal = any("none" in typing.get_args(option) for option in rest)
    if optional and (value is None or (value == "none" and not literal)):
        return None
    for option in sorted(rest, key=lambda option: option is not type(value)):
        try:
            return _convert(option, value, where, key)
        except SettingsError as problem:
            error = problem
    if len(rest) == 1:
        raise error
    names = " or ".join(_NAMES.get(option, str(option)) for option in rest)
    raise SettingsError(f"{where}: {key} must be {names}; got {value!r}.")
