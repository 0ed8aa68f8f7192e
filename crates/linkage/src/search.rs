//! Where the dynamic loaders of glibc and musl search libraries, as ld.so(8) and musl's `ldso/dynlink.c` describe.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use kiln_rootfs::Root;

use crate::elf::Facts;

/// Configuration files of the loader are a few lines; more is not read.
const MOST_CONFIGURATION: usize = 256 * 1024;

/// Which C library a loader belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Libc {
    /// The GNU C library: Debian, Ubuntu, Fedora, distroless.
    Glibc,
    /// musl: Alpine.
    Musl,
    /// Some other.
    Other,
}

impl Libc {
    /// By the loader's file name.
    pub fn of_loader(loader: &str) -> Self {
        let name = loader.rsplit('/').next().unwrap_or(loader);
        match name {
            _ if name.starts_with("ld-musl") => Self::Musl,
            _ if name.starts_with("ld-linux") || name.starts_with("ld64.so") || name.starts_with("ld.so") => {
                Self::Glibc
            }
            _ => Self::Other,
        }
    }
}

/// The directories that every program of an image searches last.
pub struct Defaults {
    glibc: Vec<PathBuf>,
    musl: Vec<PathBuf>,
    /// `LD_LIBRARY_PATH` of the image.
    environment: Vec<PathBuf>,
}

impl Defaults {
    /// Of an image with this root and environment.
    pub fn new(root: &Root, env: &[String], architecture: &str) -> Self {
        let mut glibc = Vec::new();
        configured(root, Path::new("/etc/ld.so.conf"), &mut glibc, &mut HashSet::new());
        let triplet = triplet(architecture);
        let multiarch = ["/lib", "/usr/lib"].into_iter().map(|d| Path::new(d).join(triplet));
        glibc.extend(multiarch.chain(["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(PathBuf::from)));
        let own = root.read_dir(Path::new("/etc")).unwrap_or_default();
        let own =
            own.iter().filter_map(|e| e.name.to_str()).find(|n| n.starts_with("ld-musl-") && n.ends_with(".path"));
        let musl = match own.and_then(|name| read(root, &Path::new("/etc").join(name))) {
            Some(text) => text.split([':', '\n']).filter(|p| !p.is_empty()).map(PathBuf::from).collect(),
            None => ["/lib", "/usr/local/lib", "/usr/lib"].map(PathBuf::from).to_vec(),
        };
        let environment = env.iter().find_map(|e| e.strip_prefix("LD_LIBRARY_PATH=")).unwrap_or_default();
        let environment = environment.split([':', ';']).filter(|p| !p.is_empty()).map(PathBuf::from).collect();
        Self { glibc, musl, environment }
    }

    /// The directories where the libraries of a file are searched, in order. `inherited` are the [`run_paths`] of the files that
    /// lead to it, the nearest first.
    pub fn directories(&self, facts: &Facts, path: &Path, inherited: &[PathBuf], libc: Libc) -> Vec<PathBuf> {
        let own = run_paths(facts, path, libc);
        let environment = self.environment.iter().cloned();
        if libc == Libc::Musl {
            return environment.chain(own).chain(inherited.iter().cloned()).chain(self.musl.iter().cloned()).collect();
        }
        let mut all = Vec::new();
        // With DT_RUNPATH there is neither an own DT_RPATH nor anybody else's.
        if facts.runpath.is_empty() {
            all.extend(own.into_iter().chain(inherited.iter().cloned()));
        }
        all.extend(environment);
        all.extend(facts.runpath.iter().map(|p| expand(p, path)));
        all.extend(self.glibc.iter().cloned());
        all
    }
}

/// The directories that a file gives to the libraries that it loads, too: with musl all that it names, with glibc `DT_RPATH` alone.
pub fn run_paths(facts: &Facts, path: &Path, libc: Libc) -> Vec<PathBuf> {
    let named = match (facts.runpath.is_empty(), libc) {
        (true, _) => &facts.rpath[..],
        (false, Libc::Musl) => &facts.runpath,
        (false, _) => &[],
    };
    named.iter().map(|p| expand(p, path)).collect()
}

/// Replaces `$ORIGIN`, the directory of the file that says it, and `$LIB`.
fn expand(path: &str, file: &Path) -> PathBuf {
    let origin = file.parent().unwrap_or(Path::new("/")).to_string_lossy();
    let path = path.replace("${ORIGIN}", &origin).replace("$ORIGIN", &origin);
    PathBuf::from(path.replace("${LIB}", "lib").replace("$LIB", "lib"))
}

/// The directories of an `ld.so.conf`, with what it includes.
fn configured(root: &Root, file: &Path, to: &mut Vec<PathBuf>, seen: &mut HashSet<PathBuf>) {
    if seen.len() > 64 || !seen.insert(file.to_owned()) {
        return;
    }
    let Some(text) = read(root, file) else { return };
    for line in text.lines().map(|l| l.split('#').next().unwrap_or_default().trim()).filter(|l| !l.is_empty()) {
        let Some(pattern) = line.strip_prefix("include").filter(|rest| rest.starts_with([' ', '\t'])) else {
            to.push(PathBuf::from(line));
            continue;
        };
        let pattern = file.parent().unwrap_or(Path::new("/")).join(pattern.trim());
        for included in matching(root, &pattern) {
            configured(root, &included, to, seen);
        }
    }
}

/// The files that a pattern with one `*` in its last part names.
fn matching(root: &Root, pattern: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let Some((before, after)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let entries = root.read_dir(directory).unwrap_or_default();
    let names = entries.iter().filter_map(|e| e.name.to_str());
    names.filter(|n| n.starts_with(before) && n.ends_with(after)).map(|n| directory.join(n)).collect()
}

fn read(root: &Root, path: &Path) -> Option<String> {
    let bytes = root.read_small(path, MOST_CONFIGURATION).ok()??;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The directory name that Debian and its kin use for an architecture.
fn triplet(architecture: &str) -> &'static str {
    match architecture {
        "amd64" => "x86_64-linux-gnu",
        "386" => "i386-linux-gnu",
        "arm64" => "aarch64-linux-gnu",
        "arm" => "arm-linux-gnueabihf",
        "riscv64" => "riscv64-linux-gnu",
        "ppc64le" => "powerpc64le-linux-gnu",
        "s390x" => "s390x-linux-gnu",
        "mips64le" => "mips64el-linux-gnuabi64",
        "loong64" => "loongarch64-linux-gnu",
        _ => "unknown",
    }
}
