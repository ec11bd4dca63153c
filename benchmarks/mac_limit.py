"""How many int8 multiply-accumulates a second this CPU can do at most.

    python benchmarks/mac_limit.py --threads 1

Compiles `mac_limit.cpp` with $CXX or c++, and runs it, which takes a second or two. With AMX the
limit is that of `tdpbusd`, which oneDNN's kernels use and fbgemm's do not; with VNNI that of
`vpdpbusd`; without, that of the three AVX2 instructions which do the same.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".cpp")


@dataclass(frozen=True)
class Limit:
    """What all threads together can do.

    Attributes:
        instruction: the one that was used, such as "vpdpbusd".
        macs_per_second: multiply-accumulates of two 8-bit factors into a 32-bit sum.
        threads: how many.
    """

    instruction: str
    macs_per_second: float
    threads: int

    def share(self, macs: float, ms: float) -> float:
        """Which part of the limit is reached by `macs` multiply-accumulates in `ms` ms."""
        return macs / (self.macs_per_second * ms / 1e3)

    def __str__(self) -> str:
        return (
            f"limit of this CPU: {self.macs_per_second / 1e9:.0f} G multiply-accumulates a second "
            f"({self.instruction}, threads: {self.threads})"
        )


def measure(threads: int = 1) -> Limit:
    """Compile and run the probe.

    Raises:
        OSError: there is no C++ compiler, or it fails, or the CPU has neither VNNI nor AVX2.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "mac_limit")
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        _run([*compiler, "-O2", "-std=c++20", "-pthread", str(SOURCE), "-o", str(program)])
        instruction, rate = _run([str(program), str(threads)]).split()
    return Limit(instruction, float(rate), threads)


def measure_or_say_why_not(threads: int) -> Limit | None:
    """For benchmarks that also make sense without: None, and a line on stderr, if there is none."""
    try:
        return measure(threads)
    except OSError as error:
        print(f"no shares of the CPU's limit: {error}", file=sys.stderr)
        return None


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"{Path(command[0]).name} failed: {lines[0]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    print(measure(parser.parse_args().threads))


if __name__ == "__main__":
    main()
