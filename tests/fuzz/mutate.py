"""Damage, drawn from a seeded generator: to bytes, to JSON, and of the kinds that parsers mind."""

from __future__ import annotations

import json
import random
from typing import Any

__all__ = ["mutate_bytes", "mutate_json", "mutate_text", "nasty_value"]

INTEGERS = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
)
TEXTS = (
    "", " ", "\0", "/", "..", "../../etc/passwd", "/dev/zero", "%s%n", "\u202e", "\ud7ff",
    "é" * 99, "a" * 5000, "-", "--", "{}", "[]", "null", "nan", "inf", "1e999", "0x10", "1_0",
    "\n", "\x1b[2J",
)  # fmt: skip
VALUES = (None, True, False, *INTEGERS, -(2**63), 2**64, 0.5, -0.0, 1e308, 1e-320, *TEXTS, [], {})


def mutate_bytes(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """One to eight small changes; ``other`` is what pieces are spliced from."""
    result = bytearray(data)
    for _ in range(1 + int(rng.expovariate(0.7)) % 8):
        rng.choice(CHANGES)(rng, result, other or data)
    return bytes(result)


def place(rng: random.Random, data: bytearray) -> int:
    """Anywhere, at the ends more often: there the lengths and the magic numbers are."""
    if not data:
        return 0
    kind = rng.random()
    if kind < 0.15:
        return rng.randrange(min(len(data), 64))
    if kind < 0.25:
        return len(data) - 1 - rng.randrange(min(len(data), 64))
    return rng.randrange(len(data))


def flip(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[place(rng, data)] ^= 1 << rng.randrange(8)


def replace(rng: random.Random, data: bytearray, other: bytes) -> None:
    if data:
        data[place(rng, data)] = rng.randrange(256)


def insert(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = place(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, 16, 300)))


def delete(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = place(rng, data)
    del data[at : at + rng.choice((1, 1, 2, 4, 16, 300))]


def duplicate(rng: random.Random, data: bytearray, other: bytes) -> None:
    at = place(rng, data)
    data[at:at] = data[at : at + rng.choice((1, 4, 16, 64, 300))] * rng.choice((1, 1, 2, 20))


def truncate(rng: random.Random, data: bytearray, other: bytes) -> None:
    del data[place(rng, data) :]


def integer(rng: random.Random, data: bytearray, other: bytes) -> None:
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTEGERS) % 256**size
    at = place(rng, data)
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def splice(rng: random.Random, data: bytearray, other: bytes) -> None:
    start, size = rng.randrange(len(other) or 1), rng.choice((1, 4, 16, 64, 300))
    at = place(rng, data)
    data[at : at + rng.choice((0, size))] = other[start : start + size]


CHANGES = (flip, flip, replace, replace, insert, delete, duplicate, truncate, integer, splice)


def mutate_text(rng: random.Random, text: str) -> str:
    """A few characters more, fewer or others."""
    result = list(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(result) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            result[at:at] = rng.choice((*TEXTS, *map(str, INTEGERS)))
        elif kind == 1:
            result[at:at] = chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0xD000))))
        elif kind == 2:
            del result[at : at + rng.choice((1, 1, 3, 9))]
        else:
            result[at : at + 1] = rng.choice(":/@?#&=%,;.[]*\\'\" ~$-0123456789")
    return "".join(result)


def mutate_json(rng: random.Random, text: bytes) -> bytes:
    """Valid JSON still, of which one to three values are others, gone, or there twice."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if inner := containers(value):
            change_one(rng, rng.choice(inner))
    return json.dumps(value).encode(errors="surrogatepass")


def containers(value: Any) -> list[Any]:
    """``value`` and all lists and objects within it that hold something."""
    found, waiting = [], [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict | list) and each:
            found.append(each)
            waiting += each.values() if isinstance(each, dict) else each
    return found


def change_one(rng: random.Random, holder: Any) -> None:
    key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
    kind = rng.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder[key]
    elif kind == 1:
        holder[key:key] = [holder[key]] * rng.choice((1, 2, 300))
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3:
        other = rng.choice(list(holder.values()) if isinstance(holder, dict) else holder)
        holder[key] = other if other is not holder else None
    elif kind == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 0.5, 1000, 2**31))
    elif kind == 4 and isinstance(holder[key], str):
        holder[key] = mutate_text(rng, holder[key])
    else:
        holder[key] = nasty_value(rng)


def nasty_value(rng: random.Random) -> Any:
    """A value at some edge, or a deeply nested one."""
    if rng.random() < 0.03:
        nested: Any = 0
        for _ in range(rng.choice((50, 900))):  # deeper ones json cannot write
            nested = [nested]
        return nested
    return rng.choice(VALUES)
