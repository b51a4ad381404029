//! Orders as they come over MQTT: bounded, and none of them names an address or a file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Command;
use crate::ota::name::LineName;
use crate::ota::state::{DeploymentId, Origin, Want, When, Window};

/// `{r}/v1/fleet/{group}/desired`: the release that a group of nodes is to run, retained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaDesired")]
pub struct Desired {
    /// Rises with each wish; a node ignores one that it has heard or a lower one.
    pub desired_seq: u64,
    /// Names this wish in states and events: 1 to 64 of `A-Z a-z 0-9 _ . -`.
    pub deployment: String,
    /// The line.
    pub line: String,
    /// The release, one of the signed catalogue; absent: the best that may be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_seq: Option<u64>,
    /// When it is put into service, once it is there.
    #[serde(default)]
    pub when: When,
    /// For `window`: two times of day, local to the node, e.g. `22:00-05:00`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Most kilobits a second that its download takes; 0 or absent: as the node is configured.
    #[serde(default)]
    pub max_kbit_s: u32,
    /// Also a release that has failed on this node before.
    #[serde(default)]
    pub force: bool,
    /// Opened to this share of the group, in percent; a node finds its own place from its name and the release.
    /// 0: nobody begins any more. Absent: all.
    #[serde(default = "all", skip_serializing_if = "is_all")]
    pub percent: u8,
}

const fn all() -> u8 {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_all(percent: &u8) -> bool {
    *percent == all()
}

impl Desired {
    /// The wish, judged.
    ///
    /// # Errors
    /// What was found, and what was expected.
    pub fn want(&self) -> Result<Want, String> {
        let window = self.window.as_deref().map(Window::parse).transpose()?;
        if self.when == When::Window && window.is_none() {
            return Err("`when` is `window`, and there is no `window`".to_owned());
        }
        if self.percent > 100 {
            return Err(format!("`percent` is {}, expected 0 to 100", self.percent));
        }
        if self.percent < 100 && self.release_seq.is_none() {
            return Err(
                "`percent` needs a `release_seq`: places are drawn for each release".to_owned(),
            );
        }
        Ok(Want {
            deployment: DeploymentId::new(&self.deployment)?,
            line: LineName::new(&self.line).map_err(|error| error.to_string())?,
            release_seq: self.release_seq,
            when: self.when,
            window,
            max_kbit_s: self.max_kbit_s,
            force: self.force,
            origin: Origin::Fleet {
                desired_seq: self.desired_seq,
            },
        })
    }
}

/// Reads `{r}/v1/fleet/{group}/desired`. An empty payload takes the wish back, which changes nothing here.
///
/// # Errors
/// What was found, and what was expected.
pub fn desired(payload: &[u8]) -> Result<Option<Command>, String> {
    if payload.is_empty() {
        return Ok(None);
    }
    let desired: Desired = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
    let want = desired.want()?;
    Ok(Some(Command::Fleet {
        want,
        percent: desired.percent,
    }))
}

/// What a node can be told to do about updates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "OtaAction")]
pub enum Action {
    /// Look at the sources now.
    Check,
    /// Take a release of `line`, or of the line deployed last: `release_seq`, or the best.
    Install,
    /// Hold the download.
    Pause,
    /// Go on with it.
    Resume,
    /// Call off what has changed nothing yet.
    Cancel,
    /// Put into service what waits for it.
    Activate,
    /// Back to the release before.
    Rollback,
    /// The fleet's settings before those in force, or the node's own.
    RollbackPolicy,
    /// Read all model files again.
    Scrub,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "OtaCommandStatus")]
pub enum Status {
    /// Asked for.
    Init,
    /// Under way.
    Executing,
    /// Taken; `ota/state` and `evt/ota` tell what comes of it.
    Successful,
    /// Not taken; nothing changed.
    Failed,
}

