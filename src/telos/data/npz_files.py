""".npz files whose large arrays are mapped from the disk, so that data may be larger than memory.

An array is mapped where it lies in the file uncompressed and aligned to its type. `save` writes such files, and any
program reads them; in those that numpy.savez writes, arrays are aligned by chance only, and are read as ever. A mapped
array may be written to: changes stay in memory.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MAPPED_FROM = 2**24
"""Bytes; smaller arrays are read."""
ALIGNMENT = 64
BLOCK = 2**24


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an uncompressed .npz whose arrays begin at multiples of 64 bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            assert archive.fp is not None
            # Before the array: a header of 30 bytes, the name, 20 bytes for large sizes, and this padding with its 4.
            padding = -(archive.fp.tell() + 30 + len(entry.filename.encode()) + 20 + 4) % ALIGNMENT
            entry.extra = struct.pack("<HH", 0, padding) + bytes(padding)
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def read(path: Path, file: Any, name: str) -> np.ndarray:
    """The array `name` of an opened .npz (what numpy.load gives), mapped where it can be.

    Raises:
        zipfile.BadZipFile: its bytes are not those that were written; and what numpy raises for other faults.
    """
    entry = file.zip.getinfo(f"{name}.npy")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < MAPPED_FROM:
        return file[name]
    with file.zip.open(entry) as stored:
        if np.lib.format.read_magic(stored) != (1, 0):
            return file[name]
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stored)
        header = stored.tell()
    with path.open("rb") as plain:
        plain.seek(entry.header_offset + 26)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", plain.read(4)))
    if fortran or dtype.hasobject or (start + header) % dtype.alignment:
        return file[name]
    whole = np.memmap(path, np.uint8, "c", start, (entry.file_size,))
    check = 0
    for first in range(0, len(whole), BLOCK):
        check = zlib.crc32(whole[first : first + BLOCK].data, check)
    if check != entry.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {entry.filename!r}")
    return np.memmap(path, dtype, "c", start + header, shape)
