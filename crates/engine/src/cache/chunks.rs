//! Chunks.
