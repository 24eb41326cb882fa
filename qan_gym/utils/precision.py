"""The precision of the gradients. Weights, losses and evaluations are float32 in any case."""

import os
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import torch

from qan_gym.utils.own_settings import Setting, fp32_precision


class Precision:
    """A context in which products and convolutions have one of three precisions, whatever the process is set to.

    float32: IEEE single precision. tf32: products of inputs rounded to 10 bits of mantissa, on CUDA's tensor cores.
    bf16: the network's tensors have 7 bits of mantissa; on CUDA and CPU. Convolutions are chosen to be deterministic.

    Attributes:
        dtype: the network's tensors are to have.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Args: name as `TaskConfig.precision`; device that computes.

        Raises:
            ValueError: the device does not have it.
        """
        if name == "tf32" and device.type != "cuda":
            raise ValueError(f"precision 'tf32' needs a CUDA device, not {str(device)!r}: use 'float32' or 'bf16'")
        self.dtype = torch.bfloat16 if name == "bf16" else torch.float32
        products = "tf32" if name == "tf32" else "ieee"
        self._settings = _of_cuda(products) if device.type == "cuda" else ()
        self._put_back: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        if self._settings:
            _Lock.held.acquire()
            self._put_back = [end for setting in self._settings if (end := setting.begin()) is not None]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._settings:
            while self._put_back:
                self._put_back.pop()()
            _Lock.held.release()


class _Lock:
    """Held by the thread whose precision the process is set to."""

    held = threading.RLock()

    @classmethod
    def renew(cls) -> None:
        """In a forked process, where no other thread will give it back."""
        cls.held = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Lock.renew)


def _of_cuda(products: str) -> tuple[Setting, ...]:
    """The settings of the process that products and convolutions on CUDA depend on."""
    cudnn: Any = torch.backends.cudnn
    return (
        fp32_precision("cuda", "matmul", products),
        fp32_precision("cuda", "conv", products),
        *(
            Setting(partial(getattr, cudnn, name), partial(setattr, cudnn, name), (wanted,))
            for name, wanted in (("enabled", True), ("deterministic", True), ("benchmark", False))
        ),
    )
