//! Facts about requests.
