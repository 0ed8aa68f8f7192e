//! Any text as an image name: no panic; what is accepted is written back as it was read, and never leaves a directory or
//! becomes an option.

use kiln_oci::{Digest, Platform, Reference};

/// One input.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = text.parse::<Digest>();
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().expect("it was one"), platform);
    }
    let Ok(reference) = text.parse::<Reference>() else { return };
    let full = reference.to_string();
    assert_eq!(full.parse::<Reference>().expect("it was one"), reference, "{full:?}");
    assert_eq!(reference.familiar().parse::<Reference>().expect("it was one"), reference);
    assert!(!full.starts_with('-') && !full.chars().any(|c| c.is_control() || c == ' '), "{full:?}");
    assert!(full.split('/').all(|part| part != ".." && part != "."), "{full:?}");
    let _ = reference.with_default_tag().to_string();
}
