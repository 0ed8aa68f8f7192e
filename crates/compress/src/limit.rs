//! A reader that refuses to give more than it was told to.

use std::io::{self, Read};

/// The error inside the [`io::Error`] that a [`LimitReader`] gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is longer than the {limit} bytes that are allowed")]
pub struct LimitExceeded {
    /// How many bytes were allowed.
    pub limit: u64,
}

/// The limit that was exceeded, if that is what `error` is about.
pub fn limit_exceeded(error: &io::Error) -> Option<LimitExceeded> {
    error.get_ref()?.downcast_ref::<LimitExceeded>().copied()
}

/// Passes at most `limit` bytes; one more in the inner stream is an error, not an end. Unlike [`Read::take`], which
/// would make a truncated stream look complete.
#[derive(Debug)]
pub struct LimitReader<R> {
    inner: R,
    limit: u64,
    left: u64,
}

impl<R: Read> LimitReader<R> {
    /// Allows `limit` bytes of `inner`.
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, limit, left: limit }
    }

    /// How many bytes were passed on so far.
    pub fn passed(&self) -> u64 {
        self.limit - self.left
    }

    /// Gives the inner reader back.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for LimitReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.left == 0 {
            return match self.inner.read(&mut [0])? {
                0 => Ok(0),
                _ => Err(io::Error::other(LimitExceeded { limit: self.limit })),
            };
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        let got = self.inner.read(&mut buf[..most])?;
        self.left -= got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_limit_is_fine_and_one_more_is_typed() {
        let mut out = Vec::new();
        LimitReader::new(&b"12345"[..], 5).read_to_end(&mut out).expect("five of five");
        assert_eq!(out, b"12345");
        let error = LimitReader::new(&b"123456"[..], 5).read_to_end(&mut Vec::new()).expect_err("six of five");
        assert_eq!(limit_exceeded(&error), Some(LimitExceeded { limit: 5 }));
        assert_eq!(limit_exceeded(&io::Error::other("else")), None);
    }
}
