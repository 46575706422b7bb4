"""Devices a job may run on, by name or by numbers. Imports no torch.

Memory is what torch reports as a card's total. Arithmetic is the data sheet's peak of dense products, links are one
way. "Between" is a device's share of its machine's network, as the maker's own eight-card machine has it.

[1] NVIDIA V100 data sheet; a machine of eight with four 100 Gb/s ports (DGX-1)
[2] NVIDIA A100 data sheet; eight 200 Gb/s ports (DGX A100)
[3] NVIDIA H100 data sheet; eight 400 Gb/s ports (DGX H100)
[4] NVIDIA H200 data sheet
"""

from __future__ import annotations

import math

import attrs

from zoo.errors import ConfigError, UnknownName, suggest

GIB = 1 << 30


@attrs.frozen(kw_only=True)
class Device:
    """One accelerator, and its links."""

    name: str
    memory: int
    """Bytes of memory."""
    reserved: int = 0
    """Bytes of it that the driver, the libraries and their workspaces take."""
    full: float = math.nan
    """Peak FLOP/s of fp32 products; nan: not known."""
    half: float = math.nan
    """Peak FLOP/s of 16-bit products."""
    bf16: bool = True
    """Whether it computes in bf16."""
    bandwidth: float = math.inf
    """Bytes per second of its memory."""
    inside: float = math.inf
    """Bytes per second and direction to the devices of its machine."""
    between: float = math.inf
    """Bytes per second and direction to other machines, the device's share."""

    @property
    def usable(self) -> int:
        """Bytes that a job may take."""
        return self.memory - self.reserved

    def flops(self, precision: str) -> float:
        """Return the peak FLOP/s in a precision."""
        return self.full if precision == "fp32" else self.half


_CONTEXT = GIB // 2
"""A CUDA context with cuBLAS's and NCCL's workspaces; measured values are 0.4 to 0.6 GiB."""


def _card(name: str, gib: float, **numbers: float) -> Device:
    return Device(name=name, memory=int(gib * GIB), reserved=_CONTEXT, **numbers)  # type: ignore[arg-type]


DEVICES = {
    device.name: device
    for device in (
        _card("v100-16gb", 15.78, full=15.7e12, half=125e12, bf16=False, bandwidth=900e9, inside=150e9, between=6.25e9),
        _card("a100-80gb", 79.15, full=19.5e12, half=312e12, bandwidth=2039e9, inside=300e9, between=25e9),
        _card("h100", 79.10, full=67e12, half=989e12, bandwidth=3350e9, inside=450e9, between=50e9),
        _card("h200", 139.8, full=67e12, half=989e12, bandwidth=4800e9, inside=450e9, between=50e9),
    )
}
"""By name: [1], [2], [3], [4]. Products in fp32 are those of full fp32, without TF32."""

_NUMBERS = ("memory", "reserved", "flops", "bandwidth", "inside", "between")


def device_of(text: str) -> Device:
    """Return the device that "h100" names, or that "memory=24e9,flops=80e12,between=1.25e9" describes.

    Of the numbers, `memory` (bytes) must be there. `flops` is one peak for every precision; without it there is no
    time. A link or memory that is not said is taken to cost no time.

    Raises:
        UnknownName: no device has this name.
        ConfigError: a number is unknown, missing, or not positive.
    """
    if text in DEVICES:
        return DEVICES[text]
    if "=" not in text:
        near = [name for name in DEVICES if name.startswith(text)] or DEVICES
        raise UnknownName("device", text, near, f"one of {', '.join(DEVICES)}, or numbers: memory=24e9,flops=80e12")
    said: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        if name not in _NUMBERS:
            raise ConfigError(f"--device: '{name}' is no number of a device{suggest(name, _NUMBERS)}")
        said[name] = _positive(name, number)
    if "memory" not in said:
        raise ConfigError("--device: 'memory' is missing, bytes of a device; such as memory=24e9,flops=80e12")
    peak = said.pop("flops", math.nan)
    whole = {name: int(said.pop(name, 0)) for name in ("memory", "reserved")}
    return Device(name=text, full=peak, half=peak, **whole, **said)  # type: ignore[arg-type]


def _positive(name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise ConfigError(f"--device: {name}={text} is not a positive number, such as {name}=24e9")
    return number
