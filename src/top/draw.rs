//! PURE: a [`View`] as lines of text.

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline, Widget, Wrap};
use serde::Serialize;

use super::{View, plain};
use crate::wire::report::State;

const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);
const DIM: Style = Style::new().fg(Color::DarkGray);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
/// A document older than this is said to be old, in milliseconds.
const OLD_MS: u64 = 30_000;

/// Draws a view; `now_ms` is the unix time, for ages.
pub fn draw(view: &View, now_ms: u64, area: Rect, buf: &mut Buffer) {
    let board_rows = board(view).len() as u16;
    // Nodes of protocol 1.0 tell none.
    let has_classes = (view.queue.as_ref()).is_some_and(|queue| queue.classes.is_some());
    let [head, state, upper, classes, memory, lower, update, events] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(state_rows(view)),
        Constraint::Length(7),
        Constraint::Length(if has_classes { 3 } else { 0 }),
        Constraint::Length(4),
        Constraint::Length((board_rows + 2).min(9)),
        Constraint::Length(if view.update.is_some() { 3 } else { 0 }),
        Constraint::Min(0),
    ])
    .areas(area);
    Paragraph::new(header(view, now_ms)).render(head, buf);
    Paragraph::new(state_lines(view))
        .wrap(Wrap { trim: true })
        .render(state, buf);
    let [requests, speed, trend] = Layout::horizontal([
        Constraint::Percentage(32),
        Constraint::Percentage(34),
        Constraint::Percentage(34),
    ])
    .areas(upper);
    boxed("requests", requests_lines(view), requests, buf);
    boxed("speed", speed_lines(view), speed, buf);
    draw_trend(view, trend, buf);
    if has_classes {
        boxed("classes", vec![classes_line(view)], classes, buf);
    }
    draw_memory(view, memory, buf);
    boxed("board", board(view), lower, buf);
    draw_update(view, update, buf);
    if events.height > 2 {
        boxed(
            "events",
            event_lines(view, now_ms, events.height - 2),
            events,
            buf,
        );
    }
}

/// The wire's word for a value of one of its enums.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn boxed(title: &str, lines: Vec<Line<'_>>, area: Rect, buf: &mut Buffer) {
    let block = frame(title);
    Paragraph::new(lines).block(block).render(area, buf);
}

fn frame(title: &str) -> Block<'_> {
    Block::bordered()
        .border_style(DIM)
        .title(Span::styled(format!(" {title} "), BOLD))
}

fn header(view: &View, now_ms: u64) -> Line<'static> {
    let mut spans = vec![Span::styled(format!("Orinoco {}", view.node), BOLD)];
    if let Some(info) = &view.info {
        let board = (info.hardware.board.as_deref()).unwrap_or(&info.hardware.arch);
        spans.push(Span::raw(format!(
            "  {}  v{}",
            plain(board),
            plain(&info.version)
        )));
    }
    if let Some(reason) = &view.down {
        spans.push(Span::styled(format!("  no broker: {}", plain(reason)), BAD));
        return Line::from(spans);
    }
    let (text, style) = match &view.status {
        None => ("not seen".to_owned(), WARN),
        Some(status) => {
            let word = word(&status.state);
            let style = match word.as_str() {
                "online" => GOOD,
                "draining" => WARN,
                _ => BAD,
            };
            (
                format!("{word} for {}", age(now_ms.saturating_sub(status.since_ms))),
                style,
            )
        }
    };
    spans.push(Span::styled(format!("  {text}"), style));
    let told = view.queue.as_ref().map(|queue| queue.at_ms);
    if let Some(old) = told
        .map(|at| now_ms.saturating_sub(at))
        .filter(|old| *old > OLD_MS)
    {
        spans.push(Span::styled(
            format!("  figures are {} old", age(old)),
            WARN,
        ));
    }
    Line::from(spans)
}

fn state_rows(view: &View) -> u16 {
    let n_reasons = view.state.as_ref().map_or(0, |state| state.reasons.len());
    1 + (n_reasons.min(2) as u16)
}

fn state_lines(view: &View) -> Vec<Line<'static>> {
    let Some(state) = &view.state else {
        return vec![Line::styled("waiting for the node's state", DIM)];
    };
    let mode = word(&state.mode);
    let style = match mode.as_str() {
        "serving" | "idle" => GOOD,
        "no_model" => BAD,
        _ => WARN,
    };
    let mut spans = vec![Span::styled(mode, style)];
    if let Some(model) = &state.model {
        spans.push(Span::styled(format!("  {}", plain(model)), BOLD));
    }
    if let Some(progress) = state.load_progress {
        spans.push(Span::raw(format!("  {:.0} % loaded", progress * 100.0)));
    }
    spans.extend(power(state));
    let mut lines = vec![Line::from(spans)];
    lines.extend(
        (state.reasons.iter().take(2))
            .map(|reason| Line::styled(format!("  {}", plain(reason)), WARN)),
    );
    lines
}

