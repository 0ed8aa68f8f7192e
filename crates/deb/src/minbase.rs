//! `variant=minbase`: a working system with apt. Packages are unpacked by kiln, dpkg's database is written as if dpkg had
//! unpacked them, and then one sandboxed run lets their own scripts configure them, as debootstrap does.

use std::path::{Path, PathBuf};

use kiln_rootfs::{FileKind, Owner, Root};

use crate::build::{Configure, Step};
use crate::context::{Context, Event, redact};
use crate::error::{Error, Result};
use crate::resolution::Resolution;
use crate::sources::{Keys, Repository};
use crate::unpack::Unpacked;
use crate::{dpkgdb, files, keyring};

const ROOT: Option<Owner> = Some(Owner { uid: 0, gid: 0 });
/// invoke-rc.d asks it whether services may be started: never.
const POLICY: &str = "usr/sbin/policy-rc.d";
/// Programs that scripts find before those of the packages. [`clean`] empties the directory above.
const STAND_INS: &str = "tmp/kiln";
/// They answer what has one answer on a first installation, and pass on the rest: most of the time is the start of the real ones.
const STAND_IN: [(&str, &str); 2] = [
    // Moves files of older versions about, of which there are none.
    ("dpkg-maintscript-helper", "case \"$1\" in supports) ;; *) exit 0 ;; esac\n"),
    // A unit without a state is not masked, and counts as enabled.
    (
        "deb-systemd-helper",
        "[ -x /usr/bin/deb-systemd-helper ] || exit 127\n\
         case \"$#:$1:$2\" in\n\
         2:unmask:*) [ -e \"/etc/systemd/system/$2\" ] || exit 0 ;;\n\
         3:--quiet:was-enabled) [ -e \"/var/lib/systemd/deb-systemd-helper-enabled/$3.dsh-also\" ] || exit 0 ;;\n\
         esac\n",
    ),
];

/// Configures what was unpacked into `root`, which is the directory `dest`.
pub fn finish(
    root: &Root,
    dest: &Path,
    resolution: &Resolution,
    context: &Context<'_>,
    (unpacked, configure): (&[Unpacked], &dyn Configure),
) -> Result<()> {
    for (path, mode) in
        [("dev", 0o755), ("proc", 0o755), ("sys", 0o755), ("run", 0o755), ("tmp", 0o1777), ("root", 0o700)]
    {
        root.create_dir_all(Path::new(path), mode, ROOT)?;
    }
    dpkgdb::write(root, unpacked, &resolution.arch)?;
    apt_sources(root, resolution, context)?;
    root.create_dir_all(Path::new("usr/sbin"), 0o755, ROOT)?;
    root.write_file(Path::new(POLICY), b"#!/bin/sh\nexit 101\n", 0o755, ROOT)?;
    stand_ins(root)?;
    context.send(Event::Configuring { packages: unpacked.len() });
    let script = script(unpacked, &resolution.arch);
    let step = Step {
        name: "configuring packages",
        argv: vec!["/bin/sh".into(), "-c".into(), script],
        env: environment(resolution.date),
    };
    let outcome = configure.run(dest, &step);
    let outcome = outcome.map_err(|reason| Error::Configure { reason, output: String::new() })?;
    if !outcome.success {
        return Err(Error::Configure { reason: outcome.status, output: outcome.output });
    }
    clean(root)
}

fn stand_ins(root: &Root) -> Result<()> {
    let dir = Path::new(STAND_INS);
    root.create_dir_all(dir, 0o755, ROOT)?;
    for (name, script) in STAND_IN {
        let text = format!("#!/bin/sh\n{script}exec /usr/bin/{name} \"$@\"\n");
        root.write_file(&dir.join(name), text.as_bytes(), 0o755, ROOT)?;
    }
    Ok(())
}

fn environment(date: i64) -> Vec<(String, String)> {
    let pairs = [
        ("PATH", "/tmp/kiln:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("LC_ALL", "C.UTF-8"),
        ("TZ", "UTC"),
        ("DEBIAN_FRONTEND", "noninteractive"),
        ("DEBCONF_NONINTERACTIVE_SEEN", "true"),
        ("DEBCONF_NOWARNINGS", "yes"),
        // Perl's hash order would show in debconf's database.
        ("PERL_HASH_SEED", "0"),
        ("PERL_PERTURB_KEYS", "0"),
        ("SYSTEMD_OFFLINE", "1"),
    ];
    let date = ("SOURCE_DATE_EPOCH".to_owned(), date.to_string());
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).chain([date]).collect()
}

/// Runs the `preinst` scripts that do something on a first installation, then lets dpkg configure everything.
fn script(unpacked: &[Unpacked], arch: &str) -> String {
    let mut script = String::from("set -e\ncd /\n");
    let mut with_preinst: Vec<&Unpacked> = unpacked.iter().filter(|u| needs_preinst(u)).collect();
    // Without the tables of users that base-passwd brings, other scripts can't change owners.
    with_preinst.sort_by_key(|u| u.name != "base-passwd");
    for package in with_preinst {
        script.push_str(&format!(
            "DPKG_MAINTSCRIPT_PACKAGE={name} DPKG_MAINTSCRIPT_ARCH={arch} DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT= {path} install || {{ echo \"the preinst script of {name} failed\" >&2; exit 1; }}\n",
            name = package.name,
            path = dpkgdb::info_path(package, "preinst").display(),
        ));
    }
    script.push_str("exec dpkg --configure --pending --force-unsafe-io --force-confold --no-pager\n");
    script
}

