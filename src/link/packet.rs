//! What is sent and received, and its translation to rumqttc's packets. Everything that comes in is
//! checked here; nothing goes out that cannot be encoded.

use bytes::Bytes;
use rumqttc::v5::mqttbytes::{QoS, v5 as packets};

use super::AckToken;

/// Largest packet that MQTT can express, in bytes (MQTT 5, 2.1.4: four length bytes after the first).
pub const PACKET_BYTES_MAX: u32 = 268_435_455 + 5;

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Publish {
    /// Where it goes; no wildcards.
    pub topic: String,
    /// The body.
    pub payload: Bytes,
    /// QoS 1 rather than 0.
    pub at_least_once: bool,
    /// The broker keeps it for later subscribers.
    pub retain: bool,
    /// MQTT 5 properties.
    pub props: Props,
    /// Set to be told ([`super::Inbound::Delivered`]) when the broker has it. QoS 1 only.
    pub token: Option<u64>,
}

/// MQTT 5 properties of a message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Props {
    /// Where an answer is wanted.
    pub response_topic: Option<String>,
    /// Echoed in answers.
    pub correlation: Option<Bytes>,
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// Seconds after which the broker drops it.
    pub message_expiry_s: Option<u32>,
    /// User properties, in order.
    pub user: Vec<(String, String)>,
    /// Payload Format Indicator: the payload is UTF-8.
    pub payload_utf8: bool,
}

/// A message received.
#[derive(Debug)]
pub struct Message {
    /// Where it was sent; never empty.
    pub topic: String,
    /// The body; at most `packet_bytes_max`.
    pub payload: Bytes,
    /// Published with RETAIN, be it now or before this subscription.
    pub retain: bool,
    /// Delivered before, maybe.
    pub dup: bool,
    /// 0 or 1.
    pub qos: u8,
    /// MQTT 5 properties.
    pub props: Props,
    /// To be given to [`super::Link::try_ack`]; does nothing for QoS 0.
    pub ack: AckToken,
}

/// Why a message cannot be expressed in MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A topic name has at least one character.
    #[error("the topic is empty")]
    EmptyTopic,
    /// Wildcards are for filters.
    #[error("a topic to publish to has no '+', '#' or NUL")]
    TopicCharacter,
    /// Strings and binary data carry a 16-bit length.
    #[error("{field} has {found} bytes, MQTT allows 65535")]
    FieldTooLong {
        /// Name of the field.
        field: &'static str,
        /// Its length.
        found: usize,
    },
    /// A token asks for an acknowledgement, which QoS 0 does not have.
    #[error("a token needs at_least_once")]
    TokenWithoutQos,
}

impl Publish {
    /// Checks what rumqttc does not: it would cut long fields short and send a broken packet.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.topic.is_empty() {
            return Err(Invalid::EmptyTopic);
        }
        if self.topic.contains(['+', '#', '\0']) {
            return Err(Invalid::TopicCharacter);
        }
        if self.token.is_some() && !self.at_least_once {
            return Err(Invalid::TokenWithoutQos);
        }
        let length = |field: &'static str, found: usize| {
            if found > usize::from(u16::MAX) {
                return Err(Invalid::FieldTooLong { field, found });
            }
            Ok(())
        };
        let props = &self.props;
        length("topic", self.topic.len())?;
        length(
            "response topic",
            props.response_topic.as_ref().map_or(0, String::len),
        )?;
        length(
            "correlation data",
            props.correlation.as_ref().map_or(0, Bytes::len),
        )?;
        length(
            "content type",
            props.content_type.as_ref().map_or(0, String::len),
        )?;
        for (key, value) in &props.user {
            length("user property key", key.len())?;
            length("user property value", value.len())?;
        }
        Ok(())
    }

    /// Size of the whole PUBLISH packet, in bytes (MQTT 5, 3.3).
    pub fn packet_bytes(&self) -> usize {
        let props = &self.props;
        let property = |length: usize| 1 + 2 + length;
        let mut properties = 0;
        properties += if props.payload_utf8 { 2 } else { 0 };
        properties += props.message_expiry_s.map_or(0, |_| 5);
        properties += props
            .response_topic
            .as_ref()
            .map_or(0, |topic| property(topic.len()));
        properties += props
            .correlation
            .as_ref()
            .map_or(0, |data| property(data.len()));
        properties += props
            .content_type
            .as_ref()
            .map_or(0, |name| property(name.len()));
        for (key, value) in &props.user {
            properties += property(key.len()) + 2 + value.len();
        }
        let packet_id = if self.at_least_once { 2 } else { 0 };
        let remaining = 2
            + self.topic.len()
            + packet_id
            + varint_bytes(properties)
            + properties
            + self.payload.len();
        1 + varint_bytes(remaining) + remaining
    }

    pub(super) fn qos(&self) -> QoS {
        if self.at_least_once {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        }
    }

    pub(super) fn properties(&self) -> packets::PublishProperties {
        let props = &self.props;
        packets::PublishProperties {
            payload_format_indicator: props.payload_utf8.then_some(1),
            message_expiry_interval: props.message_expiry_s,
            topic_alias: None,
            response_topic: props.response_topic.clone(),
            correlation_data: props.correlation.clone(),
            user_properties: props.user.clone(),
            subscription_identifiers: Vec::new(),
            content_type: props.content_type.clone(),
        }
    }

    pub(super) fn packet(&self) -> packets::Publish {
        let mut packet = packets::Publish::new(
            &self.topic,
            self.qos(),
            self.payload.clone(),
            Some(self.properties()),
        );
        packet.retain = self.retain;
        packet
    }
}

