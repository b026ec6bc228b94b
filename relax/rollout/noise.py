"""Random numbers as pure functions of where they are used: no generator, no history, nothing to save.

The number for one token is f(seed, step, prompt, sample, position): splitmix64's output function (Steele, Lea, Flood
2014, "Fast splittable pseudorandom number generators") at counter ``position`` of a stream that begins at a hash of the
rest. Integers wrap around as C's unsigned 64-bit ones do.
"""

from collections.abc import Iterable

from torch import Tensor

from relax.seeding import mix

_GAMMA = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def stream_keys(seed: int, step: int, rows: Iterable[tuple[int, int]]) -> list[int]:
    """Where the streams of completions begin, one for each (prompt id, sample)."""
    return [mix("rollout", seed, step, prompt, sample) for prompt, sample in rows]


def uniforms(keys: Tensor, positions: Tensor) -> Tensor:
    """[n] fp64 in the open interval (0, 1), of streams ``keys`` [n] at ``positions`` [n], all int64."""
    z = keys + (positions + 1) * _signed(_GAMMA)
    z = (z ^ _shifted(z, 30)) * _signed(_FACTORS[0])
    z = (z ^ _shifted(z, 27)) * _signed(_FACTORS[1])
    # 52 bits and a half: with 53 the largest would round to 1.
    return (_shifted(z ^ _shifted(z, 31), 12).double() + 0.5) * 2.0**-52


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right as if unsigned; torch copies the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >> 63 else constant
