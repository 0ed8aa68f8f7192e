//! OpenPGP keys of archives, and the verification of signatures with them.
//!
//! A signature counts only if all of this holds at the time of the check: its hash is not MD5, SHA-1 or RIPEMD; it has
//! not expired and is not from the future; the key that made it may sign, is not revoked and has not expired; a subkey
//! is bound to its primary key, and signs that binding back; and the primary key has a valid self-signature. One good
//! signature is enough, as for apt; nothing that is not covered by it is ever parsed.

use std::path::{Path, PathBuf};

use pgp::composed::{CleartextSignedMessage, Deserializable, DetachedSignature, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{PublicKey, Signature, SignatureType};
use pgp::types::{Fingerprint, KeyDetails, KeyId, Tag};

use crate::error::{Error, Result};
use crate::files;
use crate::sources::Keys;

/// Largest key file that is read.
const MAX_KEYRING: u64 = 16 << 20;
/// How far a signature may be from the future (clocks differ).
const CLOCK_SKEW: i64 = 24 * 3600;

/// The keys that may sign one repository.
#[derive(Clone)]
pub struct Keyring {
    certificates: Vec<SignedPublicKey>,
    fingerprints: Vec<String>,
    /// The bytes they came from, for a cache of verifications.
    pub digest: kiln_oci::Digest,
}

/// The times that a signature is judged by.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Now: nothing may be from after it.
    pub now: i64,
    /// When the signed text was current: what had expired then does not count. The same, unless it is a snapshot.
    pub current: i64,
}

/// What a good signature says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Good {
    /// Fingerprint of the primary key, in hex.
    pub signer: String,
    /// When signature or key expires.
    pub not_after: Option<i64>,
}

impl Keyring {
    /// Loads the keys of a repository at `url`. `root` is where the machine's own keys are.
    pub fn load(keys: &Keys, root: &Path, url: &str) -> Result<Self> {
        let mut ring = Self { certificates: Vec::new(), fingerprints: Vec::new(), digest: kiln_oci::Digest::of(b"") };
        let mut hasher = kiln_oci::Hasher::new();
        let paths = match keys {
            Keys::Inline(text) => {
                hasher.field(text);
                let fail = |reason| Error::Keyring { path: PathBuf::from("(inline key)"), reason };
                ring.add(text.as_bytes()).map_err(fail)?;
                Vec::new()
            }
            Keys::Listed { files, fingerprints } => {
                ring.fingerprints = fingerprints.clone();
                if files.is_empty() { machine_files(root) } else { files.clone() }
            }
            Keys::Machine => machine_files(root),
        };
        let listed = matches!(keys, Keys::Listed { files, .. } if !files.is_empty());
        for path in &paths {
            let unreadable = |error| match error {
                Error::Io { path, source } => Error::Keyring { path, reason: format!("it can't be read: {source}") },
                other => other,
            };
            let loaded = files::read_limited(path, MAX_KEYRING).map_err(unreadable).and_then(|bytes| {
                hasher.field(&bytes);
                ring.add(&bytes).map_err(|reason| Error::Keyring { path: path.clone(), reason })
            });
            // One broken file among the machine's must not stop the others; one that was named must.
            if listed {
                loaded?;
            }
        }
        for fingerprint in &ring.fingerprints {
            hasher.field(fingerprint);
        }
        ring.digest = hasher.finish();
        if ring.certificates.is_empty() {
            let why = match paths.is_empty() {
                true => "this machine has none in etc/apt/trusted.gpg.d or usr/share/keyrings".to_owned(),
                false => format!("no usable key in {} files", paths.len()),
            };
            return Err(Error::NoKeys { url: url.to_owned(), why });
        }
        Ok(ring)
    }

