//! What comes back to a client, from a node or from somebody who claims to be one: messages that follow
//! each other, divided by zero bytes.

use orinoco::receive::Receiver;

/// Hears the messages. What breaks the contract changes nothing, and after the end nothing does.
pub fn check(data: &[u8]) {
    let mut receiver = Receiver::default();
    for payload in data.split(|byte| *byte == 0) {
        let text = receiver.text().to_owned();
        let (attempt, had_ended) = (receiver.attempt(), receiver.end().is_some());
        let heard = receiver.hear(payload);
        if heard.is_err() || had_ended {
            assert_eq!(receiver.text(), text, "{heard:?}");
        }
        if heard.is_err() {
            assert_eq!(receiver.attempt(), attempt, "{heard:?}");
            assert_eq!(receiver.end().is_some(), had_ended, "{heard:?}");
        }
    }
}
