# SPDX-License-Identifier: Apache-2.0
"""Protobuf's wire format, as far as weights are found and put without a copy of the whole message.

A field is a varint ``number << 3 | kind``; kind 0 is a varint, 1 and 5 are 8 and 4 bytes, 2 is a
length and so many bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

__all__ = ["Field", "Readable", "fields", "header"]

_LENGTH_DELIMITED = 2


class Readable(Protocol):
    """Bytes, or a file that is mapped."""

    def __getitem__(self, at: int, /) -> int:
        """One byte."""
        ...


class Field(NamedTuple):
    """A length-delimited field: where it begins, and where its content does and ends."""

    number: int
    first: int
    start: int
    stop: int


def fields(data: Readable, start: int, stop: int) -> Iterator[Field]:
    """Every length-delimited field of a message in ``data[start:stop]``.

    Raises:
        ValueError: the bytes are no message.
    """
    at = start
    while at < stop:
        first = at
        key, at = _varint(data, at, stop)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at, stop)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at, stop)
            if at + length > stop:
                break
            yield Field(number=key >> 3, first=first, start=at, stop=at + length)
            at += length
        else:
            break
    if at != stop:
        raise ValueError(f"no protobuf message at byte {at}")


def header(number: int, size: int) -> bytes:
    """What stands before ``size`` bytes of a length-delimited field."""
    return _varint_bytes(number << 3 | _LENGTH_DELIMITED) + _varint_bytes(size)


def _varint(data: Readable, at: int, stop: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; all but the last byte have their top bit set."""
    value = shift = 0
    while at < stop and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"no protobuf message at byte {at}")


def _varint_bytes(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
