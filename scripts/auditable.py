#!/usr/bin/env python3
"""Holds the list of crates that cargo-auditable put into programs to a bill of materials of scripts/sbom.py.

    scripts/auditable.py orinoco.cdx.json usr/bin/orinoco usr/bin/orinoco-engine

Says how many crates each program names, and ends with 1 when one has no list, names a crate that the bill has not, or
lacks one that the bill says is in it. cargo-auditable also lists what expands macros, which is in no program: `cargo
metadata` tells which those are, and what such crates need.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import zlib

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import licences  # noqa: E402

# As its readers do: a compressed list may grow to anything.
LIST_BYTES_MAX = 8 << 20


def crates_within(program):
    """{(name, version)} of what is linked in, from the section .dep-v0; `None` without one."""
    with tempfile.TemporaryDirectory() as work:
        section = pathlib.Path(work, "section")
        # It always writes a program as well.
        command = ["objcopy", "--dump-section", f".dep-v0={section}", program, pathlib.Path(work, "copy")]
        done = subprocess.run(command, check=False, capture_output=True)
        if done.returncode != 0 or not section.exists():
            return None
        packages = json.loads(zlib.decompressobj().decompress(section.read_bytes(), LIST_BYTES_MAX))["packages"]
    return {(found["name"], found["version"]) for found in packages if found.get("kind", "runtime") == "runtime"}


def crates_of_bill(bill, program):
    found = set()
    for component in bill["components"]:
        programs = {entry["value"] for entry in component["properties"] if entry["name"] == "orinoco:program"}
        if component["bom-ref"].startswith("pkg:cargo/") and program in programs:
            found.add((component["name"], component["version"]))
    return found


def macros(target):
    """{(name, version)} of what expands macros, and of what that needs."""
    data = licences.metadata(target)
    packages = {package["id"]: package for package in data["packages"]}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}
    todo = [i for i, package in packages.items() if any("proc-macro" in target["kind"] for target in package["targets"])]
    found = set()
    while todo:
        identity = todo.pop()
        if identity not in found:
            found.add(identity)
            todo += [dependency["pkg"] for dependency in nodes[identity]["deps"]]
    return {(packages[identity]["name"], packages[identity]["version"]) for identity in found}


def differences(bill, program, expanding):
    within = crates_within(program)
    if within is None:
        return [f"{program}: no list of crates; cargo-auditable did not build it"]
    expected = crates_of_bill(bill, program.name)
    more, less = sorted(within - expected - expanding), sorted(expected - within)
    print(f"{program.name}: {len(within & expected)} crates, by its own list and by the bill of materials")
    return [f"{program.name} holds {name} {version}, which the bill has not" for name, version in more] + [
        f"{program.name}: the bill has {name} {version}, which its own list has not" for name, version in less
    ]


def main(arguments):
    if len(arguments) < 2:
        sys.exit(__doc__.strip())
    bill = json.loads(pathlib.Path(arguments[0]).read_text())
    expanding = macros(next(entry["value"] for entry in bill["metadata"]["properties"] if entry["name"] == "orinoco:target"))
    found = [line for program in arguments[1:] for line in differences(bill, pathlib.Path(program), expanding)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main(sys.argv[1:])
