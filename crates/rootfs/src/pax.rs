//! Deterministic PAX tar writing.
