"""One class per situation. Every message is one line: what, where, the nearest valid name, what to type.

Anything that derives from `ZooError` is the user's to mend: the command line prints its line and leaves with
exit code 2. Everything else is a failure of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """Base of all errors a user can mend; its text is one line."""


class UnknownName(ZooError):
    """No card, plugin, dataset or part has this name."""

    def __init__(self, what: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.name = name
        tail = f"; {hint}" if hint else ""
        super().__init__(f"{what} '{name}' is unknown{suggest(name, known)}{tail}")


class NotInstalled(ZooError):
    """The name is known, but the package that provides it is not installed."""


class PluginFailed(ZooError):
    """The plugin is installed and broke while loading; the cause is chained."""


class WrongApi(ZooError):
    """The plugin was written for another version of the plugin interface."""


class NameClash(ZooError):
    """Two plugins, or two cards, claim one name."""


class ConfigError(ZooError):
    """A field is unknown, of the wrong type, or out of range; the text begins with the field's path."""


class PartMismatch(ZooError):
    """Two parts of one system do not fit together."""


class NotReady(ZooError):
    """A part has no weights yet; the text names the command that makes them."""


class CannotSample(ZooError):
    """This prior models masked codes and cannot draw new ones."""


class DoesNotFit(ZooError):
    """The device has too little memory for what was asked."""


class BadWeights(ZooError):
    """A weight file is truncated, foreign, or not the one its sha256 promises."""


class BadData(ZooError):
    """A dataset, folder or picture cannot be read."""


class NoSplit(BadData):
    """The dataset is whole, and has no split of this name."""


class BadRun(ZooError):
    """A run folder is missing, incomplete, or does not belong to what was asked of it."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
