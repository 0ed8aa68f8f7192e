//! Builds and everything around images: sources, operations, exporters, transfers, events.
//!
//! The path of one build: [`build::build`] loads the context and Dockerfile, has the frontend lower it to a graph, computes
//! definition keys, lets the solver decide what has to run, runs that over the store's layers, and exports the result.
//!
//! Invariants:
//! - nothing here prints, reads the environment or knows a terminal: what happens is sent as [`events::Event`]s;
//! - a file of a container's root is only touched through `kiln_rootfs`.

mod admission;
pub mod archives;
pub mod budget;
pub mod build;
pub mod cache;
mod changes;
pub mod check_leaks;
pub mod container_diff;
pub mod containers;
mod contexts;
mod counted;
pub mod debian;
pub mod debug;
mod download;
mod engine;
pub mod error;
pub mod events;
mod export;
mod git_access;
mod growing;
pub mod images;
mod layers;
mod layout;
pub mod leaks;
mod linkage;
mod missing;
mod ops;
mod pack;
mod plan_source;
mod pull;
mod push;
pub mod request;
mod resolve;
pub mod run;
mod secrets;
mod size;
mod ssh;
mod steps;
mod transfer;
mod value;
mod views;

pub use engine::{Engine, EngineOptions};
pub use error::Error;
pub use kiln_container as container;
pub use kiln_deb as deb;
pub use kiln_dockerfile as dockerfile;
pub use kiln_executor as executor;
pub use kiln_frontend as frontend;
pub use kiln_graph as graph;
pub use kiln_linkage::Finding;
pub use kiln_oci as oci;
pub use kiln_registry as registry;
pub use kiln_rootfs as rootfs;
pub use kiln_secrets as secrets_search;
pub use kiln_sshagent as sshagent;
pub use kiln_store as store;
pub use pull::Pulled;
pub use size::human_size;
pub use steps::{Step, Steps, place_of};
