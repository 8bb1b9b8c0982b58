"""Reads the layers of this folder; copy it with them."""

from pathlib import Path

from safetensors import safe_open


def layers(folder):
    """(name, group size, {layout: {tensor: array}}) of each layer; what belongs to no layout is under ""."""
    for path in sorted(Path(folder, "layers").glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            found, group_size = {}, int(file.metadata()["group_size"])
            for name in file.keys():  # noqa: SIM118
                layout, _, tensor = name.rpartition(".")
                found.setdefault(layout, {})[tensor] = file.get_tensor(name)
        yield path.stem, group_size, found
