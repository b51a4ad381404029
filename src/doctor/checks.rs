//! The list of checks. Each is a pure function of [`Facts`] to one [`Finding`].

mod board;
mod engine;
mod gpu;
mod live;
mod memory;
mod models;
mod power;
mod system;
mod updates;

use super::{Facts, Finding};

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Stable: scripts and docs/doctor.md name it.
    pub id: &'static str,
    /// Judges.
    pub run: fn(&Facts) -> Finding,
}

const fn check(id: &'static str, run: fn(&Facts) -> Finding) -> Check {
    Check { id, run }
}

/// All of them, in the order of the report: what everything else rests on comes first.
pub const CHECKS: &[Check] = &[
    check("board.module", board::module),
    check("board.l4t", board::l4t),
    check("board.container", board::container),
    check("board.sensors", board::sensors),
    check("gpu.nodes", board::nodes),
    check("gpu.groups", gpu::groups),
    check("gpu.clocks", board::gpu_clocks),
    check("gpu.libcuda", gpu::libcuda),
    check("gpu.libraries", gpu::libraries),
    check("gpu.cuda", gpu::version),
    check("gpu.toolkits", gpu::toolkits),
    check("gpu.nvcc", gpu::nvcc),
    check("gpu.environment", gpu::environment),
    check("gpu.jit", gpu::jit),
    check("engine.program", engine::program),
    check("engine.backend", engine::backend),
    check("engine.graphs", engine::graphs),
    check("engine.threads", engine::threads),
    check("engine.sandbox", engine::sandbox),
    check("engine.hello", live::hello),
    check("engine.offload", live::proof),
    check("engine.splits", live::splits),
    check("engine.speed", live::speed),
    check("power.table", power::table),
    check("power.status", power::status),
    check("power.clocks", power::clocks),
    check("power.mode", power::mode),
    check("power.over_current", power::over_current),
    check("heat.junction", power::junction),
    check("heat.throttling", power::throttling),
    check("memory.available", memory::available),
    check("memory.pressure", memory::pressure),
    check("memory.cma", memory::cma),
    check("memory.swap", memory::swap),
    check("memory.cgroup", memory::cgroup),
    check("memory.watchdog", memory::watchdog),
    check("models.present", models::present),
    check("models.intact", models::intact),
    check("models.fit", live::fit),
    check("ota.root", updates::root),
    check("ota.clock", updates::clock),
    check("ota.sources", updates::sources),
    check("ota.disk", updates::disk),
    check("ota.last", updates::last),
    check("service.unit", system::unit),
    check("service.watchdog", system::watchdog),
    check("service.devices", system::devices),
    check("service.broker", system::broker),
    check("daemon.running", live::running),
    check("daemon.state", live::state),
    check("broker.reachable", live::reachable),
    check("broker.anonymous", live::anonymous),
    check("broker.acl", live::acl),
    check("system.disk", system::disk),
    check("system.clock", system::clock),
    check("config.valid", config_valid),
    check("config.credentials", system::credentials),
];

fn config_valid(facts: &Facts) -> Finding {
    if !facts.config_problems.is_empty() {
        return Finding::fail(
            facts.config_problems.join("; "),
            "a configuration without mistakes; the other checks take the defaults",
            "correct what is named; `orinoco config check` shows when all is well",
        );
    }
    let own = facts
        .config
        .entries
        .iter()
        .filter(|entry| !entry.is_inherited);
    let n_set = own.filter(|entry| entry.origin != "default").count();
    Finding::ok(format!("{n_set} values are not the default"))
}

/// Clocks for a person: `1020 MHz`.
fn mhz(hz: u64) -> String {
    format!("{} MHz", (hz + 500_000) / 1_000_000)
}
