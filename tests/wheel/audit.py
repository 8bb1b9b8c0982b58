"""What the module in a wheel needs of others and shows them: `python tests/wheel/audit.py WHEEL...`.

It may need Python's limited API, the stable C interface of libtorch, and the C and C++ libraries; it shows its init
function alone. Exit status 1 says that it does not. abi3audit and auditwheel look at the rest: whether that API is
limited, and how old a system may be.
"""

from __future__ import annotations

import re
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

EXPORTED = {"PyInit__C"}
LIBRARIES = re.compile(r"(libtorch_cpu|libstdc\+\+|libgcc_s|lib(c|m|rt|dl|pthread)|ld-linux-[\w-]+)\.so[.\d]*")
STABLE_HEADERS = ("torch/csrc/inductor/aoti_torch/c/shim.h", "torch/csrc/stable/c/shim.h")
# The linker and profilers look for these in every module, and they may be nowhere.
WEAK = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def stable_functions() -> set[str]:
    """The functions of libtorch's stable C interface, by its headers."""
    include = Path(torch.__file__).parent / "include"
    text = "".join((include / header).read_text() for header in STABLE_HEADERS)
    return set(re.findall(r"\b(?:aoti_torch|torch)_\w+", text))


def versions(elf: ELFFile) -> set[int]:
    """Numbers of the versions that the module needs of the system's libraries."""
    needed = [section for section in elf.iter_sections() if isinstance(section, GNUVerNeedSection)]
    return {entry["vna_other"] for section in needed for _, entries in section.iter_versions() for entry in entries}


def faults(elf: ELFFile) -> list[str]:
    """What the module should not need or show."""
    found = []
    symbols = elf.get_section_by_name(".dynsym")
    dynamic = elf.get_section_by_name(".dynamic")
    numbers = elf.get_section_by_name(".gnu.version")
    assert isinstance(symbols, SymbolTableSection)
    assert isinstance(dynamic, DynamicSection)
    for tag in dynamic.iter_tags("DT_NEEDED"):
        if not LIBRARIES.fullmatch(tag.needed):
            found.append(f"needs the library {tag.needed}")
    stable, of_system = stable_functions(), versions(elf)
    exported = set()
    for index, symbol in enumerate(symbols.iter_symbols()):
        if not symbol.name:
            continue
        if symbol["st_shndx"] != "SHN_UNDEF":
            exported.add(symbol.name)
            continue
        is_of_system = numbers.get_symbol(index)["ndx"] in of_system
        is_of_python = re.match(r"_?Py", symbol.name) is not None
        if not (is_of_system or is_of_python or symbol.name in stable or symbol.name in WEAK):
            found.append(f"needs {symbol.name}, neither Python's, the system's nor of torch's stable interface")
    found += [f"shows {name}" for name in sorted(exported - EXPORTED)]
    return found + [f"does not show {name}" for name in sorted(EXPORTED - exported)]


def main() -> int:
    """Says of each wheel how large it is and what is wrong with it."""
    status = 0
    for path in map(Path, sys.argv[1:]):
        with zipfile.ZipFile(path) as wheel:
            (module,) = (name for name in wheel.namelist() if name.endswith(".abi3.so"))
            content = wheel.read(module)
        found = faults(ELFFile(BytesIO(content)))
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, its module {len(content) / 1e6:.1f} MB")
        for fault in found:
            print(f"{path.name}: {module} {fault}", file=sys.stderr)
        status |= bool(found)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
