//! See the body, which `cargo test -p kiln-engine --test fuzz_bodies` runs over the corpus, too.
#![no_main]

#[path = "../bodies/git_url.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|data: &[u8]| body::run(data));
