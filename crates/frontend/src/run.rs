//! `RUN`.

use kiln_dockerfile as df;
use kiln_dockerfile::{Command, ExpandMode, MountSpec, Run, Span};
use kiln_graph::{
    ActionInput, CacheSharing, Device, Edge, ExecOp, FileAction, FileActionKind, FileOp, MkfileAction, Mount,
    MountKind, NetworkMode, Op, SecretEnv, SecurityMode, VertexMeta,
};

use crate::names::summarize_heredoc;
use crate::plan::Step;
use crate::request::LowerError;
use crate::stage::{Inputs, StageLowering, join};

/// Where scripts with a `#!` line are mounted, and the socket of an ssh agent.
const SCRIPTS: &str = "/dev/pipes";
const SSH_SOCKET: &str = "/run/buildkit/ssh_agent";

/// What the mounts of a `RUN` add to it.
#[derive(Default)]
struct Mounts {
    mounts: Vec<Mount>,
    secret_env: Vec<SecretEnv>,
    sockets: Vec<String>,
}

impl StageLowering<'_, '_, '_> {
    pub fn run(&mut self, step: &Step, run: &Run) -> Result<(), LowerError> {
        let mut inputs = Inputs::default();
        let root = self.state.root.map(|edge| inputs.index(edge));
        let mut mounts = Mounts { mounts: vec![Mount::root(root)], ..Mounts::default() };
        let (args, summary) = self.command(run, step, &mut inputs, &mut mounts)?;
        for index in 0..run.mounts.len() {
            self.mount(step, run, index, &mut inputs, &mut mounts)?;
        }
        // A mount point inside of another mount has to come after it.
        mounts.mounts[1..].sort_by(|a, b| a.dest.cmp(&b.dest));

        let masked: Vec<String> = mounts.secret_env.iter().map(|s| s.name.clone()).collect();
        let mut title = self.title(step, ExpandMode::DISPLAY, &masked);
        if let Some(summary) = summary {
            title += &format!(" ({summary})");
        }
        let name = self.next_name(step, &title);
        let history = self.history_of(&args);
        let exec = self.exec(run, args, mounts);
        let meta = self.meta(step, name);
        let platform = Some(self.state.platform.clone());
        self.state.root = Some(self.vertex(Op::Exec(exec), inputs.0, platform, meta)?);
        self.state.commit(history, true);
        Ok(())
    }

    fn exec(&self, run: &Run, args: Vec<String>, mounts: Mounts) -> ExecOp {
        let request = self.all.request;
        let mut env = self.state.env.entries();
        if let Some(socket) = mounts.sockets.first().filter(|_| self.state.env.get("SSH_AUTH_SOCK").is_none()) {
            env = env.iter().cloned().chain([format!("SSH_AUTH_SOCK={socket}")]).collect();
        }
        let hostname = request.build_args.get("BUILDKIT_SANDBOX_HOSTNAME").filter(|h| !h.is_empty());
        ExecOp {
            args,
            env,
            cwd: self.state.dir(),
            user: self.state.config.config.user.clone(),
            hostname: request.hostname.clone().or_else(|| hostname.cloned()),
            mounts: mounts.mounts,
            secret_env: mounts.secret_env,
            network: match run.network.as_ref().map(|n| n.value) {
                // `default` is what the build was given: with --network=none there is none.
                None | Some(df::NetworkMode::Default) => request.network,
                Some(df::NetworkMode::None) => NetworkMode::None,
                Some(df::NetworkMode::Host) => NetworkMode::Host,
            },
            security: match run.security.as_ref().map(|s| s.value) {
                None | Some(df::SecurityMode::Sandbox) => SecurityMode::Sandbox,
                Some(df::SecurityMode::Insecure) => SecurityMode::Insecure,
            },
            extra_hosts: request.extra_hosts.clone(),
            limits: request.limits.clone(),
            resources: request.resources.clone(),
            proxy: self.all.proxy.clone(),
            devices: run.devices.iter().map(|d| Device { name: d.name.clone(), optional: !d.required }).collect(),
            valid_exit_codes: Vec::new(),
        }
    }

    /// The process's arguments, and a summary of a script for its name.
    fn command(
        &mut self,
        run: &Run,
        step: &Step,
        inputs: &mut Inputs,
        mounts: &mut Mounts,
    ) -> Result<(Vec<String>, Option<String>), LowerError> {
        Ok(match &run.command {
            Command::Exec(args) => (args.clone(), None),
            Command::Shell(text) => (self.state.with_shell(text), None),
            Command::Script { content, shebang, name } => {
                let summary = Some(summarize_heredoc(content));
                if !shebang || self.state.config.os == "windows" {
                    return Ok((self.state.with_shell(content), summary));
                }
                let script = self.inline_file(step, name, content, 0o755)?;
                let mount = Mount { readonly: true, ..self.bind(SCRIPTS.to_owned(), "", Some(script), inputs) };
                mounts.mounts.push(mount);
                (self.state.with_shell(&format!("{SCRIPTS}/{name}")), summary)
            }
        })
    }

    /// A file system with one file in it, whose content is written in the Dockerfile.
    pub fn inline_file(&mut self, step: &Step, name: &str, content: &str, mode: u32) -> Result<Edge, LowerError> {
        if name.contains('/') {
            let error = LowerError::at(step.span(), format!("the name of a heredoc can't have a slash: {name}"));
            return Err(
                error.with_help(Some("give the file's name alone, and its directory as the destination".to_owned()))
            );
        }
        let mkfile = MkfileAction {
            path: join("/", name),
            mode,
            data: content.as_bytes().to_vec(),
            owner: None,
            timestamp: None,
        };
        let action = FileAction { input: ActionInput::Scratch, output: Some(0), kind: FileActionKind::Mkfile(mkfile) };
        let meta =
            VertexMeta { ignore_cache: false, ..self.meta(step, "[internal] preparing inline document".to_owned()) };
        self.vertex(Op::File(FileOp { actions: vec![action] }), Vec::new(), None, meta)
    }

    /// A mount of `source` of a file system at `dest`.
    fn bind(&self, dest: String, source: &str, from: Option<Edge>, inputs: &mut Inputs) -> Mount {
        let selector = join("/", source);
        Mount {
            input: from.map(|edge| inputs.index(edge)),
            selector: if selector == "/" { String::new() } else { selector },
            ..Mount::new(dest, MountKind::Bind)
        }
    }

    fn mount(
        &mut self,
        step: &Step,
        run: &Run,
        index: usize,
        inputs: &mut Inputs,
        all: &mut Mounts,
    ) -> Result<(), LowerError> {
        let written = &run.mounts[index];
        let span = step.at(written.span);
        let spec = written.resolve(&mut |value| self.expand_text(value)).map_err(|e| {
            let help = e.help.clone();
            LowerError::at(span, e.to_string()).with_help(help)
        })?;
        match spec {
            MountSpec::Bind { source, target, readonly, .. } => {
                let from = self.from(step, index, written.span, "mount")?;
                let dest = self.mount_point(&target, span)?;
                all.mounts.push(Mount { readonly, ..self.bind(dest, &source, from, inputs) });
            }
            MountSpec::Cache { id, from, source, target, readonly, sharing, mode, uid, gid } => {
                let base = match from {
                    Some(_) => self.from(step, index, written.span, "mount")?,
                    None => None,
                };
                let dest = self.mount_point(&target, span)?;
                let kind = MountKind::Cache { id: self.cache_id(id, &dest), sharing: shared(sharing), mode, uid, gid };
                all.mounts.push(Mount { readonly, kind, ..self.bind(dest, &source, base, inputs) });
            }
            MountSpec::Tmpfs { target, size } => {
                let kind = MountKind::Tmpfs { size: size.unwrap_or(0) };
                all.mounts.push(Mount::new(self.mount_point(&target, span)?, kind));
            }
            MountSpec::Secret { id, target, env, required, mode, uid, gid } => {
                self.all.capture.secret(&id, required, span);
                if let Some(name) = env {
                    all.secret_env.push(SecretEnv { id: id.clone(), name, optional: !required });
                }
                if let Some(target) = target {
                    let (uid, gid, mode) = (uid.unwrap_or(0), gid.unwrap_or(0), mode.unwrap_or(0o400));
                    let kind = MountKind::Secret { id, uid, gid, mode, optional: !required };
                    all.mounts.push(Mount::new(self.mount_point(&target, span)?, kind));
                }
            }
            MountSpec::Ssh { id, target, required, mode, uid, gid } => {
                let id = id.unwrap_or_else(|| "default".to_owned());
                self.all.capture.ssh(&id, required, span);
                let target = target.unwrap_or_else(|| format!("{SSH_SOCKET}.{}", all.sockets.len()));
                let dest = self.mount_point(&target, span)?;
                all.sockets.push(dest.clone());
                let (uid, gid, mode) = (uid.unwrap_or(0), gid.unwrap_or(0), mode.unwrap_or(0o600));
                let kind = MountKind::Ssh { id, uid, gid, mode, optional: !required };
                all.mounts.push(Mount::new(dest, kind));
            }
        }
        Ok(())
    }

    fn mount_point(&self, target: &str, span: Span) -> Result<String, LowerError> {
        if target.is_empty() {
            let error = LowerError::at(span, "a mount needs a target");
            return Err(error.with_help(Some("add target=<path>".to_owned())));
        }
        match join(&self.state.dir(), target).as_str() {
            "/" => Err(LowerError::at(span, "invalid mount target \"/\"")),
            dest => Ok(dest.to_owned()),
        }
    }

    fn cache_id(&self, id: Option<String>, dest: &str) -> String {
        let id = id.unwrap_or_else(|| dest.to_owned());
        match self.all.request.build_args.get("BUILDKIT_CACHE_MOUNT_NS").filter(|n| !n.is_empty()) {
            Some(namespace) => format!("{namespace}/{id}"),
            None => id,
        }
    }

    /// `RUN |2 A=1 B=2 /bin/sh -c make # buildkit`. The proxy settings are not args, so they are not in it.
    fn history_of(&self, args: &[String]) -> String {
        let declared = &self.state.args;
        let mut words: Vec<String> = Vec::with_capacity(declared.len() + args.len() + 1);
        if declared.len() > 0 {
            words.push(format!("|{}", declared.len()));
        }
        // An ENV of the same name wins.
        let value = |name, value| self.state.env.get(name).unwrap_or(value);
        words.extend(declared.iter().map(|(name, own)| format!("{name}={}", value(name, own))));
        words.extend(args.iter().cloned());
        format!("RUN {} # buildkit", words.join(" "))
    }
}

fn shared(sharing: df::Sharing) -> CacheSharing {
    match sharing {
        df::Sharing::Shared => CacheSharing::Shared,
        df::Sharing::Private => CacheSharing::Private,
        df::Sharing::Locked => CacheSharing::Locked,
    }
}
