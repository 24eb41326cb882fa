"""The machine: how many processes this process may use, as a container limits it; what it is, and which code runs."""

import platform
import re
import subprocess
from functools import cache
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


@cache
def hardware() -> str:
    """The kind of processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


@cache
def commit() -> str | None:
    """The commit of the code that runs, "-dirty" where it has been changed; None outside a checkout of it."""
    here = Path(__file__)
    try:
        for arguments in (
            ("ls-files", "--error-unmatch", here.name),
            ("describe", "--always", "--dirty", "--exclude=*"),
        ):
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, text=True)
            if done.returncode != 0:  # an installed package in a folder of somebody's repository
                return None
        return done.stdout.strip()
    except OSError:  # there is no git
        return None
