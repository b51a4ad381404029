//! What running programs said.

use crate::doctor::live::{Asked, Broker, Daemon, Live, Planned, Session, Try};
use crate::doctor::{Facts, Finding};
use crate::ledger::memory as bytes;
use crate::wire::report::{Info, Mode, Offload, Verdict};

/// Part of what memory allows that a token usually reaches.
const USUAL_SHARE: f64 = 0.5;

fn asked(facts: &Facts) -> Asked<&Live> {
    match &facts.live {
        Some(live) => live.as_ref().map_err(String::clone),
        None => Err("a tree: nothing runs there that could be asked".into()),
    }
}

fn session(facts: &Facts) -> Asked<&Session> {
    let broker = asked(facts)?.broker.as_ref().map_err(String::clone)?;
    let session = broker.session.as_ref();
    session.map_err(|_| "the broker could not be asked: see broker.reachable".into())
}

fn info(facts: &Facts) -> Asked<&Info> {
    if !matches!(asked(facts)?.daemon, Daemon::Runs(_)) {
        return Err("no daemon runs: see daemon.running".into());
    }
    let info = session(facts)?.info.as_ref();
    info.ok_or_else(|| "no retained info from the daemon".into())
}

fn offload(facts: &Facts) -> Asked<&Offload> {
    let engine = info(facts)?.engine.as_ref();
    let offload = engine.and_then(|engine| engine.offload.as_ref());
    offload.ok_or_else(|| "no model is loaded: see daemon.state".into())
}

/// The check's finding, or that it was skipped.
fn or_skipped(finding: Asked<Finding>) -> Finding {
    finding.unwrap_or_else(Finding::skipped)
}

pub(super) fn running(facts: &Facts) -> Finding {
    or_skipped(asked(facts).map(|live| {
        let dir = facts.config.paths.state_dir.display();
        let start =
            "`sudo systemctl start orinoco`, and `journalctl -u orinoco` when it does not stay";
        match &live.daemon {
            Daemon::Runs(daemon) => {
                Finding::ok(format!("process {}, node {}", daemon.pid, daemon.node))
            }
            Daemon::Gone(daemon) => Finding::fail(
                format!(
                    "process {} of {dir}/runtime.json is gone, and did not end by itself",
                    daemon.pid
                ),
                "a daemon that runs",
                start,
            ),
            Daemon::None => Finding::warn(
                format!("no daemon has written {dir}/runtime.json"),
                "a daemon that runs",
                format!("{start}; or --state-dir, where it is another"),
            ),
            Daemon::Unreadable(error) => Finding::skipped(format!("{error}; run doctor as root")),
        }
    }))
}

pub(super) fn state(facts: &Facts) -> Finding {
    or_skipped(info(facts).and_then(|_| {
        let state = session(facts)?.state.as_ref();
        let state = state.ok_or("no retained state from the daemon")?;
        let model = state.model.as_deref().unwrap_or("no model");
        let reasons = state.reasons.join("; ");
        Ok(match state.mode {
            Mode::NoModel => Finding::fail(reasons, "a model that serves", "what the reason says"),
            mode if !state.reasons.is_empty() => Finding::warn(
                format!("{model} ({}): {reasons}", word(mode)),
                "no reasons",
                "what they say",
            ),
            mode => Finding::ok(format!("{model} ({})", word(mode))),
        })
    }))
}

fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Starting => "starting",
        Mode::Loading => "loading",
        Mode::Serving => "serving",
        Mode::Restarting => "restarting",
        Mode::Idle => "idle",
        Mode::NoModel => "no model",
        Mode::Draining => "draining",
    }
}

pub(super) fn hello(facts: &Facts) -> Finding {
    or_skipped(asked(facts).map(|live| {
        let hello = match &live.engine {
            Ok(hello) => hello,
            Err(error) if facts.engine.header.as_ref().is_ok_and(Option::is_none) => {
                return Finding::skipped(error.clone());
            }
            Err(error) => {
                return Finding::fail(
                    format!("{}: {error}", facts.engine.path),
                    "its first words, which need no model",
                    "see gpu.libraries; else install Orinoco anew",
                );
            }
        };
        let found = format!(
            "{} {} with {} ({})",
            facts.engine.path,
            hello.version,
            hello.llama,
            hello.backends.join(", ")
        );
        if hello.protocol != crate::frames::PROTOCOL {
            return Finding::fail(
                format!("{found} speaks protocol {}", hello.protocol),
                format!("protocol {}", crate::frames::PROTOCOL),
                "install daemon and engine from one package",
            );
        }
        let has_cuda = hello.backends.iter().any(|name| name.starts_with("CUDA"));
        if facts.identity.kind.has_gpu() && !has_cuda {
            return Finding::fail(
                format!("{found}: built without CUDA"),
                "an engine with CUDA beside a GPU",
                "install the CUDA build, or set engine.backend = \"cpu\"",
            );
        }
        Finding::ok(found)
    }))
}

