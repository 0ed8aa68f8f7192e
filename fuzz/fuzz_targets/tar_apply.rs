//! Any bytes as a layer: no panic, and nothing appears outside the root. Checksums are repaired, otherwise hardly any
//! input would come past the first header.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use kiln_rootfs::Root;
use kiln_rootfs::apply::{ApplyOptions, ExtractOptions, Limits, apply, extract};
use libfuzzer_sys::fuzz_target;

fn arena() -> &'static PathBuf {
    static ARENA: OnceLock<PathBuf> = OnceLock::new();
    ARENA.get_or_init(|| {
        let arena = std::env::temp_dir().join(format!("kiln-fuzz-tar-{}", std::process::id()));
        std::fs::create_dir_all(arena.join("root")).expect("arena");
        std::fs::write(arena.join("secret"), "secret").expect("arena");
        arena
    })
}

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

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    let bytes = if mode & 1 == 0 { repaired(data) } else { data.to_vec() };
    let root = Root::open(&arena().join("root")).expect("root");
    let limits = Limits { entries: 1000, bytes: 64 << 20, path: 4096 };
    let _ = if mode & 2 == 0 {
        apply(&bytes[..], &root, &ApplyOptions { limits, ..Default::default() })
    } else {
        extract(&bytes[..], &root, &ExtractOptions { limits, ..Default::default() })
    };
    root.remove_all("".as_ref()).expect("empty the root");
    assert_eq!(std::fs::read(arena().join("secret")).expect("secret"), b"secret");
    assert_eq!(std::fs::read_dir(arena()).expect("arena").count(), 2);
});
