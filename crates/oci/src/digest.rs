//! Content digests, `algorithm:hex`, as in the OCI image specification ("Digests").

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

/// A digest that names a blob. Only `sha256` and `sha512` are accepted, as registered by the specification.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Repr);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// Why a string is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no `algorithm:` part.
    #[error("{0:?} is not a digest: expected sha256:<64 hex digits>")]
    Malformed(String),
    /// The algorithm is not one that kiln verifies.
    #[error("digest algorithm {0:?} is not supported: use sha256 or sha512")]
    Algorithm(String),
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Repr::Sha256(Sha256::digest(bytes).into()))
    }

    /// Wraps an already computed SHA-256.
    pub const fn sha256(bytes: [u8; 32]) -> Self {
        Self(Repr::Sha256(bytes))
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self.0 {
            Repr::Sha256(_) => "sha256",
            Repr::Sha512(_) => "sha512",
        }
    }

    /// The raw hash bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Sha256(b) => b,
            Repr::Sha512(b) => b,
        }
    }

    /// The lower-case hex part.
    pub fn hex(&self) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        self.bytes().iter().flat_map(|b| [HEX[(b >> 4) as usize] as char, HEX[(b & 15) as usize] as char]).collect()
    }

    /// The first 12 hex digits, as `docker images` shows them.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// A hasher of the same algorithm, to verify content against this digest.
    pub fn hasher(&self) -> Hasher {
        match self.0 {
            Repr::Sha256(_) => Hasher(HasherRepr::Sha256(Sha256::new())),
            Repr::Sha512(_) => Hasher(HasherRepr::Sha512(Sha512::new())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(s.chars().take(200).collect());
        let (algorithm, hex) = s.split_once(':').ok_or_else(malformed)?;
        let repr = match algorithm {
            "sha256" => Repr::Sha256(decode_hex(hex).ok_or_else(malformed)?),
            "sha512" => Repr::Sha512(decode_hex(hex).ok_or_else(malformed)?),
            other => return Err(DigestError::Algorithm(other.chars().take(40).collect())),
        };
        Ok(Self(repr))
    }
}

/// Lower-case hex of exactly `N` bytes; the specification forbids upper case.
fn decode_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let hex = hex.as_bytes();
    if hex.len() != N * 2 {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (o, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *o = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<str>::deserialize(d)?;
        s.parse().map_err(serde::de::Error::custom)
    }
}

/// An incremental hash that ends as a [`Digest`]. It is an [`std::io::Write`] sink.
#[derive(Clone)]
pub struct Hasher(HasherRepr);

#[derive(Clone)]
enum HasherRepr {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Default for Hasher {
    fn default() -> Self {
        Self(HasherRepr::Sha256(Sha256::new()))
    }
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            HasherRepr::Sha256(h) => h.update(bytes),
            HasherRepr::Sha512(h) => h.update(bytes),
        }
    }

    /// Adds a length-prefixed field, so that a sequence of fields can't be confused with another one.
    pub fn field(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        self.update(&(bytes.len() as u64).to_le_bytes());
        self.update(bytes);
        self
    }

    /// The digest of all that was added.
    pub fn finish(self) -> Digest {
        Digest(match self.0 {
            HasherRepr::Sha256(h) => Repr::Sha256(h.finalize().into()),
            HasherRepr::Sha512(h) => Repr::Sha512(h.finalize().into()),
        })
    }
}

impl std::io::Write for Hasher {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.update(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The chain ID of a layer on top of `parent` (OCI image spec, "Layer ChainID").
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => *diff_id,
        Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_prints() {
        let d = Digest::of(b"");
        assert_eq!(d.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(d.to_string().parse::<Digest>(), Ok(d));
        assert_eq!(d.short(), "e3b0c44298fc");
    }

    #[test]
    fn rejects_what_could_name_another_path() {
        for bad in ["", "sha256", "sha256:", "sha256:../..", "sha256:E3B0", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_are_unambiguous() {
        let digest = |parts: &[&str]| {
            let mut h = Hasher::new();
            for p in parts {
                h.field(p);
            }
            h.finish()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    }
}
