//! `deb://` bases: their package lists, and the layer that they become.

use std::path::{Path, PathBuf};

use kiln_deb::{BuildOptions, Configure, Context, Outcome, Refresh, Resolution, Spec};
use kiln_executor::{CancelToken, ProcessSpec, Stdio};
use kiln_oci::Platform;
use kiln_store::Snapshot;

use crate::build::Job;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::steps::Step;

/// Finds the packages of a base.
pub fn resolve(engine: &Engine, text: &str, platform: &Platform, refresh: bool, step: &Step) -> Result<Resolution> {
    let spec = Spec::parse(text).map_err(|e| Error::request(e.to_string()))?;
    let spec = spec.for_platform(platform).map_err(|e| Error::request(e.to_string()))?;
    let events = |event: kiln_deb::Event<'_>| show(step, &event);
    let mut context = context(engine, &events)?;
    if refresh {
        context.refresh = Refresh::Always;
    }
    if let Some(path) = &spec.lock {
        context.lock = std::fs::read_to_string(path).ok();
    }
    let resolution = kiln_deb::resolve(&spec, &context)?;
    if let (Some(path), None) = (&spec.lock, &context.lock) {
        std::fs::write(path, resolution.lock_text()).map_err(|e| Error::io("write the lock file", path, e))?;
    }
    Ok(resolution)
}

fn context<'a>(engine: &Engine, events: &'a (dyn Fn(kiln_deb::Event<'_>) + Sync)) -> Result<Context<'a>> {
    let mut context = Context::new(engine.store.sources_dir("deb")?);
    context.host.clone_from(&engine.apt_root);
    context.events = Some(events);
    Ok(context)
}

fn show(step: &Step, event: &kiln_deb::Event<'_>) {
    use kiln_deb::Event;
    match event {
        Event::Index { url } => step.progress(&format!("index {url}"), 0, None, true),
        Event::Downloads { packages, bytes } => step.progress(&format!("{packages} packages"), 0, Some(*bytes), false),
        Event::Warning(text) => step.log(crate::events::Stream::Stderr, format!("{text}\n").as_bytes()),
        Event::Configuring { packages } => step.progress(&format!("configuring {packages} packages"), 0, None, false),
        Event::Received { .. } | Event::Fetched { .. } | Event::Unpacked { .. } => {}
    }
}

/// Builds a base into a layer.
pub fn build(job: &Job, resolution: &Resolution, step: &Step) -> Result<Snapshot> {
    let events = |event: kiln_deb::Event<'_>| show(step, &event);
    let context = context(&job.engine, &events)?;
    let draft = job.engine.store.layers().draft()?;
    let runner = Runner { engine: &job.engine, cancel: &job.cancel };
    let options = BuildOptions { ownership: job.engine.ownership, configure: Some(&runner) };
    kiln_deb::build(resolution, draft.fs(), &context, &options)?;
    Ok(Snapshot(vec![draft.commit(job.layer_meta())?]))
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
        use std::io::Read;
        use std::os::fd::OwnedFd;
        let io = |e: std::io::Error| Error::io("configure packages in", root, e);
        let (mut reader, writer) = std::io::pipe().map_err(io)?;
        let second = writer.try_clone().map_err(io)?;
        let dir = kiln_rootfs::Root::open(root)?;
        let mut spec = ProcessSpec::new(crate::build::owned_fd(&dir)?, &step.argv);
        spec.env = step.env.iter().map(|(k, v)| format!("{k}={v}").into()).collect();
        spec.cwd = PathBuf::from("/");
        spec.stdout = Stdio::Fd(OwnedFd::from(writer));
        spec.stderr = Stdio::Fd(OwnedFd::from(second));
        let collect = std::thread::spawn(move || {
            let mut all = Vec::new();
            let _ = reader.read_to_end(&mut all);
            all
        });
        let exit = self.engine.executor()?.run(spec, |_| {}, self.cancel)?;
        let output = collect.join().unwrap_or_default();
        let tail = output.len().saturating_sub(8 << 10);
        let status = match (exit.code, exit.signal) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "no exit code".to_owned(),
        };
        Ok(Outcome { success: exit.success(), status, output: String::from_utf8_lossy(&output[tail..]).into_owned() })
    }
}