    /// Adds the keys of a file, binary or armored. A single key that can't be read (a new algorithm) is passed over.
    fn add(&mut self, bytes: &[u8]) -> Result<(), String> {
        let before = self.certificates.len();
        let mut failure = None;
        let found: Vec<_> = match is_armored(bytes) {
            true => {
                // A file can hold several armored blocks, which the parser takes one at a time.
                let text = String::from_utf8_lossy(bytes);
                let blocks =
                    text.split_inclusive("-----END PGP PUBLIC KEY BLOCK-----").filter(|b| b.contains("BEGIN PGP"));
                blocks.take(1000).flat_map(parse_armored).collect()
            }
            false => match SignedPublicKey::from_bytes_many(&*without_trust(bytes)) {
                Ok(keys) => keys.take(10_000).collect(),
                Err(error) => vec![Err(error)],
            },
        };
        for key in found {
            match key {
                Ok(key) => self.certificates.push(key),
                Err(error) => failure = Some(error.to_string()),
            }
        }
        match failure {
            Some(reason) if self.certificates.len() == before => Err(reason),
            None if self.certificates.len() == before => Err("it holds no OpenPGP public key".into()),
            _ => Ok(()),
        }
    }

    /// Verifies a clear-signed text; gives back the text that was signed, and nothing else of the file.
    pub fn verify_inline(&self, url: &str, bytes: &[u8], clock: Clock) -> Result<(Vec<u8>, Good)> {
        let fail = |reason: String| Error::Signature { url: url.to_owned(), reason };
        let text = std::str::from_utf8(bytes).map_err(|_| fail("it is not text".into()))?;
        if !text.contains("-----BEGIN PGP SIGNED MESSAGE-----") {
            let start: String = text.trim_start().chars().take(40).collect();
            return Err(fail(format!("it is something else than a signed text, and begins with {start:?}")));
        }
        let (message, _) =
            CleartextSignedMessage::from_string(text).map_err(|error| fail(format!("it is damaged ({error})")))?;
        let signed = message.signed_text().into_bytes();
        let good = self.verify(message.signatures(), &signed, clock).map_err(fail)?;
        Ok((signed, good))
    }

    /// Verifies detached signatures, armored or binary.
    pub fn verify_detached(&self, url: &str, bytes: &[u8], signature: &[u8], clock: Clock) -> Result<Good> {
        let fail = |reason: String| Error::Signature { url: url.to_owned(), reason };
        let parsed: pgp::errors::Result<Vec<DetachedSignature>> = match is_armored(signature) {
            true => DetachedSignature::from_armor_many(signature).and_then(|(all, _)| all.take(100).collect()),
            false => DetachedSignature::from_bytes_many(signature).and_then(|all| all.take(100).collect()),
        };
        let signatures: Vec<Signature> =
            parsed.map_err(|error| fail(error.to_string()))?.into_iter().map(|s| s.signature).collect();
        self.verify(&signatures, bytes, clock).map_err(fail)
    }

    /// The best of the good signatures, or what is wrong with each.
    fn verify(&self, signatures: &[Signature], signed: &[u8], clock: Clock) -> Result<Good, String> {
        if signatures.is_empty() {
            return Err("it has no signature".into());
        }
        let mut good: Option<Good> = None;
        let mut faults = Vec::new();
        for signature in signatures.iter().take(100) {
            match self.check(signature, signed, clock) {
                Ok(found) => {
                    let longer = |have: &Good| have.not_after.is_some_and(|t| found.not_after.is_none_or(|f| f > t));
                    if good.as_ref().is_none_or(longer) {
                        good = Some(found);
                    }
                }
                Err(fault) => faults.push(fault),
            }
        }
        good.ok_or_else(|| faults.join("; "))
    }

