//! `system df`, `prune`, and the disk budget that builds keep to.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use support::{Sandbox, names};

/// Bytes that do not compress.
fn noise(seed: u32, size: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    })
    .take(size)
    .collect()
}

const MB: usize = 1 << 20;

/// Allocated bytes, as `du` counts them.
fn du(path: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let below = |p: &Path| std::fs::read_dir(p).map(|d| d.filter_map(|e| Some(du(&e.ok()?.path()))).sum()).unwrap_or(0);
    metadata.blocks() * 512 + if metadata.is_dir() { below(path) } else { 0 }
}

/// The step that copies `file` is built without an image; says how it ended.
fn cached(sandbox: &Sandbox, file: &str) -> String {
    sandbox.file("Dockerfile", format!("FROM scratch\nCOPY {file} /\n"));
    let run = sandbox.build(&["-o", "type=cacheonly"]).ok();
    run.step(&format!("COPY {file}")).to_owned()
}

#[test]
fn the_least_recently_used_goes_and_what_was_found_counts_as_used() {
    let sandbox = Sandbox::bare("");
    for (seed, file) in ["a", "b", "c"].into_iter().enumerate() {
        sandbox.file(file, noise(seed as u32, 4 * MB));
        assert_eq!(cached(&sandbox, file), "DONE");
    }
    // A build that changes nothing is a use.
    assert_eq!(cached(&sandbox, "a"), "CACHED");
    let before = du(&sandbox.path("store"));
    let pruned = sandbox.kiln(&["prune", "-f", "--max-used-space", "9m", "--verbose"]).ok();
    assert!(pruned.stdout.contains("COPY b") && !pruned.stdout.contains("COPY a"), "{}", pruned.stdout);
    assert!(pruned.stdout.contains("Total reclaimed space: ") && pruned.stderr.is_empty(), "{}", pruned.stderr);
    let after = du(&sandbox.path("store"));
    assert!(after <= 9 * MB as u64 && before - after >= 4_000_000, "{before} {after}");
    assert_eq!(cached(&sandbox, "a"), "CACHED");
    assert_eq!(cached(&sandbox, "c"), "CACHED");
    assert_eq!(cached(&sandbox, "b"), "DONE");
    let nothing = sandbox.kiln(&["prune", "-f", "--keep-storage", "1g"]).ok();
    assert_eq!(nothing.stdout, "Total reclaimed space: 0B\n");
}

#[test]
fn builds_keep_to_the_budget_by_themselves() {
    let mut sandbox = Sandbox::bare("");
    sandbox.env("KILN_MAX_USED_SPACE", "14m");
    // All builds have a layer in common, which the last one uses.
    sandbox.file("common", "common");
    sandbox.file("Dockerfile", "FROM scratch\nCOPY common /\nCOPY data /\n");
    for round in 0..6 {
        sandbox.file("data", noise(round, 3 * MB));
        sandbox.build(&["-t", "app"]).ok();
        let used = du(&sandbox.path("store"));
        assert!(used <= 14 * MB as u64, "{used} bytes after build {round}");
    }
    assert_eq!(sandbox.build(&["-t", "app"]).ok().step("COPY data"), "CACHED", "the newest stays");
    sandbox.kiln(&["save", "-o", "app.tar", "app"]).ok();
    std::fs::create_dir_all(sandbox.path("home/.config/kiln")).expect("a directory");
    std::fs::write(sandbox.path("home/.config/kiln/kiln.toml"), "[store]\nmax-used = \"1g\"\n").expect("a file");
    sandbox.env("KILN_MAX_USED_SPACE", "");
    sandbox.build(&[]).fails(1).says(&["kiln.toml", "no max-used", "max-used-space"]);
}

#[test]
fn images_hold_what_they_need_until_all_is_said() {
    let sandbox = Sandbox::bare("FROM scratch\nCOPY data /\n");
    sandbox.file("data", noise(1, 3 * MB));
    sandbox.build(&["-t", "old"]).ok();
    sandbox.file("data", noise(2, 3 * MB));
    sandbox.build(&["-t", "new"]).ok();
    let held = sandbox.kiln(&["prune", "-f", "--max-used-space", "1m"]).ok();
    assert!(held.stderr.contains("the limit is not met") && held.stderr.contains("--all"), "{}", held.stderr);
    sandbox.kiln(&["history", "old"]).ok();
    sandbox.kiln(&["prune", "-f", "-a", "--max-used-space", "9m"]).ok();
    assert_eq!(sandbox.kiln(&["images", "--format", "{{.Repository}}"]).ok().stdout, "new\n", "the older one went");
    sandbox.kiln(&["system", "prune", "--all", "--force"]).ok();
    assert_eq!(sandbox.kiln(&["images", "-q"]).ok().stdout, "");
    assert_eq!(names(sandbox.path("store/content/blobs/sha256")), [""; 0]);
    assert_eq!(names(sandbox.path("store/layers")), [""; 0]);
}

