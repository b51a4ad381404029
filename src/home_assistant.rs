//! PURE: how a node presents itself to Home Assistant: one retained payload of MQTT discovery.
//!
//! ```text
//! homeassistant/device/press-7/config
//!   {"dev": ..., "o": ..., "availability": ..., "cmps": {"tok_s": {"p": "sensor", ...}, "model": {"p": "select", ...}}}
//! ```
//!
//! Everything in it points at topics that the node has anyway, so Home Assistant needs nothing of its own:
//! sensors read `tele/*`, `state` and `ota/state`; the select and the buttons publish on `set/*`, which takes
//! an operator's credentials. What a board does not have is not announced, and what is announced later
//! (a sensor whose driver loads late, a new model) makes a new payload.
//!
//! Source: the MQTT integration's pages on device discovery, sensor, select, update and button.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::wire::report::Hardware;
use crate::wire::telemetry::{TeleGpu, TeleHost};
use crate::wire::topic::{Name, Names};

#[cfg(test)]
mod tests;

/// Sensors of one kind at most: a board has some ten zones and rails.
const SENSORS_MAX: usize = 32;
/// Models in the list at most.
const MODELS_MAX: usize = 200;

/// What a board was seen to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sensed {
    zones: BTreeSet<String>,
    rails: BTreeSet<String>,
    has_gpu: bool,
    has_power: bool,
    has_power_mode: bool,
    has_fan: bool,
}

impl Sensed {
    /// Adds what this reading shows; says whether that was new.
    pub fn add(&mut self, host: &TeleHost, gpu: Option<&TeleGpu>) -> bool {
        let before = self.clone();
        let known = |names: &mut BTreeSet<String>, name: &String| {
            // It becomes part of a template.
            if names.len() < SENSORS_MAX && is_plain(name) {
                names.insert(name.clone());
            }
        };
        host.temperatures_c
            .keys()
            .for_each(|zone| known(&mut self.zones, zone));
        host.rails_mw
            .keys()
            .for_each(|rail| known(&mut self.rails, rail));
        self.has_gpu |= gpu.is_some();
        self.has_power |= host.module_mw.is_some();
        self.has_power_mode |= host.power_mode.is_some();
        self.has_fan |= host.fan_rpm.is_some();
        *self != before
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// Where the payload goes. An empty retained message there takes the device away.
pub fn topic(node: &Name) -> String {
    format!("homeassistant/device/{}/config", object_id(node))
}

/// Home Assistant takes letters, digits, `_` and `-`; names may have dots.
fn object_id(node: &Name) -> String {
    node.as_str().replace('.', "_2e")
}

/// The device with all its entities.
pub fn device(
    names: &Names,
    version: &str,
    hardware: &Hardware,
    models: &[String],
    sensed: &Sensed,
) -> Value {
    let id = format!("orinoco_{}", object_id(names.node()));
    let mut entities = Entities {
        names,
        id: &id,
        all: Map::new(),
    };
    entities.model(models);
    entities.requests();
    entities.board(sensed);
    entities.update();
    json!({
        "dev": {
            "ids": [id],
            "name": format!("Orinoco {}", names.node()),
            "mf": "Orinoco",
            "mdl": hardware.board.as_deref().unwrap_or(&hardware.arch),
            "sw": version,
        },
        "o": {"name": "orinoco", "sw": version, "url": "https://github.com/orinoco-edge/orinoco"},
        // Draining counts as neither: what runs is answered, and figures go on coming.
        "availability": [{
            "topic": names.status(),
            "value_template": "{{ value_json.state }}",
            "payload_available": "online",
            "payload_not_available": "offline",
        }],
        "qos": 1,
        "cmps": entities.all,
    })
}

struct Entities<'a> {
    names: &'a Names,
    id: &'a str,
    all: Map<String, Value>,
}

impl Entities<'_> {
    fn add(&mut self, key: &str, platform: &str, name: &str, mut more: Value) {
        let entity = more.as_object_mut().expect("written here as an object");
        entity.insert("p".into(), platform.into());
        entity.insert("name".into(), name.into());
        entity.insert("unique_id".into(), format!("{}_{key}", self.id).into());
        self.all.insert(key.to_owned(), more);
    }