/// `{r}/v1/{n}/cmd/ota/{cid}`: an order about updates, retained, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OtaCommand {
    /// `init` is written by the operator, the rest by the node.
    pub status: Status,
    /// What to do; absent in the node's answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    /// For `install` and `rollback`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// For `install`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_seq: Option<u64>,
    /// In the answer to `install` and `rollback`: the deployment that `ota/state` and `evt/ota` tell of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Reads `{r}/v1/{n}/cmd/ota/{cid}`; `None` for what is no order: our own answers, and its clearing.
///
/// # Errors
/// What was found, and what was expected.
pub fn command(payload: &[u8], ticket: &str) -> Result<Option<Command>, String> {
    if payload.is_empty() {
        return Ok(None);
    }
    let asked: OtaCommand = serde_json::from_slice(payload).map_err(|error| {
        format!("expected {{\"status\":\"init\",\"action\":\"check\"}}: {error}")
    })?;
    if asked.status != Status::Init {
        return Ok(None);
    }
    let line = asked.line.as_deref().map(LineName::new).transpose();
    let line = line.map_err(|error| error.to_string())?;
    Ok(Some(match asked.action.ok_or("no `action`")? {
        Action::Check => Command::Check,
        Action::Pause => Command::Pause,
        Action::Resume => Command::Resume,
        Action::Cancel => Command::Cancel,
        Action::Activate => Command::Activate,
        Action::Scrub => Command::Scrub,
        Action::RollbackPolicy => Command::RollbackPolicy,
        Action::Rollback => Command::Rollback(line),
        Action::Install => match (line, asked.release_seq) {
            (Some(line), release_seq) => Command::Want(Want {
                deployment: DeploymentId::new(
                    &format!("cmd-{ticket}").chars().take(64).collect::<String>(),
                )?,
                line,
                release_seq,
                when: When::Asap,
                window: None,
                max_kbit_s: 0,
                force: true,
                origin: Origin::Operator,
            }),
            (None, None) => Command::Update(None),
            (None, Some(_)) => return Err("`release_seq` without a `line`".to_owned()),
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_of_the_fleet_names_a_signed_release_and_nothing_else() {
        let wish = br#"{"desired_seq":7,"deployment":"d-1","line":"assistant","release_seq":3,
            "when":"window","window":"22:00-05:00","url":"http://evil/x.gguf"}"#;
        let Ok(Some(Command::Fleet { want, percent: 100 })) = desired(wish) else {
            panic!("it is a wish, for all");
        };
        assert_eq!(want.origin, Origin::Fleet { desired_seq: 7 });
        assert!(!format!("{want:?}").contains("evil"));
        assert_eq!(desired(b""), Ok(None));
        for wrong in [
            &br#"{"desired_seq":7,"deployment":"a b","line":"x"}"#[..],
            br#"{"desired_seq":7,"deployment":"a","line":"../x"}"#,
            br#"{"desired_seq":7,"deployment":"a","line":"x","when":"window"}"#,
            br#"{"desired_seq":-1,"deployment":"a","line":"x"}"#,
            br#"{"desired_seq":7,"deployment":"a","line":"x","release_seq":3,"percent":101}"#,
            br#"{"desired_seq":7,"deployment":"a","line":"x","percent":10}"#,
            b"{",
        ] {
            assert!(
                desired(wrong).is_err(),
                "{}",
                String::from_utf8_lossy(wrong)
            );
        }
    }

    #[test]
    fn commands_are_read_once_and_answers_are_no_commands() {
        let ask = |text: &str| command(text.as_bytes(), "c1");
        assert_eq!(
            ask(r#"{"status":"init","action":"check"}"#),
            Ok(Some(Command::Check))
        );
        assert_eq!(ask(r#"{"status":"successful"}"#), Ok(None));
        assert_eq!(ask(""), Ok(None));
        assert!(ask(r#"{"status":"init"}"#).is_err());
        assert!(ask(r#"{"status":"init","action":"install","release_seq":3}"#).is_err());
        assert!(ask(r#"{"status":"init","action":"install","line":"/etc"}"#).is_err());
    }
}
