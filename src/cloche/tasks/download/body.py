"""The body of a reply as the file's own bytes."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator

import httpx

from cloche.errors import DownloadBrokenError, DownloadRefusedError
from cloche.tasks.download.replies import content_encoding

#: Most bytes that one step of decompression gives: a bomb is met by the size cap, not by
#: the memory.
_STEP = 1024**2


async def plain_chunks(reply: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of the file: as they come, or decompressed where a server compressed them
    although ``identity`` was asked for.
    """
    encoding = content_encoding(reply)
    if not encoding:
        async for chunk in reply.aiter_raw():
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise DownloadRefusedError(
            f"The server compresses the file with {encoding[:50]!r}.",
            why="Only gzip and deflate are understood, and no compression was asked for.",
        )
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)  # 32: gzip or zlib, by its header
    async for chunk in reply.aiter_raw():
        for piece in _inflated(inflater, chunk):
            yield piece
    if not inflater.eof:
        raise DownloadBrokenError("The transfer ended early.", why="The compressed data is cut.")


def _inflated(inflater: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    try:
        while data and not inflater.eof:
            yield inflater.decompress(data, _STEP)
            data = inflater.unconsumed_tail
    except zlib.error as error:
        raise DownloadBrokenError("The compressed data is damaged.", why=str(error)) from error
