//! Private keys by their kind: reading their numbers, and signing.

use rsa::pkcs1v15::SigningKey as RsaSigningKey;
use rsa::rand_core::OsRng;
use rsa::sha2::{Sha256, Sha512};
use rsa::signature::{RandomizedSigner, SignatureEncoding, Signer as _};
use rsa::traits::{PrivateKeyParts, PublicKeyParts};
use rsa::{BigUint, RsaPrivateKey};

use crate::wire::{put_mpint, put_string, take_string};

/// A private key.
pub enum Signer {
    /// `ssh-ed25519`.
    Ed25519(ed25519_dalek::SigningKey),
    /// `ecdsa-sha2-nistp256`.
    P256(p256::ecdsa::SigningKey),
    /// `ecdsa-sha2-nistp384`.
    P384(p384::ecdsa::SigningKey),
    /// `ecdsa-sha2-nistp521`.
    P521(p521::ecdsa::SigningKey),
    /// `rsa-sha2-256` and `rsa-sha2-512`.
    Rsa(Box<RsaPrivateKey>),
}

/// Flag of a request: SHA-512 with an RSA key.
const RSA_SHA2_512: u32 = 4;

impl Signer {
    /// Takes the kind and numbers of a key off the front of an OpenSSH private part.
    pub fn read(rest: &mut &[u8]) -> Result<Self, String> {
        let kind = take_string(rest).ok_or("it is damaged")?;
        match kind {
            b"ssh-ed25519" => Self::ed25519(rest).ok_or("it is damaged".to_owned()),
            b"ecdsa-sha2-nistp256" | b"ecdsa-sha2-nistp384" | b"ecdsa-sha2-nistp521" => {
                Self::ecdsa(kind, rest).ok_or("it is damaged".to_owned())
            }
            b"ssh-rsa" => Self::rsa(rest).ok_or("it is damaged")?,
            other => {
                let kind = String::from_utf8_lossy(other).into_owned();
                Err(format!("keys of the kind {kind} are not supported: use ed25519, ecdsa or rsa, or an agent"))
            }
        }
    }

    fn ed25519(rest: &mut &[u8]) -> Option<Self> {
        let _public = take_string(rest)?;
        let pair: &[u8; 64] = take_string(rest)?.try_into().ok()?;
        ed25519_dalek::SigningKey::from_keypair_bytes(pair).ok().map(Self::Ed25519)
    }

    fn ecdsa(kind: &[u8], rest: &mut &[u8]) -> Option<Self> {
        let _curve = take_string(rest)?;
        let _point = take_string(rest)?;
        let scalar = take_string(rest)?;
        Some(match kind {
            b"ecdsa-sha2-nistp256" => Self::P256(p256::ecdsa::SigningKey::from_slice(&fixed::<32>(scalar)?).ok()?),
            b"ecdsa-sha2-nistp384" => Self::P384(p384::ecdsa::SigningKey::from_slice(&fixed::<48>(scalar)?).ok()?),
            _ => Self::P521(p521::ecdsa::SigningKey::from_slice(&fixed::<66>(scalar)?).ok()?),
        })
    }

    fn rsa(rest: &mut &[u8]) -> Option<Result<Self, String>> {
        let mut number = || take_string(rest).map(BigUint::from_bytes_be);
        let (n, e, d, _, p, q) = (number()?, number()?, number()?, number()?, number()?, number()?);
        let key =
            RsaPrivateKey::from_components(n, e, d, vec![p, q]).and_then(|mut key| key.precompute().map(|()| key));
        Some(key.map(|k| Self::Rsa(Box::new(k))).map_err(|e| e.to_string()))
    }

    /// The number that makes it this key.
    pub fn secret_number(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.to_bytes().to_vec(),
            Self::P256(key) => key.to_bytes().to_vec(),
            Self::P384(key) => key.to_bytes().to_vec(),
            Self::P521(key) => key.to_bytes().to_vec(),
            Self::Rsa(key) => key.primes().first().map(BigUint::to_bytes_be).unwrap_or_default(),
        }
    }

    /// The signature as it is sent: the algorithm's name, then its bytes. `flags` choose the hash of RSA.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let (name, bytes) = match self {
            Self::Ed25519(key) => ("ssh-ed25519", key.try_sign(data).ok()?.to_vec()),
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.try_sign(data).ok()?;
                ("ecdsa-sha2-nistp256", halves(&signature.to_bytes()))
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.try_sign(data).ok()?;
                ("ecdsa-sha2-nistp384", halves(&signature.to_bytes()))
            }
            Self::P521(key) => {
                let signature: p521::ecdsa::Signature = key.try_sign(data).ok()?;
                ("ecdsa-sha2-nistp521", halves(&signature.to_bytes()))
            }
            Self::Rsa(key) if flags & RSA_SHA2_512 != 0 => {
                ("rsa-sha2-512", rsa_sign(&RsaSigningKey::<Sha512>::new((**key).clone()), data)?)
            }
            // SHA-1, which is meant by no flag, is refused by servers for years; who asks gets SHA-256.
            Self::Rsa(key) => ("rsa-sha2-256", rsa_sign(&RsaSigningKey::<Sha256>::new((**key).clone()), data)?),
        };
        let mut out = Vec::new();
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, &bytes);
        Some(out)
    }

    /// What clients know an RSA key by that did not come with its public part.
    pub fn public_blob(&self) -> Option<Vec<u8>> {
        let Self::Rsa(key) = self else { return None };
        let mut out = Vec::new();
        put_string(&mut out, b"ssh-rsa");
        put_mpint(&mut out, &key.e().to_bytes_be());
        put_mpint(&mut out, &key.n().to_bytes_be());
        Some(out)
    }
}

/// A number in exactly `N` bytes, whatever zeros it was written with.
fn fixed<const N: usize>(number: &[u8]) -> Option<[u8; N]> {
    let zeros = number.iter().take_while(|b| **b == 0).count();
    let digits = &number[zeros..];
    let mut out = [0; N];
    out.get_mut(N.checked_sub(digits.len())?..)?.copy_from_slice(digits);
    Some(out)
}

/// The two numbers of an ECDSA signature as OpenSSH sends them.
fn halves(signature: &[u8]) -> Vec<u8> {
    let (r, s) = signature.split_at(signature.len() / 2);
    let mut out = Vec::new();
    put_mpint(&mut out, r);
    put_mpint(&mut out, s);
    out
}

/// Blinded: how long it takes says nothing about the key.
fn rsa_sign<S: SignatureEncoding>(key: &impl RandomizedSigner<S>, data: &[u8]) -> Option<Vec<u8>> {
    key.try_sign_with_rng(&mut OsRng, data).ok().map(|s| s.to_vec())
}
