//! Where log lines go: the journal with fields under systemd, lines on stderr elsewhere.
//!
//! [`init`] is called once by `main`, after the configuration is known. It also installs a panic hook that
//! logs and then **ends the process**: a panic in one task would otherwise leave an appliance that looks
//! alive and answers nobody, and systemd restarts a dead one within a second.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Environment, LogConfig, LogFormat, check_log_filter};

/// Variable that overrides `log.level`.
pub const LEVEL_VARIABLE: &str = "ORINOCO_LOG";

/// Prefix of our fields in the journal, so that none can pass for one of the journal's own.
const FIELD_PREFIX: &str = "ORINOCO";

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `ORINOCO_LOG` holds something else than a filter.
    #[error("{LEVEL_VARIABLE}={value}: expected {expected}")]
    Filter {
        /// As found.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// `log.format = "journal"` where there is none.
    #[error("log.format = \"journal\": connect to the journal: {0}")]
    Journal(#[source] std::io::Error),
    /// Logging was set up before.
    #[error("a logger is set already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging for the whole process.
///
/// The level is that of `-v` (once: our debug; twice: our trace) if given, else of `ORINOCO_LOG`, else of
/// the configuration.
///
/// # Errors
/// [`LogError`]; nothing is logged then, and the caller prints it.
pub fn init(config: &LogConfig, environment: &Environment, verbosity: u8) -> Result<(), LogError> {
    let filter = filter(config, environment, verbosity)?;
    let journal = match config.format {
        LogFormat::Text => None,
        LogFormat::Journal => Some(tracing_journald::layer().map_err(LogError::Journal)?),
        LogFormat::Auto if stderr_is_journal(environment.get("JOURNAL_STREAM")) => {
            // Without the journal's socket, its stdout stream still takes plain lines.
            tracing_journald::layer().ok()
        }
        LogFormat::Auto => None,
    };
    let journal = journal.map(|layer| layer.with_field_prefix(Some(FIELD_PREFIX.into())));
    let lines = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal() && environment.get("NO_COLOR").is_none())
            .with_target(false)
    });
    tracing_subscriber::registry()
        .with(filter)
        .with(journal)
        .with(lines)
        .try_init()?;
    end_on_panic();
    Ok(())
}

/// What is logged: a filter as in `log.level`.
///
/// # Errors
/// [`LogError::Filter`].
pub fn level(
    config: &LogConfig,
    environment: &Environment,
    verbosity: u8,
) -> Result<String, LogError> {
    match (verbosity, environment.get(LEVEL_VARIABLE)) {
        (0, None) => Ok(config.level.clone()),
        (0, Some(value)) => match check_log_filter(value) {
            Ok(()) => Ok(value.to_owned()),
            Err(expected) => Err(LogError::Filter {
                value: value.to_owned(),
                expected,
            }),
        },
        (1, _) => Ok("info,orinoco=debug".to_owned()),
        _ => Ok("debug,orinoco=trace".to_owned()),
    }
}

fn filter(
    config: &LogConfig,
    environment: &Environment,
    verbosity: u8,
) -> Result<Targets, LogError> {
    let level = level(config, environment, verbosity)?;
    Ok(level
        .parse()
        .expect("check_log_filter is stricter than the parser"))
}

/// systemd.exec(5): `JOURNAL_STREAM` is `DEVICE:INODE` of the stream that it connected us to. A redirected
/// stderr keeps the variable but not the file, so both are compared.
fn stderr_is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|s| s.split_once(':')) else {
        return false;
    };
    match std::fs::metadata("/proc/self/fd/2") {
        Ok(stderr) => device.parse() == Ok(stderr.dev()) && inode.parse() == Ok(stderr.ino()),
        Err(_) => false,
    }
}

fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        let message = info
            .payload()
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| info.payload().downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a value that is no text");
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            location,
            %backtrace,
            "panicked: {message}; the process ends"
        );
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_filter_that_passes_the_check_is_parsed_as_meant() {
        let config = LogConfig {
            level: "warn,orinoco::link=debug".into(),
            format: LogFormat::Text,
        };
        let targets = filter(&config, &Environment::default(), 0).unwrap();
        assert!(targets.would_enable("orinoco::link", &tracing::Level::DEBUG));
        assert!(!targets.would_enable("orinoco::store", &tracing::Level::INFO));
    }

    #[test]
    fn verbosity_wins_over_the_variable_and_the_variable_over_the_file() {
        let config = LogConfig {
            level: "error".into(),
            format: LogFormat::Text,
        };
        let variable = Environment::from_iter([("ORINOCO_LOG".to_owned(), "warn".to_owned())]);
        let enables = |verbosity, level: &tracing::Level| {
            filter(&config, &variable, verbosity)
                .unwrap()
                .would_enable("orinoco", level)
        };
        assert!(enables(0, &tracing::Level::WARN) && !enables(0, &tracing::Level::INFO));
        assert!(enables(1, &tracing::Level::DEBUG) && !enables(1, &tracing::Level::TRACE));
        assert!(enables(2, &tracing::Level::TRACE));
    }

    #[test]
    fn a_stream_that_is_not_ours_is_not_the_journal() {
        let stderr = std::fs::metadata("/proc/self/fd/2").unwrap();
        let ours = format!("{}:{}", stderr.dev(), stderr.ino());
        assert!(stderr_is_journal(Some(&ours)));
        assert!(!stderr_is_journal(Some("1:2")));
        assert!(!stderr_is_journal(Some("nonsense")));
        assert!(!stderr_is_journal(None));
    }
}
