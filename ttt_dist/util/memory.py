"""Memory that was freed and that the C library keeps for later."""

import ctypes


def return_free_memory() -> None:
    """Give back to the system what glibc holds of freed blocks, some milliseconds; elsewhere nothing.

    Blocks of up to 32 MB stay with the process, in gaps between those that live: by a weight at a time that comes to more than the weight.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
