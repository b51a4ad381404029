//! Facts about answers.
