"""Builds the one extension module, awqpack._C: C11 for everything, C++ for the torch shim alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent

# A free-threaded CPython has no limited API before 3.15: a build for one serves it alone, and turns its GIL on.
IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PY_LIMITED_API = "0x030A0000"  # CPython 3.10
TORCH_TARGET_VERSION = "0x020A000000000000"  # libtorch's stable ABI of 2.10

# A checkout's warnings are errors; an sdist may meet a compiler that is newer than it and finds more.
IS_CHECKOUT = (ROOT / ".git").exists()
WARNING_FLAGS = ["-Wall", "-Wextra", *(["-Werror"] if IS_CHECKOUT else [])]
C_FLAGS = ["-std=c11", *WARNING_FLAGS]
CXX_FLAGS = ["-std=c++17", *WARNING_FLAGS]
COMMON_FLAGS = ["-O3", "-g1", "-fPIC", "-fvisibility=hidden"]
# Some distributions set it by themselves: then the compiler warns of more.
FORTIFY_FLAGS = ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
EXPORTS = "csrc/exports.map"
SANITIZER_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
COVERAGE_FLAGS = ["--coverage", "-fprofile-abs-path", "-fprofile-update=atomic", "-O1"]


def c_sources() -> list[str]:
    """Every C source: the kernel files name the instruction set they are for, and are empty on other processors."""
    paths = [path for folder in ("kernels", "python") for path in (ROOT / "csrc" / folder).glob("*.c")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


# Real code for every architecture that CUDA 13 compiles for up to consumer Blackwell, and PTX for what comes after.
CUDA_ARCHS = ["75", "80", "86", "89", "90", "100", "120"]
NVCC_FLAGS = [
    "-std=c++17",
    "-O3",
    *(["-Werror=all-warnings"] if IS_CHECKOUT else []),
    f"-Xcompiler={','.join(['-fPIC', '-fvisibility=hidden', *WARNING_FLAGS])}",
]


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME, else of PATH; None without one or with AWQPACK_CUDA=0."""
    wish = os.environ.get("AWQPACK_CUDA", "auto")
    if wish not in ("0", "1", "auto"):
        raise SystemExit(f"AWQPACK_CUDA expects 0, 1 or auto; got {wish!r}")
    if wish == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    found = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    if found is not None and Path(found).exists():
        return Path(found)
    if wish == "1":
        raise SystemExit("AWQPACK_CUDA=1 expects nvcc; it is neither in CUDA_HOME/bin nor on PATH")
    return None


def cuda_root(nvcc: Path) -> Path:
    """The toolkit nvcc belongs to: where nvcc itself says it is, as nvcc may be a link or a wrapper."""
    lines = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    for line in lines.splitlines():
        if line.startswith("#$ TOP="):
            return Path(line.removeprefix("#$ TOP=")).resolve()
    return nvcc.resolve().parent.parent


def cuda_archs(nvcc: Path) -> list[str]:
    """AWQPACK_CUDA_ARCHS, or those of CUDA_ARCHS that this nvcc knows."""
    wish = os.environ.get("AWQPACK_CUDA_ARCHS")
    if wish is not None:
        archs = wish.replace(";", " ").replace(",", " ").split()
        if not archs or not all(arch.isdigit() for arch in archs):
            raise SystemExit(f'AWQPACK_CUDA_ARCHS expects numbers such as "80 90"; got {wish!r}')
        return archs
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = {line.strip().removeprefix("compute_") for line in listed.stdout.splitlines()}
    archs = [arch for arch in CUDA_ARCHS if arch in known]
    if not archs:
        raise SystemExit(f"{nvcc} knows none of sm_{', sm_'.join(CUDA_ARCHS)}; AWQPACK_CUDA=0 builds without CUDA")
    return archs


