//! OpenSSH's format of private keys (PROTOCOL.key in its sources).

use base64::Engine as _;
use ctr::cipher::{KeyIvInit, StreamCipher};

use crate::signer::Signer;
use crate::wire::{take_string, take_u32};

/// First line of a key in this format.
pub const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// More rounds than anyone waits for; `ssh-keygen -a` of 1000 takes ten seconds and more.
const MOST_ROUNDS: u32 = 4096;

/// A key of which the private part may be encrypted.
pub struct Container {
    /// What clients know the key by.
    pub public: Vec<u8>,
    lock: Option<Lock>,
    private: Vec<u8>,
}

struct Lock {
    key_length: usize,
    salt: Vec<u8>,
    rounds: u32,
}

/// What is in the private part.
pub struct Opened {
    /// The key.
    pub signer: Signer,
    /// What the user calls it.
    pub comment: String,
}

/// Why it could not be opened.
pub enum OpenError {
    /// Another passphrase is needed.
    Passphrase,
    /// It is damaged or of a kind that is not known.
    Format(String),
}

impl Container {
    /// Takes the text of a file apart.
    pub fn parse(text: &str) -> Result<Self, String> {
        let body = text.trim().strip_prefix(BEGIN).and_then(|t| t.split_once(END)).ok_or("its end is missing")?.0;
        let body: String = body.split_ascii_whitespace().collect();
        let bytes = base64::engine::general_purpose::STANDARD.decode(body).map_err(|_| "it is damaged")?;
        Self::fields(&bytes).ok_or("it is damaged")?
    }

    fn fields(bytes: &[u8]) -> Option<Result<Self, String>> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let cipher = take_string(&mut rest)?;
        let kdf = take_string(&mut rest)?;
        let mut options = take_string(&mut rest)?;
        if take_u32(&mut rest)? != 1 {
            return Some(Err("it holds several keys".to_owned()));
        }
        let public = take_string(&mut rest)?.to_vec();
        let private = take_string(&mut rest)?.to_vec();
        let key_length = match (cipher, kdf) {
            (b"none", b"none") => return Some(Ok(Self { public, lock: None, private })),
            (b"aes256-ctr", b"bcrypt") => 32,
            (b"aes192-ctr", b"bcrypt") => 24,
            (b"aes128-ctr", b"bcrypt") => 16,
            (other, _) => {
                let other = String::from_utf8_lossy(other);
                return Some(Err(format!("its cipher {other} is not supported; `ssh-keygen -p -f FILE` uses another")));
            }
        };
        let lock = Lock { key_length, salt: take_string(&mut options)?.to_vec(), rounds: take_u32(&mut options)? };
        if lock.rounds == 0 || lock.rounds > MOST_ROUNDS {
            return Some(Err(format!("its passphrase needs {} rounds, more than {MOST_ROUNDS}", lock.rounds)));
        }
        Some(Ok(Self { public, lock: Some(lock), private }))
    }

    /// Whether a passphrase is needed.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// Reads the private part.
    pub fn open(&self, passphrase: &str) -> Result<Opened, OpenError> {
        let mut private = self.private.clone();
        if let Some(lock) = &self.lock {
            lock.decrypt(passphrase, &mut private).map_err(|()| OpenError::Passphrase)?;
        }
        let mut rest = private.as_slice();
        // The same number twice, which it is by chance only if the passphrase is wrong.
        if take_u32(&mut rest).zip(take_u32(&mut rest)).is_none_or(|(a, b)| a != b) {
            return Err(match self.lock {
                Some(_) => OpenError::Passphrase,
                None => OpenError::Format("it is damaged".to_owned()),
            });
        }
        let signer = Signer::read(&mut rest).map_err(OpenError::Format)?;
        let comment = String::from_utf8_lossy(take_string(&mut rest).unwrap_or_default()).into_owned();
        Ok(Opened { signer, comment })
    }
}

impl Lock {
    fn decrypt(&self, passphrase: &str, private: &mut [u8]) -> Result<(), ()> {
        let mut derived = vec![0; self.key_length + 16];
        bcrypt_pbkdf::bcrypt_pbkdf(passphrase, &self.salt, self.rounds, &mut derived).map_err(|_| ())?;
        let (key, iv) = derived.split_at(self.key_length);
        match self.key_length {
            16 => ctr::Ctr128BE::<aes::Aes128>::new_from_slices(key, iv).map_err(|_| ())?.apply_keystream(private),
            24 => ctr::Ctr128BE::<aes::Aes192>::new_from_slices(key, iv).map_err(|_| ())?.apply_keystream(private),
            _ => ctr::Ctr128BE::<aes::Aes256>::new_from_slices(key, iv).map_err(|_| ())?.apply_keystream(private),
        }
        Ok(())
    }
}
