//! Base images from a distribution's signed packages.
#![forbid(unsafe_code)]
mod aptconf;
mod deb822;
mod error;
mod files;
mod keyring;
mod relation;
mod sources;
mod spec;
mod suggest;
mod time;
mod version;
pub use error::{Error, Result, Unsatisfiable};
pub use spec::{PackageRequest, Spec, SpecError, Variant};
