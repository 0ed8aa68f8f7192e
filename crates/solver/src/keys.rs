//! How the two keys are put together. The engine keeps what they lead to.
//!
//! | key | made of |
//! |---|---|
//! | definition | version, op digest, for each input in order: the definition key of what makes it and the output's index, or the tree digest of what is read of it |
//! | definition of a source | version, kind of source, digest of what it stands for (an image's manifest, a git commit) |
//! | content | version, op digest, for each input in order: the identity of its result and the output's index, or the tree digest of what is read of it |
//!
//! Change [`DEFINITION_VERSION`] or [`CONTENT_VERSION`] with every change of meaning, which includes a change of what
//! executing an op does.

use kiln_oci::{Digest, Hasher};

/// Version of definition keys.
pub const DEFINITION_VERSION: &str = "kiln.definition.v1";
/// Version of content keys.
pub const CONTENT_VERSION: &str = "kiln.content.v1";

/// Identifies a result by all that went into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DefinitionKey(pub Digest);

/// Identifies a result by what its inputs turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentKey(pub Digest);

/// What an input contributes to a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyPart {
    /// An output of something else, as a whole.
    Output {
        /// Its definition key, or the identity of its result.
        key: Digest,
        /// Which output.
        output: u32,
    },
    /// What is read of a file system.
    Tree(Digest),
}

/// The definition key of an op with these inputs.
pub fn definition_key(op: &Digest, inputs: &[KeyPart]) -> DefinitionKey {
    DefinitionKey(hash(DEFINITION_VERSION, op, inputs))
}

/// The definition key of a source that is known by the digest of what it stands for.
pub fn source_key(kind: &str, identity: &Digest) -> DefinitionKey {
    let mut hasher = Hasher::new();
    hasher.field(DEFINITION_VERSION).field("source").field(kind).field(identity.bytes());
    DefinitionKey(hasher.finish())
}

/// The content key of an op with these inputs.
pub fn content_key(op: &Digest, inputs: &[KeyPart]) -> ContentKey {
    ContentKey(hash(CONTENT_VERSION, op, inputs))
}

fn hash(version: &str, op: &Digest, inputs: &[KeyPart]) -> Digest {
    let mut hasher = Hasher::new();
    hasher.field(version).field("op").field(op.bytes()).field((inputs.len() as u64).to_le_bytes());
    for input in inputs {
        match input {
            KeyPart::Output { key, output } => hasher.field("output").field(key.bytes()).field(output.to_le_bytes()),
            KeyPart::Tree(digest) => hasher.field("tree").field(digest.bytes()),
        };
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_their_parts_apart() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let out = |key, output| KeyPart::Output { key, output };
        let all = [
            definition_key(&a, &[]).0,
            content_key(&a, &[]).0,
            definition_key(&b, &[]).0,
            definition_key(&a, &[out(b, 0)]).0,
            definition_key(&a, &[out(b, 1)]).0,
            definition_key(&a, &[KeyPart::Tree(b)]).0,
            definition_key(&a, &[out(b, 0), out(b, 0)]).0,
            source_key("image", &a).0,
            source_key("git", &a).0,
        ];
        let different: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
    }

    /// A stored cache is found by these: a change here is a change of a version.
    #[test]
    fn keys_do_not_change_between_releases() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let parts = [KeyPart::Output { key: b, output: 0 }, KeyPart::Tree(a)];
        assert_eq!(definition_key(&a, &parts).0.short(), "957d8380e120");
        assert_eq!(content_key(&a, &parts).0.short(), "dc1d007b903a");
    }
}