/// Bytes of a variable byte integer (MQTT 5, 1.5.5).
fn varint_bytes(value: usize) -> usize {
    match value {
        0..=127 => 1,
        128..=16_383 => 2,
        16_384..=2_097_151 => 3,
        _ => 4,
    }
}

impl Message {
    /// None for a message that cannot be used: empty topic (an alias, which we do not allow), a topic
    /// that is not UTF-8, or QoS 2, for which we never subscribe.
    pub(super) fn from_packet(
        packet: packets::Publish,
        link: u64,
        connection: u64,
    ) -> Option<Message> {
        let qos = match packet.qos {
            QoS::AtMostOnce => 0,
            QoS::AtLeastOnce => 1,
            QoS::ExactlyOnce => return None,
        };
        let topic = String::from_utf8(packet.topic.into())
            .ok()
            .filter(|topic| !topic.is_empty())?;
        let properties = packet.properties.unwrap_or_default();
        Some(Message {
            topic,
            payload: packet.payload,
            retain: packet.retain,
            dup: packet.dup,
            qos,
            props: Props {
                response_topic: properties.response_topic,
                correlation: properties.correlation_data,
                content_type: properties.content_type,
                message_expiry_s: properties.message_expiry_interval,
                user: properties.user_properties,
                payload_utf8: properties.payload_format_indicator == Some(1),
            },
            ack: AckToken {
                link,
                connection,
                pkid: if qos == 0 { 0 } else { packet.pkid },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn props() -> impl Strategy<Value = Props> {
        let text = || proptest::option::of("[a-z]{0,200}");
        (
            text(),
            text(),
            text(),
            any::<Option<u32>>(),
            any::<bool>(),
            proptest::collection::vec(("[a-z]{0,9}", "[a-z]{0,90}"), 0..4),
        )
            .prop_map(
                |(
                    response_topic,
                    correlation,
                    content_type,
                    message_expiry_s,
                    payload_utf8,
                    user,
                )| Props {
                    response_topic,
                    correlation: correlation.map(Bytes::from),
                    content_type,
                    message_expiry_s,
                    user,
                    payload_utf8,
                },
            )
    }

    proptest! {
        #[test]
        fn packet_bytes_is_what_rumqttc_writes(
            topic in "[a-z/]{1,300}", payload in 0usize..40_000, at_least_once: bool, props in props(),
        ) {
            let publish = Publish { topic, payload: vec![7; payload].into(), at_least_once, props, ..Publish::default() };
            let mut packet = publish.packet();
            packet.pkid = 1;
            let mut written = Default::default();
            packet.write(&mut written).unwrap();
            prop_assert_eq!(publish.packet_bytes(), written.len());
        }
    }

    #[test]
    fn a_field_longer_than_its_length_prefix_is_refused() {
        let mut publish = Publish {
            topic: "t".into(),
            ..Publish::default()
        };
        publish.props.content_type = Some("x".repeat(65_536));
        let expected = Invalid::FieldTooLong {
            field: "content type",
            found: 65_536,
        };
        assert_eq!(publish.check(), Err(expected));
    }

    #[test]
    fn topics_without_a_place_to_go_are_refused() {
        let check = |topic: &str| {
            Publish {
                topic: topic.into(),
                ..Publish::default()
            }
            .check()
        };
        assert_eq!(check(""), Err(Invalid::EmptyTopic));
        assert_eq!(check("a/#"), Err(Invalid::TopicCharacter));
        assert_eq!(check("a/+/b"), Err(Invalid::TopicCharacter));
        assert_eq!(check("a\0"), Err(Invalid::TopicCharacter));
        assert_eq!(check("a/b"), Ok(()));
    }
}
