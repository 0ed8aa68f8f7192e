//! `deb://` bases: their package lists, and the layer that they become.

mod files;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_deb::{BuildOptions, Configure, Context, Outcome, Proxies, Refresh, Resolution, Spec, Variant};
use kiln_executor::{CancelToken, ProcessSpec, Stdio};
use kiln_oci::Platform;
use kiln_store::{LayerMeta, Snapshot};

use crate::build::Job;
use crate::engine::Engine;
use crate::error::{EMULATOR, Error, Result};
use crate::events::EventSink;
use crate::steps::{Step, Steps};

pub use files::UserFiles;

/// Bytes of the output of packages' scripts that are kept for an error.
const MOST_OUTPUT: usize = 8 << 10;

/// What a resolution may use besides the archive.
pub struct Asked<'a> {
    /// The `deb://` text.
    pub text: &'a str,
    /// The platform of the base.
    pub platform: &'a Platform,
    /// Look at the archive's indexes even if that was done lately.
    pub refresh: bool,
    /// Replace what the lock file has for this base.
    pub relock: bool,
}

/// Finds the packages of a base.
pub fn resolve(engine: &Engine, asked: &Asked<'_>, files: &UserFiles, step: &Step) -> Result<Resolution> {
    let spec = Spec::parse(asked.text).map_err(|e| Error::request(e.to_string()))?;
    let mut spec = spec.for_platform(asked.platform).map_err(|e| Error::request(e.to_string()))?;
    let place = files.place(asked.text);
    if let Some(keyring) = &spec.keyring {
        spec.keyring = Some(place.keyring(keyring)?);
    }
    let progress = Progress::new(step);
    let events = |event: kiln_deb::Event<'_>| progress.show(&event);
    let proxies = |url: &str| engine.registry.proxy_for(url);
    let mut context = context(engine, &events, &proxies)?;
    if asked.refresh {
        context.refresh = Refresh::Always;
    }
    let Some(name) = spec.lock.clone() else { return Ok(kiln_deb::resolve(&spec, &context)?) };
    let mut begun = files.lock_files();
    let existing = place.read_lock(&name)?;
    if let (Some(text), false, false) = (&existing, asked.relock, begun.contains(&name)) {
        context.lock = Some(text.clone());
        drop(begun);
        return Ok(kiln_deb::resolve(&spec, &context)?);
    }
    let resolution = kiln_deb::resolve(&spec, &context)?;
    let text = match &existing {
        Some(text) => resolution.update_lock(text)?,
        None => resolution.lock_text(),
    };
    place.write_lock(&name, &text)?;
    begun.insert(name);
    Ok(resolution)
}

type Events<'a> = dyn Fn(kiln_deb::Event<'_>) + Sync + 'a;

fn context<'a>(engine: &Engine, events: &'a Events<'a>, proxies: &'a Proxies<'a>) -> Result<Context<'a>> {
    let mut context = Context::new(engine.store.sources_dir("deb")?);
    context.host.clone_from(&engine.apt_root);
    context.events = Some(events);
    context.environment_proxy = Some(proxies);
    Ok(context)
}

/// Adds up what happens to packages, for display.
struct Progress<'a> {
    step: &'a Step,
    wanted: Mutex<(String, u64)>,
    received: AtomicU64,
}

impl<'a> Progress<'a> {
    fn new(step: &'a Step) -> Self {
        Self { step, wanted: Mutex::default(), received: AtomicU64::new(0) }
    }

    fn show(&self, event: &kiln_deb::Event<'_>) {
        use kiln_deb::Event;
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Index { url } => self.say(&format!("reading {url}")),
            Event::Downloads { packages, bytes } => {
                let plural = if *packages == 1 { "" } else { "s" };
                *wanted = (format!("downloading {packages} package{plural}"), *bytes);
                self.step.progress(&wanted.0, 0, Some(*bytes), false);
            }
            Event::Received { bytes } => {
                let before = self.received.fetch_add(*bytes, Ordering::Relaxed);
                let received = (before + bytes).min(wanted.1);
                if before < wanted.1 {
                    self.step.progress(&wanted.0, received, Some(wanted.1), received == wanted.1);
                }
            }
            Event::Configuring { packages } => self.say(&format!("configuring {packages} packages")),
            Event::Warning(text) => self.step.log(crate::events::Stream::Stderr, format!("{text}\n").as_bytes()),
            Event::Fetched { .. } | Event::Unpacked { .. } => {}
        }
    }

    fn say(&self, text: &str) {
        self.step.log(crate::events::Stream::Stdout, format!("{text}\n").as_bytes());
    }
}

