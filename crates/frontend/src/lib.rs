//! A Dockerfile's stages become a build graph and an image config, with the meaning of BuildKit's Dockerfile frontend.
//!
//! [`lower`] takes a parsed Dockerfile and what the command line says, asks a [`MetaResolver`] for the configs of the base
//! images that the target needs, and returns a [`Graph`](kiln_graph::Graph) with one [`Image`] for each platform.
//!
//! Invariants:
//! - no I/O except through the resolver, and no environment: equal requests and equal answers give equal graphs;
//! - only what the target needs is resolved and lowered; everything else has been parsed and nothing more;
//! - an error about the Dockerfile carries the place in it ([`LowerError::diagnostic`]);
//! - times are not invented: the config and its new history entries have no `created`.
//!
//! How it goes, for each platform: arguments (`args`), stages and what they depend on (`plan`), base images
//! (`resolve`), then the instructions of each needed stage in order (`stage`, `run`, `copy`, `config`).

mod args;
mod config;
mod context;
mod copy;
mod env;
mod epoch;
mod gofmt;
mod lower;
mod names;
mod outline;
mod plan;
mod request;
mod resolve;
mod run;
mod stage;

pub use args::{is_on, is_proxy_arg, platform_args};
pub use context::{ContextError, context_source};
pub use lower::lower;
pub use outline::{Outline, OutlineArg, OutlineMount, Target, outline, targets};
pub use request::{BaseImage, BoxError, Image, LowerError, LowerRequest, Lowered, MetaResolver, Resolved};
