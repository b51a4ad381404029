#!/usr/bin/env python3
"""Lists what is linked into Orinoco's programs, with licences; with --texts the texts as well, for a product's notice.

    scripts/licences.py > target/LICENCES.txt
    scripts/licences.py --texts --target x86_64-unknown-linux-gnu > target/THIRD-PARTY.txt

From `cargo metadata` for aarch64 or another target, with all features: dependencies of the programs, without what only
builds, tests or expands macros. A crate without a licence is an error.
"""

import argparse
import json
import pathlib
import subprocess
import sys

TREE = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ("orinoco", "orinoco-engine", "orinoco-ota")
TARGET = "aarch64-unknown-linux-gnu"
TEXTS = ("license", "licence", "copying", "copyright", "notice", "unlicense")
# Some crates name a licence and hold no text of it.
SPDX = "https://spdx.org/licenses/"


def metadata(target=TARGET):
    command = ["cargo", "metadata", "--locked", "--all-features", "--format-version=1", f"--filter-platform={target}"]
    return json.loads(subprocess.run(command, cwd=TREE, check=True, stdout=subprocess.PIPE).stdout)


def linked(data, program):
    """Packages that are linked into a program, by id: its normal dependencies and theirs, without macros."""
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    todo = [identity for identity, package in packages.items() if package["name"] == program and not package["source"]]
    found = {}
    while todo:
        identity = todo.pop()
        package = packages[identity]
        if identity in found or any("proc-macro" in target["kind"] for target in package["targets"]):
            continue
        found[identity] = package
        for dependency in nodes[identity]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return found


def sources_within(package):
    """[(name, licence file)] of code by others that a crate carries and compiles."""
    if package["name"] != "llama-cpp-sys-2":
        return []
    top = pathlib.Path(package["manifest_path"]).parent / "llama.cpp"
    return [("llama.cpp", top / "LICENSE")]


def texts(package):
    top = pathlib.Path(package["manifest_path"]).parent
    found = {path for path in top.iterdir() if path.is_file() and path.name.lower().startswith(TEXTS)}
    if package["license_file"]:
        found.add(top / package["license_file"])
    return sorted(found)


def main():
    parser = argparse.ArgumentParser(description="What is linked into Orinoco's programs, with licences")
    parser.add_argument("--texts", action="store_true", help="with the texts of the licences")
    parser.add_argument("--target", metavar="TRIPLE", default=TARGET, help=f"of the programs; default {TARGET}")
    arguments = parser.parse_args()
    data = metadata(arguments.target)
    shipped, programs = {}, {}
    for program in PROGRAMS:
        for identity, package in linked(data, program).items():
            shipped[identity] = package
            programs.setdefault(identity, []).append(program)
    ours = [package for package in shipped.values() if not package["source"]]
    if {package["name"] for package in ours} != set(PROGRAMS):
        sys.exit(f"programs {sorted(package['name'] for package in ours)}; expected {sorted(PROGRAMS)}")
    others = sorted((p for p in shipped.values() if p["source"]), key=lambda p: (p["name"], p["version"]))
    nameless = [package["name"] for package in others if not (package["license"] or package["license_file"])]
    if nameless:
        sys.exit(f"no licence is named by: {', '.join(nameless)}")

    print(f"Orinoco is under {ours[0]['license']}. Linked into its programs ({', '.join(PROGRAMS)}) for {arguments.target}:\n")
    for package in others:
        licence = package["license"] or "see its text"
        print(f"{package['name']} {package['version']}: {licence} [{', '.join(programs[package['id']])}]")
        for name, text in sources_within(package):
            if not text.is_file():
                sys.exit(f"{name}, within {package['name']}, has no {text}")
            print(f"    with {name}: {text.read_text().splitlines()[0]}")
    if not arguments.texts:
        return
    for package in others:
        files = texts(package) + [text for _, text in sources_within(package)]
        print(f"\n{'=' * 100}\n{package['name']} {package['version']}: {package['license']}")
        if not files:
            print(f"\nThe crate holds no text; {SPDX} has it.")
        for file in files:
            print(f"\n--- {file.name}\n\n{file.read_text(errors='replace').strip()}")


if __name__ == "__main__":
    main()