fn power(state: &State) -> Vec<Span<'static>> {
    let Some(power) = &state.power else {
        return vec![];
    };
    let mut spans = vec![Span::styled(
        format!("  chosen by {}", word(&power.chosen_by)),
        DIM,
    )];
    if power.hot || power.n_steps_down > 0 {
        let text = format!("  hot: {} side by side", power.n_seq);
        spans.push(Span::styled(text, WARN));
    }
    spans
}

fn requests_lines(view: &View) -> Vec<Line<'static>> {
    let Some(queue) = &view.queue else {
        return vec![];
    };
    let waits = (queue.oldest_wait_ms.filter(|ms| *ms > 0))
        .map_or(String::new(), |ms| format!("  oldest {}", age(ms)));
    let waiting = if queue.waiting_count > 0 {
        WARN
    } else {
        Style::new()
    };
    vec![
        pair("running", queue.running_count.to_string(), BOLD),
        pair(
            "waiting",
            format!("{}{waits}", queue.waiting_count),
            waiting,
        ),
        pair("answered", queue.answered_count.to_string(), Style::new()),
        pair("refused", queue.refused_count.to_string(), Style::new()),
        pair(
            "failed",
            queue.failed_count.to_string(),
            if queue.failed_count > 0 {
                WARN
            } else {
                Style::new()
            },
        ),
    ]
}

/// What runs and waits in each class, and how long 95 of 100 waited lately; the first to be served first.
fn classes_line(view: &View) -> Line<'static> {
    let Some(queue) = &view.queue else {
        return Line::default();
    };
    let known = ["alarm", "normal", "batch"];
    let rank = |name: &str| known.iter().position(|it| *it == name);
    let mut classes: Vec<_> = queue.classes.iter().flatten().collect();
    // The names are a node's, so there may be others, of a later version.
    classes.sort_by_key(|(name, _)| rank(name).unwrap_or(known.len()));
    let mut spans = Vec::new();
    for (name, class) in classes.into_iter().take(6) {
        let mut parts = Vec::new();
        if class.running_count > 0 {
            parts.push(format!("{} running", class.running_count));
        }
        if class.waiting_count > 0 {
            parts.push(format!("{} waiting", class.waiting_count));
        }
        if let Some(wait) = &class.wait_ms {
            parts.push(format!("waited {}", age(wait.p95.max(0.0) as u64)));
        }
        if parts.is_empty() {
            parts.push("-".to_owned());
        }
        let style = match (name.as_str(), class.waiting_count) {
            ("alarm", 1..) => BAD,
            (_, 1..) => WARN,
            _ => Style::new(),
        };
        spans.push(Span::styled(format!("{} ", plain(name)), DIM));
        spans.push(Span::styled(format!("{}   ", parts.join(", ")), style));
    }
    if let Some(n) = queue.parked_count.filter(|n| *n > 0) {
        spans.push(Span::styled(format!("parked {n}"), DIM));
    }
    Line::from(spans)
}

fn speed_lines(view: &View) -> Vec<Line<'static>> {
    let Some(llm) = &view.llm else {
        return vec![];
    };
    let each = match llm.streams_count {
        0 => String::new(),
        1 => "  one stream".to_owned(),
        n => format!("  {n} × {:.1}", llm.tok_s / n as f64),
    };
    let quantiles = |ms: &Option<crate::wire::telemetry::QuantilesMs>| match ms {
        Some(ms) => format!("{:.0} / {:.0} ms", ms.p50, ms.p95),
        None => "-".into(),
    };
    let cached = match llm.prompt_tokens_count {
        0 => String::new(),
        n => format!(
            "  {:.0} % cached",
            llm.cached_tokens_count as f64 * 100.0 / n as f64
        ),
    };
    let energy = llm.energy_mj_tok;
    vec![
        pair("tok/s", format!("{:.1}{each}", llm.tok_s), BOLD),
        pair("first tok", quantiles(&llm.ttft_ms), Style::new()),
        pair("next tok", quantiles(&llm.itl_ms), Style::new()),
        pair(
            "made",
            format!("{}{cached}", llm.tokens_count),
            Style::new(),
        ),
        pair(
            "energy",
            energy.map_or("-".into(), |mj| format!("{mj:.1} mJ/tok")),
            Style::new(),
        ),
    ]
}

