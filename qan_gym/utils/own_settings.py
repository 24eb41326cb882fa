"""The settings of the process that an environment computes under, whatever the user's are.

PyTorch and NumPy have settings that change results, raise errors, or cost time: whether gradients are recorded, the
default dtype and device, the precision of products, the number of threads. A call of an environment computes under
those below, which but for the number of threads are those of a fresh process, and leaves the user's as they were.

What belongs to a thread is changed for that thread alone. What belongs to the process is changed by the first of the
calls that overlap in several threads, and changed back by the last of them.
"""

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from dataclasses import dataclass
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
Result = TypeVar("Result")

THREADS_VARIABLE = "QAN_GYM_THREADS"  # threads of PyTorch in a call, where it is set
SMALL_NETWORK = 500_000  # weights; up to so many, threads wait for each other longer than they compute
DENORMAL = 5e-324  # 0 where the processor flushes such numbers


@dataclass(frozen=True)
class Setting:
    """A setting of the process.

    Attributes:
        get: () -> its value.
        set: takes a value.
        wanted: the values to compute under; where it has another one, the first of them is set.
    """

    get: Callable[[], Any]
    set: Callable[[Any], object]
    wanted: tuple[Any, ...]

    def begin(self) -> Callable[[], None] | None:
        """Set what is wanted; returns what puts back the value of before, or None where nothing was changed."""
        before = self.get()
        if before in self.wanted:
            return None
        self.set(self.wanted[0])
        return partial(self._end, before)

    def _end(self, before: Any) -> None:
        if self.get() == self.wanted[0]:  # else the user has changed it meanwhile
            self.set(before)


def fp32_precision(part: str, operation: str, *wanted: str) -> Setting:
    """The precision of float32, "ieee", "tf32" or "bf16", of an operation ("matmul", "conv") of a part of PyTorch."""
    get = partial(_C._get_fp32_precision_getter, part, operation)  # what `torch.backends` calls, but slowly
    put = partial(_C._set_fp32_precision_setter, part, operation)

    def put_back(value: str) -> None:
        put("none")  # as the settings above it have it
        if get() != value:
            put(value)

    return Setting(get, put_back, wanted)


_C: Any = torch._C
_OF_THE_PROCESS = (
    Setting(torch.get_default_dtype, torch.set_default_dtype, (torch.float32,)),
    # Demanded of all operations, it refuses some whose results do not depend on the order here.
    Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode, (0,)),
    # It raises an error where a gradient is not a number; here the run has diverged.
    Setting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
        ((False, True), (False, False)),
    ),
    fp32_precision("mkldnn", "matmul", "ieee", "none"),
    fp32_precision("mkldnn", "conv", "ieee", "none"),
    Setting(_C._get_mkldnn_enabled, _C._set_mkldnn_enabled, (True,)),
    Setting(_C._get_nnpack_enabled, _C._set_nnpack_enabled, (True,)),
)


class _Process:
    """The calls that are under way, one in a thread however they are nested, and what the last of them puts back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.threads = 0  # of PyTorch, as the user has it
        self.put_back: list[Callable[[], None]] = []
        self.forked = False

    def begin(self) -> None:
        with self.lock:
            if self.calls == 0:
                self.threads = torch.get_num_threads()
                self.put_back = [end for setting in _OF_THE_PROCESS if (end := setting.begin()) is not None]
            self.calls += 1

    def end(self) -> None:
        with self.lock:
            self.calls -= 1
            if self.calls == 0:
                self._put_back()

    def _put_back(self) -> None:
        while self.put_back:
            self.put_back.pop()()

    def after_fork(self) -> None:
        """In the child, which has the calling thread only; a call of another one cannot end."""
        self.lock, self.forked = threading.Lock(), True
        self.calls = 1 if _here.calls else 0
        if self.calls == 0:
            self._put_back()


class _Here(threading.local):
    """The calls that are under way in this thread, and the user's number of threads."""

    def __init__(self) -> None:
        self.calls: list[list[Callable[[], object]]] = []  # what each of them puts back
        self.threads = 0  # 0: no call has begun in this thread


_process, _here = _Process(), _Here()
# Windows has no fork. OpenMP's threads are not there in the child: two would wait for each other for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.after_fork)


class own_settings(ContextDecorator):
    """A context, or a decorator: the settings of the module, and a number of threads; may be nested and shared."""

    def __init__(self, threads: int | None = 1) -> None:
        """threads: of PyTorch on CPU, see `threads_for`; None: as many as the user's setting says."""
        self.threads = threads

    def __enter__(self) -> None:
        put_back: list[Callable[[], object]] = []
        try:
            if not _here.calls:
                _process.begin()
                put_back.append(_process.end)
                _begin_in_thread(put_back)
            _compute_plainly(put_back)
            self._set_threads(put_back)
        except BaseException:
            _undo(put_back)
            raise
        _here.calls.append(put_back)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _undo(_here.calls.pop())

    def _set_threads(self, put_back: list[Callable[[], object]]) -> None:
        before = torch.get_num_threads()
        if not _here.calls:
            # A thread takes its number from whoever set one last, which may have been a call in another thread.
            lent = _here.threads == 0 and _process.calls > 1 and before == 1
            before = _here.threads = _process.threads if lent else before
        wanted = 1 if _process.forked else self.threads or _here.threads
        if wanted != before:
            put_back.append(partial(torch.set_num_threads, before))
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)


def _begin_in_thread(put_back: list[Callable[[], object]]) -> None:
    """What hardly anyone changes within a call, so that it stays as it is in those that are nested in it."""
    _enter(_C.DisableTorchFunction(), put_back)  # which the default device is
    if DENORMAL * 1.0 == 0 and torch.set_flush_denormal(False):
        put_back.append(partial(torch.set_flush_denormal, True))
    _enter(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), put_back)


def _compute_plainly(put_back: list[Callable[[], object]]) -> None:
    """As PyTorch does outside of contexts such as `no_grad`, `inference_mode` and `autocast`."""
    if torch.is_inference_mode_enabled():
        _enter(torch.inference_mode(False), put_back)
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        put_back.append(partial(torch.set_grad_enabled, False))
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            _enter(torch.autocast(device, enabled=False), put_back)


def _enter(context: AbstractContextManager[Any], put_back: list[Callable[[], object]]) -> None:
    context.__enter__()
    put_back.append(partial(context.__exit__, None, None, None))


def _undo(put_back: list[Callable[[], object]]) -> None:
    while put_back:
        put_back.pop()()


def in_own_settings(method: Callable[Concatenate[Any, P], Result]) -> Callable[Concatenate[Any, P], Result]:
    """A method that runs in the `own_settings` that its object has as its attribute of this name."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Result:
        with self.own_settings:
            return method(self, *args, **kwargs)

    return call


def users_threads() -> int:
    """The number of PyTorch's threads that the user's setting says, within a call too."""
    return _here.threads if _here.calls else torch.get_num_threads()


def threads_for(weights: int) -> int | None:
    """The number of PyTorch's threads on CPU for a network of so many weights; None: as the user's setting says.

    Raises:
        ValueError: QAN_GYM_THREADS is not a number of threads.
    """
    wanted = os.environ.get(THREADS_VARIABLE)
    if not wanted:
        return 1 if weights <= SMALL_NETWORK else None
    if not wanted.isdecimal() or int(wanted) < 1:
        raise ValueError(f"{THREADS_VARIABLE} must be a number of threads, at least 1, not {wanted!r}")
    return int(wanted)
