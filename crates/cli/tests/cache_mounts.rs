//! Cache mounts: `kiln cache`, and how they travel between machines, each of which is a store of its own.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use support::*;

/// Each build adds a line to both mounts and shows what was there before.
const USE: &str = "ARG N=0\nRUN --mount=type=cache,id=npm,target=/npm --mount=type=cache,target=/go \
                   cat /npm/log /go/log 2>/dev/null; echo \"line $N\" >> /npm/log; echo \"go $N\" >> /go/log; ln -sf log /npm/link\n";

fn machine(s: &mut Sandbox, name: &str) {
    s.env("KILN_ROOT", s.path(name).to_str().unwrap());
}

#[test]
fn list_remove_export_import() {
    let Some(mut s) = Sandbox::new(&format!("{BASE}{USE}")) else { return };
    assert_eq!(s.kiln(&["cache", "ls", "-q"]).ok().stdout, "");
    s.build(&[]).ok();
    assert_eq!(s.kiln(&["cache", "ls", "-q"]).ok().stdout, "/go\nnpm\n");
    let table = s.kiln(&["cache", "ls"]).ok().stdout;
    assert!(table.starts_with("ID ") && table.contains("LAST USED"), "{table}");
    s.kiln(&["cache", "export", "npm", "-o", "npm.tar"]).ok();
    let piped = s.command(["cache", "export", "npm"]).output().unwrap();
    assert_eq!(piped.stdout, std::fs::read(s.path("npm.tar")).unwrap());
    let listed = Command::new("tar").arg("tf").arg(s.path("npm.tar")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "link\nlog\n");
    s.kiln(&["cache", "export", "none", "-o", "none.tar"]).fails(1).says(&["no cache mount \"none\"", "kiln cache ls"]);
    assert!(!s.path("none.tar").exists());

    machine(&mut s, "second");
    s.kiln(&["cache", "import", "npm", "npm.tar"]).ok();
    let mut child = s.command(["cache", "import", "/go", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&piped.stdout).unwrap();
    assert!(child.wait().unwrap().success());
    s.build(&["--build-arg", "N=1"]).ok().says(&["line 0\n"]);
    s.kiln(&["cache", "import", "npm", "npm.tar"]).fails(1).says(&["already", "kiln cache rm npm"]);
    s.kiln(&["cache", "import", "bad", "ctx/Dockerfile"]).fails(1);
    assert_eq!(s.kiln(&["cache", "ls", "-q"]).ok().stdout, "/go\nnpm\n", "half a mount is none");

    assert!(s.kiln(&["cache", "rm", "npm"]).ok().stdout.starts_with("Deleted: npm\nTotal reclaimed space: "));
    s.kiln(&["cache", "rm", "npm"]).fails(1).says(&["no cache mount \"npm\""]);
    s.kiln(&["cache", "rm", "-f", "npm"]).ok();
    s.kiln(&["cache", "rm", "--all"]).ok();
    assert_eq!(s.kiln(&["cache", "ls", "-q"]).ok().stdout, "");
    s.kiln(&["cache", "rm"]).fails(2);
}

#[test]
fn mounts_travel_with_the_cache() {
    let Some(mut s) = Sandbox::new(&format!("{BASE}{USE}")) else { return };
    s.build(&["--build-arg", "N=1", "--cache-to", "type=local,dest=cache,mounts=all"]).ok();
    machine(&mut s, "second");
    let from = ["--cache-from", "type=local,src=cache"];
    // All cached: nobody opens a mount, and none is fetched; but the next cache still has them.
    let to = ["--build-arg", "N=1", "--cache-to", "type=local,dest=cache,mounts=all"];
    let run = s.build(&[&from[..], &to].concat()).ok();
    assert_eq!(run.executed(), [""; 0], "{}", run.stderr);
    assert_eq!(s.kiln(&["cache", "ls", "-q"]).ok().stdout, "");
    let run =
        s.build(&[&from[..], &["--build-arg", "N=2", "--cache-to", "type=local,dest=other,mounts=npm"]].concat()).ok();
    assert!(run.stderr.contains("line 1") && run.stderr.contains("go 1"), "{}", run.stderr);
    // What is here is newer than what is there.
    s.build(&[&from[..], &["--build-arg", "N=3"]].concat()).ok().says(&["line 1", "line 2", "go 2"]);
    machine(&mut s, "third");
    let run = s.build(&["--cache-from", "type=local,src=other", "--build-arg", "N=4"]).ok();
    assert!(run.stderr.contains("line 2") && !run.stderr.contains("go 2"), "{}", run.stderr);
    s.build(&["--cache-to", "type=local,dest=other,mounts=nope"]).ok().says(&["there is no cache mount nope"]);
}

#[test]
fn damaged_mounts_are_empty_mounts() {
    let Some(mut s) = Sandbox::new(&format!("{BASE}{USE}")) else { return };
    s.build(&["--build-arg", "N=1", "--cache-to", "type=local,dest=cache,mounts=npm"]).ok();
    let blobs = s.path("cache/blobs/sha256");
    for name in names(&blobs) {
        let bytes = std::fs::read(blobs.join(&name)).unwrap();
        // Pieces are zstd; layers are gzip.
        if bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            std::fs::write(blobs.join(&name), &bytes[..bytes.len() - 3]).unwrap();
        }
    }
    machine(&mut s, "second");
    let run = s.build(&["--build-arg", "N=2", "--cache-from", "type=local,src=cache"]).ok();
    run.says(&["WARNING: the cache mount npm of cache is not used"]).hides("line 1\n#");
    assert_eq!(mount(&s, "second", "npm"), "line 2\n");
}

