//! `variant=distroless`: the packages' files, without what only a package manager, a person or a script needs.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_rootfs::{FileKind, Owner, Root};

use crate::alternatives::{self, Alternative};
use crate::error::Result;
use crate::resolution::Resolution;
use crate::unpack::Unpacked;

/// Directories that are left out, with all below them.
const DOCS: [&str; 16] = [
    "usr/share/man",
    "usr/share/info",
    "usr/share/groff",
    "usr/share/lintian",
    "usr/share/linda",
    "usr/share/bug",
    "usr/share/doc-base",
    "usr/share/menu",
    "usr/share/locale",
    "usr/share/bash-completion",
    "usr/share/zsh",
    "usr/share/fish",
    "usr/share/gtk-doc",
    "usr/share/help",
    "usr/share/gnome/help",
    "usr/share/gcc/python",
];
/// What only an init system, cron or dpkg uses.
const SYSTEM: [&str; 14] = [
    "lib/systemd",
    "usr/lib/systemd",
    "etc/init.d",
    "etc/cron.d",
    "etc/cron.daily",
    "etc/cron.weekly",
    "etc/cron.monthly",
    "etc/logrotate.d",
    "etc/update-motd.d",
    "etc/profile.d",
    "etc/dpkg",
    "usr/share/base-files",
    "usr/share/debconf",
    "boot",
];
const SYSTEM_FILES: [&str; 3] = ["etc/issue", "etc/issue.net", "etc/motd"];

/// What Debian's busybox-static can do that helps to look around.
const TOOLS: &str = "[ [[ ash awk base64 basename bzcat bzip2 cat chgrp chmod chown chroot clear cmp cp cut date dd df \
                     diff dirname dmesg du echo ed env expr false find free getopt grep groups gunzip gzip head \
                     hexdump hostname id ip kill killall less ln logger ls md5sum mkdir mkfifo mknod mktemp \
                     more mv nc netstat nproc nslookup od paste patch pidof ping printf ps pwd readlink realpath \
                     renice reset rev rm rmdir sed seq sh sha1sum sha256sum sha512sum sleep sort stat strings stty \
                     sync tac tail tar tee telnet test time timeout top touch tr traceroute true truncate tty uname \
                     uniq unlink unxz unzip uptime vi watch wc wget which whoami xargs xxd xzcat yes zcat";

const ROOT: Option<Owner> = Some(Owner { uid: 0, gid: 0 });
const NONROOT: Owner = Owner { uid: 65532, gid: 65532 };
const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";
/// More and larger than any real set of authorities.
const MAX_CERTIFICATES: usize = 2000;
const MAX_CERTIFICATE: usize = 1 << 20;

/// Whether a path of a package belongs into the base.
pub fn keep(path: &str, docs: bool) -> bool {
    let inside = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if SYSTEM.iter().any(|dir| inside(dir)) || SYSTEM_FILES.contains(&path) {
        return false;
    }
    if docs {
        return true;
    }
    // Licences stay: most of them ask for that. So do links between documentation directories.
    match path.strip_prefix("usr/share/doc/") {
        Some(rest) => !rest.contains('/') || rest.ends_with("/copyright"),
        None => !DOCS.iter().any(|dir| inside(dir)),
    }
}

/// Writes what maintainer scripts would have made, and what programs expect of any system.
pub fn finish(root: &Root, resolution: &Resolution, unpacked: &[Unpacked]) -> Result<()> {
    directories(root)?;
    accounts(root, resolution)?;
    let nsswitch = "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n";
    write_new(root, "etc/nsswitch.conf", nsswitch.as_bytes())?;
    link_alternatives(root, unpacked)?;
    certificates(root)?;
    if resolution.spec.debug {
        shell(root)?;
    }
    for package in unpacked {
        status(root, package)?;
    }
    Ok(())
}

