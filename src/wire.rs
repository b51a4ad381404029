//! Wire contract, version 1: what devices and Orinoco say to each other over MQTT.
//!
//! Pure: topics, request bodies, answers, errors and reports as types, with no I/O, no clock and no
//! MQTT client. Every byte that comes in is hostile until a parser here has bounded and checked it;
//! what leaves this module is checked and needs no second look. `docs/protocol.md` tells the same to
//! the programmer of a device, and `tests/wire/v1/` pins it byte for byte.
//!
//! | file | owns |
//! |---|---|
//! | [`topic`] | names, ids, ops; which topics exist; who may get an answer where |
//! | [`request`] | bodies of requests: bounds, ranges, defaults |
//! | [`reply`] | bodies of answers: chunks, whole answers, bare text |
//! | [`error`] | the codes, their HTTP-like status and OpenAI `type` |
//! | [`tools`] | tools, and the calls in what a model writes |
//! | [`report`] | the retained documents: status, info, models, state |

pub mod error;
pub mod reply;
pub mod report;
pub mod request;
pub mod telemetry;
pub mod tools;
pub mod topic;

pub use error::{ApiError, Code};
pub use reply::{Accepted, End, Form, Outgoing, Replier};
pub use request::{Defaults, Limits, Priority, Request, SamplingOverrides};
pub use topic::{Incoming, Name, NameError, Names, Op, RequestId, TopicError};

/// Version of this contract as `info` publishes it. The first number is the `v1` of the topics and
/// changes when an old client would break; the second rises with every addition.
pub const PROTOCOL: &str = "1.1";

/// A SHA-256 in hexadecimal, as a regular expression.
const SHA256_PATTERN: &str = "^[0-9a-f]{64}$";
