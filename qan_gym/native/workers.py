"""The threads that share the rows of a call into the library, and the memory that they work in."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


class Workers:
    """Threads, each with memory of its own.

    Attributes:
        lock: held during a call: the memory is there once.
    """

    def __init__(self, threads: int, workspace_size: int) -> None:
        """Set up.

        Args:
            threads: how many, the caller's own among them.
            workspace_size: bytes that each needs.

        Raises:
            ValueError: there is none.
        """
        if threads < 1:
            raise ValueError(f"threads: at least 1, not {threads}")
        self._memories = [np.empty(workspace_size + 64, np.uint8) for _ in range(threads)]
        self._workspaces = [-(-memory.ctypes.data // 64) * 64 for memory in self._memories]  # addresses
        self._helpers = ThreadPoolExecutor(threads - 1, "qan-kernels") if threads > 1 else None
        self.lock = threading.Lock()

    def share(self, work: Callable[[Any, int], None], job: Any, count: int) -> None:
        """Let the threads take the `count` rows of a job, one after another; while `lock` is held."""
        futures = []
        if self._helpers is not None:
            spaces = self._workspaces[1:count]
            futures = [self._helpers.submit(work, job, space) for space in spaces]
        work(job, self._workspaces[0])
        for future in futures:
            if not future.cancel():  # one that has not begun has nothing left to do
                future.result()
