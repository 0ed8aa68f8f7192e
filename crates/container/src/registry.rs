//! Which containers there are. Looking needs neither the database nor a lock.

use std::fs;
use std::io;
use std::path::Path;

use kiln_oci::Timestamp;
use kiln_store::{Store, random_hex};

use crate::error::{Error, Result};
use crate::record::{Config, Container, Status, write};

/// All containers of a store, the newest first.
pub fn list(store: &Path) -> Result<Vec<Container>> {
    let mut all = recorded(store)?;
    all.retain(|c| !is_left_over(c));
    all.sort_by(|a, b| b.config.created.cmp(&a.config.created).then_with(|| a.id().cmp(b.id())));
    Ok(all)
}

/// What should have gone with its command, but was killed, is only waiting to be removed.
fn is_left_over(container: &Container) -> bool {
    container.config.auto_remove && container.status() == Status::Exited
}

/// All that there are.
fn recorded(store: &Path) -> Result<Vec<Container>> {
    let dir = store.join("containers");
    let entries = match fs::read_dir(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("list", &dir))?,
    };
    let mut all = Vec::new();
    for entry in entries {
        // One that is removed meanwhile is not there; one that is damaged must not be in the way of the others.
        match Container::load(&entry.map_err(Error::io("list", &dir))?.path()) {
            Err(Error::Record { .. }) => {}
            container => all.extend(container?),
        }
    }
    Ok(all)
}

/// The container of this name, id, or beginning of an id.
pub fn find(store: &Path, text: &str) -> Result<Container> {
    let missing = || Error::Missing(text.to_owned());
    let mut all = list(store)?;
    let name = text.strip_prefix('/').unwrap_or(text);
    if let Some(index) = all.iter().position(|c| c.id() == text || c.config.name == name) {
        return Ok(all.swap_remove(index));
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(missing());
    }
    all.retain(|c| c.id().starts_with(text));
    match all.len() {
        // A damaged one says so to who asks for it by its id.
        0 => Container::load(&store.join("containers").join(text)).and(Err(missing())),
        1 => all.pop().ok_or_else(missing),
        _ => Err(Error::Ambiguous(text.to_owned())),
    }
}

/// Whether this can be a container's name.
pub fn is_name(text: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    text.len() >= 2 && text.as_bytes()[0].is_ascii_alphanumeric() && text.bytes().all(rest)
}

/// Makes a container, whose layers a lease must hold. It gets an id, and a name if it has none.
pub fn create(store: &Store, config: Config) -> Result<Container> {
    if !config.name.is_empty() && !is_name(&config.name) {
        return Err(Error::BadName(config.name));
    }
    sweep(store)?;
    let _names = store.lock("container names", &mut || {})?;
    let id = random_hex(32).map_err(Error::io("read", Path::new("/dev/urandom")))?;
    let others = list(store.root())?;
    let name = if config.name.is_empty() { short_name(&config.image, &id, &others) } else { config.name.clone() };
    if let Some(other) = others.into_iter().find(|c| c.config.name == name) {
        return Err(Error::NameTaken { name, id: other.config.id });
    }
    let config = Config { id, name, created: Some(Timestamp::now()), ..config };
    let mut container = Container::new(store.containers().dir(&config.id), config);
    let below = container.below()?;
    store.containers().create(container.id(), &below, |dir| write(&dir.join("config.json"), &container.config))?;
    container.reload()?;
    Ok(container)
}

/// Removes containers that should have gone with their command, but were killed. What can't be removed now waits.
fn sweep(store: &Store) -> Result<()> {
    for container in recorded(store.root())?.iter().filter(|c| is_left_over(c)) {
        if let Some(_lock) = store.containers().try_lock(container.id())? {
            _ = store.containers().remove(container.id());
        }
    }
    Ok(())
}

/// `app-3f2a`, for the image `team/app:1.2`.
fn short_name(image: &str, id: &str, others: &[Container]) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let base = last.split([':', '@']).next().filter(|b| is_name(b)).unwrap_or("container");
    let is_free = |name: &String| others.iter().all(|c| c.config.name != *name);
    let candidates = [4, 8, 64].map(|digits| format!("{base}-{}", &id[..digits]));
    candidates.iter().find(|name| is_free(name)).unwrap_or(&candidates[2]).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_docker() {
        for good in ["ab", "a.b", "0_-"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a", "-a", ".a", "a/b", "a b", "ä1"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn a_container_is_found_by_name_id_and_the_beginning_of_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let make =
            |name: &str| create(&store, Config { name: name.into(), image: "t/app:1".into(), ..Config::default() });
        let made = make("").unwrap();
        assert_eq!(made.config.name, format!("app-{}", &made.id()[..4]));
        for text in [made.id(), &made.id()[..10], &made.config.name, &format!("/{}", made.config.name)] {
            assert_eq!(find(dir.path(), text).unwrap().id(), made.id());
        }
        make("other").unwrap();
        assert!(matches!(make("other"), Err(Error::NameTaken { .. })));
        assert!(matches!(make("-x"), Err(Error::BadName(_))));
        assert!(matches!(find(dir.path(), "nobody"), Err(Error::Missing(_))));
        store.containers().remove(made.id()).unwrap();
        store.containers().remove(made.id()).unwrap();
        assert_eq!(list(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_is_damaged_is_in_the_way_of_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let make = |name: &str| create(&store, Config { name: name.into(), ..Config::default() }).unwrap();
        let (one, other) = (make("one"), make("other"));
        fs::write(one.dir().join("config.json"), "").unwrap();
        fs::write(other.dir().join("state.json"), "{").unwrap();
        let names: Vec<String> = list(dir.path()).unwrap().into_iter().map(|c| c.config.name).collect();
        assert_eq!(names, ["other"]);
        assert_eq!(find(dir.path(), "other").unwrap().status(), Status::Created);
        assert!(matches!(find(dir.path(), one.id()), Err(Error::Record { .. })));
        fs::write(one.dir().join("config.json"), format!(r#"{{"id":"{}","name":"old"}}"#, one.id())).unwrap();
        assert_eq!(find(dir.path(), "old").unwrap().id(), one.id(), "fields may be added");
    }
}
