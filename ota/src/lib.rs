//! The place of Orinoco's publisher of signed model updates. Nothing is here yet: the update
//! design stands in its own issue, and the daemon contains no signing code.
