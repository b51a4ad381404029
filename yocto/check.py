#!/usr/bin/env python3
"""What can be known of the layer without bitbake: run by scripts/test.sh.

    yocto/check.py

- the list of crates is what Cargo.lock says (yocto/crates.py)
- every file that a recipe installs, or names in SRC_URI, exists in this repository
- recipes have the version of Cargo.toml, and the checksum of our LICENSE is right
- kas files and conf/boards name the same machines, and kas pins every layer to a commit
- the services that recipes enable have an [Install] section, and nothing in systemd/ is left behind
"""

import hashlib
import pathlib
import re
import subprocess
import sys

TREE = pathlib.Path(__file__).resolve().parent.parent
LAYER = TREE / "yocto/meta-orinoco"
RECIPES = [path for kind in ("*.bb", "*.bbappend", "*.inc") for path in sorted(LAYER.rglob(kind))]
# The working directory of a recipe holds the files of SRC_URI, and where S is that directory so does S.
WORKDIR = re.compile(r"\$\{(?:WORKDIR|S)\}/([A-Za-z0-9._-]+)(?=[\s\"'])")
SOURCE = re.compile(r"\$\{S\}/([A-Za-z0-9._/-]+)")


def folders(recipe):
    """Where bitbake looks for file:// of a recipe: its own folders, and those that it adds itself."""
    name = recipe.name.split("_")[0].removesuffix(".inc").removesuffix(".bbappend")
    found = [recipe.parent / name, recipe.parent / "files"]
    for value in re.findall(r'FILESEXTRAPATHS:prepend := "([^"]*)"', recipe.read_text()):
        value = value.replace("${THISDIR}", str(recipe.parent)).replace("${ORINOCO_TREE}", str(TREE))
        found += [pathlib.Path(folder) for folder in value.split(":") if folder]
    return found


def wrong_paths(recipe):
    text = recipe.read_text()
    files = re.findall(r"(?<!LIC_)file://([A-Za-z0-9._/-]+)(?=[\s\"])", text)
    for file in files:
        if not any((folder / file).is_file() for folder in folders(recipe)):
            yield f"SRC_URI names {file}, which is in none of its folders"
    if 'S = "${WORKDIR}"' in text:
        installed = [(file, file in files) for file in WORKDIR.findall(text)]
    else:
        installed = [(file, (TREE / file).is_file()) for file in SOURCE.findall(text)]
        installed += [(f, f in files) for f in re.findall(r"\$\{WORKDIR\}/([A-Za-z0-9._-]+)(?=\s)", text) if f != "toolchain.cmake"]
    for file, there in installed:
        if not there:
            yield f"installs {file}, which does not exist"


def wrong_versions():
    version = re.search(r'^version = "(.*)"', (TREE / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    licence = hashlib.md5((TREE / "LICENSE").read_bytes()).hexdigest()
    for recipe in sorted((LAYER / "recipes-orinoco/orinoco").glob("*.bb")):
        if not recipe.name.endswith(f"_{version}.bb"):
            yield f"{recipe.name}: Cargo.toml says {version}; rename the recipe"
        if f"file://LICENSE;md5={licence}" not in recipe.read_text():
            yield f"{recipe.name}: the md5 of LICENSE is {licence}"


def wrong_kas():
    base = (TREE / "yocto/kas/base.yml").read_text()
    for name, repository in re.findall(r"^  ([a-z-]+):\n((?:    .*\n)+)", base.split("\nrepos:\n")[1], re.MULTILINE):
        if "url:" in repository and not re.search(r"^    commit: [0-9a-f]{40}$", repository, re.MULTILINE):
            yield f"base.yml: {name} is not pinned to a commit"
    boards = {path.stem: path.read_text() for path in (LAYER / "conf/boards").glob("*.inc")}
    kas = {path.stem: path.read_text() for path in (TREE / "yocto/kas").glob("*.yml") if path.stem != "base"}
    if boards.keys() != kas.keys():
        yield f"boards {sorted(boards)} and kas files {sorted(kas)} are not the same"
    for board in boards.keys() & kas.keys():
        machine = re.search(r'^MACHINE \?\?= "(.*)"', boards[board], re.MULTILINE).group(1)
        if f"\nmachine: {machine}\n" not in kas[board]:
            yield f"{board}: machine {machine} in conf/boards, another in the kas file"


def wrong_units():
    units = {path.name: path.read_text() for folder in (TREE / "systemd", LAYER) for path in folder.rglob("*.service")}
    text = "".join(recipe.read_text() for recipe in RECIPES)
    for name in re.findall(r'SYSTEMD_SERVICE:\$\{PN\}(?:-[a-z]+)? = "([^"]*)"', text):
        if "[Install]" not in units.get(name, ""):
            yield f"{name} is enabled by a recipe, and is no unit with an [Install] section"
    for name in {*units, *(path.name for path in (TREE / "systemd").iterdir())} - {"README.md", "deb"}:
        if name not in text:
            yield f"{name} is in no recipe"


def main():
    wrong = [f"{recipe.relative_to(LAYER)}: {what}" for recipe in RECIPES for what in wrong_paths(recipe)]
    wrong += [*wrong_versions(), *wrong_kas(), *wrong_units()]
    for line in wrong:
        print(line, file=sys.stderr)
    crates = subprocess.run([sys.executable, TREE / "yocto/crates.py", "--check"], check=False)
    if wrong or crates.returncode != 0:
        sys.exit(1)


if __name__ == "__main__":
    main()
