"""Where the pages of InnoDB's tablespaces have what we look at (fil0fil.h, fsp0types.h); numbers are big-endian."""

from __future__ import annotations

LSN = slice(16, 24)
"""FIL_PAGE_LSN: the end of the newest log record of the page."""
SPACE_ID = slice(34, 38)
"""FIL_PAGE_SPACE_ID: the number of its tablespace; 0 is the system's."""
FLAGS = slice(54, 58)
"""FSP_SPACE_FLAGS, of the first page: how the tablespace is laid out."""
HEAD = FLAGS.stop
"""Bytes from the beginning of a page to the end of all these."""

_FULL_CRC32 = 1 << 4
_LOGICAL = 16 << 10
_LEAST = 512


def page_size(flags: bytes) -> int:
    """Bytes of a page as it lies in the file, by the tablespace's flags.

    Of one with full_crc32 (since 10.4.3) the lowest four bits tell it; of an older one, and of ROW_FORMAT=COMPRESSED,
    bits 1 to 4 or, if these are 0, 6 to 9.  They shift 512 bytes; 0 is 16 KiB.
    """
    word = int.from_bytes(flags, "big")
    shift = word & 15 if word & _FULL_CRC32 else _compressed(word)
    return _LEAST << shift if shift else _LOGICAL


def _compressed(word: int) -> int:
    return word >> 1 & 15 or word >> 6 & 15
