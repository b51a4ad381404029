//! Rows as bytes: postcard, borrowed while reading.
//!
//! A row that does not decode means a damaged file ([`redb::Error::Corrupted`]); redb's checksums make
//! that an unlikely way to find out.

use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FinalMessage, JobId, JobState, Known, Record};

/// What a job is charged for its keys and its share of B-tree pages, in bytes.
pub(super) const ROW_BYTES: u64 = 512;

/// Value in `jobs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct JobRow {
    /// Order of acceptance; key of its payload.
    pub(super) order: u64,
    pub(super) digest: [u8; 32],
    pub(super) attempt: u32,
    pub(super) state: JobState,
    /// When it was accepted or finished, Unix milliseconds.
    pub(super) at_ms: u64,
    /// In which run that was.
    pub(super) run: u64,
    /// Charged for it: its payload row and [`ROW_BYTES`].
    pub(super) bytes: u64,
}

impl JobRow {
    pub(super) fn known(&self, job: JobId) -> Known {
        Known {
            job,
            digest: self.digest,
            attempt: self.attempt,
            state: self.state,
        }
    }
}

/// Value in `bodies`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BodyRow<'a> {
    user: &'a str,
    id: &'a str,
    op: &'a str,
    #[serde(borrow)]
    body: Raw<'a>,
    response_topic: Option<&'a str>,
    #[serde(borrow)]
    correlation: Option<Raw<'a>>,
    accept: Option<&'a str>,
    accepted_at_ms: u64,
}

impl<'a> From<&'a Record> for BodyRow<'a> {
    fn from(record: &'a Record) -> Self {
        BodyRow {
            user: &record.job.user,
            id: &record.job.id,
            op: &record.op,
            body: Raw(&record.body),
            response_topic: record.response_topic.as_deref(),
            correlation: record.correlation.as_deref().map(Raw),
            accept: record.accept.as_deref(),
            accepted_at_ms: record.accepted_at_ms,
        }
    }
}

impl BodyRow<'_> {
    /// The record; its digest stands in the job's row.
    pub(super) fn record(&self, digest: [u8; 32]) -> Record {
        Record {
            job: self.job(),
            op: self.op.to_owned(),
            digest,
            body: Bytes::copy_from_slice(self.body.0),
            response_topic: self.response_topic.map(str::to_owned),
            correlation: self.correlation.map(|c| Bytes::copy_from_slice(c.0)),
            accept: self.accept.map(str::to_owned),
            beside: None, // In tables of their own.
            model: None,
            accepted_at_ms: self.accepted_at_ms,
        }
    }

    pub(super) fn job(&self) -> JobId {
        JobId {
            user: self.user.to_owned(),
            id: self.id.to_owned(),
        }
    }
}

/// Element of the value in `finals`, which is the caller's replay bytes and a list of these.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MessageRow<'a> {
    topic: &'a str,
    #[serde(borrow)]
    payload: Raw<'a>,
    content_type: Option<&'a str>,
    #[serde(borrow)]
    correlation: Option<Raw<'a>>,
    #[serde(borrow)]
    user: Vec<(&'a str, &'a str)>,
}

impl<'a> From<&'a FinalMessage> for MessageRow<'a> {
    fn from(message: &'a FinalMessage) -> Self {
        MessageRow {
            topic: &message.topic,
            payload: Raw(&message.payload),
            content_type: message.content_type.as_deref(),
            correlation: message.correlation.as_deref().map(Raw),
            user: message.user.iter().map(|(k, v)| (&**k, &**v)).collect(),
        }
    }
}

impl MessageRow<'_> {
    pub(super) fn message(&self) -> FinalMessage {
        FinalMessage {
            topic: self.topic.to_owned(),
            payload: Bytes::copy_from_slice(self.payload.0),
            content_type: self.content_type.map(str::to_owned),
            correlation: self.correlation.map(|c| Bytes::copy_from_slice(c.0)),
            user: self
                .user
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        }
    }
}

pub(super) fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_stdvec(row).expect("rows are plain data, and a Vec grows")
}

/// Every byte must be used. `what` names the row in the error.
pub(super) fn decode<'a, T: Deserialize<'a>>(what: &str, row: &'a [u8]) -> Result<T, redb::Error> {
    match postcard::take_from_bytes(row) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(redb::Error::Corrupted(format!(
            "row of {what}: {} bytes too many",
            rest.len()
        ))),
        Err(e) => Err(redb::Error::Corrupted(format!("row of {what}: {e}"))),
    }
}

/// Bytes in one piece: serde would walk a slice element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Borrowed;
        impl<'de> Visitor<'de> for Borrowed {
            type Value = &'de [u8];
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_borrowed_bytes<E: de::Error>(self, v: &'de [u8]) -> Result<Self::Value, E> {
                Ok(v)
            }
        }
        deserializer.deserialize_bytes(Borrowed).map(Raw)
    }
}
