"""Writes `tutorials/supported_ops.md` from the tables of the extension.

    python tutorials/generate_supported_ops.py

`tests/test_tutorials.py` fails when the file is not what this script would write.
"""

from pathlib import Path

from tabulate import tabulate

from jitquant import _C

OUTPUT = Path(__file__).with_name("supported_ops.md")

ROLES = {
    "weighted": "The weight is quantized and packed, the bias stays float, the output is observed.",
    "recurrent": "By a dynamic qconfig only: the weights are quantized and packed, and the op "
    "quantizes what it reads and its hidden states. LSTMCell, GRUCell and RNNCell become linear "
    "layers, which are dynamic.",
    "observed": "Inputs and output have qparams of their own, found by calibration.",
    "fixed qparams": "The op's range is known, so its output is not observed.",
    "shares input": "The output has its input's qparams; a constant factor only changes the scale.",
    "averages": "Int8 in, int8 out, with the input's qparams.",
    "activation": "Absorbed by the int8 op before it, by the saturation of its output where "
    "that is exact; float where there is no such op.",
    "metadata": "Reads no values, so the tensor stays int8 on the way to it.",
}

FLOAT = """\
Ops that stay float between dequantize and quantize, while their neighbours are int8. Times are
those of `python benchmarks/int8_ops.py`."""

HEADER = """\
# Ops that become int8

<!-- Written by tutorials/generate_supported_ops.py; change csrc_passes/op_table.cpp or
csrc_passes/float_ops.cpp instead. -->

Every other op stays float, and `jitquant.coverage` says which ones those are and why; the last
table has the reasons that are known beforehand. Spellings are brought to these first:
`_convolution`, `addmm`, `matmul` with a constant matrix, `x @ w.t()`, in-place ops, dropout.
BatchNorm after a convolution or linear is folded into it. Transposed convolutions become
convolutions whose channels are rearranged. `.Scalar` means that the second operand is a number.

A relu after an op that has a form with relu becomes that form.
"""


def main() -> None:
    OUTPUT.write_text(document(), encoding="utf-8")


def document() -> str:
    """The whole page."""
    by_role: dict[str, list[_C.SupportedOp]] = {}
    for op in _C.supported_ops():
        by_role.setdefault(op.role, []).append(op)
    sections = [_section(role, ops) for role, ops in by_role.items()]
    return "\n".join([HEADER, *sections, _float_section()])


def _section(role: str, ops: list[_C.SupportedOp]) -> str:
    rows: list[tuple[str, ...]] = [
        (_code(op.op), _code(op.int8_op), _code(op.relu_op)) for op in ops
    ]
    headers = ["float op", "int8 op", "with relu"]
    if not any(op.relu_op for op in ops):
        rows, headers = [row[:2] for row in rows], headers[:2]
    table = tabulate(rows, headers=headers, tablefmt="github")
    return f"## {role.capitalize()}\n\n{ROLES[role]}\n\n{table}\n"


def _float_section() -> str:
    ops_by_reason: dict[str, list[str]] = {}
    for op in _C.float_ops():
        ops_by_reason.setdefault(op.reason, []).append(_code(op.op))
    rows = [(reason, ", ".join(ops)) for reason, ops in ops_by_reason.items()]
    table = tabulate(rows, headers=["reason", "float op"], tablefmt="github")
    return f"## Float\n\n{FLOAT}\n\n{table}\n"


def _code(name: str) -> str:
    return f"`{name}`" if name else ""


if __name__ == "__main__":
    main()