    /// A number of `tele/{kind}`. `of` is its path below `value_json`, then, where it is not shown as it stands,
    /// a space and what is made of it, of `v`.
    fn number(&mut self, key: &str, name: &str, kind: &str, of: &str, more: Value) {
        let (path, shown) = of.split_once(' ').unwrap_or((of, "v"));
        let outer = path.split(['.', '[']).next().unwrap_or(path);
        let mut entity = json!({
            "state_topic": self.names.tele(kind),
            // What is absent is unknown to Home Assistant, and no error: each level is asked for in turn.
            "value_template": format!(
                "{{% if value_json.{outer} is defined and value_json.{path} is defined %}}\
                 {{% set v = value_json.{path} %}}{{{{ {shown} }}}}{{% else %}}None{{% endif %}}"
            ),
            "state_class": "measurement",
        });
        let all = entity.as_object_mut().expect("written here as an object");
        if let Value::Object(more) = more {
            all.extend(more);
        }
        self.add(key, "sensor", name, entity);
    }

    fn model(&mut self, models: &[String]) {
        let names = self.names;
        let state = names.state();
        self.add(
            "model",
            "select",
            "Model",
            json!({
                "state_topic": state,
                "value_template": "{{ value_json.model | default('None') }}",
                "command_topic": names.set("model"),
                "options": &models[..models.len().min(MODELS_MAX)],
                "icon": "mdi:cube-outline",
            }),
        );
        self.add(
            "model_auto",
            "button",
            "Model by power mode",
            json!({"command_topic": names.set("model"), "payload_press": "auto", "icon": "mdi:auto-mode"}),
        );
        self.add(
            "mode",
            "sensor",
            "State",
            json!({
                "state_topic": state,
                "value_template": "{{ value_json.mode }}",
                "device_class": "enum",
                "options": ["starting", "loading", "serving", "restarting", "idle", "no_model", "draining"],
                "icon": "mdi:state-machine",
            }),
        );
        self.add(
            "memory_short",
            "binary_sensor",
            "Memory short",
            json!({
                "state_topic": state,
                "value_template": "{{ 'ON' if value_json.pressure is defined and value_json.pressure.level != 'ok' else 'OFF' }}",
                "device_class": "problem",
            }),
        );
        self.add(
            "too_hot",
            "binary_sensor",
            "Too hot",
            json!({
                "state_topic": state,
                "value_template": "{{ 'ON' if value_json.power is defined and value_json.power.hot | default(false) else 'OFF' }}",
                "device_class": "heat",
            }),
        );
    }

    fn requests(&mut self) {
        let speed = json!({"unit_of_measurement": "tok/s", "icon": "mdi:speedometer"});
        self.number("tok_s", "Tokens a second", "llm", "tok_s", speed);
        let count = json!({"icon": "mdi:message-processing"});
        self.number("streams", "Streams", "llm", "streams_count", count);
        let wait = json!({"icon": "mdi:tray-full"});
        self.number("waiting", "Waiting", "queue", "waiting_count", wait);
        self.number(
            "ttft_p95",
            "Time to first token",
            "llm",
            "ttft_ms.p95 v | round | int",
            json!({"unit_of_measurement": "ms", "device_class": "duration"}),
        );
        let total = json!({"state_class": "total_increasing", "icon": "mdi:counter"});
        self.number("tokens", "Tokens made", "llm", "tokens_count", total);
        self.number(
            "engine_deaths",
            "Engine deaths",
            "llm",
            "engine_deaths_count",
            json!({"state_class": "total_increasing", "entity_category": "diagnostic", "icon": "mdi:alert"}),
        );
        self.add(
            "cancel_all",
            "button",
            "Call off all requests",
            json!({"command_topic": self.names.set("cancel"), "payload_press": "all", "icon": "mdi:stop-circle-outline"}),
        );
    }

