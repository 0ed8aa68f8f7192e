//! Containers between commands: what is recorded of them, how they are found, and copies into and out of their files.
//!
//! # What is on disk
//!
//! ```text
//! <store>/containers/<64 hex digits>/
//!   config.json   what `create` was told; never changes
//!   state.json    the process that runs, or how the last one ended; absent before the first start
//!   fs/  work/    the writable layer, and the overlay's own directory
//!   log  log.1 …  what the container wrote, a JSON object a line (docker's `json-file`)
//! ```
//!
//! # Rules
//!
//! - **Nobody has to be alive for the record to be true.** A container runs if the process in `state.json` lives, by process id
//!   *and* time of its start, and so does the kiln that watches it; each takes the other with it. After `kill -9` of
//!   either, whoever looks next sees a container that was killed.
//! - **Who has the container's lock may mount its files and write its state.** The watching kiln has it for as long as the
//!   container runs. A look needs no lock: files are replaced by a rename.
//! - **Names are unique under the lock `container names`.**
//! - **Copies see the container's own files only**, not what is mounted in it, and no link in it leads out.
//!
//! Nothing here starts a process or knows images: that is the engine's.

pub mod copy;
mod error;
mod log;
mod process;
mod record;
mod registry;

pub use error::{Error, Result};
pub use log::{Entry as LogEntry, Limits as LogLimits, LogReader, LogWriter};
pub use process::Process;
pub use record::{Bind, Config, Container, State, Status};
pub use registry::{create, find, is_name, list};
