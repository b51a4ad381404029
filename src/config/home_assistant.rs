//! `[home_assistant]`: whether the node shows itself to Home Assistant.

use super::reader::Root;

/// `[home_assistant]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HomeAssistantConfig {
    /// Whether MQTT discovery is published.
    pub discovery: bool,
}

impl HomeAssistantConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        Self {
            discovery: root.section("home_assistant").boolean("discovery"),
        }
    }
}
