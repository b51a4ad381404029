"""A real Home Assistant core beside a real node:  home_assistant_core.py

Starts `orinoco run` with its own broker and SmolLM2, a publisher with one signed release behind a web server, and
Home Assistant's core in this process: its MQTT integration finds the node by discovery, its entities are read and
pressed, a release is installed from its update entity, the recipes of docs/home-assistant.md are loaded as they
stand there and asked. Needs the package homeassistant, 2024.12 or newer (scripts/test.sh --full installs it where
the Python is new enough). No frontend and no supervisor: what a browser shows is not part of it.
"""

import asyncio
import functools
import http.server
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from homeassistant import auth, bootstrap, config_entries, loader
from homeassistant.core import HomeAssistant
from homeassistant.helpers import device_registry
from homeassistant.setup import async_setup_component
from homeassistant.util.yaml import parse_yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "target/release"
MODEL = "SmolLM2-135M-Instruct.Q4_1"
USER, NODE = "home-assistant", "press-7"
PASSWORD = "for this test only"


def ok(what):
    print(f"ok      home-assistant core: {what}", flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(program, *args):
    done = subprocess.run([PROGRAMS / program, *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"FAILED  {program} {args}: {done.stderr}")
    return done.stdout


class Publisher:
    """A repository of one release, and a static web server for it."""

    def __init__(self, work):
        self.repository, keys = work / "repository", work / "keys"
        run("orinoco-ota", "init", self.repository, "--keys", keys)
        manifest = work / "manifest.json"
        manifest.write_text('{"model":{"licence":"Apache-2.0"},"health":{"load_ms_max":60000}}')
        run("orinoco-ota", "add", self.repository, REPOSITORY / f"models/{MODEL}.gguf", "--line", "assistant", "--id", "smol-1",
            "--licence", "Apache-2.0", "--manifest", manifest, "--golden", "What is 2+2?", "4")
        run("orinoco-ota", "sign", self.repository, "--keys", keys)
        handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(self.repository)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


class Node:
    """`orinoco run` with a broker of its own, and an operator's account for Home Assistant."""

    def __init__(self, work, publisher):
        self.port, state, models = free_port(), work / "state", work / "models"
        state.mkdir()
        models.mkdir()
        # Alone, it serves without being named, so that a release may take its place.
        shutil.copy(REPOSITORY / f"models/{MODEL}.gguf", models)
        password = work / "password"
        password.write_text(f"{PASSWORD}\n")
        password.chmod(0o600)
        run("orinoco", "user", "add", USER, "--role", "operator", "--password-file", password, "--state-dir", state, "--set", "broker.mode=child")
        settings = {
            "node.name": NODE, "paths.state_dir": state, "paths.models_dir": models, "model.active": "",
            "model.n_ctx": 2048, "broker.mode": "child", "broker.port": self.port, "engine.backend": "cpu", "engine.n_threads": 1,
            "telemetry.interval_seconds": 1, "home_assistant.discovery": "true", "ota.root_file": publisher.repository / "metadata/1.root.json",
            "ota.fetch.sources": publisher.url, "ota.fetch.reserve_bytes": 0, "ota.fetch.bytes_per_second_max": 20_000_000, "ota.deploy.check_minutes": 0,
        }
        self.log = work / "orinoco.log"
        pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        with self.log.open("w", encoding="utf-8") as log:
            self.child = subprocess.Popen([PROGRAMS / "orinoco", "run", *pairs], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        note = state / "runtime.json"
        end = time.monotonic() + 60
        while not note.exists():
            if self.child.poll() is not None or time.monotonic() > end:
                sys.exit(f"FAILED  the daemon does not start:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def top(self, password):
        return run("orinoco", "top", "--once", "--width", "140", "--host", "127.0.0.1", "--port", self.port, "--node", NODE, "--user", USER, "--password-file", password)


def recipes():
    """The YAML blocks of the page, each by Home Assistant's own reader."""
    page = (REPOSITORY / "docs/home-assistant.md").read_text(encoding="utf-8").replace("NODE", NODE)
    merged = {"script": {}, "automation": []}
    for block in re.findall(r"```yaml\n(.*?)```", page, re.S):
        parsed = parse_yaml(block)
        merged["script"].update(parsed.get("script", {}))
        merged["automation"] += parsed.get("automation", [])
    return merged


class Home:
    """Home Assistant's core with its MQTT integration on the node's broker."""

    def __init__(self, folder):
        self.hass = HomeAssistant(str(folder))

    async def start(self, port):
        hass = self.hass
        hass.config.skip_pip = True
        loader.async_setup(hass)
        hass.config_entries = config_entries.ConfigEntries(hass, {})
        await bootstrap.async_load_base_functionality(hass)
        hass.auth = await auth.auth_manager_from_config(hass, [], [])
        config = recipes()
        for domain in ("homeassistant", "persistent_notification", "http", "conversation"):
            assert await async_setup_component(hass, domain, {"http": {"server_host": "127.0.0.1", "server_port": free_port()}}), domain
        await hass.async_start()
        flow = await hass.config_entries.flow.async_init("mqtt", context={"source": "user"})
        login = {"broker": "127.0.0.1", "port": port, "username": USER, "password": PASSWORD}
        made = await hass.config_entries.flow.async_configure(flow["flow_id"], login)
        assert made["type"] == "create_entry", made
        assert made["result"].state is config_entries.ConfigEntryState.LOADED, made["result"]
        for domain in ("script", "automation"):
            assert await async_setup_component(hass, domain, config), f"the recipes of {domain} are refused"
        await hass.async_block_till_done()
        assert hass.states.get("script.ask_orinoco"), "the page's script is not there"
        assert all(state.state == "on" for state in hass.states.async_all("automation")), "an automation of the page was refused"
        ok(f"the page's recipes are taken: {len(config['script'])} script, {len(config['automation'])} automations")

    def state(self, entity):
        found = self.hass.states.get(entity)
        return found.state if found else None

    async def until(self, what, test, seconds=60):
        end = time.monotonic() + seconds
        while not (found := test()):
            if time.monotonic() > end:
                there = {state.entity_id: state.state for state in self.hass.states.async_all()}
                raise TimeoutError(f"{what}: not within {seconds} s; {json.dumps(there, indent=1)}")
            await asyncio.sleep(0.02)
        return found

    async def call(self, domain, service, entity, **data):
        await self.hass.services.async_call(domain, service, {"entity_id": entity, **data}, blocking=True)


async def plays(home, node, password):
    hass, name = home.hass, "orinoco_press_7"
    await home.until("the model serves", lambda: home.state(f"sensor.{name}_state") == "serving")
    devices = device_registry.async_get(hass).devices.values()
    [device] = [device for device in devices if device.manufacturer == "Orinoco"]
    assert device.name == "Orinoco press-7" and device.sw_version, device
    entities = [state for state in hass.states.async_all() if name in state.entity_id]
    ok(f"one device with {len(entities)} entities by discovery")

    await home.until("numbers", lambda: home.state(f"sensor.{name}_memory_available") not in (None, "unknown", "unavailable"))
    for sensor in ("streams", "waiting", "tokens_made", "engine_deaths"):
        float(await home.until(sensor, lambda sensor=sensor: home.state(f"sensor.{name}_{sensor}")))
    assert home.state(f"binary_sensor.{name}_memory_short") == "off"
    ok("sensors have numbers")

    reply = await hass.services.async_call("script", "ask_orinoco", {"question": "Name three rivers."}, blocking=True, return_response=True)
    assert reply["text"] and not reply["text"].startswith("!"), reply
    ok("the page's script asks and gets an answer")

    said = await hass.services.async_call(
        "conversation", "process", {"text": "ask the plant what is water", "language": "en"}, blocking=True, return_response=True
    )
    speech = said["response"]["speech"]["plain"]["speech"]
    assert speech and not speech.startswith("!") and speech != "Done", said
    ok("a spoken sentence is answered by the model")

    update = f"update.{name}_model_release"
    await home.until("a catalogue is looked at", lambda: home.state(update) is not None)
    # Nothing was ever installed, so there is no line that "install" could mean: the fleet's wish is the first.
    await hass.services.async_call("mqtt", "publish", {
        "topic": "orinoco/v1/fleet/all/desired", "qos": 1, "retain": True,
        "payload": json.dumps({"desired_seq": 1, "deployment": "d-1", "line": "assistant"}),
    }, blocking=True)
    shown = await home.until("a progress in percent", lambda: hass.states.get(update) and (hass.states.get(update).attributes.get("update_percentage") or 0) > 0 and hass.states.get(update))
    assert shown.attributes["in_progress"] is True, shown
    frame = node.top(password)
    assert re.search(r"downloading\s+assistant.*\d+ %", frame), frame
    ok(f"the update entity is at {shown.attributes['update_percentage']} %, and so is orinoco top")
    await home.until("in service", lambda: hass.states.get(update).attributes.get("step") == "committed", 120)
    end = hass.states.get(update)
    found = {key: end.attributes.get(key) for key in ("installed_version", "latest_version", "in_progress", "update_percentage", "title", "release")}
    assert found == {"installed_version": "smol-1", "latest_version": "smol-1", "in_progress": False, "update_percentage": None, "title": "assistant", "release": "assistant 1"}, found
    assert end.state == "off", end
    frame = node.top(password)
    assert re.search(r"committed\s+assistant 1.*in service smol-1", frame), frame
    ok("installed: version, title and no progress any more; orinoco top says committed")

    await home.until("the page's notification", lambda: any("assistant 1: committed" in note["message"] for note in hass.data.get("persistent_notification", {}).values()))
    ok("the page's automation tells that the update is in service")

    select = f"select.{name}_model"
    await home.until("the model of the release", lambda: home.state(select) == "smol-1")
    await home.call("select", "select_option", select, option=MODEL)
    await home.until("the other model", lambda: home.state(select) == MODEL and home.state(f"sensor.{name}_state") == "serving")
    ok("the select orders a model")

    # A question that would go on for long, and the button that ends it.
    await hass.services.async_call("mqtt", "publish", {
        "topic": f"orinoco/v1/{NODE}/req/{USER}/chat/long", "qos": 1,
        "payload": json.dumps({"messages": [{"role": "user", "content": "Count."}], "max_tokens": 2000, "ignore_eos": True}),
    }, blocking=True)
    await home.until("a stream", lambda: home.state(f"sensor.{name}_streams") == "1")
    await home.call("button", "press", f"button.{name}_call_off_all_requests")
    await home.until("no stream", lambda: home.state(f"sensor.{name}_streams") == "0")
    ok("the button calls off what runs")

    # Refused, with nothing to go back to; the node says so in its log and goes on.
    await home.call("button", "press", f"button.{name}_back_to_the_release_before")
    await home.until("the order", lambda: "no release before" in node.log.read_text(encoding="utf-8"))
    ok("the button for the release before reaches the node")

    node.child.kill()
    await home.until("unavailable", lambda: home.state(f"sensor.{name}_state") == "unavailable")
    ok("a node that is gone is unavailable")


async def main(work):
    publisher = Publisher(work)
    node = Node(work, publisher)
    home = Home(work / "home")
    try:
        (work / "home").mkdir()
        (work / "home/configuration.yaml").touch()
        await home.start(node.port)
        await plays(home, node, work / "password")
        return 0
    except Exception as problem:  # noqa: BLE001 - told with what the node said
        import traceback

        traceback.print_exc()
        print(f"FAILED  home-assistant core: {type(problem).__name__}: {problem}\n{node.log.read_text()[-3000:]}")
        return 1
    finally:
        node.child.kill()
        node.child.wait()
        publisher.server.shutdown()
        await home.hass.async_stop(force=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(asyncio.run(main(pathlib.Path(folder))))
