"""Copies of many manifests in one object, so that a long listing takes few requests.

Nobody trusts it: a copy counts only where its MD5 is the tag that the store itself gives to the
manifest, so one that is old, torn, lost or written by somebody else costs requests and no more.
Where tags are something else (Azure, keys of KMS) no copy counts, and each manifest is read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

FILE = ".manifests"  # beside the backups, and none
FEW = 16  # manifests that are read one by one all the same
MOST_BYTES = 16 << 20  # of copies, in memory


def tag(meta: Mapping[str, Any]) -> str:
    """Return the tag that a store gives an object, without quotes."""
    return str(meta["e_tag"] or "").strip('"')


def tag_of(text: bytes) -> str:
    """Return the tag of an object that was put in one piece, where stores tag by content."""
    return hashlib.md5(text, usedforsecurity=False).hexdigest()


def fitting(texts: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return as many of the manifests, the most wanted first, as may be kept."""
    kept: dict[str, bytes] = {}
    size = 0
    for each, text in texts.items():
        size += len(text)
        if size > MOST_BYTES // 2:  # quotes and line ends are longer inside JSON
            break
        kept[each] = text
    return kept


def packed(texts: Iterable[bytes]) -> bytes:
    """Return manifests as one object."""
    plain = json.dumps([text.decode("utf-8", "replace") for text in texts], ensure_ascii=False)
    return zlib.compress(plain.encode(), 1)


def unpacked(data: bytes) -> dict[str, bytes]:
    """Return the manifests by their tags; none where it is not what `packed` writes."""
    with suppress(ValueError, zlib.error, RecursionError, MemoryError):
        texts = json.loads(zlib.decompressobj().decompress(data, MOST_BYTES))
        if isinstance(texts, list):
            found = [each.encode() for each in texts if isinstance(each, str)]
            return {tag_of(each): each for each in found}
    return {}