/// Whether the base has certificates of authorities.
pub fn has_certificates(root: &Root) -> Result<bool> {
    Ok(root.exists(Path::new(BUNDLE))?)
}

fn directories(root: &Root) -> Result<()> {
    let standard: [(&str, u32); 15] = [
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("run", 0o755),
        ("sys", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
        ("usr/bin", 0o755),
        ("usr/lib", 0o755),
        ("usr/sbin", 0o755),
        ("var/tmp", 0o1777),
        ("var/lib", 0o755),
        ("var/log", 0o755),
        ("var/cache", 0o755),
    ];
    for (path, mode) in standard {
        root.create_dir_all(Path::new(path), mode, ROOT)?;
    }
    // As base-files' script does.
    for (path, target) in [("var/run", "/run"), ("var/lock", "/run/lock")] {
        let path = Path::new(path);
        if root.try_stat(path, false)?.is_some_and(|stat| stat.kind == FileKind::Dir) && root.read_dir(path)?.is_empty()
        {
            root.remove_all(path)?;
            root.symlink(Path::new(target), path, ROOT)?;
        }
    }
    root.create_dir_all(Path::new("run/lock"), 0o1777, ROOT)?;
    // The parents of the last component are 0755 anyway; `home/nonroot` alone belongs to somebody else.
    root.create_dir_all(Path::new("home/nonroot"), 0o700, Some(NONROOT))?;
    Ok(())
}

/// The users that distroless images have; base-passwd's own tables when that package was asked for.
fn accounts(root: &Root, resolution: &Resolution) -> Result<()> {
    let shell = resolution.packages.iter().any(|p| p.name == "dash" || p.name == "bash");
    let root_shell = if shell { "/bin/sh" } else { "/sbin/nologin" };
    let master = |name: &str| root.read_small(Path::new(name), 1 << 20);
    let (users, groups) =
        match (master("usr/share/base-passwd/passwd.master")?, master("usr/share/base-passwd/group.master")?) {
            (Some(users), Some(groups)) => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace(":*:", ":x:");
                (text(users), text(groups))
            }
            _ => (
                format!("root:x:0:0:root:/root:{root_shell}\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"),
                "root:x:0:\ntty:x:5:\nstaff:x:50:\nnogroup:x:65534:\n".to_owned(),
            ),
        };
    let passwd = format!("{users}nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n");
    let group = format!("{groups}nonroot:x:65532:\n");
    root.write_file(Path::new("etc/passwd"), passwd.as_bytes(), 0o644, ROOT)?;
    root.write_file(Path::new("etc/group"), group.as_bytes(), 0o644, ROOT)?;
    Ok(())
}

fn write_new(root: &Root, path: &str, content: &[u8]) -> Result<()> {
    if !root.exists(Path::new(path))? {
        root.write_file(Path::new(path), content, 0o644, ROOT)?;
    }
    Ok(())
}

/// Makes the links that `update-alternatives` would have made, where the target is there and the name is free.
fn link_alternatives(root: &Root, unpacked: &[Unpacked]) -> Result<()> {
    let mut best: BTreeMap<String, Alternative> = BTreeMap::new();
    for package in unpacked {
        let script = String::from_utf8_lossy(package.file("postinst").unwrap_or_default()).into_owned();
        for found in alternatives::parse(&script) {
            if root.try_stat(Path::new(&found.target), true)?.is_none_or(|stat| stat.kind == FileKind::Dir) {
                continue;
            }
            let better = best.get(&found.name).is_none_or(|have| have.priority < found.priority);
            if better {
                best.insert(found.name.clone(), found);
            }
        }
    }
    for (name, found) in best {
        let link = Path::new(&found.link);
        if root.exists(link)? {
            continue;
        }
        root.create_dir_all(Path::new("etc/alternatives"), 0o755, ROOT)?;
        root.symlink(&Path::new("/").join(&found.target), &Path::new("etc/alternatives").join(&name), ROOT)?;
        root.create_dir_all(link.parent().unwrap_or(Path::new("")), 0o755, ROOT)?;
        root.symlink(&Path::new("/etc/alternatives").join(&name), link, ROOT)?;
    }
    Ok(())
}

