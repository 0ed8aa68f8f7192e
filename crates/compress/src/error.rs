//! What can be wrong with a request for an encoder.

use kiln_oci::media::Compression;

/// Why an encoder could not be made. Errors while bytes flow are [`std::io::Error`]s.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The level is not one that the format has.
    #[error("{} has no compression level {level}: use {min} to {max}", compression.name())]
    Level {
        /// The format that was asked for.
        compression: Compression,
        /// The level that was asked for.
        level: i32,
        /// The lowest level of the format.
        min: i32,
        /// The highest level of the format.
        max: i32,
    },
    /// The compression library refused its parameters, or the header could not be written.
    #[error("cannot start the {} encoder", compression.name())]
    Start {
        /// The format that was asked for.
        compression: Compression,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
