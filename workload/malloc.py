"""The C library's allocator on CPUs: it keeps memory that one step frees for the next."""

import ctypes
import os


def malloc_settings() -> list[str]:
    """The user's own MALLOC_ variables, as NAME=value."""
    return sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("MALLOC_"))


def keep_freed_memory() -> None:
    """Let the C library keep memory that one step frees for the next, as PyTorch does on GPUs.

    By default large blocks go back to the kernel, and every step pays for their pages again. benchmarks/README.md says
    how much time that takes, and how much more memory a run takes without it. glibc only, see mallopt(3); a user's own
    MALLOC_ variables take precedence.

    A new size can still page-fault about seven times before its memory is reused. PyTorch asks for aligned blocks; the
    unaligned head that is cut off goes to glibc's per-thread cache, which keeps up to seven chunks of a size class, and
    until it is full the freed block is too small for the next request. No option of mallopt empties that cache.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None and not malloc_settings():
        most_mapped_blocks, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
        set_option(most_mapped_blocks, 0)
        set_option(trim_threshold, -1)  # never
