//! Any bytes as a layer or archive: no panic, and nothing appears or changes outside the root. Checksums are repaired,
//! otherwise hardly any input would come past the first header.

use kiln_rootfs::Root;
use kiln_rootfs::apply::{ApplyOptions, ExtractOptions, Limits, apply, extract};

fn repaired(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    for block in bytes.chunks_exact_mut(512).filter(|block| block[0] != 0) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// One input: a byte that says how to read it, then the archive.
pub fn run(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let bytes = if mode & 1 == 0 { repaired(data) } else { data.to_vec() };
    let arena = tempfile::Builder::new().prefix("kiln-fuzz-").tempdir().expect("arena");
    let (inside, outside) = (arena.path().join("root"), arena.path().join("secret"));
    std::fs::create_dir(&inside).expect("arena");
    std::fs::write(&outside, "secret").expect("arena");
    let root = Root::open(&inside).expect("root");
    let limits = Limits { entries: 1000, bytes: 1 << 20, path: 4096, ..Limits::default() };
    let _ = if mode & 2 == 0 {
        apply(&bytes[..], &root, &ApplyOptions { limits, ..Default::default() })
    } else {
        extract(&bytes[..], &root, &ExtractOptions { limits, ..Default::default() })
    };
    assert_eq!(std::fs::read(&outside).expect("secret"), b"secret");
    assert_eq!(std::fs::read_dir(arena.path()).expect("arena").count(), 2);
}
