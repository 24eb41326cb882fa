"""The compiled library: found, checked against its sources, its functions and structures declared for ctypes.

The structures are those of `src/kernels.h` and `src/mlp.h`.
"""

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int32, c_int64, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

from qan_gym.native import build

INSTRUCTION_SETS = {"avx512": 2, "avx2": 1, "neon": 4}  # the fastest first; enum instruction_set
OPTIMIZERS = ("gradients", "sgd", "momentum", "nesterov", "adamw")  # enum optimizer
MEASUREMENTS = 7  # enum measurement: the numbers `qan_gym.core.statistics.MEASURED`
ERRORS = (  # enum qan_error
    *("", "no engine", "wrong row", "repeated row"),
    *("wrong index", "wrong label", "wrong step", "wrong clock", "wrong task", "wrong count"),
)
BUILD = "python -m qan_gym.native.build"


class Memory(Structure):
    """struct qan_memory."""

    _fields_ = (("at", c_void_p), ("stride", c_int64))


class Images(Structure):
    """struct qan_images."""

    _fields_ = (
        *((name, c_int64) for name in ("count", "channels", "classes")),
        *((name, c_void_p) for name in ("images", "labels", "mean", "std")),
    )


class Work(Structure):
    """struct qan_work."""

    _fields_ = (
        ("networks", c_int64),
        ("count", c_int64),
        ("rows", c_void_p),
        ("seen", c_void_p),
        ("next", c_int64),
        ("instruction_set", c_int32),
        ("reserved", c_int32),
    )


class Sequence(Structure):
    """struct qan_sequence."""

    _fields_ = (
        ("count", c_int64),
        ("per_epoch", c_int64),
        *((name, c_void_p) for name in ("order", "clock", "rates", "pulled")),
        ("pull_end", c_int64),
        ("pull_strength", c_float),
        ("smoothing", c_float),
        ("smoothed", c_void_p),
    )


class Measuring(Structure):
    """struct qan_measuring."""

    _fields_ = (
        ("measured", c_void_p),
        ("losses", c_void_p),
        ("batches", c_int64),
        ("first", c_int64),
        *((name, Memory) for name in ("previous_gradient", "start", "previous_displacement")),
    )


class Training(Structure):
    """struct qan_training."""

    _fields_ = (
        ("work", Work),
        ("data", Images),
        ("sequence", Sequence),
        ("measuring", Measuring),
        ("batch", c_int64),
        ("indices_stride", c_int64),
        ("indices", c_void_p),
        ("weights", Memory),
        ("gradients", Memory),
        ("reference", Memory),
        ("slots", Memory * 2),
        ("optimizer", c_int32),
        ("pulled", c_uint32),
        *((name, c_void_p) for name in ("learning_rate", "momentum", "weight_decay", "loss_scale")),
        ("beta2", c_double),
        ("epsilon", c_double),
        *((name, c_void_p) for name in ("step", "strength", "loss", "finite", "each")),
    )


class Evaluation(Structure):
    """struct qan_evaluation."""

    _fields_ = (
        *(("work", Work), ("data", Images), ("weights", Memory)),
        *((name, c_void_p) for name in ("loss", "accuracy", "each")),
    )


class Examples(Structure):
    """struct qan_examples."""

    _fields_ = (
        ("images", c_void_p),
        ("total", c_int64),
        ("chosen", c_void_p),
        ("labels", c_void_p),
        ("count", c_int64),
    )


class MLPTask(Structure):
    """struct qan_mlp_task."""

    _fields_ = (
        ("train", Examples),
        *((name, c_int64) for name in ("inputs", "classes", "hidden")),
        ("widths", c_int64 * 3),
        ("batch", c_int64),
        ("seed", c_int64),
        ("class_weights", c_void_p),
        ("beta2", c_double),
        ("epsilon", c_double),
        *((name, c_float) for name in ("scale", "shift", "loss_scale")),
        *((name, c_int32) for name in ("activation", "optimizer", "normalised")),
    )


