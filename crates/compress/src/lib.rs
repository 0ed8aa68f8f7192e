//! Streams of compressed bytes: detection, decoding and deterministic parallel encoding.
//!
//! Invariants:
//! - the bytes an [`Encoder`] writes depend on the input, the compression and the level only: not on the number of
//!   threads, the sizes of the writes, the clock or the machine;
//! - an encoder keeps a handful of blocks in memory, whatever the size of the stream;
//! - a decoder reports a stream that ends early as [`std::io::ErrorKind::UnexpectedEof`], never as a short success;
//! - a decoder never allocates more than [`decode::MEMORY_LIMIT`] because a header asks for it. How much may come *out*
//!   of it is for the caller to say, with a [`LimitReader`].
//!
//! A new version of libdeflate or zstd may change the compressed bytes (never their meaning).

#![forbid(unsafe_code)]

mod blocks;
pub mod decode;
mod encode;
mod error;
mod format;
mod gzip;
mod limit;
mod readahead;
mod zstandard;

pub use decode::{decoder, decoder_for};
pub use encode::{Encoder, check_level, default_level, level_range};
pub use error::Error;
pub use format::{Format, MAGIC_LEN, detect};
pub use limit::{LimitExceeded, LimitReader, limit_exceeded};
pub use readahead::ReadAhead;
