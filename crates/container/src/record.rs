//! What is recorded of one container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_oci::Timestamp;
use kiln_store::{LayerId, LockGuard, Snapshot, Store};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::log::Limits as LogLimits;
use crate::process::Process;

/// What a container was made from. All that a start needs is here: the image may be gone by then.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// 64 hex digits.
    pub id: String,
    /// Unique.
    pub name: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The image, as it was named.
    pub image: String,
    /// The image's ID.
    pub image_id: String,
    /// What the image is for.
    pub platform: String,
    /// The image's layers, lowest first.
    pub layers: Vec<String>,
    /// Entry point, as far as there is one.
    pub entrypoint: Vec<String>,
    /// Command, or the entry point's arguments.
    pub command: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: String,
    /// `name|uid[:group|gid]`; empty is root.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Labels, the image's included.
    pub labels: BTreeMap<String, String>,
    /// It has a terminal.
    pub tty: bool,
    /// Its standard input is open.
    pub interactive: bool,
    /// A small init is process 1.
    pub init: bool,
    /// The root can't be written to.
    pub read_only: bool,
    /// The host's network rather than none.
    pub host_network: bool,
    /// Bind mounts.
    pub binds: Vec<Bind>,
    /// Ports that were asked for; on the host's network they are reachable as they are.
    pub ports: Vec<u16>,
    /// What `stop` sends.
    pub stop_signal: Option<String>,
    /// It goes with its command.
    pub auto_remove: bool,
    /// What it writes in the background is lost.
    pub unlogged: bool,
    /// How much of its log is kept.
    pub log_limits: LogLimits,
}

/// A path of the host in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bind {
    /// On the host; absolute.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Not to be written to.
    pub readonly: bool,
}

/// What became of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Its first process; `None` also if that was gone before it could be looked at.
    pub process: Option<Process>,
    /// The kiln that watches it.
    pub monitor: Option<Process>,
    /// The descriptor in that kiln which is the container's root without its mounts.
    pub root: Option<i32>,
    /// When it was started last.
    pub started: Option<Timestamp>,
    /// When that ended.
    pub finished: Option<Timestamp>,
    /// How it ended.
    pub exit_code: Option<i32>,
    /// Why it could not be started.
    pub error: String,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It never ran.
    Created,
    /// It runs.
    Running,
    /// It ran.
    Exited,
}

impl Status {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
        }
    }
}

/// For how long others may have a container that does not run: who ends one, or copies.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long the kiln that watches a container may take to record its end, and to write the rest of its log.
const MOMENT: Duration = Duration::from_millis(500);
/// The exit code of what was killed.
const KILLED: i32 = 137;

/// A container, as it was when it was looked at.
#[derive(Debug, Clone)]
pub struct Container {
    /// What it was made from.
    pub config: Config,
    /// What became of it.
    pub state: State,
    dir: PathBuf,
}

impl Container {
    pub(crate) fn new(dir: PathBuf, config: Config) -> Self {
        Self { config, state: State::default(), dir }
    }

