"""Builds the one extension module, awqpack._C: C11 for everything, C++ for the torch shim alone."""

from __future__ import annotations

import os
import platform
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent

PY_LIMITED_API = "0x030A0000"  # CPython 3.10
TORCH_TARGET_VERSION = "0x020A000000000000"  # libtorch's stable ABI of 2.10

C_FLAGS = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
CXX_FLAGS = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
COMMON_FLAGS = ["-O3", "-g1", "-fPIC", "-fvisibility=hidden"]
SANITIZER_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]

# A kernel file is compiled only where it can run, with its own flags; every other file gets none.
INSTRUCTION_SETS = {
    "x86_64": {
        "avx2.c": ["-mavx2"],
        "avx512.c": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vbmi"],
    },
    "aarch64": {"neon.c": []},
}


def c_sources() -> dict[str, list[str]]:
    """Each C source with the flags that only it gets."""
    here = INSTRUCTION_SETS.get(platform.machine(), {})
    everywhere = {name for files in INSTRUCTION_SETS.values() for name in files}
    kernels = (ROOT / "csrc" / "kernels").glob("*.c")
    chosen = {
        str(path): here.get(path.name, []) for path in kernels if path.name in here or path.name not in everywhere
    }
    chosen |= {str(path): [] for path in (ROOT / "csrc" / "python").glob("*.c")}
    return {str(Path(path).relative_to(ROOT)): flags for path, flags in sorted(chosen.items())}


class BuildExtension(build_ext):
    """Compiles every source with its own flags, in parallel, and links with the C++ driver."""

    def build_extension(self, ext: Extension) -> None:
        import numpy
        import torch

        torch_root = Path(torch.__file__).parent
        sanitizer = SANITIZER_FLAGS if os.environ.get("AWQPACK_SANITIZE") == "1" else []
        includes = [
            "csrc",
            "csrc/include",
        ]
        system = [
            *(f"-isystem{path}" for path in (torch_root / "include", numpy.get_include())),
            f"-isystem{sysconfig.get_path('include')}",
        ]
        macros = [
            ("Py_LIMITED_API", PY_LIMITED_API),
            ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
            ("AWQPACK_BUILT_WITH_TORCH", f'"{torch.__version__}"'),
        ]

        def compile_one(item: tuple[str, list[str]]) -> list[str]:
            source, own_flags = item
            language = CXX_FLAGS if source.endswith(".cpp") else C_FLAGS
            flags = [*COMMON_FLAGS, *sanitizer, *language, *own_flags, *system]
            return self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=macros,
                include_dirs=includes,
                extra_postargs=flags,
                depends=ext.depends,
            )

        items = [*c_sources().items(), *((path, []) for path in ext.sources if path.endswith(".cpp"))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_one, items) for path in paths]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            libraries=["torch_cpu"],
            library_dirs=[str(torch_root / "lib")],
            extra_postargs=[*sanitizer, "-Wl,--as-needed"],
            target_lang="c++",
        )


extension = Extension(
    "awqpack._C",
    sources=[*c_sources(), "csrc/torch/shim.cpp"],
    depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc").rglob("*.h"))],
    py_limited_api=True,
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
