use std::time::Duration;

use serde_json::{Value, json};

use super::*;

fn loaded() -> Loaded {
    Loaded {
        name: "smol".into(),
        arch: "llama".into(),
        description: "llama 135M Q4_1".into(),
        n_params: 134_515_008,
        size_bytes: 100_000_000,
        n_vocab: 49_152,
        n_dims: 0,
        n_ctx_train: 8192,
        n_ctx: 4096,
        n_ctx_seq: 4096,
        n_seq_max: 8,
        chat_template: "gguf".into(),
        tool_syntax: Default::default(),
        n_layers: 31,
        n_layers_gpu: 0,
        n_graph_splits: 1,
        buffers: vec![BufferUse {
            buffer: "CPU".into(),
            host: true,
            weights_bytes: 100_000_000,
            kv_bytes: 94_371_840,
            compute_bytes: 1_000_000,
        }],
        devices: vec![],
        input_bytes: 0,
        canary: None,
        load_ms: 55,
    }
}

fn about() -> About {
    About {
        version: "0.1.0".into(),
        commit: Some("c21eab8".into()),
        llama: "llama-cpp-sys-2 0.1.161".into(),
        hardware: "Jetson Orin NX 16GB, 25W, 8 cores".into(),
        proof: Some(Proof {
            verdict: Verdict::Gpu,
            canary_tok_s: Some(27.5),
            roofline_tok_s: Some(34.25),
        }),
    }
}

fn times(ms: &[u64]) -> Quantiles {
    let mut quantiles = Quantiles::new();
    for ms in ms {
        quantiles.record(Duration::from_millis(*ms));
    }
    quantiles
}

fn full() -> Report {
    let raw = Raw {
        pp512_tok_s: Some(529.0),
        tg128_tok_s: Some(200.0),
        batch1_tok_s: Some(198.0),
        batch4_tok_s: Some(300.0),
        batch8_tok_s: Some(341.0),
    };
    let mqtt = Mqtt {
        tg128_tok_s: Some(196.0),
        batch1_tok_s: Some(195.0),
        batch4_tok_s: Some(290.0),
        batch8_tok_s: Some(330.0),
        ..Mqtt::default()
    };
    let mqtt = mqtt.with_times(&times(&[40; 20]), &times(&[2, 2, 3]), &times(&[5, 5, 5, 9]));
    Report::new(about(), &loaded(), raw, mqtt, Some(30.0), Some(105_000_000))
}

/// `{"a":{"b":1}}` as `["a.b"]`.
fn keys(value: &Value) -> Vec<String> {
    let Value::Object(map) = value else {
        return vec![String::new()];
    };
    let nested = map.iter().flat_map(|(key, value)| {
        let below = keys(value).into_iter();
        below.map(move |rest| format!("{key}.{rest}").trim_end_matches('.').to_owned())
    });
    nested.collect()
}

#[test]
fn the_keys_of_a_full_report_are_these() {
    let mut found = keys(&serde_json::to_value(full()).unwrap());
    found.sort();
    let expected = [
        "bandwidth.bytes_per_token",
        "bandwidth.gb_s",
        "bandwidth.share",
        "commit",
        "hardware",
        "llama",
        "model.description",
        "model.n_params",
        "model.name",
        "model.size_bytes",
        "mqtt.batch1_tok_s",
        "mqtt.batch4_tok_s",
        "mqtt.batch8_tok_s",
        "mqtt.itl_ms_max",
        "mqtt.itl_ms_p50",
        "mqtt.itl_ms_p95",
        "mqtt.itl_ms_p99",
        "mqtt.tg128_tok_s",
        "mqtt.ttft_ms_p50",
        "mqtt.ttft_ms_p95",
        "mqtt.ttft_overhead_ms_p50",
        "offload.buffers",
        "offload.n_graph_splits",
        "offload.n_layers",
        "offload.n_layers_gpu",
        "offload.proof.canary_tok_s",
        "offload.proof.roofline_tok_s",
        "offload.proof.verdict",
        "ratio.batch1",
        "ratio.batch4",
        "ratio.batch8",
        "ratio.tg",
        "raw.batch1_tok_s",
        "raw.batch4_tok_s",
        "raw.batch8_tok_s",
        "raw.pp512_tok_s",
        "raw.tg128_tok_s",
        "version",
    ];
    assert_eq!(found, expected);
}

#[test]
fn ratios_and_share_come_from_the_figures() {
    let report = full();
    assert_eq!(report.ratio.tg, Some(0.98));
    assert_eq!(report.ratio.batch8, Some(0.9677));
    // 200 tokens/s × 105 MB = 21 GB/s of 30.
    assert_eq!(report.bandwidth.share, Some(0.7));
    assert_eq!(report.mqtt.ttft_overhead_ms_p50, times(&[2]).ms(0.5));
    assert_eq!(report.mqtt.itl_ms_max, times(&[9]).ms(1.0));
}

#[test]
fn what_was_not_measured_is_absent() {
    let about = About {
        commit: None,
        ..about()
    };
    let nothing = Quantiles::new();
    let mqtt = Mqtt::default().with_times(&nothing, &nothing, &nothing);
    let raw = Raw {
        tg128_tok_s: Some(200.0),
        ..Raw::default()
    };
    let report = Report::new(about, &loaded(), raw, mqtt, None, Some(1));
    let found = serde_json::to_value(&report).unwrap();
    assert_eq!(found["raw"], json!({"tg128_tok_s": 200.0}));
    assert_eq!(found["mqtt"], json!({}));
    assert_eq!(found["ratio"], json!({}));
    assert_eq!(found["bandwidth"], json!({"bytes_per_token": 1}));
    assert_eq!(found.get("commit"), None);
    assert_eq!(serde_json::from_value::<Report>(found).unwrap(), report);
}

#[test]
fn a_report_reads_back() {
    let text = serde_json::to_string(&full()).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), full());
}

#[test]
fn people_get_a_table() {
    let expected = "\
orinoco 0.1.0 (c21eab8), llama-cpp-sys-2 0.1.161
model     smol: llama 135M Q4_1
hardware  Jetson Orin NX 16GB, 25W, 8 cores
offload   0 of 31 layers on the GPU, graph splits: 1
          proven, canary 27.5 of 34.2 tokens/s

tokens/s                     raw      MQTT   ratio
prefill 512                529.0         -       -
decode 128                 200.0     196.0   0.980
1 stream                   198.0     195.0   0.985
4 streams                  300.0     290.0   0.967
8 streams                  341.0     330.0   0.968

ms through MQTT              p50       p95     p99       max
first token                40.00     40.00       -         -
  less prefill              2.00         -       -         -
between tokens              5.00      9.00    9.00      9.00

memory 30.0 GB/s, decoding uses 70 % of it
";
    let shown = full().to_string();
    // The histogram keeps three digits.
    let shown = shown.replace("40.03", "40.00").replace("9.01", "9.00");
    assert_eq!(shown, expected);
}
