//! The report of `orinoco bench`: JSON for machines, a table for people.
//!
//! Keys are stable and carry their unit; new ones may be added. Ratios and shares are computed here from
//! the figures beside them, so that they cannot disagree.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::quantiles::Quantiles;
use super::{figure, ratio};
use crate::frames::{BufferUse, Loaded};
use crate::wire::report::{Proof, Verdict};

/// One run of `orinoco bench`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Package version.
    pub version: String,
    /// Commit it was built from, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Which llama.cpp.
    pub llama: String,
    /// The model measured.
    pub model: Model,
    /// Board or processor, power mode and cores, for people.
    pub hardware: String,
    /// Where the model ran.
    pub offload: Offload,
    /// The worker alone.
    pub raw: Raw,
    /// The same through MQTT.
    pub mqtt: Mqtt,
    /// MQTT against raw.
    pub ratio: Ratio,
    /// Decoding against memory.
    pub bandwidth: Share,
}

/// What a report says of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Name on the wire.
    pub name: String,
    /// llama.cpp's one-line description.
    pub description: String,
    /// Parameters.
    pub n_params: u64,
    /// Bytes of all tensors.
    pub size_bytes: u64,
}

/// Proof of where the model ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offload {
    /// Layers, the output layer counted.
    pub n_layers: u32,
    /// Of these on a GPU.
    pub n_layers_gpu: u32,
    /// Parts of the compute graph.
    pub n_graph_splits: u32,
    /// Bytes by buffer type.
    pub buffers: Vec<BufferUse>,
    /// What was proven about it; absent in reports of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

impl From<&Loaded> for Model {
    fn from(loaded: &Loaded) -> Self {
        Model {
            name: loaded.name.clone(),
            description: loaded.description.clone(),
            n_params: loaded.n_params,
            size_bytes: loaded.size_bytes,
        }
    }
}

impl From<&Loaded> for Offload {
    fn from(loaded: &Loaded) -> Self {
        Offload {
            n_layers: loaded.n_layers,
            n_layers_gpu: loaded.n_layers_gpu,
            n_graph_splits: loaded.n_graph_splits,
            buffers: loaded.buffers.clone(),
            proof: None,
        }
    }
}

/// The worker alone, after llama-bench and llama-batched-bench. Tokens a second, all sequences together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Raw {
    /// Prefill of 512 tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pp512_tok_s: Option<f64>,
    /// Decoding of 128 tokens, one sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tg128_tok_s: Option<f64>,
    /// Decoding after a prompt, one sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch1_tok_s: Option<f64>,
    /// Four sequences side by side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch4_tok_s: Option<f64>,
    /// Eight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch8_tok_s: Option<f64>,
}

/// Through MQTT. Rates as in [`Raw`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mqtt {
    /// One stream of 128 tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tg128_tok_s: Option<f64>,
    /// One stream after the prompt of the batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch1_tok_s: Option<f64>,
    /// Four streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch4_tok_s: Option<f64>,
    /// Eight streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch8_tok_s: Option<f64>,
    /// From publishing a request to its first text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms_p50: Option<f64>,
    /// The same, 95th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms_p95: Option<f64>,
    /// TTFT less the worker's prefill of the same request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_overhead_ms_p50: Option<f64>,
    /// Between two texts of a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms_p50: Option<f64>,
    /// The same, 95th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms_p95: Option<f64>,
    /// The same, 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms_p99: Option<f64>,
    /// The longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub itl_ms_max: Option<f64>,
}

impl Mqtt {
    /// Takes the quantiles; `overhead` holds TTFT less prefill of each request.
    pub fn with_times(self, ttft: &Quantiles, overhead: &Quantiles, itl: &Quantiles) -> Self {
        Mqtt {
            ttft_ms_p50: ttft.ms(0.5),
            ttft_ms_p95: ttft.ms(0.95),
            ttft_overhead_ms_p50: overhead.ms(0.5),
            itl_ms_p50: itl.ms(0.5),
            itl_ms_p95: itl.ms(0.95),
            itl_ms_p99: itl.ms(0.99),
            itl_ms_max: itl.ms(1.0),
            ..self
        }
    }
}

/// MQTT against raw; 1.0 is no loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ratio {
    /// One stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tg: Option<f64>,
    /// One stream after the prompt of the batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch1: Option<f64>,
    /// Four streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch4: Option<f64>,
    /// Eight streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch8: Option<f64>,
}

impl Ratio {
    fn of(mqtt: &Mqtt, raw: &Raw) -> Self {
        Ratio {
            tg: ratio(mqtt.tg128_tok_s, raw.tg128_tok_s),
            batch1: ratio(mqtt.batch1_tok_s, raw.batch1_tok_s),
            batch4: ratio(mqtt.batch4_tok_s, raw.batch4_tok_s),
            batch8: ratio(mqtt.batch8_tok_s, raw.batch8_tok_s),
        }
    }
}

/// What decoding makes of the memory's bandwidth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// Of the memory that holds the weights, GB/s (10^9 bytes).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gb_s: Option<f64>,
    /// Bytes that one token reads: weights, and the KV cache at the mean position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_token: Option<u64>,
    /// Raw tokens a second × bytes a token ÷ bandwidth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
}