/// What `update-ca-certificates` does: one file with all of ca-certificates' certificates, where OpenSSL finds it.
fn certificates(root: &Root) -> Result<()> {
    let top = Path::new("usr/share/ca-certificates");
    if root.try_stat(top, true)?.is_none_or(|stat| stat.kind != FileKind::Dir) {
        return Ok(());
    }
    let mut bundle = Vec::new();
    let mut count = 0;
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut below = Vec::new();
        for entry in root.read_dir(&dir)? {
            let path = dir.join(&entry.name);
            match entry.kind {
                FileKind::Dir => below.push(path),
                FileKind::File if path.extension().is_some_and(|e| e == "crt") && count < MAX_CERTIFICATES => {
                    let content = root.read_small(&path, MAX_CERTIFICATE)?.unwrap_or_default();
                    bundle.extend_from_slice(&content);
                    if !content.ends_with(b"\n") {
                        bundle.push(b'\n');
                    }
                    count += 1;
                }
                _ => {}
            }
        }
        todo.extend(below.into_iter().rev());
    }
    if count == 0 {
        return Ok(());
    }
    root.create_dir_all(Path::new("etc/ssl/certs"), 0o755, ROOT)?;
    root.write_file(Path::new(BUNDLE), &bundle, 0o644, ROOT)?;
    // The single files are in the bundle now.
    root.remove_all(top)?;
    root.create_dir_all(Path::new("usr/lib/ssl"), 0o755, ROOT)?;
    for (link, target) in
        [("usr/lib/ssl/certs", "/etc/ssl/certs"), ("usr/lib/ssl/cert.pem", "/etc/ssl/certs/ca-certificates.crt")]
    {
        if !root.exists(Path::new(link))? {
            root.symlink(Path::new(target), Path::new(link), ROOT)?;
        }
    }
    Ok(())
}

/// A shell and tools apart from all else, as distroless images with the tag `debug` have them.
fn shell(root: &Root) -> Result<()> {
    root.create_dir_all(Path::new("busybox"), 0o755, ROOT)?;
    root.symlink(Path::new("/bin/busybox"), Path::new("busybox/busybox"), ROOT)?;
    for name in TOOLS.split_whitespace() {
        root.symlink(Path::new("busybox"), &Path::new("busybox").join(name), ROOT)?;
    }
    Ok(())
}

/// The package's control file and sums, where scanners of images without dpkg look for them.
fn status(root: &Root, package: &Unpacked) -> Result<()> {
    let dir = Path::new("var/lib/dpkg/status.d");
    root.create_dir_all(dir, 0o755, ROOT)?;
    if let Some(control) = package.file("control") {
        root.write_file(&dir.join(&package.name), control, 0o644, ROOT)?;
    }
    if let Some(sums) = package.file("md5sums") {
        root.write_file(&dir.join(format!("{}.md5sums", package.name)), sums, 0o644, ROOT)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept() {
        for path in [
            "usr/bin/node",
            "usr/share/doc/libc6/copyright",
            "usr/share/doc/libgcc-s1",
            "etc/os-release",
            "usr/share/mankind",
            "usr/lib/python3/x",
            "usr/share/zoneinfo/UTC",
        ] {
            assert!(keep(path, false), "{path}");
        }
        for path in [
            "usr/share/man",
            "usr/share/man/man1/x.1.gz",
            "usr/share/doc/libc6/README",
            "lib/systemd/system/x",
            "etc/motd",
            "usr/share/locale/de/x.mo",
        ] {
            assert!(!keep(path, false), "{path}");
        }
        assert!(keep("usr/share/man/man1/x.1.gz", true));
        assert!(!keep("etc/init.d/x", true));
    }
}
