//! A parallel solver with two-step cache keys. It does no I/O and knows no files, images, graphs or clocks: it is a state
//! machine. Give it nodes and targets, carry out the [`Effect`]s that it returns, in any order and in parallel, and bring
//! back an [`Event`] for each.
//!
//! A node goes through these states (see [`State`]):
//!
//! ```text
//! Idle -> LookingUp -> WaitingForInputs -> Digesting -> LookingUpContent -> Executing -> Done
//!             |hit                                            |hit                         ^
//!             +------------------------------------------------+--------------------------+
//! ```
//!
//! 1. By definition: what made the node, told by keys that are known before anything is read or run. A hit ends it, and
//!    its inputs are never asked for.
//! 2. By content: all inputs are made, at the same time; those that the node only reads are digested as far as it reads
//!    them; the key is made of the digests and the identities of the results.
//! 3. The node is executed.
//!
//! Invariants:
//! - a node is executed at most once, and only if a target needs it and every node between them missed step 1;
//! - after a failure or a cancellation no new effect is returned; what was not started is skipped;
//! - a node whose policy is [`Policy::Refresh`] makes every node above it skip step 1: their old results are made from
//!   its old one. Step 2 remains, so what is equal is found again;
//! - the cost is linear in the number of nodes and inputs, and nothing recurses.

mod keys;
mod model;
mod scheduler;

pub use keys::{ContentKey, DefinitionKey, KeyPart, content_key, definition_key, source_key};
pub use model::{
    Effect, Event, Found, Input, InputMode, Lookup, MissReason, Node, NodeId, Part, Policy, SolverError, State, Status,
};
pub use scheduler::Scheduler;
