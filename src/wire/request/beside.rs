//! What MQTT 5 says beside a body: user properties, and Message Expiry. Requests of plain text have no other
//! place for it. And what the node itself keeps beside a body: what a template was when the request was accepted.

use serde::{Deserialize, Serialize};

use super::{Limits, Priority, Request, fields, invalid, template::Filled};
use crate::wire::error::ApiError;
use crate::wire::topic::Name;

/// What a requester said beside the body, checked.
// Kept with the job as JSON: keys that are not known are skipped, missing ones were not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Beside {
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<Priority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_latest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// Of the message: what is worthless after it need not be answered after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry_ms: Option<u64>,
    /// Not said by the requester.
    #[serde(skip_serializing_if = "Option::is_none")]
    filled: Option<Filled>,
}

impl Beside {
    /// Reads the user properties `priority`, `deadline_ms`, `keep_latest` and `session`, and a Message Expiry in
    /// seconds.
    /// Other properties are passed over.
    ///
    /// # Errors
    /// [`crate::wire::error::Code::InvalidRequest`]: a value that the body could not have either.
    pub fn read(
        user: &[(String, String)],
        expiry_s: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        let said = |name: &str| user.iter().find(|(key, _)| key == name).map(|(_, v)| &**v);
        let wrong = |name: &str, found: &str, expected: &str| {
            let found = fields::quoted(found);
            invalid(format!("{name} is {found}, expected {expected}")).with_param(name)
        };
        let allowed = 1..=limits.deadline_ms_max;
        let deadline = |text: &str| match text.parse() {
            Ok(ms) if allowed.contains(&ms) => Ok(ms),
            _ => {
                let expected = format!("an integer from 1 to {}", limits.deadline_ms_max);
                Err(wrong("deadline_ms", text, &expected))
            }
        };
        let key = |name: &str| match said(name).map(Name::new) {
            None => Ok(None),
            Some(Ok(key)) => Ok(Some(key.to_string())),
            Some(Err(error)) => {
                let found = said(name).unwrap_or_default();
                Err(wrong(name, found, &error.to_string()))
            }
        };
        Ok(Self {
            priority: said("priority").map(str::parse).transpose()?,
            deadline_ms: said("deadline_ms").map(deadline).transpose()?,
            keep_latest: key("keep_latest")?,
            session: key("session")?,
            // One that has expired is not delivered; less than a second may be left.
            expiry_ms: expiry_s.map(|s| u64::from(s.max(1)) * 1000),
            filled: None,
        })
    }

    /// Keeps what a template of this request was filled in to.
    pub fn keep(&mut self, request: &Request) {
        self.filled.clone_from(&request.filled);
    }

    /// As it is kept; `None` where nothing was said.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        (*self != Self::default())
            .then(|| serde_json::to_vec(self).expect("words and numbers are always JSON"))
    }

    /// What [`Beside::to_bytes`] gave; what cannot be read says nothing.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }
}

impl Request {
    /// Adds what was said beside the body. A Message Expiry makes a deadline earlier, never later.
    ///
    /// # Errors
    /// Body and property say different things.
    pub fn add(&mut self, beside: &Beside) -> Result<(), ApiError> {
        join("priority", &mut self.priority, beside.priority)?;
        join("deadline_ms", &mut self.deadline_ms, beside.deadline_ms)?;
        let key = beside.keep_latest.clone();
        join("keep_latest", &mut self.keep_latest, key)?;
        join("session", &mut self.session, beside.session.clone())?;
        let deadlines = self.deadline_ms.into_iter().chain(beside.expiry_ms);
        self.deadline_ms = deadlines.min();
        match beside.filled.clone() {
            Some(filled) => self.put(filled),
            None => Ok(()),
        }
    }
}

fn join<T: PartialEq + std::fmt::Debug>(
    name: &str,
    body: &mut Option<T>,
    property: Option<T>,
) -> Result<(), ApiError> {
    match (&body, property) {
        (Some(one), Some(other)) if *one != other => {
            let text = format!("{name} is {one:?} in the body and {other:?} beside it");
            Err(invalid(text).with_param(name))
        }
        (None, said @ Some(_)) => {
            *body = said;
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::parse;
    use crate::wire::topic::Op;

    fn read(user: &[(&str, &str)], expiry_s: Option<u32>) -> Result<Beside, ApiError> {
        let user = user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Beside::read(&Vec::from_iter(user), expiry_s, &Limits::default())
    }

    fn asked(body: &str, beside: &Beside) -> Result<Request, ApiError> {
        let mut request = parse(Op::Chat, body.as_bytes(), &Limits::default()).unwrap();
        request.add(beside).map(|()| request)
    }

    #[test]
    fn plain_text_is_asked_with_properties() {
        let said = [
            ("accept", "text/plain"),
            ("priority", "batch"),
            ("deadline_ms", "2500"),
            ("keep_latest", "panel"),
            ("session", "kitchen"),
        ];
        let request = asked("hello", &read(&said, None).unwrap()).unwrap();
        assert_eq!(request.priority, Some(Priority::Batch));
        assert_eq!(request.deadline_ms, Some(2500));
        assert_eq!(request.keep_latest.as_deref(), Some("panel"));
        assert_eq!(request.conversation(), Some("kitchen"));
    }

    #[test]
    fn the_earlier_of_expiry_and_deadline_counts() {
        let deadline = |user: &[_], expiry_s| {
            asked("x", &read(user, expiry_s).unwrap())
                .unwrap()
                .deadline_ms
        };
        assert_eq!(deadline(&[], Some(30)), Some(30_000));
        assert_eq!(deadline(&[("deadline_ms", "400")], Some(30)), Some(400));
        assert_eq!(
            deadline(&[("deadline_ms", "40000")], Some(30)),
            Some(30_000)
        );
        assert_eq!(deadline(&[], None), None);
    }

    #[test]
    fn body_and_property_may_agree_and_not_differ() {
        let body = r#"{"messages":[{"role":"user","content":"x"}],"priority":"normal"}"#;
        let same = read(&[("priority", "normal")], None).unwrap();
        assert_eq!(asked(body, &same).unwrap().priority, Some(Priority::Normal));
        let other = read(&[("priority", "batch")], None).unwrap();
        let error = asked(body, &other).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("priority"));
    }

    #[test]
    fn what_the_body_could_not_have_is_refused_beside_it_too() {
        for (name, value) in [
            ("priority", "urgent"),
            ("deadline_ms", "soon"),
            ("deadline_ms", "0"),
            ("deadline_ms", "-5"),
            ("deadline_ms", "99999999999"),
            ("keep_latest", "a/b"),
            ("keep_latest", ""),
            ("session", "a b"),
        ] {
            let error = read(&[(name, value)], None).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{value}");
        }
    }

    #[test]
    fn it_is_kept_and_read_again() {
        let said = read(&[("priority", "alarm"), ("deadline_ms", "9")], Some(7)).unwrap();
        assert_eq!(Beside::from_bytes(&said.to_bytes().unwrap()), said);
        assert_eq!(Beside::default().to_bytes(), None);
        assert_eq!(Beside::from_bytes(b"not ours"), Beside::default());
        let later = br#"{"priority":"batch","mood":"good"}"#;
        assert_eq!(
            Beside::from_bytes(later),
            read(&[("priority", "batch")], None).unwrap()
        );
    }
}
