#!/usr/bin/env python3
"""Writes the list of crates that bitbake fetches for Orinoco, from Cargo.lock.

    yocto/crates.py            after every change of Cargo.lock
    yocto/crates.py --check    ends with 1 when the list is not what Cargo.lock says

The same as `bitbake -c update_crates` writes, without bitbake.
"""

import pathlib
import re
import sys

TREE = pathlib.Path(__file__).resolve().parent.parent
LIST = TREE / "yocto/meta-orinoco/recipes-orinoco/orinoco/orinoco-crates.inc"
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
KEY = re.compile(r'^(name|version|source|checksum) = "([^"]*)"$', re.MULTILINE)
# Its version is part of a path in the recipe: the licence of llama.cpp.
LLAMA = "llama-cpp-sys-2"


def crates(lock):
    """[(name, version, sha256)] of what comes from crates.io, in the order of Cargo.lock.

    lock: text of a Cargo.lock. ValueError for a source that bitbake would have to fetch in another way.
    """
    found = []
    for block in lock.split("[[package]]")[1:]:
        package = dict(KEY.findall(block))
        if "source" not in package:
            continue  # ours
        name = f'{package["name"]} {package["version"]}'
        if package["source"] != REGISTRY:
            raise ValueError(f'{name} comes from {package["source"]}; expected crates.io alone')
        if not re.fullmatch("[0-9a-f]{64}", package.get("checksum", "")):
            raise ValueError(f"{name} has no checksum in Cargo.lock")
        found.append((package["name"], package["version"], package["checksum"]))
    if not found:
        raise ValueError("no package found in Cargo.lock")
    return found


def listing(lock):
    """Text of orinoco-crates.inc for the text of a Cargo.lock."""
    found = crates(lock)
    lines = ["# Written by yocto/crates.py from Cargo.lock.", "", 'SRC_URI += "\\']
    lines += [f"    crate://crates.io/{name}/{version} \\" for name, version, _ in found]
    lines += ['"', ""]
    lines += [f'SRC_URI[{name}-{version}.sha256sum] = "{sha256}"' for name, version, sha256 in found]
    lines += ["", *(f'LLAMA_CPP_SYS_VERSION = "{version}"' for name, version, _ in found if name == LLAMA)]
    return "\n".join(lines) + "\n"


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__.strip())
    text = listing((TREE / "Cargo.lock").read_text())
    if not arguments:
        LIST.write_text(text)
        return
    there = LIST.read_text() if LIST.exists() else ""
    if there != text:
        lines = set(there.splitlines()) ^ set(text.splitlines())
        sys.exit(
            f"{LIST.relative_to(TREE)} is not what Cargo.lock says: {len(lines)} lines differ, e.g.\n"
            + "\n".join(f"    {line}" for line in sorted(lines)[:4])
            + "\nrun yocto/crates.py and commit"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
