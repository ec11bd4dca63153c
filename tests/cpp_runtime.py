"""Runs a saved model in a C++ program that links nothing but the libtorch inside the torch wheel."""

import os
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "cpp" / "run_model.cpp"
PROGRAM = ROOT / "build" / "run_model"


def run_cpp(model_path: Path, x: torch.Tensor) -> torch.Tensor:
    """The output of `forward(x)` of the model saved at `model_path`, computed by C++."""
    program = build_program()
    with tempfile.TemporaryDirectory() as folder:
        input_path, output_path = Path(folder, "input.pt"), Path(folder, "output.pt")
        torch.save(x, input_path)
        command = [program, model_path, input_path, output_path]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"run_model failed with {done.returncode}:\n{done.stderr}")
        output = torch.load(output_path, weights_only=True)
    assert isinstance(output, torch.Tensor)
    return output


@cache
def build_program() -> Path:
    """Compiles `run_model`, unless source, compiler flags and torch are those of the last time.

    Two test processes may do it at once: what one of them replaces is the same.
    """
    command = shlex.join(_compile_command(PROGRAM))
    recipe = PROGRAM.with_suffix(".recipe")
    text = f"torch {torch.__version__}\n{command}\n{SOURCE.read_text()}"
    if PROGRAM.exists() and recipe.exists() and recipe.read_text() == text:
        return PROGRAM
    PROGRAM.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PROGRAM.parent) as folder:
        program = Path(folder, PROGRAM.name)
        done = subprocess.run(_compile_command(program), capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"cannot compile run_model: {command}\n{done.stderr}")
        program.replace(PROGRAM)
    recipe.write_text(text)
    return PROGRAM


def _compile_command(program: Path) -> list[str]:
    system_headers = [flag for path in include_paths() for flag in ("-isystem", path)]
    (libraries,) = library_paths()
    return [
        *shlex.split(os.environ.get("CXX", "c++")),
        *("-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        *system_headers,
        *("-o", str(program), str(SOURCE)),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}"),
        *("-ltorch_cpu", "-lc10"),
    ]