    fn check(&self, signature: &Signature, signed: &[u8], clock: Clock) -> Result<Good, String> {
        let issuer = issuer_name(signature);
        match signature.typ() {
            Some(SignatureType::Binary | SignatureType::Text) => {}
            _ => return Err(format!("the one by {issuer} is not over data")),
        }
        if !matches!(
            signature.hash_alg(),
            Some(
                HashAlgorithm::Sha224
                    | HashAlgorithm::Sha256
                    | HashAlgorithm::Sha384
                    | HashAlgorithm::Sha512
                    | HashAlgorithm::Sha3_256
                    | HashAlgorithm::Sha3_512
            )
        ) {
            return Err(format!("the one by {issuer} uses a broken or unknown hash"));
        }
        let created = signature.created().map(|t| i64::from(t.as_secs()));
        let created = created.ok_or_else(|| format!("the one by {issuer} has no date"))?;
        if created > clock.now + CLOCK_SKEW {
            return Err(format!("the one by {issuer} is from {}, in the future", crate::time::day(created)));
        }
        let lifetime = signature.signature_expiration_time().map(|d| i64::from(d.as_secs())).filter(|d| *d > 0);
        let expires = lifetime.map(|d| created + d);
        if let Some(at) = expires.filter(|at| *at <= clock.current) {
            return Err(format!("the one by {issuer} expired on {}", crate::time::day(at)));
        }
        let mut fault = format!("key {issuer} is not in the keyring (another archive's is given with keyring=FILE)");
        for certificate in &self.certificates {
            for key in candidates(certificate, signature) {
                match self.check_with(certificate, key, signature, (signed, created, clock.current)) {
                    Ok(key_expires) => {
                        let not_after = [expires, key_expires].into_iter().flatten().min();
                        return Ok(Good { signer: certificate.fingerprint().to_string(), not_after });
                    }
                    Err(reason) => fault = format!("key {issuer} {reason}"),
                }
            }
        }
        Err(fault)
    }

    /// When the key expires, if the signature by it is good.
    fn check_with(
        &self,
        certificate: &SignedPublicKey,
        key: Candidate<'_>,
        signature: &Signature,
        (signed, created, now): (&[u8], i64, i64),
    ) -> Result<Option<i64>, String> {
        let primary = &certificate.primary_key;
        let fingerprint = certificate.fingerprint().to_string().to_ascii_uppercase();
        let allowed = self.fingerprints.is_empty()
            || self.fingerprints.iter().any(|f| {
                fingerprint.ends_with(f)
                    || matches!(key, Candidate::Sub(s) if s.fingerprint().to_string().to_ascii_uppercase().ends_with(f))
            });
        if !allowed {
            return Err("is not one of the fingerprints that the source allows".into());
        }
        let state = primary_state(certificate)?;
        expired(state.expires, now)?;
        let (key_created, verified, key_expires) = match key {
            Candidate::Primary => {
                if !state.may_sign {
                    return Err("may not sign data".into());
                }
                (primary.created_at(), signature.verify(primary, signed), None)
            }
            Candidate::Sub(subkey) => {
                let expires = subkey_expiry(primary, subkey)?;
                expired(expires, now)?;
                (subkey.key.created_at(), signature.verify(&subkey.key, signed), expires)
            }
        };
        if i64::from(key_created.as_secs()) > created {
            return Err("is younger than the signature".into());
        }
        // The library's words are about its own insides.
        verified.map_err(|_| "did not sign this text: it was changed on its way, or the mirror is broken")?;
        Ok([state.expires, key_expires].into_iter().flatten().min())
    }
}

#[derive(Clone, Copy)]
enum Candidate<'a> {
    Primary,
    Sub(&'a SignedPublicSubKey),
}

/// The keys of a certificate that a signature says it was made by.
fn candidates<'a>(certificate: &'a SignedPublicKey, signature: &Signature) -> Vec<Candidate<'a>> {
    let named = |fingerprint: Fingerprint, id: KeyId| {
        let fingerprints = signature.issuer_fingerprint();
        fingerprints.contains(&&fingerprint) || (fingerprints.is_empty() && signature.issuer_key_id().contains(&&id))
    };
    let mut all = Vec::new();
    if named(certificate.primary_key.fingerprint(), certificate.primary_key.legacy_key_id()) {
        all.push(Candidate::Primary);
    }
    let subkeys = certificate.public_subkeys.iter().filter(|s| named(s.key.fingerprint(), s.key.legacy_key_id()));
    all.extend(subkeys.map(Candidate::Sub));
    all
}

