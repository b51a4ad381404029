//! Facts about topics.
