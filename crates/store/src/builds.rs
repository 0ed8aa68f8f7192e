//! Build records, and the full output of builds.
//!
//! The log of a build is a file that is only appended to, and locked by the build for as long as it runs: a record that says
//! `running` and whose log is not locked is of a build that died.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Mutex;

use kiln_oci::{Digest, Timestamp};
use rusqlite::{Connection, params};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::db;
use crate::error::{Context, Error, Result};
use crate::fsutil::{self, now_ms};
use crate::lock::flock;
use crate::session::guard;
use crate::store::Store;

/// What a build is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildInfo {
    /// Where the Dockerfile is, for people.
    #[serde(default)]
    pub dockerfile: String,
    /// Where the context is, for people.
    #[serde(default)]
    pub context: String,
    /// The target stage, if one was named.
    #[serde(default)]
    pub target: Option<String>,
    /// The names that the result gets.
    #[serde(default)]
    pub names: Vec<String>,
    /// The platforms.
    #[serde(default)]
    pub platforms: Vec<String>,
}

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// It has not.
    Running,
    /// Well.
    Succeeded,
    /// With this error.
    Failed(String),
    /// The user stopped it.
    Canceled,
    /// Its process died.
    Interrupted,
}

/// A build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// Its id, 12 hex digits.
    pub id: String,
    /// What it was asked to do.
    pub info: BuildInfo,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Its state.
    pub status: BuildStatus,
    /// The images it made: (name or platform, digest).
    #[serde(default)]
    pub results: Vec<(String, Digest)>,
    /// Steps executed and steps cached, once it ended.
    #[serde(default)]
    pub steps: Option<(u32, u32)>,
    /// Bytes of its log.
    #[serde(skip)]
    pub log_bytes: u64,
}

/// The builds of a store.
#[derive(Debug, Clone, Copy)]
pub struct Builds<'a>(pub(crate) &'a Store);

impl Builds<'_> {
    /// Records the begin of a build.
    pub fn create(&self, info: BuildInfo) -> Result<BuildLog> {
        let id = fsutil::random_hex(6).ctx("read", "/dev/urandom")?;
        let path = self.log_path(&id);
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path).ctx("create", &path)?;
        flock(&file, FlockOperation::LockExclusive, &path)?;
        let record = BuildRecord {
            id,
            info,
            started: Timestamp::now(),
            finished: None,
            status: BuildStatus::Running,
            results: Vec::new(),
            steps: None,
            log_bytes: 0,
        };
        save(self.0, &record)?;
        Ok(BuildLog { store: self.0.clone(), path, file: Mutex::new(file), record })
    }

    /// All builds, the latest first.
    pub fn list(&self) -> Result<Vec<BuildRecord>> {
        let records = self.0.inner().db.read(|db| query(db, "ORDER BY started DESC, id", []))?;
        Ok(records.into_iter().map(|r| self.complete(r)).collect())
    }

    /// The build whose id begins with `prefix`; the latest one for an empty prefix.
    pub fn get(&self, prefix: &str) -> Result<BuildRecord> {
        let missing = || Error::BuildMissing(prefix.to_owned());
        if !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(missing());
        }
        let sql = "WHERE substr(id, 1, length(?1))=?1 ORDER BY started DESC LIMIT 1";
        let found = self.0.inner().db.read(|db| query(db, sql, [prefix]))?;
        found.into_iter().next().map(|r| self.complete(r)).ok_or_else(missing)
    }

    /// Opens the log of a build, also while it runs.
    pub fn open_log(&self, id: &str) -> Result<File> {
        let path = self.log_path(&self.get(id)?.id);
        File::open(&path).ctx("open", &path)
    }

    /// Forgets a build and its log. One that runs is in use.
    pub fn remove(&self, id: &str) -> Result<()> {
        let record = self.get(id)?;
        if record.status == BuildStatus::Running {
            return Err(Error::InUse(format!("build {}", record.id)));
        }
        self.0.inner().db.write(|tx| Ok(tx.execute("DELETE FROM builds WHERE id=?1", [&record.id])?))?;
        let path = self.log_path(&record.id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => Ok(()),
        }
    }

    /// Forgets finished builds, except the latest `keep`. Returns how many.
    pub fn retain(&self, keep: usize) -> Result<usize> {
        let mut removed = 0;
        for record in self.list()?.iter().skip(keep).filter(|r| r.status != BuildStatus::Running) {
            self.remove(&record.id)?;
            removed += 1;
        }
        Ok(removed)
    }

    fn log_path(&self, id: &str) -> PathBuf {
        self.0.root().join("builds").join(format!("{id}.log"))
    }

    /// Adds what the file tells.
    fn complete(&self, mut record: BuildRecord) -> BuildRecord {
        let path = self.log_path(&record.id);
        let file = File::open(&path);
        record.log_bytes = file.as_ref().ok().and_then(|f| f.metadata().ok()).map_or(0, |m| m.len());
        if record.status == BuildStatus::Running {
            let alive =
                file.is_ok_and(|f| matches!(flock(&f, FlockOperation::NonBlockingLockShared, &path), Ok(false)));
            if !alive {
                record.status = BuildStatus::Interrupted;
            }
        }
        record
    }
}

fn save(store: &Store, record: &BuildRecord) -> Result<()> {
    let text = db::to_json(record, "builds")?;
    store.inner().db.write(|tx| {
        let sql = "INSERT INTO builds(id, started, record) VALUES(?1,?2,?3) ON CONFLICT(id) DO UPDATE SET record=?3";
        Ok(tx.execute(sql, params![record.id, now_ms(), text]).map(|_| ())?)
    })
}

fn query(db: &Connection, rest: &str, params: impl rusqlite::Params) -> Result<Vec<BuildRecord>> {
    let mut statement = db.prepare_cached(&format!("SELECT record FROM builds {rest}"))?;
    let rows = statement.query_map(params, |r| r.get::<_, String>(0))?;
    rows.map(|text| db::json(&text?, "builds")).collect()
}

/// The log of a running build. Dropped without [`finish`](Self::finish), the build counts as interrupted.
#[derive(Debug)]
pub struct BuildLog {
    store: Store,
    path: PathBuf,
    file: Mutex<File>,
    record: BuildRecord,
}

impl BuildLog {
    /// The id of the build.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// Where the log is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Appends output. Callers on several threads do not tear each other's bytes apart.
    pub fn append(&self, bytes: &[u8]) -> Result<()> {
        guard(&self.file).write_all(bytes).ctx("write", &self.path)
    }

    /// Records the end of the build.
    pub fn finish(
        mut self,
        status: BuildStatus,
        results: Vec<(String, Digest)>,
        steps: (u32, u32),
    ) -> Result<BuildRecord> {
        self.record.status = status;
        self.record.finished = Some(Timestamp::now());
        self.record.results = results;
        self.record.steps = Some(steps);
        save(&self.store, &self.record)?;
        Ok(self.store.builds().complete(self.record))
    }
}
