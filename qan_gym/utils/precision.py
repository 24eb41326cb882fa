"""The precision of the gradients. Weights, losses and evaluations are float32 in any case."""

from types import TracebackType
from typing import Any

import torch


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
        self._wanted = ("tf32" if name == "tf32" else "ieee",) * 2 + (True, False)
        self._on_cuda = device.type == "cuda"
        self._before = self._wanted

    def __enter__(self) -> None:
        if self._on_cuda:
            self._before = _settings()
            _set(*self._wanted)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_cuda:
            _set(*self._before)


def _settings() -> tuple[str, str, bool, bool]:
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic, cudnn.benchmark


def _set(products: str, convolutions: str, deterministic: bool, benchmark: bool) -> None:
    torch.backends.cuda.matmul.fp32_precision = products
    cudnn: Any = torch.backends.cudnn
    cudnn.conv.fp32_precision, cudnn.deterministic, cudnn.benchmark = convolutions, deterministic, benchmark
