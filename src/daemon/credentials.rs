//! Who the daemon is to a broker that it did not start: password and certificates, from their files.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use tracing::warn;

use crate::config::{BrokerMode, Config, MqttConfig};
use crate::link::{Credentials, IdentityFiles, TlsFiles};
use crate::secret;

/// Name and password; the password is read once, at the start.
pub(super) fn credentials(mqtt: &MqttConfig) -> anyhow::Result<Option<Credentials>> {
    let Some(user) = mqtt.username.clone() else {
        return Ok(None);
    };
    let password = match &mqtt.password_file {
        Some(path) => secret::password(path).context("failed to read mqtt.password_file")?,
        None => String::new(),
    };
    if mqtt.tls.is_none() && !password.is_empty() && !is_this_machine(&mqtt.host) {
        warn!(
            host = mqtt.host,
            "the password crosses the network in clear, and so do prompts and answers: set mqtt.tls"
        );
    }
    Ok(Some(Credentials { user, password }))
}

/// The daemon's password on the broker of `broker.mode = "unit"`, which has it from the same file.
///
/// # Errors
/// None is given, or it cannot be read.
pub fn unit_password(config: &Config) -> anyhow::Result<String> {
    match &config.mqtt.password_file {
        Some(path) => secret::password(path).context("failed to read mqtt.password_file"),
        None => bail!(
            "broker.mode = \"unit\" needs a password of the daemon: mqtt.password_file or the systemd credential mqtt.password, the same for both services; systemd/orinoco-password.service makes one"
        ),
    }
}

/// The files of TLS, which can be used now. The link reads them again for each connection.
pub(super) fn tls(mqtt: &MqttConfig) -> anyhow::Result<Option<TlsFiles>> {
    let Some(tls) = &mqtt.tls else {
        return Ok(None);
    };
    let identity = tls.identity.clone();
    let files = TlsFiles {
        ca_file: tls.ca_file.clone(),
        identity: identity.map(|(cert_file, key_file)| IdentityFiles {
            cert_file,
            key_file,
        }),
        server_name: tls.server_name.clone(),
    };
    files
        .check(&mqtt.host)
        .context("failed to set up TLS to the broker")?;
    Ok(Some(files))
}

/// What the daemon could not read of what its configuration names, for `orinoco config check`.
pub fn unusable_files(config: &Config) -> Vec<anyhow::Error> {
    match config.broker.mode {
        BrokerMode::Child => return Vec::new(),
        BrokerMode::Unit => return unit_password(config).err().into_iter().collect(),
        BrokerMode::External => {}
    }
    let password = credentials(&config.mqtt).err();
    let tls = tls(&config.mqtt).err();
    password.into_iter().chain(tls).collect()
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
