//! Who judges the fleet's settings, and puts them in force.

/// Who judges the fleet's settings, and puts them in force.
pub trait Tuning: Send {
    /// Whether they are settings that this device can have.
    ///
    /// # Errors
    /// All that is wrong with them.
    fn judge(&self, settings: &toml::Table) -> Result<(), String>;

    /// These are in force, or with `None` the device's own alone. Says which keys wait for the next start.
    fn apply(&mut self, settings: Option<&toml::Table>) -> Vec<String>;
}

/// A device without settings that could change.
impl Tuning for () {
    fn judge(&self, _settings: &toml::Table) -> Result<(), String> {
        Ok(())
    }

    fn apply(&mut self, _settings: Option<&toml::Table>) -> Vec<String> {
        Vec::new()
    }
}
