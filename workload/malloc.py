"""The C library's memory on CPUs: what one step frees is kept for the next."""

import ctypes
import os


def malloc_settings() -> list[str]:
    """What the user asks of the C library's memory, as NAME=value."""
    return sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_"))


def keep_freed_memory() -> None:
    """Let the C library keep what one step frees for the next, as PyTorch does on GPUs.

    It would give large blocks back to the kernel, and every step would wait for their pages anew: what that costs, and
    how much more memory a run takes instead, is in benchmarks/README.md. Of glibc only, see mallopt(3); a user's own
    MALLOC_ variables rule.

    A new size may take fresh pages some seven times before its own are used again: PyTorch asks for aligned blocks,
    what is trimmed off before one goes to glibc's thread cache, which holds seven of a kind, and until that is full,
    the block without its trimmings is too small for its like. No option of mallopt empties that cache.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None and not malloc_settings():
        most_mapped_blocks, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        set_option(most_mapped_blocks, 0)
        set_option(trim_threshold, -1)  # never
