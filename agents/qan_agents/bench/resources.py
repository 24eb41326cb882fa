"""How many processes this process may use: its CPUs and its memory, as a container limits them."""

from pathlib import Path

import psutil
from loky import cpu_count

MEMORY = 1 << 30  # bytes that a process of a bench takes: PyTorch, the data, and N networks
CGROUP = Path("/sys/fs/cgroup")
# Limit and use of the memory of a container, in version 2 and 1 of control groups.
MEMORY_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def default_workers() -> int:
    """Processes for a bench: one per CPU that this process may use, as many as fit into its memory, at least one."""
    return max(1, min(int(cpu_count()), available_memory() // MEMORY))


def available_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that this process may still use.

    Args:
        cgroup: the folder of control groups.
    """
    free = [int(psutil.virtual_memory().available)]
    for limit, usage in MEMORY_FILES:
        try:
            free.append(int((cgroup / limit).read_text()) - int((cgroup / usage).read_text()))
        except (OSError, ValueError):  # there is no such file, or no limit: "max"
            continue
    return max(0, min(free))
