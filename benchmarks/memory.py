"""Memory of the process over 10,000 steps of the vector environment and their resets: it must stay constant.

    python benchmarks/memory.py [--num-envs 16] [--steps 10000]

Linux. Memory per environment over N is in the table of `benchmarks/throughput.py`.
"""

import argparse

from throughput import resident_now, vector_step

MIB = 2**20


def main() -> None:
    """Step, and print the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10_000)
    arguments = parser.parse_args()
    step = vector_step(arguments.num_envs)
    held = []
    for number in range(arguments.steps + 1):
        if number % 1000 == 0 or number == 100:
            held.append(resident_now())
            print(f"step {number:6d}: {held[-1] / MIB:8.1f} MiB", flush=True)
        step()
    print(f"growth from step 100 to the last: {(held[-1] - held[1]) / MIB:+.2f} MiB")


if __name__ == "__main__":
    main()