pub(super) fn proof(facts: &Facts) -> Finding {
    or_skipped(info(facts).and_then(|info| {
        if let Some(reason) = &info.no_model {
            return Ok(Finding::fail(
                reason.clone(),
                "a model that is proven to run where it should",
                "what the reason says",
            ));
        }
        let offload = offload(facts)?;
        let layers = format!(
            "{} of {} layers on the GPU",
            offload.n_layers_gpu, offload.n_layers
        );
        let proof = offload
            .proof
            .ok_or("this daemon proves nothing: it is older")?;
        let has_gpu = facts.identity.kind.has_gpu();
        Ok(match proof.verdict {
            Verdict::Gpu => Finding::ok(format!("{layers}, proven")),
            Verdict::CpuNoGpu | Verdict::CpuChosen if !has_gpu => {
                Finding::ok("the CPU: there is no GPU")
            }
            Verdict::CpuChosen => Finding::warn(
                format!("the CPU, as configured; {layers}"),
                "all layers on the GPU",
                "take engine.backend out of the configuration",
            ),
            Verdict::CpuNoGpu => Finding::fail(
                format!("the CPU; {layers}, and the daemon saw no GPU"),
                "all layers on the GPU",
                "see gpu.nodes; then `sudo systemctl restart orinoco`",
            ),
        })
    }))
}

pub(super) fn splits(facts: &Facts) -> Finding {
    or_skipped(offload(facts).map(|offload| {
        let found = offload.n_graph_splits;
        if !offload.proof.is_some_and(|proof| proof.verdict == Verdict::Gpu) {
            return Finding::skipped("the model runs on the CPU");
        }
        let on_gpu = offload.buffers.iter().filter(|buffer| {
            let name = &buffer.buffer;
            buffer.weights_bytes > 0 && name.starts_with("CUDA") && !name.ends_with("_Host")
        });
        let expected = 1 + on_gpu.count().max(1);
        match usize::try_from(found).is_ok_and(|found| found <= expected) {
            true => Finding::ok(format!("the graph of a token has {found} parts")),
            false => Finding::fail(
                format!("the graph of a token has {found} parts"),
                format!("at most {expected}: one for the input embedding on the CPU, one for each GPU"),
                "model.flash_attn = \"off\" with f16 types, or another quantization: the GPU build lacks \
                 kernels for this one",
            ),
        }
    }))
}

pub(super) fn speed(facts: &Facts) -> Finding {
    or_skipped(offload(facts).and_then(|offload| {
        let proof = offload.proof.as_ref();
        let speed = proof.and_then(|proof| proof.canary_tok_s.zip(proof.roofline_tok_s));
        let (canary, roofline) = speed.ok_or("no token was timed on a GPU at the last load")?;
        let found =
            format!("{canary:.1} tokens/s right after the load, memory allows {roofline:.1}");
        Ok(match canary >= roofline * USUAL_SHARE {
            true => Finding::ok(found),
            false => Finding::warn(
                found,
                format!("at least {:.0} %", USUAL_SHARE * 100.0),
                "see power.mode, power.clocks and heat.throttling; another program may use the GPU",
            ),
        })
    }))
}

fn broker(facts: &Facts) -> Asked<&Broker> {
    asked(facts)?.broker.as_ref().map_err(String::clone)
}

pub(super) fn reachable(facts: &Facts) -> Finding {
    or_skipped(broker(facts).map(|broker| {
        let account = match &broker.account {
            Some(account) => format!("as {account}"),
            None => "without an account".into(),
        };
        match &broker.session {
            Ok(_) => Finding::ok(format!("{} {account}", broker.address)),
            Err(reason) => Finding::fail(
                format!("{} {account}: {reason}", broker.address),
                "a broker that lets us in",
                "`systemctl status mosquitto` (or orinoco-broker); [mqtt] host, port and TLS; the password in \
                 mqtt.password_file and in the broker's list",
            ),
        }
    }))
}

