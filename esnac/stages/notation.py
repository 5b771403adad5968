"""Chains of stages as text: `prune(agp, sparsity=0.8), quantize(lsq, weights=4), export(onnx)`.

A stage is a word with arguments in brackets, or without. The first argument may be a bare word, the
stage's `method`; the others are KEY=VALUE. A value is a number, true or false, a word, "quoted
text", or a list of these in square brackets. `none` is for the setting to understand.
"""

from __future__ import annotations

import json
import re
from typing import Any

from esnac.errors import SettingsError

#: A mark, quoted text, or a word: all that is no mark, quote or space.
_TOKEN = re.compile(
    r"""\s*(?: (?P<mark>[()\[\],=])
             | (?P<quoted>"(?:[^"\\]|\\.)*")
             | (?P<word>[^\s()\[\],="]+) )""",
    re.VERBOSE,
)
_KEY = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_END = ("end", "")

Token = tuple[str, str]


def parse(text: str) -> list[dict[str, Any]]:
    """One table per stage: `{"stage": "prune", "method": "agp", "sparsity": 0.8}`.

    Raises SettingsError for what does not read so; names and values are checked by `links`.
    """
    reader = _Reader(text)
    found = [reader.stage()]
    while reader.skip(","):
        found.append(reader.stage())
    reader.end()
    return found


class _Reader:
    """Takes the tokens of a text one after the other."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._next = 0

    def stage(self) -> dict[str, Any]:
        table: dict[str, Any] = {"stage": self._word("the name of a stage")}
        if self.skip("(") and not self.skip(")"):
            self._argument(table, first=True)
            while self.skip(","):
                self._argument(table, first=False)
            self._expect(")")
        return table

    def end(self) -> None:
        if self._peek() != _END:
            raise self._error("a comma or the end")

    def skip(self, mark: str) -> bool:
        """Goes past `mark` if it stands here."""
        there = self._peek() == ("mark", mark)
        self._next += there
        return there

    def _argument(self, table: dict[str, Any], first: bool) -> None:
        word = self._word("a method or KEY=VALUE" if first else "KEY=VALUE")
        if not self.skip("="):
            if not first:
                self._next -= 1
                raise self._error("KEY=VALUE")
            table["method"] = word
            return
        if not _KEY.fullmatch(word) or word in table:
            what = "is given twice" if word in table else "is no name of a setting"
            raise SettingsError(f"--stages: {word!r} {what} in {table['stage']}.")
        table[word] = self._value()

    def _value(self) -> Any:
        if not self.skip("["):
            return self._plain()
        found: list[Any] = []
        while not self.skip("]"):
            if found:
                self._expect(",")
            found.append(self._plain())
        return found

    def _plain(self) -> Any:
        kind, text = self._peek()
        if kind == "quoted":
            self._next += 1
            return _unquoted(text)
        word = self._word("a value")
        if word in ("true", "false"):
            return word == "true"
        if _NUMBER.fullmatch(word):
            return int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)
        return word

    def _word(self, wanted: str) -> str:
        kind, text = self._peek()
        if kind != "word":
            raise self._error(wanted)
        self._next += 1
        return text

    def _expect(self, mark: str) -> None:
        if not self.skip(mark):
            raise self._error(repr(mark))

    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _error(self, wanted: str) -> SettingsError:
        kind, met = self._peek()
        before = " ".join(text for _, text in self._tokens[: self._next][-4:])
        place = f"after {before!r}" if before else "at the start"
        return SettingsError(
            f"--stages: {wanted} is expected {place}, not {'the end' if kind == 'end' else met!r}. "
            'As in: --stages "prune(agp, sparsity=0.8), train(epochs=10)".'
        )


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    place = 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:  # only a quote that is not closed
            raise SettingsError(f"--stages: the quote in {text[place:].strip()!r} is not closed.")
        assert match.lastgroup is not None
        found.append((match.lastgroup, match.group(match.lastgroup)))
        place = match.end()
    return [*found, _END]


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise SettingsError(f"--stages: {text} is no quoted text.") from None
