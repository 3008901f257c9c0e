"""Inventories for intersphinx, made of lists that can be read: where other projects describe what we link to.

A list has pages, each followed by lines of a role and names; a name's place in the page is the name itself:

    client_reference.html
        class aiohttp.ClientSession aiohttp.ClientResponse
"""

import zlib
from pathlib import Path


def write_inventories(docs: Path, projects: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Write an inventory for each project and its address, and return what `intersphinx_mapping` takes."""
    folder = docs / "_build" / "inventory"
    folder.mkdir(parents=True, exist_ok=True)
    for project in projects:
        text = (docs / "inventory" / f"{project}.txt").read_text(encoding="utf-8")
        (folder / f"{project}.inv").write_bytes(inventory(project, text))
    return {project: (address, f"_build/inventory/{project}.inv") for project, address in projects.items()}


def inventory(project: str, text: str) -> bytes:
    """An inventory in Sphinx's format, version 2."""
    lines = []
    page = ""
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(" "):
            page = line.strip()
            continue
        role, *names = line.split()
        lines += [f"{name} py:{role} 1 {page}#$ -\n" for name in names]
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    return head.encode() + zlib.compress("".join(lines).encode())