def compile_cuda(nvcc: Path) -> tuple[list[str], list[str]]:
    """Objects of cuda/*.cu, and the directories that hold the static CUDA runtime."""
    archs = cuda_archs(nvcc)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    names = " ".join([*(f"sm_{arch}" for arch in archs), f"compute_{archs[-1]}"])
    # Kept between builds, unlike build_temp: eight architectures take a minute.
    build_dir = ROOT / "build" / "cuda" / names.replace(" ", "-")
    build_dir.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [*(ROOT / "cuda").iterdir(), ROOT / "setup.py"])
    flags = [*NVCC_FLAGS, *codes, "--threads", "0", f'-DAWQPACK_CUDA_ARCHS="{names}"', "-Icsrc/include"]
    objects = []
    for source in sorted((ROOT / "cuda").glob("*.cu")):
        target = build_dir / f"{source.stem}.cu.o"
        if not target.exists() or target.stat().st_mtime < newest:
            command = [nvcc, *flags, "-c", source, "-o", target]
            if subprocess.run(command, cwd=ROOT).returncode != 0:
                raise SystemExit(f"{nvcc} could not compile {source}; AWQPACK_CUDA=0 builds without CUDA")
        objects.append(str(target))
    root = cuda_root(nvcc)
    libraries = [path for path in (root / "lib64", root / "lib", *root.glob("targets/*/lib")) if path.is_dir()]
    return objects, [str(path) for path in libraries]


def checking_flags() -> list[str]:
    """What a build counts or checks as it runs: its lines, or with sanitizers, else by fortified functions."""
    if os.environ.get("AWQPACK_COVERAGE") == "1":
        return COVERAGE_FLAGS
    return SANITIZER_FLAGS if os.environ.get("AWQPACK_SANITIZE") == "1" else FORTIFY_FLAGS


class BuildExtension(build_ext):
    """Compiles C and C++ with the flags of each, in parallel, and links with the C++ driver."""

    def build_extension(self, ext: Extension) -> None:
        try:
            import numpy
            import torch
        except ModuleNotFoundError as error:
            raise SystemExit(
                f"awqpack's build needs torch and numpy, and finds no {error.name}: pip install torch numpy, then again"
            ) from error

        torch_root = Path(torch.__file__).parent
        system = [torch_root / "include", numpy.get_include(), sysconfig.get_path("include")]
        includes = ["csrc", "csrc/include"]
        macros = [
            *([] if IS_FREE_THREADED else [("Py_LIMITED_API", PY_LIMITED_API)]),
            ("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION),
            ("AWQPACK_BUILT_WITH_TORCH", f'"{torch.__version__}"'),
        ]
        shims = ["csrc/torch/shim.cpp", "csrc/torch/float_shim.cpp"]
        libraries, library_dirs = ["torch_cpu"], [str(torch_root / "lib")]
        cuda_objects: list[str] = []
        nvcc = find_nvcc()
        if nvcc is not None:
            includes.append("cuda")
            macros.append(("AWQPACK_WITH_CUDA", "1"))
            shims += ["csrc/torch/shim_cuda.cpp", "csrc/torch/float_shim_cuda.cpp"]
            cuda_objects, cuda_dirs = compile_cuda(nvcc)
            libraries += ["cudart_static", "rt", "dl", "pthread"]
            library_dirs += cuda_dirs

        objects = self.compile_all(
            [*c_sources(), *shims],
            [*COMMON_FLAGS, *checking_flags(), *(f"-isystem{path}" for path in system)],
            macros=macros,
            include_dirs=includes,
            depends=ext.depends,
        )
        link_flags = ["-Wl,--as-needed", "-Wl,--exclude-libs,ALL", f"-Wl,--version-script={EXPORTS}"]
        self.compiler.link_shared_object(
            [*objects, *cuda_objects],
            self.get_ext_fullpath(ext.name),
            libraries=libraries,
            library_dirs=library_dirs,
            extra_postargs=[*checking_flags(), *link_flags],
            target_lang="c++",
        )

    def compile_all(self, sources: list[str], flags: list[str], **options: Any) -> list[str]:
        """Objects of the sources, which are compiled side by side."""

        def compile_one(source: str) -> list[str]:
            language = CXX_FLAGS if source.endswith(".cpp") else C_FLAGS
            given = [*flags, *language]
            return self.compiler.compile([source], output_dir=self.build_temp, extra_postargs=given, **options)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [path for paths in pool.map(compile_one, sources) for path in paths]


extension = Extension(
    "awqpack._C",
    sources=[*c_sources(), *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "csrc" / "torch").glob("*.cpp")))],
    depends=[
        str(path.relative_to(ROOT)) for path in sorted([*(ROOT / "csrc").rglob("*.h*"), *(ROOT / "cuda").iterdir()])
    ],
    py_limited_api=not IS_FREE_THREADED,
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    # An editable install is a path: a finder would come after the folder of a clone, which Python takes for a package
    # without code when it is started in the folder above.
    options={
        "bdist_wheel": {} if IS_FREE_THREADED else {"py_limited_api": "cp310"},
        "editable_wheel": {"mode": "compat"},
    },
)