/// The log in a mount.
fn mount(s: &Sandbox, _: &str, id: &str) -> String {
    let tar = s.command(["cache", "export", id]).output().unwrap();
    let mut child =
        Command::new("tar").args(["xO", "log"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&tar.stdout).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn a_large_mount_is_sent_once_and_its_changes_alone_after_that() {
    let big = "RUN --mount=type=cache,id=big,target=/big test -e /big/a || for i in 1 2 3 4 5 6 7 8 9 10 11 12; do \
               dd if=/dev/urandom of=/big/file$i bs=1M count=1 2>/dev/null; done; touch /big/a\n\
               ARG N=0\nRUN --mount=type=cache,id=big,target=/big echo $N > /big/file6.new\n";
    let Some(s) = Sandbox::new(&format!("{BASE}{big}")) else { return };
    let size = || -> u64 { dir_size(&s.path("cache/blobs")) };
    let to = ["--cache-to", "type=local,dest=cache,mounts=all"];
    s.build(&to).ok();
    let first = size();
    assert!(first > 12 << 20, "{first}");
    s.build(&[&to[..], &["--build-arg", "N=1"]].concat()).ok();
    let added = size() - first;
    assert!(added < 7 << 20, "{added} bytes were added to {first}");
    let run = s.build(&["--cache-to", "type=local,dest=small,mounts=all,mounts-max-size=5MB"]).ok();
    run.says(&["WARNING: the cache mount big", "left out", "mounts-max-size"]);
    assert!(dir_size(&s.path("small")) < 5 << 20);
}

fn dir_size(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let data = entry.metadata().unwrap();
        sum += if data.is_dir() { dir_size(&entry.path()) } else { data.len() };
    }
    sum
}

#[test]
fn a_mount_with_a_secret_stays_here() {
    let Some(s) = Sandbox::new(&format!(
        "{BASE}RUN --mount=type=secret,id=key --mount=type=cache,id=m,target=/m cp /run/secrets/key /m/key\n"
    )) else {
        return;
    };
    std::fs::write(s.path("key"), "correct-horse-battery").unwrap();
    let run = s.build(&["--secret", "id=key,src=key", "--cache-to", "type=local,dest=cache,mounts=all"]).ok();
    run.says(&["WARNING: the cache mount m is left out", "secret \"key\""]);
}