    fn board(&mut self, sensed: &Sensed) {
        self.number(
            "memory_available",
            "Memory available",
            "host",
            "memory_available_bytes (v / 1048576) | round | int",
            json!({"unit_of_measurement": "MiB", "device_class": "data_size"}),
        );
        for zone in &sensed.zones {
            self.number(
                &format!("temperature_{}", key(zone)),
                &format!("Temperature {zone}"),
                "host",
                &format!("temperatures_c['{zone}']"),
                json!({"unit_of_measurement": "°C", "device_class": "temperature"}),
            );
        }
        let watts = || json!({"unit_of_measurement": "W", "device_class": "power", "suggested_display_precision": 1});
        if sensed.has_power {
            self.number("power", "Power", "host", "module_mw v / 1000", watts());
            self.number(
                "energy_tok",
                "Energy of a token",
                "llm",
                "energy_mj_tok",
                json!({"unit_of_measurement": "mJ", "icon": "mdi:lightning-bolt"}),
            );
        }
        for rail in &sensed.rails {
            let mut more = watts();
            more["entity_category"] = "diagnostic".into();
            self.number(
                &format!("rail_{}", key(rail)),
                &format!("Rail {rail}"),
                "host",
                &format!("rails_mw['{rail}'] v / 1000"),
                more,
            );
        }
        if sensed.has_fan {
            let fan = json!({"unit_of_measurement": "rpm", "icon": "mdi:fan"});
            self.number("fan", "Fan", "host", "fan_rpm", fan);
        }
        if sensed.has_gpu {
            let load = json!({"unit_of_measurement": "%", "icon": "mdi:expansion-card"});
            self.number("gpu_load", "GPU load", "gpu", "load_percent", load);
            let clock = json!({"unit_of_measurement": "MHz", "device_class": "frequency"});
            self.number("gpu_clock", "GPU clock", "gpu", "clock_mhz", clock);
        }
        if sensed.has_power_mode {
            self.add(
                "power_mode",
                "sensor",
                "Power mode",
                json!({
                    "state_topic": self.names.tele("host"),
                    "value_template": "{{ value_json.power_mode | default('None') }}",
                    "icon": "mdi:gauge",
                }),
            );
        }
    }

    /// Bound to `ota/state`; unknown to Home Assistant while a node publishes none.
    fn update(&mut self) {
        for (key, name, word, icon) in [
            (
                "update_check",
                "Look for updates",
                "check",
                "mdi:cloud-search",
            ),
            (
                "update_cancel",
                "Call off the update",
                "cancel",
                "mdi:cancel",
            ),
            (
                "update_rollback",
                "Back to the release before",
                "rollback",
                "mdi:history",
            ),
        ] {
            let command = json!({
                "command_topic": self.names.set("update"), "payload_press": word, "icon": icon,
                "entity_category": "config",
            });
            self.add(key, "button", name, command);
        }
        self.add(
            "update",
            "update",
            "Model release",
            json!({
                "state_topic": self.names.ota_state(),
                "value_template": UPDATE,
                "json_attributes_topic": self.names.ota_state(),
                "json_attributes_template": ATTRIBUTES,
                "command_topic": self.names.set("update"),
                "payload_install": "install",
            }),
        );
    }
}

/// What an `update` entity takes: these keys and no others. A text that is not there is left out, since none is
/// no text; whether something is under way, and how far, is told each time, so that none outlives its update.
const UPDATE: &str = "\
{%- set told = namespace(keys={'in_progress': value_json.in_progress | default(false, true),\
 'update_percentage': value_json.update_percentage | default(none)}) -%}\
{%- for key in ['installed_version', 'latest_version', 'title', 'release_summary'] \
 if value_json[key] is defined -%}\
{%- set told.keys = dict(told.keys, **{key: value_json[key] | string | truncate(255, true)}) -%}\
{%- endfor -%}{{ told.keys | to_json }}";

/// What else a person may want to see beside it.
const ATTRIBUTES: &str = "\
{{ {'step': value_json.state | default(none),\
 'release': (value_json.line ~ ' ' ~ value_json.release_seq | default('')) if value_json.line is defined else none,\
 'deployment': value_json.deployment | default(none),\
 'reason': value_json.reason | default(value_json.check_reason) | default(none),\
 'detail': value_json.detail | default(value_json.check_detail) | default(none),\
 'eta_seconds': value_json.eta_s | default(none)} | to_json }}";

/// Part of a unique id.
fn key(name: &str) -> String {
    name.to_ascii_lowercase().replace(['-', '.'], "_")
}
