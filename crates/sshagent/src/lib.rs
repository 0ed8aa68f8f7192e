//! An ssh agent for the steps of a build.
//!
//! - [`KeyFile`] reads private keys as `ssh-keygen` writes them; [`Agent`] lists and signs with them (ed25519, ecdsa, rsa
//!   with SHA-256 and SHA-512).
//! - [`forward`] leads to an agent of the user's instead.
//!
//! Invariants: a client can list keys and sign with them and nothing else, so a step can neither add nor remove keys of the
//! user's agent, nor lock it; a private key never leaves this process; lengths that a client sends are bounded; nothing here
//! opens a socket, knows a terminal or prints.

mod agent;
mod key;
mod openssh;
mod signer;
mod wire;

pub use agent::{Agent, forward, serve};
pub use key::{Key, KeyError, KeyFile, LockedKey};
