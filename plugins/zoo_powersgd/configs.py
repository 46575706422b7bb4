"""Settings of the two reducers, how the command line says them, and the paper's rule for the rank. Imports no torch.

[1] T. Vogels et al.: PowerSGD. arXiv:1905.13727
[2] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, section 2.4 and appendices D, E
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import attrs
from attrs import validators as v

from zoo.config import parse_scalar, structure
from zoo.errors import ConfigError
from zoo.interfaces import Shard, Traffic
from zoo_powersgd import layout

C = TypeVar("C")

_rank: Any = v.optional(v.ge(1))  # Any: attrs' types take the default's type for the field's

FALLBACK_RANK = 8


def rank_of(width: int, multiple: int = 128) -> int:
    """Return 896/3968 of `width`, rounded up to a multiple: 896, 640, 512 for [2]'s 3968, 2688, 1920.

    [2] took the smallest multiple of 128 that showed no gap in the loss over the first tenth of training.
    """
    return -(-896 * width // (3968 * multiple)) * multiple


@attrs.frozen(kw_only=True)
class PowerSgd:
    """PowerSGD as published [1]."""

    rank: int | None = attrs.field(default=None, validator=_rank)
    """Rank of a whole parameter's gradient; its shards share it evenly. None ("auto" on the command line): `rank_of`
    the parameter's smaller side where that saves enough, else 8. [1] uses 1 to 4, and up to 32 for transformers."""
    dense_steps: int = attrs.field(default=100, validator=v.ge(0))
    """Updates at the start that send gradients whole. Not in [1]; torch's implementation has it, as early gradients
    are neither small nor alike from one update to the next."""
    min_elements: int = attrs.field(default=4096, validator=v.ge(1))
    """A shard with fewer values is sent whole."""
    min_saving: float = attrs.field(default=2.0, validator=v.ge(1.0))
    """A shard is sent whole unless its factors have more than this many times fewer values; 2 as torch's
    implementation."""

    def ranks(self, width: int) -> tuple[int, ...]:
        """Return the ranks to try for a parameter whose smaller side is `width`; the first that saves enough is it."""
        return (self.rank,) if self.rank else (rank_of(width), FALLBACK_RANK)

    def cost(self, shards: Iterable[Shard], ranks: int) -> Traffic:
        """Return the bytes one rank sends in a step after the start-up ones, in a group of `ranks`."""
        return layout.traffic(self, shards, ranks, width=4, flags="one")


@attrs.frozen(kw_only=True)
class PowerSgdDalle:
    """PowerSGD as DALL-E was trained with it [2]."""

    rank: int | None = attrs.field(default=None, validator=_rank)
    """Rank of a whole parameter's gradient; its m shards have rank/m each [2]. None ("auto" on the command line):
    `rank_of` the parameter's smaller side, where that saves enough, else the same share of it, unrounded."""
    dense_steps: int = attrs.field(default=0, validator=v.ge(0))
    """Updates at the start that send gradients whole; none in [2]."""
    min_elements: int = attrs.field(default=1, validator=v.ge(1))
    """A shard with fewer values is sent whole; [2] compresses every matrix."""
    min_saving: float = attrs.field(default=2.0, validator=v.ge(1.0))
    """A shard is sent whole unless its factors have more than this many times fewer values; at [2]'s sizes none has
    less than 3.3 times."""
    format: Literal["1-6-9", "full"] = "1-6-9"
    """Numbers that P, Q and the error buffer are kept and sent in: [2]'s 16 bits (sign, exponent, significand), or the
    gradients' own type, which is fp32."""
    epsilon: float = attrs.field(default=1e-6, validator=v.ge(0.0))
    """Times the identity, added to P before its columns are made orthonormal [2], P's columns then being of about
    unit length."""
    p_scale: float = attrs.field(default=1.0, validator=v.gt(0.0))
    """P is multiplied by this before it is sent. [2] tuned such constants by hand and does not state them."""
    q_scale: float = attrs.field(default=1.0, validator=v.gt(0.0))
    """The same for Q."""

    def ranks(self, width: int) -> tuple[int, ...]:
        """Return the ranks to try for a parameter whose smaller side is `width`; the first that saves enough is it."""
        return (self.rank,) if self.rank else (rank_of(width), rank_of(width, 1))

    def cost(self, shards: Iterable[Shard], ranks: int) -> Traffic:
        """Return the bytes one rank sends in a step after the start-up ones, in a group of `ranks`."""
        if self.format == "full":
            return layout.traffic(self, shards, ranks, width=4, flags="each")
        return layout.traffic(self, shards, ranks, width=2, flags="each", padded=True)


def powersgd(settings: str = "") -> PowerSgd:
    """Return the config that "rank=8,dense_steps=50" describes; nothing: the defaults.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    return _structured("powersgd", settings, PowerSgd)


def powersgd_dalle(settings: str = "") -> PowerSgdDalle:
    """Return the config that "rank=128,format=full" describes; nothing: the defaults.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    return _structured("powersgd-dalle", settings, PowerSgdDalle)


def _structured(name: str, settings: str, cls: type[C]) -> C:
    """Read comma-separated settings."""
    said: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{name}: '{item}' is not of the form setting=value, such as {name}:rank=8")
        value = text.strip()
        said[key.strip()] = None if value == "auto" else value if key.strip() == "format" else parse_scalar(value)
    return structure(said, cls, where=name)
