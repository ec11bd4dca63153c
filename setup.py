"""Builds the extension `jitquant._C` against the torch that is installed.

The extension uses torch's C++ classes, so it fits exactly one torch release: torch has to be in the
environment before the build starts (`pip install --no-build-isolation .`), and the release it was
built for is written to `jitquant/_build_info.py`, which is read before `_C` is loaded.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ImportError as error:
    sys.exit(
        "jitquant: cannot build, because torch cannot be imported in the build environment "
        f"({error}).\n"
        "jitquant's C++ extension is built against the torch that you use. Do this:\n"
        "    pip install torch setuptools ninja\n"
        "    pip install --no-build-isolation ."
    )

ROOT = Path(__file__).resolve().parent
SOURCE_DIR = "csrc_passes"
TORCH_VERSION = str(torch.__version__).partition("+")[0]
BUILD_INFO = f'''"""Written by setup.py: what the extension beside this file was built for."""

TORCH_VERSION = "{TORCH_VERSION}"
'''


def _files(suffix: str) -> list[str]:
    """All files of `csrc_passes` with this suffix, sorted, relative to the root."""
    found = (ROOT / SOURCE_DIR).rglob(f"*{suffix}")
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def _extension() -> CppExtension:
    extension = CppExtension(
        "jitquant._C",
        _files(".cpp"),
        depends=_files(".h"),
        extra_compile_args=[
            *("-O2", "-g0", "-fvisibility=hidden", "-std=c++20"),
            *("-Wall", "-Wextra", "-Werror"),
            f"-ffile-prefix-map={ROOT}=.",
        ],
    )
    # Headers of others become system headers: their warnings are not ours to fix.
    extension.include_dirs = [str(ROOT / SOURCE_DIR)]
    for path in [*include_paths(), sysconfig.get_path("include")]:
        extension.extra_compile_args += ["-isystem", path, f"-ffile-prefix-map={path}=include"]
    return extension


class BuildWithInfo(BuildExtension):
    """Keeps objects apart by torch release, and writes `_build_info.py` beside the extension."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # System headers are no dependencies in ninja's eyes, so another torch needs another place.
        # It is the same place for in-place, editable and wheel builds, so that they share objects.
        python = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.build_temp = os.path.join("build", f"temp-{python}-torch{torch.__version__}")

    def build_extensions(self) -> None:
        for extension in self.extensions:
            extension.extra_compile_args += ["-include", self._precompiled_header(extension)]
        super().build_extensions()

    def _precompiled_header(self, extension: CppExtension) -> str:
        """Where the header is that g++ takes instead of torch's: a copy of ours, compiled.

        g++ reads the header itself where it finds that the compiled one does not fit.
        """
        source = ROOT / SOURCE_DIR / "precompiled.h"
        header = (ROOT / self.build_temp / "precompiled.h").resolve()
        compiled = header.with_name("precompiled.h.gch")
        if compiled.exists() and compiled.stat().st_mtime > source.stat().st_mtime:
            return str(header)
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_bytes(source.read_bytes())
        command = [
            *(os.environ.get("CXX", "c++"), *self.compiler.compiler_so[1:]),
            f"-I{ROOT / SOURCE_DIR}",
            *extension.extra_compile_args,
            *("-DTORCH_API_INCLUDE_EXTENSION_H", "-DTORCH_EXTENSION_NAME=_C"),
            *("-x", "c++-header", str(header), "-o", str(compiled)),
        ]
        subprocess.run(command, check=True)
        return str(header)

    def run(self) -> None:
        # Extension and record agree at every moment: a build that fails leaves no record behind.
        record = Path(self.get_ext_fullpath("jitquant._C")).with_name("_build_info.py")
        record.unlink(missing_ok=True)
        super().run()
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(BUILD_INFO, encoding="utf-8")


setup(ext_modules=[_extension()], cmdclass={"build_ext": BuildWithInfo})
