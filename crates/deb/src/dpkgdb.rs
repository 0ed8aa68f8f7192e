//! dpkg's database for packages that were unpacked without dpkg: as it stands after `dpkg --unpack`, except that packages
//! with nothing left to run count as installed already. dpkg writes and syncs its journal several times for each
//! package that it configures, which takes longer than the scripts do.
//!
//! The layout is that of dpkg 1.16 and later (`info/format` 1): `status`, `info/PACKAGE[:ARCH].FILE`, `triggers/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_rootfs::{Owner, Root};

use crate::error::Result;
use crate::unpack::Unpacked;

const DPKG: &str = "var/lib/dpkg";
const ROOT: Option<Owner> = Some(Owner { uid: 0, gid: 0 });

/// Writes the database.
pub fn write(root: &Root, unpacked: &[Unpacked], arch: &str) -> Result<()> {
    for dir in ["info", "alternatives", "parts", "triggers", "updates"] {
        root.create_dir_all(&Path::new(DPKG).join(dir), 0o755, ROOT)?;
    }
    let write =
        |name: &str, content: &[u8], mode: u32| root.write_file(&Path::new(DPKG).join(name), content, mode, ROOT);
    let mut status = String::new();
    for package in unpacked {
        status.push_str(&paragraph(package));
        let stem = stem(package);
        for file in package.control.iter().filter(|file| file.name != "control") {
            let mode = if file.executable { 0o755 } else { 0o644 };
            write(&format!("info/{stem}.{}", file.name), &file.content, mode)?;
        }
        write(&format!("info/{stem}.list"), list(package).as_bytes(), 0o644)?;
    }
    write("status", status.as_bytes(), 0o644)?;
    write("available", b"", 0o644)?;
    write("diversions", b"", 0o644)?;
    write("statoverride", b"", 0o644)?;
    write("arch", format!("{arch}\n").as_bytes(), 0o644)?;
    write("info/format", b"1\n", 0o644)?;
    for (name, content) in triggers(unpacked) {
        write(&format!("triggers/{name}"), content.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// The name of a package's files in `info`: with the architecture if it can be installed for several.
pub fn stem(package: &Unpacked) -> String {
    match package.field("Multi-Arch") {
        Some("same") => format!("{}:{}", package.name, package.field("Architecture").unwrap_or_default()),
        _ => package.name.clone(),
    }
}

/// Where a control file of a package is in the image.
pub fn info_path(package: &Unpacked, file: &str) -> PathBuf {
    Path::new("/").join(DPKG).join("info").join(format!("{}.{file}", stem(package)))
}

/// The control file with the state, and the sums of the configuration files.
fn paragraph(package: &Unpacked) -> String {
    let control = String::from_utf8_lossy(package.file("control").unwrap_or_default()).into_owned();
    let mut out = String::with_capacity(control.len() + 200);
    for line in control.lines().filter(|line| !line.trim().is_empty()) {
        out.push_str(line);
        out.push('\n');
        if line.starts_with("Package:") {
            let state = if needs_configuring(package) { "unpacked" } else { "installed" };
            out.push_str(&format!("Status: install ok {state}\n"));
        }
    }
    let sums: String = package
        .conffiles()
        .into_iter()
        .filter_map(|path| Some(format!(" /{path} {}\n", package.md5.get(&path)?.as_ref()?)))
        .collect();
    if !sums.is_empty() {
        out.push_str("Conffiles:\n");
        out.push_str(&sums);
    }
    out.push('\n');
    out
}

/// Whether something is to be run for it: its `postinst`, now or when something that it waits for happens. What others
/// would trigger in a package that is not configured yet, its configuration does anyway.
fn needs_configuring(package: &Unpacked) -> bool {
    let interested =
        |text: &[u8]| String::from_utf8_lossy(text).lines().any(|line| line.trim().starts_with("interest"));
    package.file("postinst").is_some() || package.file("triggers").is_some_and(interested)
}

/// The package's paths as dpkg lists them.
fn list(package: &Unpacked) -> String {
    let mut out = String::from("/.\n");
    for seen in &package.seen {
        out.push('/');
        out.push_str(&seen.path);
        out.push('\n');
    }
    out
}

/// Who wants to know of what: `File` for paths, one file for each other trigger.
fn triggers(unpacked: &[Unpacked]) -> BTreeMap<String, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    files.insert("File".into(), String::new());
    files.insert("Unincorp".into(), String::new());
    for package in unpacked {
        let text = String::from_utf8_lossy(package.file("triggers").unwrap_or_default()).into_owned();
        for line in text.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(kind), Some(name)) = (words.next(), words.next()) else { continue };
            let suffix = match kind {
                "interest" | "interest-await" => "",
                "interest-noawait" => "/noawait",
                _ => continue,
            };
            let who = format!("{}{suffix}", stem(package));
            let plain = name.bytes().all(|c| c.is_ascii_graphic()) && !name.starts_with('.');
            match name.strip_prefix('/') {
                Some(_) if plain => files.entry("File".into()).or_default().push_str(&format!("{name} {who}\n")),
                None if plain && !name.contains('/') => {
                    files.entry(name.to_owned()).or_default().push_str(&format!("{who}\n"))
                }
                _ => {}
            }
        }
    }
    files
}
