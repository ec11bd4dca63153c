"""Run this process, and those that it starts, as on a CPU without AMX tiles.

Most CPUs that int8 models run on have VNNI and no AMX. On Linux a process asks the kernel for the
tiles' registers (arch_prctl, ARCH_REQ_XCOMP_PERM) before it uses them; oneDNN, OpenVINO and ONNX
Runtime fall back to VNNI where the kernel refuses. A seccomp filter makes it refuse.
"""

import ctypes
import platform
import struct

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _EINVAL = 158, 0x1023, 22  # of x86-64
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # of the filter's language
_NUMBER, _FIRST_ARGUMENT = 0, 16  # offsets in struct seccomp_data
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000

_FILTER = (
    (_LOAD, 0, 0, _NUMBER),
    (_JUMP_IF_EQUAL, 0, 3, _ARCH_PRCTL),
    (_LOAD, 0, 0, _FIRST_ARGUMENT),
    (_JUMP_IF_EQUAL, 0, 1, _ARCH_REQ_XCOMP_PERM),
    (_RETURN, 0, 0, _FAIL | _EINVAL),
    (_RETURN, 0, 0, _ALLOW),
)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def refuse_amx() -> None:
    """For the rest of this process's life. Call it before anything multiplies.

    Raises:
        SystemExit: not Linux on x86-64, or the kernel takes no filters.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit("--no-amx works on Linux on x86-64 only.")
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    memory = ctypes.create_string_buffer(code)
    program = _Program(len(_FILTER), ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or (
        libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0
    ):
        raise SystemExit(f"--no-amx: the kernel takes no filter (error {ctypes.get_errno()}).")
