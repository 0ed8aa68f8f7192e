//! Throw-away OpenPGP keys, good ones and ones with a flaw.
use pgp::composed::{
    CleartextSignedMessage, DetachedSignature, KeyType, SecretKeyParamsBuilder, SignedKeyDetails, SignedPublicKey,
    SignedPublicSubKey, SubkeyParamsBuilder,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{
    KeyFlags, SecretKey, SecretSubkey, Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData, UserId,
};
use pgp::ser::Serialize;
use pgp::types::{Duration, Password, SignedUser, SigningKey, Tag, Timestamp};

use super::NOW;

/// What is unusual about a key or its signatures.
#[derive(Clone, Default)]
pub struct Flaws {
    /// The key expires this many seconds after its creation.
    pub key_lifetime: Option<u32>,
    /// Signatures expire this many seconds after they are made.
    pub signature_lifetime: Option<u32>,
    /// Signatures are made at this time.
    pub signed_at: Option<u32>,
    /// Signatures use SHA-1.
    pub sha1: bool,
    /// The key is revoked.
    pub revoked: bool,
    /// A subkey signs.
    pub subkey: bool,
    /// The subkey is not bound by its primary key, but by another.
    pub stolen_subkey: bool,
    /// The subkey does not sign back.
    pub no_back_signature: bool,
}

pub struct Key {
    primary: SecretKey,
    subkey: Option<SecretSubkey>,
    public: SignedPublicKey,
    flaws: Flaws,
}

const CREATED: u32 = NOW as u32 - 365 * 86_400;

fn secret(with_subkey: bool) -> (SecretKey, Option<SecretSubkey>) {
    let mut builder = SecretKeyParamsBuilder::default();
    builder.key_type(KeyType::Ed25519Legacy).can_certify(true).can_sign(true).created_at(Timestamp::from_secs(CREATED));
    builder.primary_user_id("Test Archive <archive@example.com>".into());
    if with_subkey {
        let mut sub = SubkeyParamsBuilder::default();
        sub.key_type(KeyType::Ed25519Legacy).can_sign(true).created_at(Timestamp::from_secs(CREATED));
        builder.subkey(sub.build().unwrap());
    }
    let key = builder.build().unwrap().generate(rand::thread_rng()).unwrap();
    let sub = key.secret_subkeys.into_iter().next().map(|s| s.key);
    (key.primary_key, sub)
}

fn config(typ: SignatureType, key: &impl SigningKey, at: u32, more: Vec<SubpacketData>) -> SignatureConfig {
    let mut config = SignatureConfig::v4(typ, key.algorithm(), HashAlgorithm::Sha256);
    let mut data = vec![
        SubpacketData::SignatureCreationTime(Timestamp::from_secs(at)),
        SubpacketData::IssuerFingerprint(key.fingerprint()),
    ];
    data.extend(more);
    config.hashed_subpackets = data.into_iter().map(|d| Subpacket::regular(d).unwrap()).collect();
    config
}

impl Key {
    pub fn good() -> Self {
        Self::with(Flaws::default())
    }

    pub fn with(flaws: Flaws) -> Self {
        let none = Password::empty();
        let with_subkey = flaws.subkey || flaws.stolen_subkey || flaws.no_back_signature;
        let (primary, subkey) = secret(with_subkey);
        let mut sign = KeyFlags::default();
        sign.set_sign(true);
        sign.set_certify(true);
        let mut more = vec![SubpacketData::KeyFlags(sign.clone())];
        more.extend(flaws.key_lifetime.map(|s| SubpacketData::KeyExpirationTime(Duration::from_secs(s))));
        let id = UserId::from_str(Default::default(), "Test Archive <archive@example.com>").unwrap();
        let public = primary.public_key().clone();
        let certificate = config(SignatureType::CertPositive, &primary, CREATED, more)
            .sign_certification(&primary, &public, &none, Tag::UserId, &id)
            .unwrap();
        let revocation = flaws.revoked.then(|| {
            config(SignatureType::KeyRevocation, &primary, CREATED, Vec::new())
                .sign_key(&primary, &none, &public)
                .unwrap()
        });
        let subkeys = subkey.iter().map(|sub| {
            let mut more = vec![SubpacketData::KeyFlags(sign.clone())];
            if !flaws.no_back_signature {
                let back = config(SignatureType::KeyBinding, sub, CREATED, Vec::new());
                let back = back.sign_primary_key_binding(sub, sub.public_key(), &none, &public).unwrap();
                more.push(SubpacketData::EmbeddedSignature(Box::new(back)));
            }
            let binder = if flaws.stolen_subkey { secret(false).0 } else { primary.clone() };
            let binding = config(SignatureType::SubkeyBinding, &binder, CREATED, more);
            let binding = binding.sign_subkey_binding(&binder, binder.public_key(), &none, sub.public_key()).unwrap();
            SignedPublicSubKey::new(sub.public_key().clone(), vec![binding])
        });
        let details = SignedKeyDetails::new(
            revocation.into_iter().collect(),
            Vec::new(),
            vec![SignedUser::new(id, vec![certificate])],
            Vec::new(),
        );
        let public = SignedPublicKey::new(public.clone(), details, subkeys.collect());
        Self { primary, subkey, public, flaws }
    }

    /// The public key as in a `.gpg` file.
    pub fn binary(&self) -> Vec<u8> {
        self.public.to_bytes().unwrap()
    }

    pub fn armored(&self) -> String {
        self.public.to_armored_string(Default::default()).unwrap()
    }

    fn signature(&self, typ: SignatureType, text: &[u8]) -> Signature {
        fn sign(key: &impl SigningKey, flaws: &Flaws, typ: SignatureType, text: &[u8]) -> Signature {
            let lifetime =
                flaws.signature_lifetime.map(|s| SubpacketData::SignatureExpirationTime(Duration::from_secs(s)));
            let at = flaws.signed_at.unwrap_or(NOW as u32 - 3600);
            let mut config = config(typ, key, at, lifetime.into_iter().collect());
            let good = config.clone().sign(key, &Password::empty(), text).unwrap();
            if !flaws.sha1 {
                return good;
            }
            // Ed25519 refuses to make one, so that only its announcement is real.
            config.hash_alg = HashAlgorithm::Sha1;
            Signature::from_config(config, [0, 0], good.signature().unwrap().clone()).unwrap()
        }
        match &self.subkey {
            Some(sub) => sign(sub, &self.flaws, typ, text),
            None => sign(&self.primary, &self.flaws, typ, text),
        }
    }

    /// `InRelease`.
    pub fn sign_inline(&self, text: &str) -> String {
        Self::sign_inline_many(&[self], text)
    }

    pub fn sign_inline_many(keys: &[&Self], text: &str) -> String {
        let sign = |normalized: &str| {
            Ok(keys.iter().map(|key| key.signature(SignatureType::Text, normalized.as_bytes())).collect())
        };
        CleartextSignedMessage::new_many(text, sign).unwrap().to_armored_string(Default::default()).unwrap()
    }

    /// `Release.gpg`.
    pub fn sign_detached(&self, text: &[u8]) -> String {
        let signature = self.signature(SignatureType::Binary, text);
        DetachedSignature::new(signature).to_armored_string(Default::default()).unwrap()
    }
}
