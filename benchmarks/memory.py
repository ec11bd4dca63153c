"""Peak memory of this process, as Linux counts it."""

import ctypes
import gc
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """How far resident memory rises above where it stood, while the `with` block runs.

    Attributes:
        mb: the rise in MB (10^6 bytes) once the block is left; None where Linux does not tell.
    """

    def __init__(self) -> None:
        self.mb: float | None = None
        self._before: float | None = None

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        try:
            # Freed memory that the allocator keeps would be used again, and not be seen as a rise.
            ctypes.CDLL(None).malloc_trim(0)
            RESET.write_text("5", encoding="ascii")  # the peak is now what is resident
            self._before = _status_mb("VmRSS")
        except (OSError, AttributeError):
            self._before = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._before is not None:
            self.mb = max(_status_mb("VmHWM") - self._before, 0.0)


def _status_mb(field: str) -> float:
    """A field of /proc/self/status, which is in kB (1024 bytes)."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"{STATUS} has no {field}")
