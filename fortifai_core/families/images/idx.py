"""Reads and writes the IDX files in which MNIST is published."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import DataError

# The third byte of the header names the element type; numbers are big-endian.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def parse_idx(raw: bytes, *, name: str) -> NDArray[Any]:
    """The array in an IDX file's bytes, unpacked if gzipped (format: yann.lecun.com/exdb/mnist, last section).

    Args:
        raw: the file as it is, plain or gzipped.
        name: how errors call it.

    Raises:
        DataError: no IDX file, cut short, or longer than its header says.
    """
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(name, f"{len(raw)} bytes", f"is a damaged gzip file ({error}); fetch it again") from error
    if len(raw) < 4 or raw[:2] != b"\x00\x00" or raw[2] not in _TYPES or not raw[3]:
        raise DataError(name, raw[:4].hex(), "does not begin like an IDX file (two zero bytes, type, dimensions)")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(name, f"{len(raw)} bytes", f"ends inside the header of {start} bytes; fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", raw[3], 4))
    kind = np.dtype(_TYPES[raw[2]])
    expected = start + math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise DataError(name, f"{len(raw)} bytes", f"its header says {shape}, that is {expected} bytes; fetch it again")
    return np.frombuffer(raw, kind, offset=start).reshape(shape).astype(kind.newbyteorder("="))


def to_idx(array: NDArray[np.uint8]) -> bytes:
    """An array of bytes as an IDX file: two zero bytes, type 8, dimensions, each length in four bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file, plain or gzipped.

    Raises:
        DataError: the file cannot be read, or is no whole IDX file.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(str(path), error.strerror, "must be a readable IDX file, plain or gzipped") from error
    return parse_idx(raw, name=str(path))


def read_mnist(folder: Path, part: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Images (n, rows, columns) uint8 and labels (n,) uint8 of MNIST's part `train` or `t10k`.

    Raises:
        DataError: a file is missing or damaged, or the two do not belong together.
    """
    arrays = []
    for kind, dimensions in (("images", 3), ("labels", 1)):
        stem = f"{part}-{kind}-idx{dimensions}-ubyte"
        path = next((p for p in (folder / f"{stem}.gz", folder / stem) if p.is_file()), None)
        if path is None:
            raise DataError(str(folder), f"{stem}.gz", "is not there; MNIST has four files, train- and t10k-")
        array = read_idx(path)
        if array.ndim != dimensions or array.dtype != "u1":
            remedy = f"must hold bytes in {dimensions} dimensions, as MNIST's {kind} do"
            raise DataError(str(path), f"{array.dtype}, {array.shape}", remedy)
        arrays.append(array)
    images, labels = arrays
    if len(images) != len(labels):
        raise DataError(str(folder), f"{len(images)} images, {len(labels)} labels", f"{part}: files do not match")
    return images, labels
