"""Whether a model file fits the machine that is to run it."""

from dataclasses import dataclass

import torch

from jitquant import _C, _checks, _state
from jitquant._table import table
from jitquant.backend import BACKENDS
from jitquant.errors import JitQuantError, JitQuantValueError

__all__ = ["Check", "Requirement", "check", "cpu_features"]

_FEATURES = {
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512": torch.cpu._is_avx512_supported,
    "VNNI": torch.cpu._is_vnni_supported,
}
_KERNELS = {
    "x86": {"onednn", "fbgemm"},
    "fbgemm": {"fbgemm"},
    "onednn": {"onednn"},
    "qnnpack": {"qnnpack"},
}
"""Whose kernels an engine packs weights for."""


@dataclass(frozen=True)
class Requirement:
    """One thing that a file needs.

    Attributes:
        what: "torch", "libraries", "activation bits", "engine" or "CPU".
        needs: what the record in the file says.
        has: what is here.
        problem: what to do; "" if it fits.
    """

    what: str
    needs: str
    has: str
    problem: str = ""


@dataclass(frozen=True)
class Check:
    """What a file needs, and what this machine has; prints as a table."""

    requirements: tuple[Requirement, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit; empty if the model can run here."""
        return tuple(each.problem for each in self.requirements if each.problem)

    def __str__(self) -> str:
        rows = [
            (each.what, each.needs, each.has, each.problem or "ok") for each in self.requirements
        ]
        headers = ("", "the file needs", "here", "")
        return table(headers, rows)


def check(model: torch.jit.ScriptModule, strict: bool = True) -> Check:
    """Compare what the record in a model says that it needs with this machine.

    The engine must be the one that the model needs, now and when the model was loaded.

    Args:
        model: a prepared, converted or debug model, loaded or not.
        strict: raise if something does not fit. Otherwise the result says so.

    Raises:
        JitQuantError: what does not fit, and what to do.
        JitQuantTypeError: model is not a ScriptModule.
        JitQuantValueError: jitquant did not make the model.
    """
    checked = _checks.check_script_module(model, "check")
    state = _state.read(checked)
    if state is None:
        raise JitQuantValueError(
            "check: the model has no record of what it needs, so prepare_jit or convert_jit did "
            "not make it."
        )
    requirements = [_torch(state), _libraries(state), _activations(state)]
    if state.stage == "converted":
        requirements += [_engine(state, _C.packed_for(checked._c)), _cpu(state)]
    result = Check(tuple(requirements))
    if strict and result.problems:
        raise JitQuantError("the model does not fit this machine: " + " ".join(result.problems))
    return result


def cpu_features() -> str:
    """What kernels choose their code by, such as "AVX2 AVX512 VNNI"; "" on other CPUs."""
    return " ".join(name for name, has in _FEATURES.items() if has())


def _torch(state: _state.State) -> Requirement:
    made, here = (
        version.partition("+")[0] for version in (state.torch_version, str(torch.__version__))
    )
    problem = f"It was made with torch {made}, and its int8 ops are verified there only: install "
    problem += f"that, or quantize the model again with torch {here}."
    return Requirement("torch", made, here, "" if made == here else problem)


def _libraries(state: _state.State) -> Requirement:
    """Those of custom ops: where one is missing, torch.jit.load has raised already."""
    needs = ", ".join(state.libraries) or "only torch"
    return Requirement("libraries", needs, needs)


def _activations(state: _state.State) -> Requirement:
    bits = " and ".join(map(str, state.activation_bits))
    return Requirement("activation bits", bits, "any")


def _engine(state: _state.State, packed_for: set[str]) -> Requirement:
    here = str(torch.backends.quantized.engine)
    problem = ""
    if state.engine not in torch.backends.quantized.supported_engines:
        problem = (
            f"It needs the engine {state.engine}, which this torch does not have: quantize the "
            "float model again for one that it has."
        )
    elif state.engine != here:
        problem = (
            f"It needs the engine {state.engine}, and {here} is set: set "
            f"torch.backends.quantized.engine = {state.engine!r}, and then load the model."
        )
    elif foreign := packed_for - _KERNELS[state.engine]:
        problem = (
            f"Its weights are packed for {' and '.join(sorted(foreign))}, since another engine was "
            f"set when it was loaded: load it again now that {here} is set."
        )
    return Requirement("engine", state.engine, here, problem)


def _cpu(state: _state.State) -> Requirement:
    """No CPU is refused: where 16-bit sums could overflow, convert_jit enlarged weight scales."""
    needs = "nothing"
    if BACKENDS[state.engine].sums_in_16_bits:
        needs = "nothing: also without VNNI its weights keep 16-bit sums from overflowing"
    verified = f"; verified with {state.cpu}" if state.cpu else ""
    return Requirement("CPU", needs + verified, cpu_features())
