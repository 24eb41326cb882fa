"""Compile the kernels: `python -m qan_gym.native.build` puts the library into the package.

The build hook loads this file by its path, where the package and its dependencies are not installed: it imports nothing
beyond the standard library.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "src"
LIBRARY = FOLDER / "_kernels.so"
# No flag of the machine that compiles: each instruction set has its own file, chosen at run time.
FLAGS = ("-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-fvisibility=hidden")
COMPILERS = ("cc", "gcc", "clang")
ERROR_LINES = 8


class BuildError(Exception):
    """There is no compiler, or it fails; the message says which, with its last lines."""


def digest() -> str:
    """SHA-256 of the names and contents of the sources."""
    total = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.[ch]")):
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode())
        total.update(content)
    return total.hexdigest()


def compiler() -> list[str]:
    """The command of the C compiler: `$CC` if set, else the first of cc, gcc and clang.

    Raises:
        BuildError: there is none.
    """
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        raise BuildError(f"there is no C compiler: none of {', '.join(COMPILERS)}, and CC is not set")
    return [found]


def build(library: Path = LIBRARY, flags: tuple[str, ...] = ()) -> None:
    """Compile the library; it is written aside and then renamed.

    Args:
        library: the file to write.
        flags: of the compiler, after `FLAGS`.

    Raises:
        BuildError: there is no compiler, or it fails.
        OSError: the file cannot be written.
    """
    command = [*compiler(), *FLAGS, f'-DQAN_DIGEST="{digest()}"', *flags, "-shared"]
    sources = [str(path) for path in sorted(SOURCES.glob("*.c"))]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".kernels-") as folder:
        aside = Path(folder) / library.name
        try:
            done = subprocess.run([*command, *sources, "-o", str(aside)], capture_output=True, text=True)
        except OSError as error:
            raise BuildError(f"the C compiler {command[0]} does not start: {error}") from error
        if done.returncode != 0 or not aside.exists():
            last = "\n".join((done.stderr or done.stdout).splitlines()[-ERROR_LINES:])
            raise BuildError(f"the C compiler {command[0]} fails with status {done.returncode}:\n{last}".rstrip(":\n"))
        aside.replace(library)


def main() -> None:
    """Build in place."""
    try:
        build()
    except BuildError as error:
        sys.exit(str(error))
    print(LIBRARY)


if __name__ == "__main__":
    main()