    /// Reads what is recorded; `None` if there is nothing.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>> {
        let Some(config) = read(&dir.join("config.json"))? else { return Ok(None) };
        let state = match read(&dir.join("state.json")) {
            // A loss of power may do that. Then the container does not run, and more need not be known.
            Err(Error::Record { .. }) => None,
            state => state?,
        };
        Ok(Some(Self { config, state: state.unwrap_or_default(), dir: dir.to_owned() }))
    }

    /// Looks again. A container that was removed meanwhile is missing.
    pub fn reload(&mut self) -> Result<()> {
        *self = Self::load(&self.dir)?.ok_or_else(|| Error::Missing(self.config.name.clone()))?;
        Ok(())
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.config.id
    }

    /// The beginning of its id, as lists show it.
    pub fn short_id(&self) -> &str {
        self.config.id.get(..12).unwrap_or(&self.config.id)
    }

    /// Its directory in the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where what it writes is kept.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        self.config.entrypoint.iter().chain(&self.config.command).cloned().collect()
    }

    /// The state of the files below its own.
    pub fn below(&self) -> Result<Snapshot> {
        let layers = self.config.layers.iter().map(|id| id.parse::<LayerId>());
        Ok(Snapshot(layers.collect::<Result<_, _>>()?))
    }

    /// What it is doing now.
    pub fn status(&self) -> Status {
        let lives = |process: &Option<Process>| process.as_ref().is_some_and(Process::lives);
        match &self.state {
            State { started: None, .. } => Status::Created,
            State { exit_code: Some(_), .. } => Status::Exited,
            state if lives(&state.process) && lives(&state.monitor) => Status::Running,
            _ => Status::Exited,
        }
    }

    /// How it ended; 0 before.
    pub fn exit_code(&self) -> i32 {
        match (self.state.exit_code, self.status()) {
            (Some(code), _) => code,
            (None, Status::Exited) => KILLED,
            (None, _) => 0,
        }
    }

    /// Sends its first process a signal; false if it does not run.
    pub fn signal(&self, signal: i32) -> Result<bool> {
        match &self.state.process {
            Some(process) if self.status() == Status::Running => {
                process.signal(signal).map_err(Error::io("send a signal to", &self.dir))
            }
            _ => Ok(false),
        }
    }

    /// Waits until its process has ended, at most for this long, then until that is recorded and its log is whole. Whether it
    /// has ended; how is known after [`Container::reload`].
    pub fn wait(&self, limit: Option<Duration>) -> Result<bool> {
        let failed = || Error::io("wait for", &self.dir);
        if let Some(process) = &self.state.process
            && !process.wait(limit).map_err(failed())?
        {
            return Ok(false);
        }
        let Some(monitor) = &self.state.monitor else { return Ok(true) };
        let start = Instant::now();
        while !monitor.wait(Some(MOMENT)).map_err(failed())? && start.elapsed() < PATIENCE {
            // Whoever reads the output of a container in the foreground can keep its kiln for long.
            match Self::load(&self.dir)? {
                Some(now) if now.state.exit_code.is_none() && now.state.monitor == self.state.monitor => {}
                _ => break,
            }
        }
        Ok(true)
    }

    /// Whether the kiln that started it last is there still: for a moment after the container's end, too.
    pub fn is_watched(&self) -> bool {
        self.state.monitor.as_ref().is_some_and(Process::lives)
    }

    /// Takes its lock, and records its end if nobody else did. It must not run.
    pub fn lock(&mut self, store: &Store) -> Result<LockGuard> {
        let id = self.id().to_owned();
        let start = Instant::now();
        let mut refusal = None;
        let mut keep_waiting = || {
            refusal = match self.reload() {
                Err(e) => Some(e),
                Ok(()) if self.status() == Status::Running => Some(Error::Running(self.config.name.clone())),
                Ok(()) if start.elapsed() >= PATIENCE => Some(Error::InUse(self.config.name.clone())),
                Ok(()) => None,
            };
            refusal.is_none()
        };
        let lock = store.containers().lock_while(&id, &mut keep_waiting)?;
        let lock = lock.ok_or_else(|| refusal.unwrap_or_else(|| Error::InUse(self.config.name.clone())))?;
        self.reload()?;
        self.bury()?;
        Ok(lock)
    }

    /// For lists: records the end of a container that was killed together with the kiln that watched it, and waits a moment for
    /// one that is about to be recorded.
    pub fn settle(&mut self, store: &Store) -> Result<()> {
        let ended = |container: &Self| container.status() == Status::Exited && container.state.exit_code.is_none();
        if ended(self) && self.is_watched() {
            self.wait(Some(Duration::ZERO))?;
            self.reload()?;
        }
        if ended(self)
            && let Some(_lock) = store.containers().try_lock(self.id())?
        {
            self.reload()?;
            self.bury()?;
        }
        Ok(())
    }

    /// The same for who has the lock; waits for processes that are being killed.
    fn bury(&mut self) -> Result<()> {
        if self.state.exit_code.is_some() || self.state.started.is_none() {
            return Ok(());
        }
        // The lock of its kiln is free, so that is gone, and the container follows within milliseconds.
        let start = Instant::now();
        while self.state.process.as_ref().is_some_and(Process::lives) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(2));
        }
        let finished = Some(Timestamp::now());
        self.save(State { finished, exit_code: Some(KILLED), ..self.state.clone() })
    }

    /// Records what became of it. The lock must be held.
    pub fn save(&mut self, state: State) -> Result<()> {
        let (draft, path) = (self.dir.join("state.json.new"), self.dir.join("state.json"));
        write(&draft, &state).and_then(|()| fs::rename(&draft, &path)).map_err(Error::io("write", &path))?;
        self.state = state;
        Ok(())
    }
}

pub(crate) fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(value)?)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map(Some).map_err(|source| Error::Record { path: path.to_owned(), source })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}
