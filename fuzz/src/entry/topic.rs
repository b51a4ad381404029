//! Topics: of a request, of an answer, and the names in them.

use orinoco::wire::topic::{
    Incoming, Name, Names, RESPONSE_TOPIC_BYTES_MAX, RequestId, TOPIC_BYTES_MAX,
};

/// Reads the text as a topic, as a name and as an id.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let node = Name::new("n1").expect("a name");
    let names = Names::new("site/orinoco", node).expect("a root");
    match names.parse(text) {
        Ok(incoming) => {
            assert!(text.len() <= TOPIC_BYTES_MAX);
            let (user, id) = match &incoming {
                Incoming::Request { user, op, id } => {
                    if let Ok(op) = op {
                        assert_eq!(names.req(user, *op, id), text, "the only spelling");
                    }
                    (user, id)
                }
                Incoming::Cancel { user, id } => {
                    assert_eq!(names.cancel(user, id), text);
                    (user, id)
                }
                Incoming::Forget { user, session } => {
                    assert_eq!(names.forget(user, session), text);
                    return;
                }
            };
            let answer = names.resp(user, id);
            assert!(names.resp_allowed(user, &answer));
            let other = Name::new("somebody-else").expect("a name");
            assert!(*user == other || !names.resp_allowed(&other, &answer));
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 2048 && !message.contains(['\n', '\0', '\u{1b}']));
        }
    }
    let alice = Name::new("alice").expect("a name");
    if names.resp_allowed(&alice, text) {
        assert!(text.len() <= RESPONSE_TOPIC_BYTES_MAX);
        assert!(text.starts_with("site/orinoco/v1/resp/alice/"));
        assert!(!text.contains(['+', '#', '\0']) && !text.contains("//") && !text.ends_with('/'));
    }
    if let Ok(name) = Name::new(text) {
        assert_eq!(name.as_str(), text);
        assert!(!text.contains(['/', '+', '#', '$', ' ']) && text.len() <= 64);
    }
    if let Ok(id) = RequestId::new(text) {
        assert_eq!(id.as_str(), text);
        assert!(!text.contains(['/', '+', '#', '.', ' ']) && text.len() <= 64);
    }
}
