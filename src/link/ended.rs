//! How a connection ended, in words for a person.

use rumqttc::v5::mqttbytes::Error as CodecError;
use rumqttc::v5::mqttbytes::v5::{ConnectReturnCode, DisconnectReasonCode};
use rumqttc::v5::{ConnectionError, StateError};

/// How a connection, or the attempt at one, ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Lost {
        /// A sentence, without its full stop.
        reason: String,
        cause: Cause,
    },
    /// We sent DISCONNECT.
    Closed,
    /// The inbox was dropped.
    Unread,
}

/// What a lost connection says about the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Nothing.
    Other,
    /// The broker closed it, as far as rumqttc knows without a reason.
    ByBroker,
    /// Another client has our id; the broker said so.
    TakenOver,
    /// The broker sent a packet larger than it was told that we take. Its session will send it again.
    TooLarge,
}

impl Ended {
    pub(super) fn lost(reason: impl Into<String>) -> Ended {
        Ended::Lost {
            reason: reason.into(),
            cause: Cause::Other,
        }
    }
}

impl From<ConnectionError> for Ended {
    fn from(error: ConnectionError) -> Ended {
        let (cause, reason) = match error {
            ConnectionError::MqttState(error) => return error.into(),
            ConnectionError::Io(error) => (Cause::Other, error.to_string()),
            ConnectionError::ConnectionRefused(code) => (Cause::Other, refused(code)),
            ConnectionError::NotConnAck(packet) => {
                (Cause::Other, format!("expected CONNACK, found {packet:?}"))
            }
            other => (Cause::Other, other.to_string()),
        };
        Ended::Lost { reason, cause }
    }
}

impl From<StateError> for Ended {
    fn from(error: StateError) -> Ended {
        let (cause, reason) = match error {
            StateError::ConnectionAborted => {
                (Cause::ByBroker, "the broker closed the connection".into())
            }
            StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)) => {
                (Cause::ByBroker, format!("the connection broke: {error}"))
            }
            StateError::Deserialization(CodecError::PayloadSizeLimitExceeded { pkt_size, max }) => {
                let reason = format!(
                    "the broker sent a packet of {pkt_size} bytes, and was told that we take {max}"
                );
                (Cause::TooLarge, reason)
            }
            StateError::Deserialization(error) => (
                Cause::ByBroker,
                format!("what came from the broker is no MQTT 5: {error}"),
            ),
            StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            } => (
                Cause::TakenOver,
                "another client connected with the same client id".into(),
            ),
            StateError::ServerDisconnect {
                reason_code,
                reason_string,
            } => {
                let said = reason_string.map(|said| format!(", saying {said:?}"));
                let reason = format!(
                    "the broker ended the connection: {reason_code:?}{}",
                    said.unwrap_or_default()
                );
                (Cause::Other, reason)
            }
            StateError::AwaitPingResp => (
                Cause::Other,
                "the broker does not answer a ping until the next one is due".into(),
            ),
            StateError::Unsolicited(pkid) => (
                Cause::Other,
                format!("the broker acknowledged packet id {pkid}, which is not under way"),
            ),
            other => (Cause::Other, other.to_string()),
        };
        Ended::Lost { reason, cause }
    }
}

fn refused(code: ConnectReturnCode) -> String {
    let advice = match code {
        ConnectReturnCode::BadUserNamePassword => ": wrong user name or password",
        ConnectReturnCode::NotAuthorized => ": its rules do not let us in",
        ConnectReturnCode::ClientIdentifierNotValid => ": it does not take our client id",
        ConnectReturnCode::RefusedProtocolVersion
        | ConnectReturnCode::UnsupportedProtocolVersion => ": it does not speak MQTT 5",
        _ => "",
    };
    format!("the broker refused the connection: {code:?}{advice}")
}
