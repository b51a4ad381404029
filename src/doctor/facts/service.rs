//! How systemd starts the daemon: `orinoco.service` with its drop-ins, as far as the checks ask.
//!
//! ```text
//!     [Service]
//!     Type=notify
//!     Environment=A=1 "B=two words"
//!     DeviceAllow=                      an empty value takes back what was listed before
//! ```

use std::collections::BTreeMap;

use crate::board::Root;

/// Where units are looked for, the first wins (systemd.unit(5)).
const DIRS: &[&str] = &[
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Largest unit file that is read, bytes.
const UNIT_BYTES_MAX: usize = 64 * 1024;

/// The section `[Service]` of a unit and its drop-ins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Where the unit is, on the board.
    pub path: String,
    keys: BTreeMap<String, Vec<String>>,
}

impl Service {
    /// Reads the unit `name`; `None`: it is not installed.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(root: &Root, name: &str) -> Result<Option<Self>, String> {
        let mut service = Self::default();
        for dir in DIRS {
            let path = format!("{dir}/{name}");
            match root.bytes(&path, UNIT_BYTES_MAX) {
                Ok(None) => continue,
                Ok(Some(bytes)) => {
                    service.path = path;
                    service.take(&String::from_utf8_lossy(&bytes));
                    break;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        if service.path.is_empty() {
            return Ok(None);
        }
        // Sorted by file name, whatever the directory; of two with one name the earlier directory's counts.
        let mut drop_ins = BTreeMap::new();
        for dir in DIRS.iter().map(|dir| format!("{dir}/{name}.d")) {
            for file in root
                .names(&dir, "")
                .into_iter()
                .filter(|f| f.ends_with(".conf"))
            {
                drop_ins
                    .entry(file.clone())
                    .or_insert(format!("{dir}/{file}"));
            }
        }
        for path in drop_ins.values() {
            match root.bytes(path, UNIT_BYTES_MAX) {
                Ok(bytes) => service.take(&String::from_utf8_lossy(&bytes.unwrap_or_default())),
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(Some(service))
    }

    fn take(&mut self, text: &str) {
        let mut section = "";
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
            {
                section = if name == "Service" { "Service" } else { "" };
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| section == "Service") else {
                continue;
            };
            let values = self.keys.entry(key.trim().to_owned()).or_default();
            match value.trim() {
                "" => values.clear(),
                value => values.push(value.to_owned()),
            }
        }
    }

    /// The value of a key that has one: the last that was set.
    pub fn last(&self, key: &str) -> Option<&str> {
        self.keys.get(key)?.last().map(String::as_str)
    }

    /// All values of a key that is a list.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &str> {
        self.keys.get(key).into_iter().flatten().map(String::as_str)
    }

    /// Whether a switch is on.
    pub fn is_on(&self, key: &str) -> bool {
        matches!(self.last(key), Some("1" | "yes" | "true" | "on"))
    }

    /// `Environment=`, by name.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let words = self.all("Environment").flat_map(words);
        let pairs = words.filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        pairs.collect()
    }

    /// The program of `ExecStart=`.
    pub fn program(&self) -> Option<&str> {
        let first = self.last("ExecStart")?.split_whitespace().next()?;
        Some(first.trim_start_matches(['@', '-', ':', '+', '!']))
    }

    /// Credentials that are read from files: name, and path on the board.
    pub fn credentials(&self) -> Vec<(String, String)> {
        let pairs = self.all("LoadCredential").filter_map(|value| {
            let (name, path) = value.split_once(':')?;
            path.starts_with('/')
                .then(|| (name.to_owned(), path.to_owned()))
        });
        pairs.collect()
    }

    /// Whether a credential has a value of its own for when its file is missing.
    pub fn has_fallback(&self, credential: &str) -> bool {
        self.all("SetCredential")
            .any(|value| value.split(':').next() == Some(credential))
    }
}

/// Words separated by spaces; quotes hold words together.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, c) if c.is_whitespace() => words.push(std::mem::take(&mut word)),
            (_, c) => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Service {
        let mut service = Service::default();
        service.take(text);
        service
    }

    #[test]
    fn the_last_value_counts_and_an_empty_one_takes_the_list_back() {
        let service = service(
            "[Unit]\nType=other\n[Service]\nType=simple\nType=notify\n# Type=no\n\
             DeviceAllow=/dev/a rw\nDeviceAllow=\nDeviceAllow=/dev/b \\\n rw\n[Install]\nType=last\n",
        );
        assert_eq!(service.last("Type"), Some("notify"));
        assert_eq!(
            service.all("DeviceAllow").collect::<Vec<_>>(),
            ["/dev/b   rw"]
        );
    }

    #[test]
    fn environment_and_credentials_are_taken_apart() {
        let service = service(
            "[Service]\nEnvironment=A=1 \"B=two words\"\nEnvironment=A=3\nExecStart=-/usr/bin/orinoco run\n\
             LoadCredential=mqtt.password:/etc/orinoco/mqtt.password\nLoadCredential=other\n\
             SetCredential=mqtt.password:x\nPrivateDevices=true\n",
        );
        let expected = [("A", "3"), ("B", "two words")];
        let expected = expected.map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(service.environment(), BTreeMap::from(expected));
        assert_eq!(service.program(), Some("/usr/bin/orinoco"));
        let credentials = service.credentials();
        assert_eq!(
            credentials,
            [("mqtt.password".into(), "/etc/orinoco/mqtt.password".into())]
        );
        assert!(service.has_fallback("mqtt.password") && !service.has_fallback("other"));
        assert!(service.is_on("PrivateDevices") && !service.is_on("PrivateNetwork"));
    }
}
