//! Helpers for tests of this crate and of others (feature `testing`): a small HTTP server, a fault-injecting proxy in
//! front of a real registry, a token server, and a runner for Debian's `docker-registry`.
//!
//! Everything listens on free loopback ports and ends when dropped. Panics are how a helper reports that a test can't
//! go on.
#![allow(clippy::unwrap_used)]

mod fault;
mod registry;
mod server;
mod token;

pub use fault::{Fault, FaultProxy};
pub use registry::{DockerRegistry, RegistryOptions, TestCerts};
pub use server::{Exchange, Request, Server};
pub use token::{Grant, TokenServer};
