"""The discovery payload before Home Assistant's own judges:  home_assistant.py [PAYLOAD.json]

Needs the package homeassistant, 2024.12 or newer (scripts/test.sh --full installs it where the Python is new enough).
Without a file: tests/home_assistant/device.json, which the tests in src/home_assistant hold the daemon to. Each
entity's configuration goes through its platform's schema; each template is rendered with the pinned documents.
"""

import asyncio
import importlib
import json
import pathlib
import sys
import tempfile

from homeassistant.components.mqtt import discovery
from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA, SHARED_OPTIONS
from homeassistant.components.mqtt.update import MQTT_JSON_UPDATE_SCHEMA
from homeassistant.core import HomeAssistant
from homeassistant.helpers import frame
from homeassistant.helpers.template import Template

HERE = pathlib.Path(__file__).resolve().parent.parent
def pinned(name):
    """A message as the daemon is held to by tests/wire_v1.rs."""
    return (HERE / f"wire/v1/{name}.json").read_text(encoding="utf-8").rstrip("\n")


DOCUMENTS = {
    "status": pinned("status_online"), "state": pinned("state_serving"), "tele/host": pinned("tele_host"), "tele/gpu": pinned("tele_gpu"),
    "tele/llm": pinned("tele_llm"), "tele/queue": pinned("tele_queue"), "ota/state": pinned("ota_state_downloading"),
}
#: States of updates, and what the update entity makes of each: installed, latest, under way, percent.
UPDATES = {
    "none": (None, None, False, None), "downloading": ("qwen3-4b", "qwen3-4b-v2", True, 42), "probing": ("qwen3-4b", "qwen3-4b-v2", True, None),
    "committed": ("qwen3-4b-v2", "qwen3-4b-v2", False, None), "rolled_back": ("qwen3-4b", "qwen3-4b-v2", False, None),
    "unreachable": ("qwen3-4b", "qwen3-4b", False, None),
}
#: What must come out of some of them.
RENDERED = {
    "tok_s": "212.4", "ttft_p95": "140", "memory_available": "8657", "temperature_tj_thermal": "51.5", "power": "7.4",
    "rail_vdd_in": "7.4", "fan": "2400", "energy_tok": "34.8", "power_mode": "MODE_25W", "mode": "serving", "memory_short": "OFF", "gpu_load": "87.5", "waiting": "2",
}


def config_of(payload, entity):
    """As discovery.py makes an entity's configuration of a device's."""
    config = dict(entity)
    platform = config.pop("platform")
    config["device"] = payload["device"]
    config["origin"] = payload["origin"]
    for option in SHARED_OPTIONS:
        if option in payload and option not in config:
            config[option] = payload[option]
    if "qos" in payload:
        config.setdefault("qos", payload["qos"])
    return platform, config


async def main():
    hass = HomeAssistant(tempfile.mkdtemp())
    frame.async_setup(hass)
    file = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "home_assistant/device.json"
    payload = discovery.MQTTDiscoveryPayload(json.loads(file.read_text(encoding="utf-8")))
    discovery._replace_all_abbreviations(payload)
    DEVICE_DISCOVERY_SCHEMA(payload)
    failed = 0
    for key, entity in payload["components"].items():
        try:
            platform, config = config_of(payload, entity)
            module = importlib.import_module(f"homeassistant.components.mqtt.{platform}")
            checked = module.DISCOVERY_SCHEMA(config)
            unknown = set(config) - set(checked)
            assert not unknown, f"the schema dropped {unknown}"
            template = entity.get("value_template")
            if template:
                rest = entity["state_topic"].split("/v1/")[1].split("/", 1)[1]
                full = Template(template, hass).async_render_with_possible_json_value(DOCUMENTS[rest])
                if key in RENDERED:
                    assert full == RENDERED[key], f"renders as {full!r}, not {RENDERED[key]!r}"
                if platform == "update":
                    for name, wanted in UPDATES.items():
                        rendered = Template(template, hass).async_render_with_possible_json_value(pinned(f"ota_state_{name}"))
                        told = MQTT_JSON_UPDATE_SCHEMA(json.loads(rendered))
                        found = tuple(told.get(key) for key in ("installed_version", "latest_version", "in_progress", "update_percentage"))
                        assert found == wanted, f"{name}: {found}"
                        attributes = Template(entity["json_attributes_template"], hass).async_render_with_possible_json_value(pinned(f"ota_state_{name}"))
                        assert set(json.loads(attributes)) == {"step", "release", "deployment", "reason", "detail", "eta_seconds"}, attributes
                # What a document does not have is no error.
                bare = '{"at_ms":1,"mode":"serving"}'
                # A template that fails gives the document back.
                empty = Template(template, hass).async_render_with_possible_json_value(bare)
                assert empty != bare, "fails where its key is absent"
            print(f"ok      home-assistant: {platform} {key}")
        except Exception as problem:  # noqa: BLE001 - each entity is judged alone
            failed += 1
            print(f"FAILED  home-assistant: {key}: {type(problem).__name__}: {problem}")
    await hass.async_stop(force=True)
    return failed


sys.exit(1 if asyncio.run(main()) else 0)
