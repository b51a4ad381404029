//! The process environment, read once.

use std::collections::BTreeMap;

/// Variables that change what CUDA or the engine do, which the doctor asks about.
pub const OF_THE_ENGINE: &[&str] = &[
    "CUDA_CACHE_DISABLE",
    "CUDA_DISABLE_PTX_JIT",
    "CUDA_FORCE_PTX_JIT",
    "CUDA_VISIBLE_DEVICES",
    "GGML_CUDA_DISABLE_GRAPHS",
    "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "GGML_CUDA_FORCE_CUBLAS",
    "LD_LIBRARY_PATH",
];

/// Variables that the daemon reads besides its own `ORINOCO_*` and those of the engine: systemd's, and `HOME`
/// for the terminal user.
const OTHERS: &[&str] = &[
    "CREDENTIALS_DIRECTORY",
    "HOME",
    "JOURNAL_STREAM",
    "NOTIFY_SOCKET",
    "NO_COLOR",
    "RUNTIME_DIRECTORY",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// What the environment said at start. Nobody reads the process environment after this was captured, so a
/// test can give any environment to any part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Takes the variables that concern us; values that are not UTF-8 are taken lossily, and then refused
    /// as bad values where they are used.
    pub fn capture() -> Self {
        std::env::vars_os()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into_owned(),
                    value.to_string_lossy().into_owned(),
                )
            })
            .collect()
    }

    /// The value of a variable; empty counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    /// Variables that set configuration keys: the part of the name after `ORINOCO__`, and the value.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("ORINOCO__")?, value.as_str())))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours = |name: &str| {
            name.starts_with("ORINOCO_") || OTHERS.contains(&name) || OF_THE_ENGINE.contains(&name)
        };
        Self {
            variables: variables
                .into_iter()
                .filter(|(name, _)| ours(name))
                .collect(),
        }
    }
}