fn draw_trend(view: &View, area: Rect, buf: &mut Buffer) {
    let block = frame("tok/s, lately");
    let inner = block.inner(area);
    block.render(area, buf);
    let width = usize::from(inner.width);
    let skip = view.history.len().saturating_sub(width);
    let data: Vec<u64> = view.history.iter().skip(skip).copied().collect();
    Sparkline::default()
        .data(&data)
        .style(Style::new().fg(Color::Cyan))
        .render(inner, buf);
}

/// What the ledger knows of the memory, as a bar over all of it.
fn draw_memory(view: &View, area: Rect, buf: &mut Buffer) {
    let block = frame("memory");
    let inner = block.inner(area);
    block.render(area, buf);
    let Some(total) = view.host.as_ref().and_then(|host| host.memory_total_bytes) else {
        return;
    };
    let available = (view.host.as_ref())
        .and_then(|host| host.memory_available_bytes)
        .unwrap_or(0)
        .min(total);
    // What was planned and refused takes nothing.
    let memory = (view.state.as_ref())
        .and_then(|state| state.memory)
        .filter(|memory| memory.taken_bytes.is_some());
    let planned = memory.map_or([0; 4], |it| {
        [
            it.weights_bytes,
            it.kv_bytes,
            it.compute_bytes.saturating_add(it.gpu_context_bytes),
            it.process_bytes,
        ]
    });
    let used = total - available;
    let ours: u64 = planned
        .iter()
        .fold(0, |sum, part| sum.saturating_add(*part));
    let other = used.saturating_sub(ours);
    let parts = [
        ("weights", planned[0], Color::Blue),
        ("kv", planned[1], Color::Cyan),
        ("compute", planned[2], Color::Magenta),
        ("process", planned[3], Color::Gray),
        ("others", other, Color::DarkGray),
    ];
    let width = u64::from(inner.width);
    let mut bar = Vec::new();
    let mut n_drawn = 0;
    let mut sum: u64 = 0;
    for (_, bytes, color) in parts {
        sum = sum.saturating_add(bytes).min(total);
        // From the running sum, so that rounding never adds up.
        let end = (u128::from(sum) * u128::from(width) / u128::from(total.max(1))) as u64;
        let n = (end - n_drawn) as usize;
        n_drawn = end;
        bar.push(Span::styled("█".repeat(n), Style::new().fg(color)));
    }
    bar.push(Span::styled("░".repeat((width - n_drawn) as usize), DIM));
    let level = view.state.as_ref().and_then(|state| state.pressure);
    let level = level.map(|pressure| word(&pressure.level));
    let style = match level.as_deref() {
        None | Some("ok") => GOOD,
        Some("trim") => WARN,
        _ => BAD,
    };
    let mut legend = vec![Span::styled(
        format!("free {} of {}  ", size(available), size(total)),
        style,
    )];
    if let Some(level) = level.filter(|level| level != "ok") {
        legend.push(Span::styled(format!("{level}  "), style));
    }
    for (name, bytes, color) in parts.iter().filter(|part| part.1 > 0) {
        legend.push(Span::styled("■ ", Style::new().fg(*color)));
        legend.push(Span::raw(format!("{name} {}  ", size(*bytes))));
    }
    Paragraph::new(vec![Line::from(bar), Line::from(legend)]).render(inner, buf);
}

