"""youtokentome's byte-pair model: its file, and encoding with it. No library is needed.

The file is text: "n m"; n lines "code_point id"; m lines "left right made", all ids, the first goes first; last
"unknown padding start end", ids or -1. What is written here was read off its published source and compared with it.

[1] github.com/VKCOM/YouTokenToMe, youtokentome/cpp/utils.cpp (the file) and bpe.cpp (encoding)
"""

from __future__ import annotations

from collections.abc import Sequence

from zoo.errors import BadWeights

SPACE = "\u2581"
"""What stands before every word."""
_SPACES = dict.fromkeys(map(ord, "\t\n\v\f\r" + SPACE), " ")
"""What parts words: the spaces of ASCII and the sign itself [1], not those of Unicode."""


class Yttm:
    """A model, parsed.

    Args:
        content: the file.

    Raises:
        BadWeights: it is truncated, longer than it says, no such file, or names an id twice or one it does not define.
    """

    def __init__(self, content: bytes) -> None:
        chars, rules, marks = _parse(content)
        self.unknown, self.pad, self.start, self.end = marks
        self._ids = {chr(code): i for code, i in chars}
        self._rules = {(a, b): (rank, made) for rank, (a, b, made) in enumerate(rules)}
        self._text = {i: chr(code) for code, i in chars}
        for a, b, made in rules:
            if a not in self._text or b not in self._text or made in self._text:
                raise BadWeights(f"the rule '{a} {b} {made}' joins what is not there, or makes what is")
            self._text[made] = self._text[a] + self._text[b]
        taken = [*self._text, *(i for i in marks if i >= 0)]
        self.size = len(taken)
        if sorted(taken) != list(range(self.size)) or len(chars) != len(self._ids):
            raise BadWeights(f"the model's {self.size} pieces do not have the ids 0, 1, 2, ...")
        if SPACE not in self._ids:
            raise BadWeights(f"the model has no piece '{SPACE}' to begin a word with")

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without marks; a run of letters that the model lacks is one unknown."""
        words = text.translate(_SPACES).split(" ")
        return [i for word in words if word for i in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; marks, and ids that are not there, are dropped."""
        return "".join(self._text.get(i, "") for i in ids).replace(SPACE, " ").removeprefix(" ")

    def _word(self, word: str) -> list[int]:
        """Apply the first rule that fits, leftmost among equals, until none does."""
        ids = [self._ids[SPACE]]
        for letter in word:
            i = self._ids.get(letter, -1)
            if i >= 0 or ids[-1] >= 0:
                ids.append(i)
        while True:
            fits = [(*rule, at) for at in range(len(ids) - 1) if (rule := self._rules.get((ids[at], ids[at + 1])))]
            if not fits:
                return [self.unknown if i < 0 else i for i in ids]
            _, made, at = min(fits, key=lambda fit: (fit[0], fit[2]))
            ids[at : at + 2] = [made]


def _parse(content: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]], tuple[int, int, int, int]]:
    """Return (code point, id) of letters, (left, right, made) of rules, and the ids of unknown, padding, start, end."""
    try:
        numbers = [[int(word) for word in line.split()] for line in content.decode("ascii").splitlines()]
    except ValueError as error:
        raise BadWeights("not a youtokentome model: it has other things than numbers") from error
    if not numbers or len(numbers[0]) != 2:
        raise BadWeights("not a youtokentome model: its first line is not two numbers")
    n, m = numbers[0]
    whole = min(n, m) >= 0 and len(numbers) == n + m + 2
    if not whole or [len(line) for line in numbers[1:]] != [2] * n + [3] * m + [4]:
        raise BadWeights(f"the youtokentome model is not the {n} letters, {m} rules and marks that its first line says")
    if not all(0 <= line[0] < 0x110000 for line in numbers[1 : n + 1]) or numbers[-1][0] < 0:
        raise BadWeights("the youtokentome model has a letter that is none, or no id for unknown letters")
    chars = [(line[0], line[1]) for line in numbers[1 : n + 1]]
    rules = [(line[0], line[1], line[2]) for line in numbers[n + 1 : -1]]
    unknown, pad, start, end = numbers[-1]
    return chars, rules, (unknown, pad, start, end)


def dump(letters: dict[str, int], rules: Sequence[tuple[int, int, int]], marks: Sequence[int]) -> bytes:
    """Return the file of letters {letter: id}, rules (left, right, made) and the four marks' ids."""
    rows: list[Sequence[int]] = [(len(letters), len(rules)), *((ord(x), i) for x, i in letters.items()), *rules, marks]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