impl Share {
    fn of(tg_tok_s: Option<f64>, gb_s: Option<f64>, bytes_per_token: Option<u64>) -> Self {
        let used_gb_s = tg_tok_s
            .zip(bytes_per_token)
            .map(|(tok_s, bytes)| tok_s * bytes as f64 / 1e9);
        Share {
            gb_s: gb_s.and_then(figure),
            bytes_per_token,
            share: ratio(used_gb_s, gb_s),
        }
    }
}

/// What a report is made of besides its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// See [`Report::version`].
    pub version: String,
    /// See [`Report::commit`].
    pub commit: Option<String>,
    /// See [`Report::llama`].
    pub llama: String,
    /// See [`Report::hardware`].
    pub hardware: String,
    /// See [`Offload::proof`].
    pub proof: Option<Proof>,
}

impl Report {
    /// Puts a report together. `gb_s`: bandwidth of the memory that holds the weights, nothing when it was
    /// not measured; `bytes_per_token`: see [`Share::bytes_per_token`].
    pub fn new(
        about: About,
        loaded: &Loaded,
        raw: Raw,
        mqtt: Mqtt,
        gb_s: Option<f64>,
        bytes_per_token: Option<u64>,
    ) -> Self {
        Report {
            version: about.version,
            commit: about.commit,
            llama: about.llama,
            model: Model::from(loaded),
            hardware: about.hardware,
            offload: Offload {
                proof: about.proof,
                ..Offload::from(loaded)
            },
            raw,
            mqtt,
            ratio: Ratio::of(&mqtt, &raw),
            bandwidth: Share::of(raw.tg128_tok_s, gb_s, bytes_per_token),
        }
    }
}

impl fmt::Display for Report {
    /// The table for people; `-` where nothing was measured.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commit = self.commit.as_ref().map(|commit| format!(" ({commit})"));
        let offload = &self.offload;
        writeln!(
            f,
            "orinoco {}{}, {}",
            self.version,
            commit.unwrap_or_default(),
            self.llama
        )?;
        writeln!(
            f,
            "model     {}: {}",
            self.model.name, self.model.description
        )?;
        writeln!(f, "hardware  {}", self.hardware)?;
        writeln!(
            f,
            "offload   {} of {} layers on the GPU, graph splits: {}",
            offload.n_layers_gpu, offload.n_layers, offload.n_graph_splits
        )?;
        if let Some(proof) = &offload.proof {
            let verdict = match proof.verdict {
                Verdict::Gpu => "proven",
                Verdict::CpuNoGpu => "there is no GPU",
                Verdict::CpuChosen => "the CPU was asked for (engine.backend)",
            };
            let canary = match (proof.canary_tok_s, proof.roofline_tok_s) {
                (Some(found), Some(most)) => format!(", canary {found:.1} of {most:.1} tokens/s"),
                _ => String::new(),
            };
            writeln!(f, "          {verdict}{canary}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:22}{:>10}{:>10}{:>8}",
            "tokens/s", "raw", "MQTT", "ratio"
        )?;
        let (raw, mqtt, ratio) = (&self.raw, &self.mqtt, &self.ratio);
        for (name, raw, mqtt, ratio) in [
            ("prefill 512", raw.pp512_tok_s, None, None),
            ("decode 128", raw.tg128_tok_s, mqtt.tg128_tok_s, ratio.tg),
            (
                "1 stream",
                raw.batch1_tok_s,
                mqtt.batch1_tok_s,
                ratio.batch1,
            ),
            (
                "4 streams",
                raw.batch4_tok_s,
                mqtt.batch4_tok_s,
                ratio.batch4,
            ),
            (
                "8 streams",
                raw.batch8_tok_s,
                mqtt.batch8_tok_s,
                ratio.batch8,
            ),
        ] {
            writeln!(
                f,
                "{name:22}{:>10}{:>10}{:>8}",
                cell(raw, 1),
                cell(mqtt, 1),
                cell(ratio, 3)
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:22}{:>10}{:>10}{:>8}{:>10}",
            "ms through MQTT", "p50", "p95", "p99", "max"
        )?;
        for (name, p50, p95, p99, max) in [
            (
                "first token",
                mqtt.ttft_ms_p50,
                mqtt.ttft_ms_p95,
                None,
                None,
            ),
            (
                "  less prefill",
                mqtt.ttft_overhead_ms_p50,
                None,
                None,
                None,
            ),
            (
                "between tokens",
                mqtt.itl_ms_p50,
                mqtt.itl_ms_p95,
                mqtt.itl_ms_p99,
                mqtt.itl_ms_max,
            ),
        ] {
            let [p50, p95, p99, max] = [p50, p95, p99, max].map(|ms| cell(ms, 2));
            writeln!(f, "{name:22}{p50:>10}{p95:>10}{p99:>8}{max:>10}")?;
        }
        writeln!(f)?;
        let percent = self.bandwidth.share.map(|share| share * 100.0);
        writeln!(
            f,
            "memory {} GB/s, decoding uses {} % of it",
            cell(self.bandwidth.gb_s, 1),
            cell(percent, 0)
        )
    }
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

#[cfg(test)]
mod tests;
