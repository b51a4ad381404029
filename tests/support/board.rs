//! Boards as trees that a test may change: copies of `tests/boards/` in temporary directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use orinoco::board::Root;
use orinoco::board::nvpmodel;

const GPU: &str = "sys/devices/platform/bus@0/17000000.gpu";
const CPU: &str = "sys/devices/system/cpu";

/// A board's tree, gone with its value.
pub struct Tree(tempfile::TempDir);

impl Tree {
    /// A copy of `tests/boards/NAME`, or of `tests/boards/variants/NAME` over its base.
    pub fn new(name: &str) -> Self {
        Self::layered(name, &[])
    }

    /// The same with Orinoco installed (`tests/boards/installed`); `name` may be one of
    /// `tests/boards/setups` too, where something about that differs.
    pub fn installed(name: &str) -> Self {
        Self::layered(name, &["installed"])
    }

    fn layered(name: &str, over_base: &[&str]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        let places = ["variants", "setups"].map(|place| boards().join(place).join(name));
        let variant = places.iter().find(|place| place.join("BASE").exists());
        let base = match variant {
            Some(variant) => fs::read_to_string(variant.join("BASE")).unwrap(),
            None => name.to_owned(),
        };
        let mut lines = base.lines();
        for layer in lines.next().iter().chain(over_base) {
            copy(&boards().join(layer), tree.0.path());
        }
        for line in lines {
            tree.remove(line.strip_prefix("- ").unwrap());
        }
        if let Some(variant) = variant {
            copy(variant, tree.0.path());
            tree.remove("BASE");
        }
        tree
    }

    /// All variants by name.
    pub fn variants() -> Vec<String> {
        names("variants")
    }

    /// All setups by name.
    pub fn setups() -> Vec<String> {
        names("setups")
    }

    pub fn root(&self) -> Root {
        Root::new(self.0.path())
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    /// Rewrites a file in place, as nvpmodel does.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Replaces a file by renaming another one over it.
    pub fn replace(&self, path: &str, text: &str) {
        let (path, new) = (self.path(path), self.path("new.tmp"));
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Takes a file or a directory away.
    pub fn remove(&self, path: &str) {
        let path = self.path(path);
        match path.symlink_metadata().unwrap().is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    /// Sets a mode as nvpmodel does: clocks and cores, then the status.
    pub fn set_mode(&self, name: &str) {
        let table = nvpmodel::read_table(&self.root(), "/etc/nvpmodel.conf");
        let table = table.unwrap().unwrap();
        let mode = table.named(name).unwrap();
        let caps = mode.caps();
        let clocks = fs::read_to_string(
            self.path(&format!("{GPU}/devfreq/17000000.gpu/available_frequencies")),
        );
        let highest = clocks
            .unwrap()
            .split_whitespace()
            .next_back()
            .unwrap()
            .parse()
            .unwrap();
        let gpu_hz = caps.gpu_hz.unwrap_or(highest);
        self.write(
            &format!("{GPU}/devfreq/17000000.gpu/max_freq"),
            &format!("{gpu_hz}\n"),
        );
        if let Some(mask) = mode.tpc_mask {
            self.write(&format!("{GPU}/tpc_pg_mask"), &format!("{mask}\n"));
        }
        let n_cores = caps.n_cores.unwrap();
        self.write(&format!("{CPU}/online"), &format!("0-{}\n", n_cores - 1));
        for policy in [0, 4, 8] {
            let dir = format!("{CPU}/cpufreq/policy{policy}");
            let limit =
                fs::read_to_string(self.path(&format!("{CPU}/cpufreq/policy0/cpuinfo_max_freq")));
            match (policy < n_cores, self.path(&dir).exists()) {
                (true, _) => {
                    let khz = caps
                        .cpu_khz
                        .map_or(limit.unwrap(), |khz| format!("{khz}\n"));
                    self.write(&format!("{dir}/scaling_max_freq"), &khz);
                }
                (false, true) => self.remove(&dir),
                (false, false) => {}
            }
        }
        let emc_hz = caps.emc_hz.unwrap_or(3_199_000_000);
        self.write("sys/kernel/nvpmodel_clk_cap/emc", &format!("{emc_hz}\n"));
        self.write(nvpmodel::STATUS, &format!("pmode:{:04}\n", mode.id));
    }
}

fn boards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boards")
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(boards().join(dir)).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            fs::create_dir_all(&to).unwrap();
            copy(&from, &to);
        } else if kind.is_symlink() {
            // An upper layer's link replaces what is there.
            let _ = fs::remove_file(&to);
            symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}
