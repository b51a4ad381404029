//! What reading the board costs: microseconds for each kind of sample, and the share of a core at its pace.
//!
//!     cargo bench --bench board_sample --profile release [-- ROOT]
//!
//! ROOT is `/` by default. For another tree each file is opened anew, which the live root spares; and a
//! Jetson's rails and thermal zones answer over slow buses, which no tree shows.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

use std::hint::black_box;
use std::time::Instant;

use orinoco::board::memory::MemoryProbe;
use orinoco::board::power::PowerProbe;
use orinoco::board::pressure::PressureProbe;
use orinoco::board::sensors::Sensors;
use orinoco::board::{Faults, Root};

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let root = Root::new(args.next().unwrap_or_else(|| "/".into()));
    println!(
        "{:24}{:>12}{:>10}{:>14}",
        "sample", "us", "at Hz", "% of a core"
    );
    let mut memory = MemoryProbe::new(&root);
    let mut pressure = PressureProbe::new(&root);
    for hz in [4.0, 50.0] {
        row("meminfo", hz, || black_box(memory.read()).is_ok());
        row("pressure", hz, || black_box(pressure.read()).is_ok());
    }
    let mut power = PowerProbe::new(&root, None);
    row("power mode and clocks", 2.0, || {
        black_box(power.read(None)).faults.is_empty()
    });
    let mut sensors = Sensors::find(&root, &mut Faults::default());
    row("all sensors", 1.0, || {
        black_box(sensors.read()).faults.is_empty()
    });
}

/// Median of 2,000 samples, since a busy machine only ever adds to some.
fn row(name: &str, hz: f64, mut sample: impl FnMut() -> bool) {
    let mut micros: Vec<f64> = (0..2000)
        .map(|_| {
            let start = Instant::now();
            black_box(sample());
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    micros.sort_by(f64::total_cmp);
    let median = micros[micros.len() / 2];
    let percent = median * hz / 1e6 * 100.0;
    println!("{name:24}{median:>12.1}{hz:>10}{percent:>14.4}");
}
