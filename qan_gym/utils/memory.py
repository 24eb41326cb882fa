"""How much memory there is."""

import os


def require_memory(needed: int) -> None:
    """Refuse what the machine has no memory for, before the operating system ends the process for it.

    Args:
        needed: bytes on the host.

    Raises:
        MemoryError: that is more than the machine has; where it does not say how much it has, nothing is refused.
    """
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a system that says so
        return
    if needed > there:
        raise MemoryError(f"{needed / 2**30:,.1f} GiB, of {there / 2**30:,.1f}")
