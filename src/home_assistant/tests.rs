//! Facts about the discovery payload.

use super::*;

fn names(node: &str) -> Names {
    Names::new("orinoco", Name::new(node).unwrap()).unwrap()
}

fn hardware() -> Hardware {
    Hardware {
        board: Some("NVIDIA Jetson Orin NX".into()),
        arch: "aarch64".into(),
        n_cores: 8,
        memory_bytes: None,
        gpu: None,
    }
}

fn a_board() -> Sensed {
    let host = TeleHost {
        temperatures_c: [("tj-thermal".to_owned(), 51.5), ("x'}}{{".to_owned(), 1.0)].into(),
        rails_mw: [("VDD_IN".to_owned(), 7400)].into(),
        module_mw: Some(7400),
        power_mode: Some("MODE_25W".into()),
        fan_rpm: Some(2400),
        ..TeleHost::default()
    };
    let mut sensed = Sensed::default();
    assert!(sensed.add(&host, Some(&TeleGpu::default())));
    assert!(!sensed.add(&host, None), "the second time it is no news");
    sensed
}

#[test]
fn the_payload_is_what_it_was() {
    let models = ["smollm2-135m".to_owned(), "qwen3-4b".to_owned()];
    let device = device(&names("press-7"), "0.1.0", &hardware(), &models, &a_board());
    let found = format!("{}\n", serde_json::to_string_pretty(&device).unwrap());
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/home_assistant/device.json"
    );
    if std::env::var_os("ORINOCO_BLESS").is_some() {
        std::fs::write(file, &found).unwrap();
    }
    // By value: in which order keys are written depends on who else is built along.
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(
        value(&found),
        value(&std::fs::read_to_string(file).unwrap())
    );
}

#[test]
fn each_entity_has_its_own_id_and_a_topic_of_this_node() {
    let device = device(&names("press-7"), "0.1.0", &hardware(), &[], &a_board());
    let entities = device["cmps"].as_object().unwrap();
    let ids: BTreeSet<&str> = entities
        .values()
        .map(|entity| entity["unique_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), entities.len());
    for entity in entities.values() {
        for key in ["state_topic", "command_topic"] {
            let topic = entity.get(key).and_then(Value::as_str);
            assert!(topic.is_none_or(|topic| topic.starts_with("orinoco/v1/press-7/")));
        }
    }
}

#[test]
fn what_a_board_has_not_is_not_announced() {
    let device = device(&names("n1"), "0.1.0", &hardware(), &[], &Sensed::default());
    let entities = device["cmps"].as_object().unwrap();
    for key in ["power", "fan", "gpu_load", "power_mode", "energy_tok"] {
        assert!(!entities.contains_key(key), "{key}");
    }
    assert!(entities.contains_key("tok_s"));
}

#[test]
fn a_sensor_with_an_odd_name_gets_into_no_template() {
    let device = device(&names("n1"), "0.1.0", &hardware(), &[], &a_board());
    assert!(!device.to_string().contains("x'}}"));
}

#[test]
fn a_name_with_a_dot_makes_a_topic_that_home_assistant_takes() {
    let node = Name::new("hall2.press-7").unwrap();
    assert_eq!(topic(&node), "homeassistant/device/hall2_2epress-7/config");
}
