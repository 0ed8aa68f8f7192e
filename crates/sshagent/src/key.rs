//! Private keys from files.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rsa::RsaPrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::DecodePrivateKey;

use crate::openssh::{BEGIN, Container, OpenError, Opened};
use crate::signer::Signer;

/// Largest key file; one of 16384 bits has 13 kB.
const LARGEST: u64 = 128 << 10;

/// Why a file can't serve as a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It could not be read.
    #[error("can't read the ssh key {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is not a private ssh key: {what}", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The passphrase does not open it.
    #[error("wrong passphrase for the ssh key {}", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
}

/// A private key that can sign.
pub struct Key {
    path: PathBuf,
    file: Vec<u8>,
    public: Vec<u8>,
    comment: String,
    signer: Signer,
}

/// A private key that needs a passphrase.
pub struct LockedKey {
    path: PathBuf,
    file: Vec<u8>,
    container: Container,
}

/// What was in a file.
pub enum KeyFile {
    /// A key.
    Open(Key),
    /// An encrypted key.
    Locked(LockedKey),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.path.display())
    }
}

impl KeyFile {
    /// Reads a key in OpenSSH's format, or an RSA key in PEM (PKCS#1, PKCS#8).
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        let mut bytes = Vec::new();
        file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
        Self::parse(path, bytes)
    }

    fn parse(path: &Path, file: Vec<u8>) -> Result<Self, KeyError> {
        let wrong = |what: &str| KeyError::NotAKey { path: path.to_owned(), what: what.to_owned() };
        if file.len() as u64 > LARGEST {
            return Err(wrong("it is too large"));
        }
        let text = std::str::from_utf8(&file).map_err(|_| wrong("it is not text"))?.trim_start();
        if !text.starts_with(BEGIN) {
            let signer = Signer::Rsa(Box::new(pem_rsa(text).map_err(|what| wrong(&what))?));
            let public = signer.public_blob().unwrap_or_default();
            return Ok(Self::Open(Key { path: path.to_owned(), file, public, comment: String::new(), signer }));
        }
        let container = Container::parse(text).map_err(|what| wrong(&what))?;
        let locked = LockedKey { path: path.to_owned(), file, container };
        if locked.container.is_locked() { Ok(Self::Locked(locked)) } else { locked.unlock("").map(Self::Open) }
    }
}

/// A key in one of the formats that OpenSSL has.
fn pem_rsa(text: &str) -> Result<RsaPrivateKey, String> {
    const CONVERT: &str = "`ssh-keygen -p -f FILE` writes it in OpenSSH's format";
    let convert = |what: &str| format!("{what}; {CONVERT}");
    let label = text.lines().next().unwrap_or_default();
    match label.trim().trim_matches('-').trim_start_matches("BEGIN ") {
        "RSA PRIVATE KEY" if text.contains("ENCRYPTED") => Err(convert("encrypted PEM keys are not supported")),
        "RSA PRIVATE KEY" => RsaPrivateKey::from_pkcs1_pem(text).map_err(|e| e.to_string()),
        "PRIVATE KEY" => {
            RsaPrivateKey::from_pkcs8_pem(text).map_err(|_| convert("of the PKCS#8 keys only RSA is supported"))
        }
        "ENCRYPTED PRIVATE KEY" => Err(convert("encrypted PEM keys are not supported")),
        "EC PRIVATE KEY" => Err(convert("EC keys in PEM are not supported")),
        "DSA PRIVATE KEY" => Err("DSA is broken and not supported".to_owned()),
        _ if label.starts_with("ssh-") || label.starts_with("ecdsa-") => {
            Err("it is the public key; the private one has the same name without .pub".to_owned())
        }
        _ => Err("it does not begin with -----BEGIN OPENSSH PRIVATE KEY-----".to_owned()),
    }
}

impl LockedKey {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it.
    pub fn unlock(&self, passphrase: &str) -> Result<Key, KeyError> {
        let path = self.path.clone();
        match self.container.open(passphrase) {
            Ok(Opened { signer, comment }) => {
                Ok(Key { path, file: self.file.clone(), public: self.container.public.clone(), comment, signer })
            }
            Err(OpenError::Passphrase) => Err(KeyError::Passphrase { path }),
            Err(OpenError::Format(what)) => Err(KeyError::NotAKey { path, what }),
        }
    }
}

impl Key {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What clients know it by.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    pub(crate) fn comment(&self) -> &str {
        &self.comment
    }

    /// What must never be in an image: the file, and the number that makes it a key, which is the same in every format.
    pub fn secret_values(&self) -> Vec<Vec<u8>> {
        vec![self.file.clone(), self.signer.secret_number()]
    }

    pub(crate) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        self.signer.sign(data, flags)
    }
}