struct PrimaryState {
    expires: Option<i64>,
    may_sign: bool,
}

/// What the newest valid self-signature says of a primary key.
fn primary_state(certificate: &SignedPublicKey) -> Result<PrimaryState, String> {
    let key: &PublicKey = &certificate.primary_key;
    if certificate.details.revocation_signatures.iter().any(|s| s.verify_key(key).is_ok()) {
        return Err("is revoked".into());
    }
    let mut newest: Option<&Signature> = None;
    let mut consider = |signature| {
        if newest.is_none_or(|have: &Signature| have.created() <= Signature::created(signature)) {
            newest = Some(signature);
        }
    };
    for user in &certificate.details.users {
        let valid = user.signatures.iter().filter(|s| s.verify_certification(key, Tag::UserId, &user.id).is_ok());
        match valid.max_by_key(|s| s.created()) {
            Some(signature) if signature.typ() != Some(SignatureType::CertRevocation) => consider(signature),
            _ => {}
        }
    }
    let direct = certificate.details.direct_signatures.iter().filter(|s| s.typ() == Some(SignatureType::Key));
    direct.filter(|s| s.verify_key(key).is_ok()).for_each(&mut consider);
    let signature = newest.ok_or("has no valid self-signature")?;
    Ok(PrimaryState {
        expires: key_expiry(key.created_at().as_secs(), signature),
        may_sign: flags(signature).unwrap_or(true),
    })
}

/// When a signing subkey expires, by its newest valid binding.
fn subkey_expiry(primary: &PublicKey, subkey: &SignedPublicSubKey) -> Result<Option<i64>, String> {
    let valid = || subkey.signatures.iter().filter(|s| s.verify_subkey_binding(primary, &subkey.key).is_ok());
    if valid().any(|s| s.typ() == Some(SignatureType::SubkeyRevocation)) {
        return Err("is a revoked subkey".into());
    }
    let binding = valid().filter(|s| s.typ() == Some(SignatureType::SubkeyBinding)).max_by_key(|s| s.created());
    let binding = binding.ok_or("is a subkey that its primary key did not sign")?;
    if flags(binding) != Some(true) {
        return Err("is a subkey that may not sign data".into());
    }
    let back = binding.embedded_signature().ok_or("is a signing subkey without the signature back")?;
    back.verify_primary_key_binding(&subkey.key, primary).map_err(|_| "is a subkey whose signature back is wrong")?;
    Ok(key_expiry(subkey.key.created_at().as_secs(), binding))
}

/// Whether the key flags allow signing; None without such a subpacket (keys from before they were common).
fn flags(signature: &Signature) -> Option<bool> {
    use pgp::packet::SubpacketData;
    let has = signature.config()?.hashed_subpackets().any(|s| matches!(s.data, SubpacketData::KeyFlags(_)));
    has.then(|| signature.key_flags().sign())
}

fn key_expiry(created: u32, signature: &Signature) -> Option<i64> {
    let lifetime = signature.key_expiration_time().map(|d| i64::from(d.as_secs())).filter(|d| *d > 0)?;
    Some(i64::from(created) + lifetime)
}

fn expired(at: Option<i64>, now: i64) -> Result<(), String> {
    match at.filter(|at| *at <= now) {
        Some(at) => Err(format!("expired on {}", crate::time::day(at))),
        None => Ok(()),
    }
}

fn issuer_name(signature: &Signature) -> String {
    let fingerprint = signature.issuer_fingerprint().first().map(|f| f.to_string());
    let id = || signature.issuer_key_id().first().map(|id| id.to_string());
    fingerprint.or_else(id).map_or_else(|| "(unnamed)".into(), |name| name.to_ascii_uppercase())
}