#[test]
fn a_plain_prune_removes_dangling_images_cache_and_downloads_and_asks_first() {
    let sandbox = Sandbox::bare("FROM scratch\nCOPY data /\n");
    for seed in 0..2 {
        sandbox.file("data", noise(seed, MB));
        sandbox.build(&["-t", "app"]).ok();
    }
    let repository = sandbox.path(format!("store/sources/git/{}", "a".repeat(64)));
    std::fs::create_dir_all(&repository).expect("a directory");
    std::fs::write(repository.join("pack"), noise(3, MB)).expect("a file");
    std::fs::create_dir_all(sandbox.path("store/sources/deb/debs")).expect("a directory");
    std::fs::write(sandbox.path("store/sources/deb/debs/x.deb"), noise(4, MB)).expect("a file");
    sandbox.kiln(&["prune"]).fails(2).says(&["all dangling images", "downloads", "--force"]);
    let pruned = sandbox.kiln(&["system", "prune", "-f"]).ok().stdout;
    assert!(pruned.contains("Deleted Images:") && pruned.contains("3 downloads"), "{pruned}");
    assert!(!repository.exists() && names(sandbox.path("store/sources/deb/debs")).is_empty());
    assert_eq!(sandbox.kiln(&["images", "--format", "{{.Repository}}"]).ok().stdout, "app\n");
    assert_eq!(sandbox.build(&[]).ok().step("COPY data"), "CACHED", "what the image needs stays in the cache");
    sandbox.kiln(&["prune", "-f", "--filter", "colour=red"]).fails(2).says(&["unused-for, type, description"]);
}

#[test]
fn a_prune_of_the_builder_leaves_all_images() {
    let sandbox = Sandbox::bare("FROM scratch\nCOPY data /\n");
    for seed in 0..2 {
        sandbox.file("data", noise(seed, MB));
        sandbox.build(&["-t", "app"]).ok();
    }
    let images = sandbox.kiln(&["images", "-q"]).ok().stdout;
    assert_eq!(images.lines().count(), 2);
    sandbox.kiln(&["builder", "prune", "--all"]).fails(2).says(&["all build cache"]).hides("images");
    sandbox.kiln(&["builder", "prune", "-af"]).ok();
    assert_eq!(sandbox.kiln(&["images", "-q"]).ok().stdout, images);
    sandbox.kiln(&["save", "app", "-o", "app.tar"]).ok();
}

#[test]
fn df_adds_up_to_what_the_file_system_says() {
    let sandbox = Sandbox::bare("FROM scratch\nCOPY data /\n");
    sandbox.file("data", noise(1, 2 * MB));
    sandbox.build(&["-t", "app"]).ok();
    let table = sandbox.kiln(&["system", "df"]).ok().stdout;
    assert!(table.starts_with("TYPE           TOTAL     ACTIVE    SIZE      RECLAIMABLE\nImages "), "{table}");
    assert!(table.contains("left on its file system"), "{table}");
    let verbose = sandbox.kiln(&["system", "df", "-v"]).ok().stdout;
    assert!(verbose.contains("Build cache:") && verbose.contains("COPY data /"), "{verbose}");
    assert!(!verbose.contains("sha256:"), "{verbose}");
    let rows = sandbox.kiln(&["system", "df", "--format", "{{.Type}}={{.Active}}"]).ok().stdout;
    assert_eq!(rows.lines().next(), Some("Images=1"));
}

#[test]
fn an_unfinished_download_is_told_of_and_goes_with_a_prune() {
    let sandbox = Sandbox::bare("");
    sandbox.kiln(&["images"]).ok();
    let partial = sandbox.path(format!("store/tmp/partial.sha256.{}", "5".repeat(64)));
    std::fs::write(&partial, noise(1, MB)).unwrap();
    let df = sandbox.kiln(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Reclaimable}}"]).ok();
    assert!(df.stdout.contains("Downloads 1 1.05MB (100%)"), "{}", df.stdout);
    // Somebody goes on with it.
    let lock = std::fs::File::open(&partial).unwrap();
    lock.lock().unwrap();
    sandbox.kiln(&["prune", "-f"]).ok();
    assert!(partial.exists());
    drop(lock);
    let pruned = sandbox.kiln(&["prune", "-f"]).ok();
    assert!(pruned.stdout.contains("Removed: 1 unfinished download\n") && !partial.exists(), "{}", pruned.stdout);
}