/// Scripts that only move files of older versions about do nothing on a first installation.
fn needs_preinst(package: &Unpacked) -> bool {
    let Some(script) = package.control.iter().find(|f| f.name == "preinst") else { return false };
    let text = String::from_utf8_lossy(&script.content);
    let trivial = |line: &str| {
        let line = line.trim();
        line.is_empty()
            || line.starts_with('#')
            || line == "set -e"
            || line == "exit 0"
            || line.starts_with("dpkg-maintscript-helper ")
    };
    script.executable && !text.lines().all(trivial)
}

/// Sources and keys of the image's own apt, so that `apt-get update` works in it.
fn apt_sources(root: &Root, resolution: &Resolution, context: &Context<'_>) -> Result<()> {
    let mut text = String::new();
    for repository in &resolution.repositories {
        let uri = redact(&repository.uri);
        if !uri.starts_with("http") {
            continue;
        }
        let signed = signed_by(root, repository, context)?;
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&format!(
            "Types: deb\nURIs: {uri}\nSuites: {}\nComponents: {}\n",
            repository.suite,
            repository.components.join(" ")
        ));
        if resolution.spec.snapshot.is_some() {
            text.push_str("Check-Valid-Until: no\n");
        }
        if !signed.is_empty() {
            text.push_str(&format!("Signed-By: {signed}\n"));
        }
    }
    if text.is_empty() {
        return Ok(());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let name: String = resolution.distribution.origin.to_lowercase().chars().filter(|c| plain(*c)).collect();
    let name = if name.is_empty() { "base".to_owned() } else { name };
    root.create_dir_all(Path::new("etc/apt/sources.list.d"), 0o755, ROOT)?;
    root.write_file(
        &Path::new("etc/apt/sources.list.d").join(format!("{name}.sources")),
        text.as_bytes(),
        0o644,
        ROOT,
    )?;
    Ok(())
}

/// The value of `Signed-By`: the image's own copy of a keyring if its packages have one, else a copy of ours.
fn signed_by(root: &Root, repository: &Repository, context: &Context<'_>) -> Result<String> {
    let dir = Path::new("etc/apt/keyrings");
    if let Keys::Inline(text) = &repository.keys {
        return Ok(text.lines().map(|l| if l.is_empty() { "\n .".to_owned() } else { format!("\n {l}") }).collect());
    }
    let mut paths = Vec::new();
    for file in keyring::key_files(&repository.keys, context.host()) {
        let Some(name) = file.file_name().map(PathBuf::from) else { continue };
        let own = Path::new("usr/share/keyrings").join(&name);
        if root.try_stat(&own, true)?.is_some_and(|stat| stat.kind == FileKind::File) {
            paths.push(format!("/{}", own.display()));
            continue;
        }
        let content = files::read_limited(&file, 16 << 20)?;
        let extension = if content.starts_with(b"-----BEGIN") { "asc" } else { "gpg" };
        let copy = dir.join(name).with_extension(extension);
        root.create_dir_all(dir, 0o755, ROOT)?;
        root.write_file(&copy, &content, 0o644, ROOT)?;
        paths.push(format!("/{}", copy.display()));
    }
    Ok(paths.join(" "))
}

/// Removes what differs from run to run and what nobody needs: logs, backups, caches that make themselves again.
fn clean(root: &Root) -> Result<()> {
    root.remove_all(Path::new(POLICY))?;
    for file in ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"] {
        root.remove_all(&Path::new("etc").join(format!("{file}-")))?;
    }
    for file in [
        "etc/.pwd.lock",
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/cache/debconf/config.dat-old",
        "var/cache/debconf/templates.dat-old",
        "var/cache/ldconfig/aux-cache",
        "var/lib/dpkg/available-old",
        "var/lib/dpkg/diversions-old",
        "var/lib/dpkg/lock",
        "var/lib/dpkg/lock-frontend",
        "var/lib/dpkg/statoverride-old",
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/triggers/Lock",
        "var/lib/dbus/machine-id",
        "var/lib/systemd/random-seed",
        "var/log/alternatives.log",
        "var/log/bootstrap.log",
        "var/log/dpkg.log",
        "var/log/fontconfig.log",
    ] {
        root.remove_all(Path::new(file))?;
    }
    if root.exists(Path::new("etc/machine-id"))? {
        root.write_file(Path::new("etc/machine-id"), b"", 0o444, ROOT)?;
    }
    for dir in ["tmp", "var/tmp", "var/log/apt"] {
        if root.try_stat(Path::new(dir), false)?.is_some_and(|stat| stat.kind == FileKind::Dir) {
            for entry in root.read_dir(Path::new(dir))? {
                root.remove_all(&Path::new(dir).join(entry.name))?;
            }
        }
    }
    Ok(())
}