/// The packages of a base that a person asks for by command.
pub fn packages(engine: &Engine, asked: &Asked<'_>, sink: Arc<dyn EventSink>) -> Result<Resolution> {
    let files = UserFiles::new([asked.text.to_owned()], None);
    let step = Steps::new(sink).begin(&format!("[internal] resolve packages of {}", asked.text));
    let resolution = resolve(engine, asked, &files, &step);
    step.conclude(resolution)
}

/// Builds a base into a layer.
pub fn build(job: &Job, resolution: &Resolution, step: &Step) -> Result<Snapshot> {
    check_configurable(resolution)?;
    let progress = Progress::new(step);
    let events = |event: kiln_deb::Event<'_>| progress.show(&event);
    let proxies = |url: &str| job.engine.registry.proxy_for(url);
    let context = context(&job.engine, &events, &proxies)?;
    let draft = job.engine.store.layers().draft()?;
    let runner = Runner { engine: &job.engine, cancel: &job.cancel };
    let options = BuildOptions { ownership: job.engine.ownership, configure: Some(&runner) };
    kiln_deb::build(resolution, draft.fs(), &context, &options)?;
    Ok(Snapshot(vec![draft.commit(LayerMeta::default())?]))
}

/// Better before the download than after it.
fn check_configurable(resolution: &Resolution) -> Result<()> {
    let Some(platform) = resolution.spec.platform() else { return Ok(()) };
    if resolution.variant != Variant::Minbase || kiln_executor::runs_programs_of(&platform.to_string()) {
        return Ok(());
    }
    let arch = format!("{}/{}", platform.os, platform.architecture);
    Err(Error::request_with_hint(
        format!(
            "a base with apt runs its packages' scripts, which are for {arch}, and no emulator for {arch} is registered \
             (binfmt_misc)"
        ),
        format!("{EMULATOR}; bases of named packages (deb://SUITE?packages=...) run nothing and need none"),
    ))
}

/// Runs the scripts of packages in a container.
struct Runner<'a> {
    engine: &'a Engine,
    cancel: &'a CancelToken,
}

impl Configure for Runner<'_> {
    fn run(&self, root: &Path, step: &kiln_deb::Step<'_>) -> std::result::Result<Outcome, String> {
        self.run_step(root, step).map_err(|e| e.to_string())
    }
}

impl Runner<'_> {
    fn run_step(&self, root: &Path, step: &kiln_deb::Step<'_>) -> Result<Outcome> {
        use std::os::fd::OwnedFd;
        let io = |e: std::io::Error| Error::io("configure packages in", root, e);
        let (mut reader, writer) = std::io::pipe().map_err(io)?;
        let second = writer.try_clone().map_err(io)?;
        let dir = kiln_rootfs::Root::open(root)?;
        let mut spec = ProcessSpec::new(crate::build::owned_fd(&dir)?, &step.argv);
        spec.env = step.env.iter().map(|(k, v)| format!("{k}={v}").into()).collect();
        spec.cwd = PathBuf::from("/");
        // dpkg and debconf sync every file they write; the layer is made again if the machine goes down.
        spec.volatile = true;
        spec.stdout = Stdio::Fd(OwnedFd::from(writer));
        spec.stderr = Stdio::Fd(OwnedFd::from(second));
        let collect = std::thread::spawn(move || last_of(&mut reader));
        let exit = self.engine.executor()?.run(spec, |_| {}, self.cancel)?;
        let output = collect.join().unwrap_or_default();
        let status = match (exit.code, exit.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        };
        Ok(Outcome { success: exit.success(), status, output: String::from_utf8_lossy(&output).into_owned() })
    }
}

/// The last bytes of what packages' scripts say, which may be much.
fn last_of(reader: &mut impl Read) -> Vec<u8> {
    let (mut last, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return last,
            Ok(n) => last.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return last,
        }
        last.drain(..last.len().saturating_sub(MOST_OUTPUT));
    }
}
