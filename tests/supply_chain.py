"""What is said of a release is true of it:  python3 tests/supply_chain.py

The bill of materials against Cargo.lock and the licences, the version in every place that has it, and no name of a
machine or secret in what is handed out. It needs cargo, and builds nothing.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import zlib

TREE = pathlib.Path(__file__).resolve().parents[1]
VERSION = re.search(r'^version = "(.*)"', (TREE / "Cargo.toml").read_text(), re.MULTILINE).group(1)


def made(*arguments, **environment):
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=TREE, env={**os.environ, **environment}, check=True, capture_output=True, text=True).stdout


class BillOfMaterials(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.text = made("scripts/sbom.py")
        cls.bill = json.loads(cls.text)
        cls.components = {found["bom-ref"]: found for found in cls.bill["components"]}

    def test_crates_and_checksums_are_those_of_the_lock_file(self):
        lock = (TREE / "Cargo.lock").read_text()
        crates = [found for found in self.bill["components"] if "hashes" in found]
        self.assertGreater(len(crates), 200)
        for found in crates:
            entry = f'name = "{found["name"]}"\nversion = "{found["version"]}"\n'
            self.assertIn(entry, lock)
            self.assertIn(found["hashes"][0]["content"], lock.split(entry)[1][:300])

    def test_it_names_what_the_list_of_licences_names(self):
        listed = set(re.findall(r"^(\S+) (\S+): .* \[orinoco", made("scripts/licences.py"), re.MULTILINE))
        crates = {(found["name"], found["version"]) for found in self.bill["components"] if "hashes" in found}
        self.assertEqual(crates, listed)

    def test_every_component_has_a_licence_and_a_program(self):
        for found in self.bill["components"]:
            self.assertTrue(found["licenses"], found["name"])
            programs = {entry["value"] for entry in found["properties"]}
            self.assertTrue(programs <= {"orinoco", "orinoco-engine", "orinoco-ota"} and programs, found["name"])

    def test_llama_cpp_is_a_component_with_the_build_that_models_are_told(self):
        build = re.search(r"ENGINE_BUILD: u32 = (\d+);", (TREE / "src/ota.rs").read_text()).group(1)
        found = self.components[f"pkg:github/ggml-org/llama.cpp@b{build}"]
        self.assertEqual((found["version"], found["licenses"][0]["expression"]), (f"b{build}", "MIT"))
        carriers = [d["ref"] for d in self.bill["dependencies"] if found["bom-ref"] in d["dependsOn"]]
        self.assertEqual([re.sub("@.*", "", ref) for ref in carriers], ["pkg:cargo/llama-cpp-sys-2"])

    def test_the_daemon_is_not_said_to_hold_the_engine(self):
        below = {found["ref"]: found["dependsOn"] for found in self.bill["dependencies"]}
        todo, seen = [f"pkg:cargo/orinoco@{VERSION}"], set()
        while todo:
            reference = todo.pop()
            if reference not in seen:
                seen.add(reference)
                todo += below[reference]
        self.assertGreater(len(seen), 100)
        self.assertFalse([reference for reference in seen if "llama" in reference])

    def test_every_reference_leads_somewhere(self):
        known = {*self.components, "orinoco-product"}
        self.assertEqual({found["ref"] for found in self.bill["dependencies"]}, known)
        self.assertFalse({to for found in self.bill["dependencies"] for to in found["dependsOn"]} - known)

    def test_the_same_sources_give_the_same_bytes(self):
        self.assertEqual(self.text, made("scripts/sbom.py"))
        self.assertNotEqual(self.text, made("scripts/sbom.py", SOURCE_DATE_EPOCH="1"))

    def test_cuda_is_named_where_it_is_linked(self):
        bill = json.loads(made("scripts/sbom.py", "--cuda", "12.6"))
        self.assertIn("cuda@12.6", [found["bom-ref"] for found in bill["components"]])
        self.assertNotIn("cuda@12.6", self.components)

    def test_another_processor_has_a_bill_of_its_own(self):
        bill = json.loads(made("scripts/sbom.py", "--target", "x86_64-unknown-linux-gnu"))
        self.assertEqual(bill["metadata"]["properties"], [{"name": "orinoco:target", "value": "x86_64-unknown-linux-gnu"}])
        self.assertNotEqual({found["bom-ref"] for found in bill["components"]}, set(self.components))

    def test_nothing_of_this_machine_is_in_it(self):
        text = made("scripts/sbom.py", ORINOCO__MQTT__PASSWORD_FILE="s3cret-of-the-environment")
        for private in ("s3cret-of-the-environment", str(TREE), str(pathlib.Path.home()) + "/", "path+file:"):
            self.assertNotIn(private, text)


class InThePrograms(unittest.TestCase):
    """scripts/auditable.py: what a program says of itself is what the bill says of it."""

    @classmethod
    def setUpClass(cls):
        cls.bill = made("scripts/sbom.py")
        cls.crates = [
            {"name": found["name"], "version": found["version"]}
            for found in json.loads(cls.bill)["components"]
            if found["bom-ref"].startswith("pkg:cargo/")
            and {"name": "orinoco:program", "value": "orinoco"} in found["properties"]
        ]

    def judged(self, crates):
        """(exit code, words) for a program that holds this list; `None`: none at all."""
        with tempfile.TemporaryDirectory() as work:
            bill, listed, program = (pathlib.Path(work, name) for name in ("bill", "list", "orinoco"))
            bill.write_text(self.bill)
            shutil.copy("/bin/true", program)
            if crates is not None:
                listed.write_bytes(zlib.compress(json.dumps({"packages": crates}).encode()))
                subprocess.run(["objcopy", "--add-section", f".dep-v0={listed}", program], check=True)
            done = subprocess.run([TREE / "scripts/auditable.py", bill, program], check=False, capture_output=True, text=True)
            return done.returncode, done.stdout + done.stderr

    def test_the_same_list_holds(self):
        built = {"name": "cc", "version": "1.0.0", "kind": "build"}
        version = re.search(r'^name = "serde_derive"\nversion = "(.*)"', (TREE / "Cargo.lock").read_text(), re.MULTILINE).group(1)
        macro = {"name": "serde_derive", "version": version}
        self.assertEqual(self.judged([*self.crates, built, macro]), (0, f"orinoco: {len(self.crates)} crates, by its own list and by the bill of materials\n"))

    def test_a_crate_more_or_less_is_named(self):
        code, said = self.judged([*self.crates[1:], {"name": "leftpad", "version": "1.0.0"}])
        self.assertEqual(code, 1)
        self.assertIn("orinoco holds leftpad 1.0.0, which the bill has not", said)
        self.assertIn(f"the bill has {self.crates[0]['name']} {self.crates[0]['version']}, which", said)

    def test_a_program_without_a_list_is_refused(self):
        code, said = self.judged(None)
        self.assertEqual(code, 1)
        self.assertIn("no list of crates; cargo-auditable did not build it", said)


class Version(unittest.TestCase):
    """Cargo.toml has it; everything else repeats it."""

    def test_packages_of_the_workspace_take_it_from_there(self):
        for manifest in ("Cargo.toml", "engine/Cargo.toml", "ota/Cargo.toml"):
            self.assertIn("\nversion.workspace = true\n", (TREE / manifest).read_text(), manifest)
        lock = (TREE / "Cargo.lock").read_text()
        for name in ("orinoco", "orinoco-engine", "orinoco-ota"):
            self.assertIn(f'name = "{name}"\nversion = "{VERSION}"\n', lock)

    def test_the_node_red_palette_has_it(self):
        self.assertEqual(json.loads((TREE / "node-red/package.json").read_text())["version"], VERSION)

    def test_the_yocto_recipes_have_it(self):
        recipes = (TREE / "yocto/meta-orinoco/recipes-orinoco/orinoco").glob("*.bb")
        self.assertEqual({path.name.split("_")[1] for path in recipes}, {f"{VERSION}.bb"})

    def test_the_changelog_knows_it_once_it_is_released(self):
        headings = re.findall(r"^## \[(.*?)\]", (TREE / "CHANGELOG.md").read_text(), re.MULTILINE)
        self.assertEqual(headings[0], "Unreleased")
        # Before the first release there is no other; afterwards the newest is what Cargo.toml says.
        self.assertIn(headings[1:2], ([], [VERSION]))


if __name__ == "__main__":
    unittest.main()