pub(super) fn anonymous(facts: &Facts) -> Finding {
    or_skipped(asked(facts).and_then(|live| {
        let lets_in = live.lets_anybody_in.as_ref().map_err(String::clone)?;
        let broker = broker(facts)?;
        if !lets_in {
            return Ok(Finding::ok("a client without an account is not let in"));
        }
        Ok(Finding::warn(
            format!("{} lets clients in without an account", broker.address),
            "accounts for all: without a name there are no rules about whose requests and answers",
            "allow_anonymous false in Mosquitto's configuration; `orinoco acl --format mosquitto-conf` writes one",
        ))
    }))
}

pub(super) fn acl(facts: &Facts) -> Finding {
    or_skipped(session(facts).and_then(|session| {
        let remedy =
            "`orinoco acl --format mosquitto` writes the rules for the broker; then reload it";
        let mut wrong: Vec<String> = (session.refused.iter())
            .map(|(filter, reason)| format!("subscribing to {filter} is refused ({reason})"))
            .collect();
        wrong.extend(session.tries.iter().filter_map(|probe| match probe {
            Try {
                is_allowed: true,
                taken: Some(Err(reason)),
                topic,
            } => Some(format!("publishing to {topic} is refused ({reason})")),
            _ => None,
        }));
        if !wrong.is_empty() {
            return Ok(Finding::fail(
                wrong.join("; "),
                "what `orinoco acl` allows this account",
                remedy,
            ));
        }
        let open = session.tries.iter().filter(|probe| !probe.is_allowed);
        let open = open.filter(|probe| matches!(probe.taken, Some(Ok(()))));
        let open: Vec<&str> = open.map(|probe| probe.topic.as_str()).collect();
        if !open.is_empty() {
            return Ok(Finding::fail(
                format!("publishing is not refused to {}", open.join(", ")),
                "this account to be held to its own topics: who asks is taken from the topic",
                remedy,
            ));
        }
        let answered = session
            .tries
            .iter()
            .filter(|probe| probe.taken.is_some())
            .count();
        match answered {
            0 => Err("no account whose rules could be tried".into()),
            n => Ok(Finding::ok(format!(
                "{n} publishes are taken and refused as `orinoco acl` says"
            ))),
        }
    }))
}

/// Whether each model could be loaded, by the engine's own plan.
pub(super) fn fit(facts: &Facts) -> Finding {
    or_skipped(asked(facts).and_then(|live| {
        let plans = live.plans.as_ref().map_err(String::clone)?;
        let Ok(memory) = &facts.memory else {
            return Err("/proc/meminfo cannot be used: see memory.available".into());
        };
        if plans.is_empty() {
            return Err("no models: see models.present".into());
        }
        let reserve_bytes = facts.config.memory.reserve.of(memory.total_bytes);
        // What a running daemon has taken it would give back for another model.
        let (room_bytes, room) = match live.daemon {
            Daemon::Runs(_) => (memory.total_bytes, "if nothing else ran"),
            _ => (memory.available_bytes, "now"),
        };
        let room_bytes = room_bytes.saturating_sub(reserve_bytes);
        let room = format!("{} may be taken {room}", bytes(room_bytes));
        let shown = |plan: &Planned, need: u64| {
            format!("{} {} with {} tokens", plan.name, bytes(need), plan.n_ctx)
        };
        let mut all = Vec::new();
        let mut wrong = Vec::new();
        for plan in plans {
            match &plan.need_bytes {
                Ok(need) if *need <= room_bytes => all.push(shown(plan, *need)),
                Ok(need) => wrong.push(format!("{} does not fit", shown(plan, *need))),
                Err(error) => wrong.push(format!("{}: {error}", plan.name)),
            }
        }
        if wrong.is_empty() {
            return Ok(Finding::ok(format!("{}; {room}", all.join(", "))));
        }
        Ok(Finding::warn(
            format!("{}; {room}", wrong.join(", ")),
            "models that fit beside memory.reserve",
            "a smaller quantization or model, a smaller n_ctx, kv_type_k and kv_type_v \"q8_0\"; or stop other \
             programs, see memory.available",
        ))
    }))
}