/// A keyring without GnuPG's own notes between the packets (tag 12), at which the parser would lose the signatures after them.
/// Ubuntu's keyring has such notes.
fn without_trust(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((tag, length)) = packet(rest).filter(|(_, length)| *length <= rest.len()) {
        let (packet, after) = rest.split_at(length);
        if tag != 12 {
            kept.extend_from_slice(packet);
        }
        rest = after;
    }
    // What can't be told apart is left to the parser.
    kept.extend_from_slice(rest);
    kept
}

/// Tag of the first packet and its length with the header (RFC 9580, 4.2), if it has a definite one.
fn packet(bytes: &[u8]) -> Option<(u8, usize)> {
    let first = *bytes.first().filter(|byte| **byte & 0x80 != 0)?;
    let number = |range: std::ops::Range<usize>| {
        Some(bytes.get(range)?.iter().fold(0_usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    let (tag, header, body) = if first & 0x40 == 0 {
        let octets = [1, 2, 4].get(usize::from(first & 3)).copied()?;
        (first >> 2 & 15, 1 + octets, number(1..1 + octets)?)
    } else {
        let (header, body) = match number(1..2)? {
            short @ 0..=191 => (2, short),
            192..=223 => (3, number(1..3)? - (192 << 8) + 192),
            255 => (6, number(2..6)?),
            _ => return None,
        };
        (first & 63, header, body)
    };
    Some((tag, header.checked_add(body)?))
}

fn is_armored(bytes: &[u8]) -> bool {
    bytes.trim_ascii_start().starts_with(b"-----BEGIN") || bytes.is_ascii()
}

fn parse_armored(block: &str) -> Vec<pgp::errors::Result<SignedPublicKey>> {
    let start = block.find("-----BEGIN").unwrap_or(0);
    match SignedPublicKey::from_string_many(&block[start..]) {
        Ok((keys, _)) => keys.take(10_000).collect(),
        Err(error) => vec![Err(error)],
    }
}

/// The files with keys that apt trusts for every source, and those that distributions install for their archives.
fn machine_files(root: &Path) -> Vec<PathBuf> {
    let mut paths = files::sorted(&root.join("usr/share/keyrings"), |name| name.ends_with("-archive-keyring.gpg"));
    paths.extend(files::sorted(&root.join("etc/apt/trusted.gpg.d"), |n| n.ends_with(".gpg") || n.ends_with(".asc")));
    paths.push(root.join("etc/apt/trusted.gpg"));
    paths.retain(|path| path.is_file());
    paths
}

/// The files of key material that a repository uses, for the image's own apt.
pub fn key_files(keys: &Keys, root: &Path) -> Vec<PathBuf> {
    match keys {
        Keys::Inline(_) => Vec::new(),
        Keys::Listed { files, .. } if !files.is_empty() => files.clone(),
        _ => machine_files(root),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_between_packets_are_left_out() {
        let long = |header: &[u8], length: usize| [header, &vec![7; length]].concat();
        let trust: [&[u8]; 3] = [&[0xb0, 2, 0, 3], &[0xb1, 0, 1, 9], &[0xcc, 1, 0]];
        let others = [
            long(&[0x99, 2, 13], 525),
            long(&[0xb4, 66], 66),
            long(&[0x9a, 0, 0, 1, 0], 256),
            long(&[0xc2, 5], 5),
            long(&[0xc2, 0xc1, 0x0a], 458),
            long(&[0xc2, 0xff, 0, 0, 0, 3], 3),
        ];
        let mixed: Vec<u8> = others.iter().zip(trust.iter().cycle()).flat_map(|(o, t)| [o, *t].concat()).collect();
        assert_eq!(without_trust(&mixed), others.concat());
        for odd in
            [&b"text"[..], &[], &[0x99], &[0x99, 2, 13, 1], &[0xc2, 0xe1, 0], &[0xc2, 0xff, 0xff, 0xff], &[0x9b, 1]]
        {
            assert_eq!(without_trust(odd), odd);
        }
    }
}
