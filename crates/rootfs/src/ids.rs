//! Users and groups of an image: `name|uid[:group|gid]` looked up in its `/etc/passwd` and `/etc/group`.
//!
//! Invariant: both files are hostile. They are read only if regular, inside the root, and of limited size; malformed lines
//! are passed over; ids that do not fit are not ids.

use std::path::Path;

use crate::error::{Result, RootfsError};
use crate::meta::Owner;
use crate::root::Root;

/// Larger than any real one, smaller than what would hurt.
const MAX_FILE: usize = 8 << 20;
/// The kernel's `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65_536;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory; `/` if the image does not say.
    pub home: String,
    /// Login name, if the image knows one.
    pub name: Option<String>,
    /// All groups of the process: `gid`, and if no group was given, those that `/etc/group` lists the user in. Docker has
    /// the first one in here too since CVE-2022-36109.
    pub groups: Vec<u32>,
}

struct Passwd {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The user for `USER` and `RUN`, with Docker's rules: a number that is not in `/etc/passwd` is taken as it is, with group
/// 0; a name must be there.
pub fn lookup_user(root: &Root, spec: &str) -> Result<User> {
    let (user, group) = split(spec);
    let passwd = read_passwd(root)?;
    let numeric = parse_id(user);
    let named = user.is_empty().then_some(0).or(numeric);
    // A name wins over the number that it looks like, as in Docker.
    let entry = passwd
        .iter()
        .find(|p| !user.is_empty() && p.name == user)
        .or_else(|| named.and_then(|uid| passwd.iter().find(|p| p.uid == uid)));
    let mut found = match (entry, named) {
        (Some(p), _) => User {
            uid: p.uid,
            gid: p.gid,
            home: if p.home.is_empty() { "/".to_owned() } else { p.home.clone() },
            name: Some(p.name.clone()),
            groups: Vec::new(),
        },
        (None, Some(uid)) => {
            let home = if uid == 0 { "/root" } else { "/" }; // an image without /etc/passwd
            User { uid, gid: 0, home: home.to_owned(), name: None, groups: Vec::new() }
        }
        (None, None) => return Err(unknown("user", user, PASSWD)),
    };
    match group {
        Some(group) => found.gid = group_id(root, group)?,
        None => found.groups = supplementary(&read_group(root)?, &found),
    }
    if let Err(at) = found.groups.binary_search(&found.gid) {
        found.groups.insert(at, found.gid);
    }
    Ok(found)
}

/// Owner and group for `--chown`: numbers are taken as they are, a lone number stands for both, and a lone name has the
/// group that `/etc/passwd` gives it.
pub fn lookup_owner(root: Option<&Root>, spec: &str) -> Result<Owner> {
    let (user, group) = split(spec);
    let mut owner = match (parse_id(user), root) {
        (Some(id), _) => Owner { uid: id, gid: id },
        (None, Some(root)) => {
            let found = read_passwd(root)?.into_iter().find(|p| p.name == user);
            let found = found.ok_or_else(|| unknown("user", user, PASSWD))?;
            Owner { uid: found.uid, gid: found.gid }
        }
        (None, None) => return Err(unknown("user", user, PASSWD)),
    };
    match (group, root) {
        (None, _) => {}
        (Some(group), Some(root)) if parse_id(group).is_none() => owner.gid = group_id(root, group)?,
        (Some(group), _) => owner.gid = parse_id(group).ok_or_else(|| unknown("group", group, GROUP))?,
    }
    Ok(owner)
}

fn split(spec: &str) -> (&str, Option<&str>) {
    match spec.split_once(':') {
        Some((user, group)) if !group.is_empty() => (user, Some(group)),
        Some((user, _)) => (user, None),
        None => (spec, None),
    }
}

fn unknown(what: &'static str, name: &str, file: &'static str) -> RootfsError {
    RootfsError::UnknownId { what, name: name.chars().take(200).collect(), file }
}

fn group_id(root: &Root, group: &str) -> Result<u32> {
    let by_name = read_group(root)?.into_iter().find(|g| g.name == group).map(|g| g.gid);
    by_name.or_else(|| parse_id(group)).ok_or_else(|| unknown("group", group, GROUP))
}

fn supplementary(groups: &[Group], user: &User) -> Vec<u32> {
    let Some(name) = &user.name else { return Vec::new() };
    let mut gids: Vec<u32> = groups
        .iter()
        .filter(|g| g.gid != user.gid && g.members.iter().any(|m| m == name))
        .map(|g| g.gid)
        .take(MAX_GROUPS)
        .collect();
    gids.sort_unstable();
    gids.dedup();
    gids
}

/// Decimal digits only, and no more than an id can be: 2^32-1 means "none" to the kernel, and larger numbers would wrap to
/// root (CVE-2024-40635).
fn parse_id(s: &str) -> Option<u32> {
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    s.parse().ok().filter(|id| *id != u32::MAX)
}

fn read_passwd(root: &Root) -> Result<Vec<Passwd>> {
    lines(root, PASSWD, |line| {
        let mut f = line.split(':');
        let (name, _password, uid, gid) = (f.next()?, f.next()?, f.next()?, f.next()?);
        let home = f.nth(1).unwrap_or_default();
        Some(Passwd { name: name.to_owned(), uid: parse_id(uid)?, gid: parse_id(gid)?, home: home.to_owned() })
    })
}

fn read_group(root: &Root) -> Result<Vec<Group>> {
    lines(root, GROUP, |line| {
        let mut f = line.split(':');
        let (name, _password, gid) = (f.next()?, f.next()?, f.next()?);
        let members = f.next().unwrap_or_default().split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
        Some(Group { name: name.to_owned(), gid: parse_id(gid)?, members })
    })
}

/// What is not a regular file counts as absent: an image may have anything there.
fn lines<T>(root: &Root, path: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>> {
    let content = match root.read_small(Path::new(path), MAX_FILE) {
        Ok(content) => content.unwrap_or_default(),
        Err(RootfsError::NotRegular { .. }) => Vec::new(),
        Err(e) if e.io_kind() == Some(std::io::ErrorKind::NotADirectory) => Vec::new(),
        Err(RootfsError::Io { source, .. }) if source.raw_os_error() == Some(libc::ELOOP) => Vec::new(),
        Err(e) => return Err(e),
    };
    let text = String::from_utf8_lossy(&content);
    Ok(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).filter_map(parse).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(passwd: &str, group: &str) -> (tempfile::TempDir, Root) {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("etc")).unwrap();
        std::fs::write(tmp.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(tmp.path().join("etc/group"), group).unwrap();
        let root = Root::open(tmp.path()).unwrap();
        (tmp, root)
    }

    const PW: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\napp:x:1000:1001:App:/home/app:/bin/sh\n42:x:7:8::/n:\nbig:x:4294967296:0::/:\n";
    const GR: &str = "root:x:0:\napp:x:1001:\naudio:x:29:app,root\nvideo:x:44:app\ndup:x:29:app\n";

    #[test]
    fn names_numbers_and_groups() {
        let (_t, root) = image(PW, GR);
        let app = lookup_user(&root, "app").unwrap();
        assert_eq!((app.uid, app.gid, app.home.as_str()), (1000, 1001, "/home/app"));
        assert_eq!(app.groups, [29, 44, 1001]);
        assert_eq!(lookup_user(&root, "1000").unwrap(), app);
        let with_group = lookup_user(&root, "app:audio").unwrap();
        assert_eq!((with_group.gid, with_group.groups), (29, vec![29]), "CVE-2022-36109: the given group and no other");
        let unknown = lookup_user(&root, "5000").unwrap();
        assert_eq!((unknown.uid, unknown.gid, unknown.home.as_str()), (5000, 0, "/"));
        assert_eq!(lookup_user(&root, "5000:6000").unwrap().gid, 6000);
        assert_eq!(lookup_user(&root, "42").unwrap().uid, 7, "a name wins over a number");
        assert_eq!(lookup_user(&root, "").unwrap().uid, 0);
    }

    #[test]
    fn cve_2024_40635_ids_that_are_too_large_do_not_become_root() {
        let (_dir, root) = image("", "");
        for bad in ["nobody", "4294967295", "4294967296", "-1", "big", "+5", "0:nogroup", "0x0", "0:4294967296"] {
            assert!(matches!(lookup_user(&root, bad), Err(RootfsError::UnknownId { .. })), "{bad}");
        }
    }

    #[test]
    fn owners() {
        let (_t, root) = image(PW, GR);
        let owner = |s| lookup_owner(Some(&root), s).map(|o| (o.uid, o.gid));
        assert_eq!(owner("app").unwrap(), (1000, 1001), "the group of /etc/passwd");
        assert_eq!(owner("42").unwrap(), (42, 42), "though there is a user of that name");
        assert_eq!(owner("app:audio").unwrap(), (1000, 29));
        assert_eq!(owner("55").unwrap(), (55, 55));
        assert_eq!(owner("55:66").unwrap(), (55, 66));
        assert!(owner("ghost").is_err());
        assert_eq!(lookup_owner(None, "1:2").map(|o| (o.uid, o.gid)).unwrap(), (1, 2));
        assert!(lookup_owner(None, "app").is_err());
    }

    #[test]
    fn cve_2024_9676_passwd_is_a_fifo_or_leaves_the_root() {
        let (tmp, root) = image("", "");
        let passwd = tmp.path().join("etc/passwd");
        std::fs::remove_file(&passwd).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &passwd,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o644),
            0,
        )
        .unwrap();
        assert_eq!(lookup_user(&root, "0").unwrap().home, "/root", "does not hang");
        for target in
            ["/etc/passwd", "../../../../../../../../etc/passwd", "/proc/self/fd/0", "/proc/self/root/etc/passwd"]
        {
            std::fs::remove_file(&passwd).unwrap();
            std::os::unix::fs::symlink(target, &passwd).unwrap();
            assert!(lookup_user(&root, "daemon").is_err(), "{target}");
        }
    }

    #[test]
    fn oversized_files_are_an_error() {
        let (_t, root) = image(&"x".repeat(MAX_FILE + 1), "");
        assert!(matches!(lookup_user(&root, "app"), Err(RootfsError::TooLarge { .. })));
    }
}
