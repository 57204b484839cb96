"""Jobs that compute: in pure Python, which holds the GIL, and in C that lets go of it."""

from __future__ import annotations

import hashlib
import random
import zlib
from functools import cache

from tasks.registry import Nature, job

# hashlib drops the GIL for buffers over 2047 bytes (CPython's HASHLIB_GIL_MINSIZE), zlib's compress for any. A chunk of
# this size takes some 0.1-1 ms, so a job drops it many times and a second thread never waits long.
CHUNK = bytes(range(256)) * 1024


@job(Nature.HOLDS_GIL, expect=lambda: 0)
def noop() -> int:
    """Do nothing: what is left is the cost of the queue."""
    return 0


@job(Nature.HOLDS_GIL, expect=lambda loops: loops * (loops - 1) // 2, scales_with="loops")
def spin(loops: int) -> int:
    """Add up `loops` integers in pure Python: a fixed amount of work, whatever the clock says."""
    total = 0
    for i in range(loops):
        total += i
    return total


@job(Nature.HOLDS_GIL)
def primes(limit: int) -> int:
    """Count the primes below `limit` with a sieve in a list, as a first program would."""
    sieve = [True] * max(limit, 2)
    sieve[0] = sieve[1] = False
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            for multiple in range(n * n, limit, n):
                sieve[multiple] = False
    return sum(sieve[:limit])


@cache
def _text(words: int, seed: int) -> str:
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(500)]
    return " ".join(rng.choices(vocabulary, k=words))


@job(Nature.HOLDS_GIL)
def wordcount(words: int, seed: int = 0) -> str:
    """Count a text of `words` words and name the commonest: dictionaries and strings, as real jobs use them."""
    counts: dict[str, int] = {}
    for word in _text(words, seed).split():
        key = word.strip(".,;").lower()
        counts[key] = counts.get(key, 0) + 1
    top = max(sorted(counts), key=counts.__getitem__)
    return f"{top} {counts[top]} of {len(counts)}"


@job(Nature.RELEASES_GIL, scales_with="chunks")
def digest(chunks: int) -> str:
    """Hash `chunks` times 256 KiB with SHA-256; OpenSSL works without the GIL."""
    sha = hashlib.sha256()
    for _ in range(chunks):
        sha.update(CHUNK)
    return sha.hexdigest()


SLICES = 10
"""In which `blend` changes from one kind of work to the other: a real job lets go of the GIL more than once."""


@job(Nature.RELEASES_GIL)
def blend(loops: int, chunks: int) -> str:
    """Add up `loops` integers in Python and hash `chunks` times 256 KiB in C, in turns."""
    total, sha = 0, hashlib.sha256()
    for part in range(SLICES):
        for i in range(loops * part // SLICES, loops * (part + 1) // SLICES):
            total += i
        for _ in range(chunks * part // SLICES, chunks * (part + 1) // SLICES):
            sha.update(CHUNK)
    return f"{total} {sha.hexdigest()}"


@job(Nature.RELEASES_GIL, scales_with="rounds", needs="numpy", expect=lambda rounds: rounds)
def sine(rounds: int) -> int:
    """Take the sines of 100,000 numbers with NumPy, `rounds` times; it works without the GIL."""
    import numpy as np  # noqa: PLC0415  only this job needs it, and it need not be installed

    numbers = np.arange(100_000, dtype=np.float64)
    for _ in range(rounds):
        np.sin(numbers)
    return rounds


@job(Nature.RELEASES_GIL, scales_with="chunks", expect=lambda chunks: chunks * len(zlib.compress(CHUNK, 6)))
def squeeze(chunks: int) -> int:
    """Compress `chunks` times 256 KiB with zlib, which works without the GIL, and add up the sizes in bytes."""
    return sum(len(zlib.compress(CHUNK, 6)) for _ in range(chunks))