fn board(view: &View) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let Some(host) = &view.host else {
        return lines;
    };
    let mut power = Vec::new();
    if let Some(mode) = &host.power_mode {
        power.push(format!("mode {}", plain(mode)));
    }
    if let Some(mw) = host.module_mw {
        power.push(format!("module {:.1} W", mw as f64 / 1000.0));
    }
    for (rail, mw) in host.rails_mw.iter().take(6) {
        power.push(format!("{} {:.1} W", plain(rail), *mw as f64 / 1000.0));
    }
    if !power.is_empty() {
        lines.push(pair("power", power.join("  "), Style::new()));
    }
    if !host.temperatures_c.is_empty() {
        let hottest = host
            .temperatures_c
            .values()
            .copied()
            .fold(f32::MIN, f32::max);
        let zones: Vec<String> = (host.temperatures_c.iter().take(8))
            .map(|(zone, c)| format!("{} {c:.0} °C", plain(zone.trim_end_matches("-thermal"))))
            .collect();
        let style = match hottest {
            c if c >= 95.0 => BAD,
            c if c >= 80.0 => WARN,
            _ => Style::new(),
        };
        lines.push(pair("heat", zones.join("  "), style));
    }
    if let Some(gpu) = &view.gpu {
        let load = (gpu.load_percent).map_or("-".into(), |percent| format!("{percent:.0} %"));
        let clock = match (gpu.clock_mhz, gpu.clock_max_mhz) {
            (Some(now), Some(max)) => format!("  {now} of {max} MHz"),
            (Some(now), None) => format!("  {now} MHz"),
            _ => String::new(),
        };
        lines.push(pair("gpu", format!("{load}{clock}"), Style::new()));
    }
    let mut more = Vec::new();
    if let Some(rpm) = host.fan_rpm {
        more.push(format!("fan {rpm} rpm"));
    }
    if let Some(percent) = host.memory_stall_some_percent {
        more.push(format!("memory stall {percent:.1} %"));
    }
    if let Some(bytes) = host.swap_used_bytes.filter(|bytes| *bytes > 0) {
        more.push(format!("swap {}", size(bytes)));
    }
    let n_over: u64 = (host.over_current_count.values()).fold(0, |sum, n| sum.saturating_add(*n));
    if n_over > 0 {
        more.push(format!("over-current {n_over}"));
    }
    if let Some(bytes) = host.supervisor_rss_bytes {
        more.push(format!("supervisor {}", size(bytes)));
    }
    if !more.is_empty() {
        lines.push(pair("else", more.join("  "), Style::new()));
    }
    lines
}

fn draw_update(view: &View, area: Rect, buf: &mut Buffer) {
    let Some(update) = &view.update else {
        return;
    };
    let mut spans = match update.state.as_str() {
        "" => vec![Span::styled("none so far", DIM)],
        state => {
            let style = if update.is_bad() { BAD } else { BOLD };
            vec![Span::styled(state.replace('_', " "), style)]
        }
    };
    if let Some(release) = &update.release {
        spans.push(Span::raw(format!("  {release}")));
    }
    if let Some(fraction) = update.fraction {
        let n_done = (fraction * 20.0) as usize;
        spans.push(Span::styled(
            format!("  {}{}", "█".repeat(n_done), "░".repeat(20 - n_done)),
            Style::new().fg(Color::Cyan),
        ));
        spans.push(Span::raw(format!(" {:.0} %", (fraction * 100.0).floor())));
        if let Some(seconds) = update.eta_seconds {
            let left = age(seconds.saturating_mul(1000));
            spans.push(Span::raw(format!("  {left} left")));
        }
    }
    if let Some(model) = &update.installed {
        let tried = if update.is_on_probation {
            " (on probation)"
        } else {
            ""
        };
        spans.push(Span::styled(format!("  in service {model}{tried}"), DIM));
    }
    if let Some(newer) = &update.newer {
        spans.push(Span::styled(format!("  newer {newer}"), DIM));
    }
    if let Some(reason) = &update.reason {
        spans.push(Span::styled(format!("  {reason}"), WARN));
    }
    boxed("update", vec![Line::from(spans)], area, buf);
}

fn event_lines(view: &View, now_ms: u64, rows: u16) -> Vec<Line<'static>> {
    (view.events.iter().rev().take(usize::from(rows)))
        .map(|event| {
            Line::from(vec![
                Span::styled(
                    format!("{:>8} ago  ", age(now_ms.saturating_sub(event.at_ms))),
                    DIM,
                ),
                Span::styled(
                    event.text.clone(),
                    if event.is_good { Style::new() } else { WARN },
                ),
            ])
        })
        .collect()
}

fn pair(name: &str, value: String, style: Style) -> Line<'static> {
    Line::from(vec![
        Span::styled(format!("{name:<10}"), DIM),
        Span::styled(value, style),
    ])
}

/// Bytes in the unit that needs the fewest digits.
fn size(bytes: u64) -> String {
    const MIB: f64 = 1_048_576.0;
    match bytes as f64 / MIB {
        mib if mib >= 10_240.0 => format!("{:.0} GiB", mib / 1024.0),
        mib if mib >= 1024.0 => format!("{:.1} GiB", mib / 1024.0),
        mib => format!("{mib:.0} MiB"),
    }
}

/// A time in the one unit that says most.
fn age(ms: u64) -> String {
    match ms / 1000 {
        s if s < 1 => format!("{ms} ms"),
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}