class MLPTraining(Structure):
    """struct qan_mlp_training."""

    _fields_ = (
        ("work", Work),
        ("tasks", c_void_p),
        ("weights", Memory),
        ("slots", Memory * 2),
        *((name, Memory) for name in ("previous_gradient", "start", "previous_displacement")),
        *((name, c_void_p) for name in ("momentum", "weight_decay", "clock", "counts")),
        ("most", c_int64),
        *((name, c_void_p) for name in ("rates", "losses", "finite", "measured")),
        ("room", c_int64),
        *((name, c_void_p) for name in ("indices", "each")),
    )


class MLPEvaluation(Structure):
    """struct qan_mlp_evaluation."""

    _fields_ = (
        ("work", Work),
        ("tasks", c_void_p),
        ("examples", c_void_p),
        ("weights", Memory),
        ("loss", c_void_p),
        ("accuracy", c_void_p),
        ("room", c_int64),
        ("each", c_void_p),
    )


class ClassDraws(Structure):
    """struct qan_class_draws."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "batches", "classes", "room", "most")),
        *((name, c_void_p) for name in ("seeds", "counts", "sizes", "members", "used", "indices")),
    )


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, its functions' arguments and results declared."""
    functions: dict[str, tuple[Any, list[Any]]] = {
        "qan_digest": (c_char_p, []),
        "qan_instruction_sets": (c_int32, []),
        "qan_size": (c_int64, [c_int64, c_int64]),
        "qan_workspace_size": (c_int64, []),
        "qan_begin_training": (c_int32, [POINTER(Training)]),
        "qan_begin_evaluation": (c_int32, [POINTER(Evaluation)]),
        "qan_train": (None, [POINTER(Training), c_void_p]),
        "qan_evaluate": (None, [POINTER(Evaluation), c_void_p]),
        "qan_mlp_size": (c_int64, [POINTER(MLPTask)]),
        "qan_mlp_workspace_size": (c_int64, []),
        "qan_begin_mlp_training": (c_int32, [POINTER(MLPTraining)]),
        "qan_begin_mlp_evaluation": (c_int32, [POINTER(MLPEvaluation)]),
        "qan_train_mlp": (None, [POINTER(MLPTraining), c_void_p]),
        "qan_evaluate_mlp": (None, [POINTER(MLPEvaluation), c_void_p]),
        "qan_initialise_mlp": (None, [POINTER(MLPTask), c_int64, c_double, c_void_p]),
        "qan_draw_classes": (None, [POINTER(ClassDraws)]),
        "qan_shuffled": (None, [*[c_int64] * 5, c_void_p]),
        **{f"qan_{name}": (None, [c_void_p, c_void_p, c_int64]) for name in ("exp", "log", "cos")},
        **{f"qan_{name}_of": (c_double, [c_double]) for name in ("exp", "log", "cos")},
    }
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def instruction_sets(library: ctypes.CDLL) -> list[str]:
    """The instruction sets that the library and this processor have, the fastest first."""
    available = library.qan_instruction_sets()
    return [name for name, bit in INSTRUCTION_SETS.items() if available & bit]


def chosen_instruction_set(library: ctypes.CDLL, wanted: str | None) -> str:
    """The one that is wanted; None: the fastest.

    Raises:
        ValueError: it is not available here.
    """
    available = instruction_sets(library)
    if wanted is not None and wanted not in available:
        raise ValueError(f"no instruction set {wanted!r} here; there are {', '.join(available)}")
    return wanted or available[0]


def open_library(path: Path) -> ctypes.CDLL | str:
    """The library in a file, or the reason why it cannot be used."""
    if not path.exists():
        return f"the kernels are not compiled; `{BUILD}` does it, with a C compiler"
    try:
        library = declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        return f"the library of the kernels cannot be loaded ({error}); `{BUILD}` compiles it again"
    if library.qan_digest().decode() != build.digest():
        return f"the library of the kernels is of other sources than these; `{BUILD}` compiles it again"
    if not instruction_sets(library):
        return "the kernels need a processor with AVX2 or NEON"
    return library


@lru_cache(maxsize=1)
def find() -> ctypes.CDLL | str:
    """The package's library, or the reason why there is none; looked for once per process."""
    return open_library(build.LIBRARY)
