//! Model updates: what a signed release is, how it gets onto a board, and how it gets into service.

pub mod vfs;
