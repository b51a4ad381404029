#!/usr/bin/env python3
"""Writes the bill of materials of Orinoco's programs: CycloneDX 1.5, JSON.

    scripts/sbom.py > orinoco.cdx.json
    scripts/sbom.py --cuda 12.6 > orinoco.cdx.json        # programs that CUDA's static libraries are linked into
    scripts/sbom.py --target x86_64-unknown-linux-gnu     # programs for another processor than Orin's

What is linked, as scripts/licences.py finds it: without what only builds, tests or expands macros. Checksums are those
of Cargo.lock, so of the archives that were compiled. llama.cpp has a component of its own, as the crate that carries it
has another version. The same sources give the same bytes: no names of this machine, and the time is the commit's
(SOURCE_DATE_EPOCH). tests/supply_chain.py holds all of this.
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import uuid

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import licences  # noqa: E402

TREE = licences.TREE
HOME = "https://github.com/orinoco-edge/orinoco"


def checksums():
    """{(name, version): SHA-256}; Python 3.10 of Ubuntu 22.04 reads no TOML."""
    entry = re.compile(r'^name = "(.*)"\nversion = "(.*)"\nsource = .*\nchecksum = "(.*)"$', re.MULTILINE)
    return {(name, version): digest for name, version, digest in entry.findall((TREE / "Cargo.lock").read_text())}


def llama_build():
    """The build of llama.cpp, as models that ask for a newer one are told; a test ties it to the crate's version."""
    return re.search(r"ENGINE_BUILD: u\d+ = (\d+);", (TREE / "src/ota.rs").read_text()).group(1)


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package, sums, programs):
    """A crate; ours are told by having no source."""
    found = {
        "type": "library" if package["source"] else "application",
        "bom-ref": reference(package),
        "name": package["name"],
        "version": package["version"],
        "scope": "required",
        "licenses": [{"expression": re.sub(r"\s*/\s*", " OR ", package["license"])}] if package["license"] else [],
        "purl": reference(package),
        "properties": [{"name": "orinoco:program", "value": program} for program in programs],
    }
    if package["description"]:
        found["description"] = " ".join(package["description"].split())
    if package["source"]:
        found["hashes"] = [{"alg": "SHA-256", "content": sums[package["name"], package["version"]]}]
    repository = package["repository"] or package["homepage"]
    if repository:
        found["externalReferences"] = [{"type": "vcs", "url": repository}]
    return found


def llama_cpp():
    build = llama_build()
    return {
        "type": "library",
        "bom-ref": f"pkg:github/ggml-org/llama.cpp@b{build}",
        "name": "llama.cpp",
        "version": f"b{build}",
        "scope": "required",
        "description": "Inference in C++ and CUDA, with ggml; compiled from the archive of llama-cpp-sys-2",
        "licenses": [{"expression": "MIT"}],
        "purl": f"pkg:github/ggml-org/llama.cpp@b{build}",
        "properties": [{"name": "orinoco:program", "value": "orinoco-engine"}],
        "externalReferences": [{"type": "vcs", "url": "https://github.com/ggml-org/llama.cpp"}],
    }


def cuda(version):
    return {
        "type": "library",
        "bom-ref": f"cuda@{version}",
        "name": "CUDA runtime and cuBLAS, static",
        "version": version,
        "scope": "required",
        "supplier": {"name": "NVIDIA Corporation"},
        "licenses": [{"license": {"name": "NVIDIA CUDA Toolkit EULA", "url": "https://docs.nvidia.com/cuda/eula/"}}],
        "properties": [{"name": "orinoco:program", "value": "orinoco-engine"}],
    }


def main():
    parser = argparse.ArgumentParser(description="CycloneDX of Orinoco's programs, on standard output")
    parser.add_argument("--cuda", metavar="VERSION", help="CUDA's static libraries are linked into the worker")
    parser.add_argument("--target", metavar="TRIPLE", default=licences.TARGET, help=f"of the programs; default {licences.TARGET}")
    arguments = parser.parse_args()
    data, sums = licences.metadata(arguments.target), checksums()
    linked = {program: licences.linked(data, program) for program in licences.PROGRAMS}
    packages = {identity: package for found in linked.values() for identity, package in found.items()}
    nodes = {node["id"]: node for node in data["resolve"]["nodes"]}

    components, dependencies = [], []
    for identity, package in sorted(packages.items(), key=lambda item: reference(item[1])):
        programs = [program for program in licences.PROGRAMS if identity in linked[program]]
        components.append(component(package, sums, programs))
        below = {dependency["pkg"] for dependency in nodes[identity]["deps"]
                 if any(kind["kind"] is None for kind in dependency["dep_kinds"])} & packages.keys()
        dependencies.append({"ref": reference(package), "dependsOn": sorted(reference(packages[i]) for i in below)})
    carried = [llama_cpp()] + ([cuda(arguments.cuda)] if arguments.cuda else [])
    components += carried
    carrier = next(d for d in dependencies if d["ref"].startswith("pkg:cargo/llama-cpp-sys-2@"))
    carrier["dependsOn"] = sorted(carrier["dependsOn"] + [found["bom-ref"] for found in carried])
    dependencies += [{"ref": found["bom-ref"], "dependsOn": []} for found in carried]

    ours = [package for package in packages.values() if not package["source"]]
    version = next(package["version"] for package in ours if package["name"] == "orinoco")
    product = {"type": "application", "bom-ref": "orinoco-product", "name": "Orinoco", "version": version,
               "licenses": [{"expression": "Apache-2.0"}], "externalReferences": [{"type": "vcs", "url": HOME}]}
    dependencies.append({"ref": "orinoco-product", "dependsOn": sorted(reference(package) for package in ours)})
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=TREE, check=True, capture_output=True, text=True).stdout
    body = {
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "orinoco scripts/sbom.py", "version": version}]},
            "component": product,
            "properties": [{"name": "orinoco:target", "value": arguments.target}],
        },
        "components": components,
        "dependencies": sorted(dependencies, key=lambda found: found["ref"]),
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    json.dump({**head, **body}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
