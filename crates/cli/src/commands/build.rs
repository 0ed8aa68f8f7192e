//! `kiln build`: arguments. What they mean is in [`super::build_request`].

use std::path::PathBuf;

use clap::{Args, ValueHint};

use super::debug::ToolsArgs;
use crate::progress::Mode;

const INPUT: &str = "What to build";
const RESULT: &str = "Result";
const PROOF: &str = "Secrets and checks of the result";
const CACHE: &str = "Cache";
const STEPS: &str = "Steps";
const VIEW: &str = "Progress and debugging";

/// Build an image from a Dockerfile
///
/// CONTEXT is a directory, a git or HTTP URL, or `-` for a tar archive (or a Dockerfile alone) on standard input.
/// Without -t or -o the result is kept in the image store without a name.
///
/// Exit codes: 0 success, 1 the build failed, 2 wrong usage, 3 a build check failed, 4 a secret was found in the
/// result, 130 interrupted.
///
/// Examples:
///   kiln build -t app .
///   kiln build --target test --no-cache .
///   kiln build -t app --secret id=npmrc,src=$HOME/.npmrc .
///   kiln build -o type=oci,dest=app.tar,compression=zstd .
///   kiln build -o out --target binaries .
///   kiln build --explain-cache --progress=plain .
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct BuildArgs {
    /// Directory, URL or `-`
    #[arg(value_name = "CONTEXT", default_value = ".", value_hint = ValueHint::DirPath)]
    pub context: String,

    /// Dockerfile: a path, a URL or `-` [default: CONTEXT/Dockerfile]
    #[arg(help_heading = INPUT, short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<String>,
    /// Stage to build, by name or number
    #[arg(help_heading = INPUT, long, value_name = "STAGE", add = super::complete::stages())]
    pub target: Option<String>,
    /// Set an ARG; without `=VALUE` it is taken from the environment
    #[arg(help_heading = INPUT, long = "build-arg", value_name = "NAME[=VALUE]", add = super::complete::build_args())]
    pub build_args: Vec<String>,
    /// Named context: a directory, docker-image://, oci-layout://, deb://, a git or HTTP URL
    #[arg(help_heading = INPUT, long = "build-context", value_name = "NAME=VALUE")]
    pub build_contexts: Vec<String>,
    /// Platforms to build for, such as linux/arm64
    #[arg(help_heading = INPUT, long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    pub platforms: Vec<String>,

    /// Name for the result, `name[:tag]`
    #[arg(help_heading = RESULT, short, long = "tag", value_name = "NAME")]
    pub tags: Vec<String>,
    /// Where the result goes: type=image|oci|docker|tar|local|cacheonly|registry, a directory, or `-`
    #[arg(help_heading = RESULT, short, long = "output", value_name = "SPEC")]
    pub outputs: Vec<String>,
    /// Keep the result in the image store; the same as --output=type=docker
    #[arg(help_heading = RESULT, long)]
    pub load: bool,
    /// Upload the result; the same as --output=type=registry
    #[arg(help_heading = RESULT, long)]
    pub push: bool,
    /// Label of the image
    #[arg(help_heading = RESULT, long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Annotation, `[type[platform],…:]key=value`; type is manifest, index, manifest-descriptor or index-descriptor
    #[arg(help_heading = RESULT, long = "annotation", value_name = "ANNOTATION")]
    pub annotations: Vec<String>,
    /// Write the image ID to a file
    #[arg(help_heading = RESULT, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub iidfile: Option<PathBuf>,
    /// Write the result's digests to a JSON file
    #[arg(help_heading = RESULT, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub metadata_file: Option<PathBuf>,

    /// Secret for RUN --mount=type=secret: `id=ID[,src=PATH|,env=VAR]`
    #[arg(help_heading = PROOF, long = "secret", value_name = "SPEC")]
    pub secrets: Vec<String>,
    /// ssh agent or keys for RUN --mount=type=ssh: `default|ID[=SOCKET|KEY[,KEY]]`
    #[arg(help_heading = PROOF, long = "ssh", value_name = "SPEC")]
    pub ssh: Vec<String>,
    /// What to do if a secret is found in the result; what only looks like one is never more than a warning
    #[arg(help_heading = PROOF, long, value_name = "POLICY", default_value = "fail")]
    pub leaks: OnFinding,
    /// What to do if the image's command, or a program of the last stage, lacks its loader, interpreter or libraries
    #[arg(help_heading = PROOF, long, value_name = "POLICY", default_value = "warn")]
    pub check_programs: OnFinding,

    /// Do not use the cache
    #[arg(help_heading = CACHE, long)]
    pub no_cache: bool,
    /// Do not use the cache for these stages
    #[arg(help_heading = CACHE, long, value_name = "STAGE", value_delimiter = ',', add = super::complete::stages())]
    pub no_cache_filter: Vec<String>,
    /// Ask the registry for newer base images
    #[arg(help_heading = CACHE, long)]
    pub pull: bool,
    /// Cache to import: an image name, or type=registry,ref=NAME, type=local,src=DIR, type=s3,region=…,bucket=…
    #[arg(help_heading = CACHE, long = "cache-from", value_name = "SPEC")]
    pub cache_from: Vec<String>,
    /// Cache to export: type=registry,ref=NAME, type=local,dest=DIR, type=s3,…, inline; mode=max for all stages, mounts=all for cache mounts
    #[arg(help_heading = CACHE, long = "cache-to", value_name = "SPEC")]
    pub cache_to: Vec<String>,
    /// Tell for each step why it was not cached
    #[arg(help_heading = CACHE, long)]
    pub explain_cache: bool,

    /// Network of RUN: default, none or host
    #[arg(help_heading = STEPS, long, value_name = "MODE", default_value = "default")]
    pub network: String,
    /// Line of /etc/hosts for RUN, `host:ip`
    #[arg(help_heading = STEPS, long = "add-host", value_name = "HOST:IP")]
    pub add_hosts: Vec<String>,
    /// Allow what is otherwise refused: network.host, security.insecure
    #[arg(help_heading = STEPS, long = "allow", value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Size of /dev/shm in RUN, such as 128m
    #[arg(help_heading = STEPS, long, value_name = "BYTES", allow_negative_numbers = true)]
    pub shm_size: Option<String>,
    /// Limit of a process in RUN, `type=soft[:hard]`
    #[arg(help_heading = STEPS, long = "ulimit", value_name = "LIMIT")]
    pub ulimits: Vec<String>,
    /// Limits of a RUN step: memory=, memory-swap=, cpu-shares=, cpu-period=, cpu-quota=, cpuset-cpus=, cpuset-mems=
    #[arg(help_heading = STEPS, long = "resource", value_name = "NAME=VALUE[,…]")]
    pub resources: Vec<String>,
    /// Memory of a RUN step, such as 2g
    #[arg(help_heading = STEPS, short, long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory: Option<String>,
    /// Memory and swap of a RUN step; -1 for no limit
    #[arg(help_heading = STEPS, long, value_name = "BYTES", allow_negative_numbers = true)]
    pub memory_swap: Option<String>,
    /// Processors of a RUN step, such as 1.5
    #[arg(help_heading = STEPS, long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub cpus: Option<String>,
    /// Weight of a RUN step
    #[arg(help_heading = STEPS, short, long, value_name = "WEIGHT", allow_negative_numbers = true)]
    pub cpu_shares: Option<String>,
    /// Period of --cpu-quota in microseconds
    #[arg(help_heading = STEPS, long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub cpu_period: Option<String>,
    /// Processor time of a RUN step in each period, in microseconds
    #[arg(help_heading = STEPS, long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    pub cpu_quota: Option<String>,
    /// Processors that RUN may use, such as 0-3
    #[arg(help_heading = STEPS, long, value_name = "CPUS")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that RUN may use
    #[arg(help_heading = STEPS, long, value_name = "NODES")]
    pub cpuset_mems: Option<String>,
    /// Steps that run at once, not counting those that sleep [default: processors]
    #[arg(help_heading = STEPS, short, long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub jobs: Option<String>,

    /// How progress is shown
    #[arg(help_heading = VIEW, long, value_name = "MODE", default_value = "auto", env = "BUILDKIT_PROGRESS")]
    pub progress: Mode,
    /// Print the image ID only
    #[arg(help_heading = VIEW, short, long)]
    pub quiet: bool,
    /// What to do when a step fails: end, or first open a shell in the files as it left them
    #[arg(help_heading = VIEW, long, value_name = "WHAT", default_value = "fail")]
    pub on_error: OnError,
    #[command(flatten)]
    pub tools: ToolsArgs,
    /// Check the Dockerfile instead of building; the same as --call=check
    #[arg(help_heading = VIEW, long)]
    pub check: bool,
    /// Evaluate instead of building: build, check, outline or targets; `,format=json`
    #[arg(help_heading = VIEW, long, value_name = "METHOD", default_value = "build", alias = "print")]
    pub call: String,

    #[command(flatten)]
    pub legacy: Legacy,
}

/// What to do when a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// End the build
    Fail,
    /// Open a shell with the step's files, mounts, environment and user; then end the build
    Shell,
}

/// What to do if a check of the result finds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnFinding {
    /// Write no result
    Fail,
    /// Warn
    Warn,
    /// Do not look
    Off,
}

/// Flags of other builders: some change nothing here and say so, the others are refused with a reason.
#[derive(Debug, Args)]
pub struct Legacy {
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub rm: Option<String>,
    #[arg(long, hide = true)]
    pub force_rm: bool,
    #[arg(long, hide = true)]
    pub compress: bool,
    #[arg(short = 'D', long, hide = true)]
    pub debug: bool,
    #[arg(long, hide = true, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    #[arg(long, hide = true, value_name = "VALUE")]
    pub isolation: Option<String>,
    #[arg(long, hide = true, value_name = "VALUE")]
    pub security_opt: Vec<String>,
    #[arg(long, hide = true)]
    pub squash: bool,
    #[arg(long, hide = true, value_name = "NAME")]
    pub builder: Option<String>,
    #[arg(long, hide = true, value_name = "VALUE")]
    pub attest: Vec<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", value_name = "VALUE")]
    pub provenance: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true", value_name = "VALUE")]
    pub sbom: Option<String>,
    #[arg(long, hide = true, value_name = "VALUE")]
    pub policy: Vec<String>,
    #[arg(long, hide = true, value_name = "VALUE")]
    pub invoke: Option<String>,
    #[arg(long, hide = true)]
    pub detach: bool,
    #[arg(long, hide = true, value_name = "VALUE")]
    pub server_config: Option<String>,
}

impl Legacy {
    /// Refuses what would change the result and is not supported; returns what changes nothing.
    pub fn check(&self) -> Result<Vec<String>, String> {
        let off = |v: &str| {
            matches!(v, "false" | "0" | "disabled=true" | "type=provenance,disabled=true" | "type=sbom,disabled=true")
        };
        let asked = |v: &Option<String>| v.as_deref().is_some_and(|v| !off(v));
        let unsupported = [
            (self.squash, "--squash", "copy the result into a stage of its own: FROM scratch, COPY --from=… / /"),
            (asked(&self.sbom), "--sbom", "attestations are not written yet; leave it out or say --sbom=false"),
            (
                asked(&self.provenance),
                "--provenance",
                "attestations are not written yet; leave it out or say --provenance=false",
            ),
            (self.attest.iter().any(|v| !off(v)), "--attest", "attestations are not written yet"),
            (self.invoke.is_some(), "--invoke", "use --on-error=shell, or `kiln debug` on a finished image"),
            (self.detach, "--detach", "there is no server that could go on with the build"),
            (self.server_config.is_some(), "--server-config", "there is no server"),
            (!self.policy.is_empty(), "--policy", "source policies are not evaluated"),
            (!self.security_opt.is_empty(), "--security-opt", "see --allow and RUN --security"),
            (
                self.isolation.as_deref().is_some_and(|v| v != "default"),
                "--isolation",
                "only Linux containers are made",
            ),
            (self.cgroup_parent.is_some(), "--cgroup-parent", "start kiln itself in that group"),
            (self.builder.as_deref().is_some_and(|v| v != "default"), "--builder", "kiln builds in its own process"),
        ];
        if let Some((_, flag, why)) = unsupported.iter().find(|u| u.0) {
            return Err(format!("{flag} is not supported: {why}"));
        }
        let mut notes = Vec::new();
        let no_daemon = "there are no intermediate containers and no upload to a daemon";
        let given = [
            (self.rm.is_some(), "--rm", no_daemon),
            (self.force_rm, "--force-rm", no_daemon),
            (self.compress, "--compress", no_daemon),
            (self.debug, "--debug", "`kiln logs` shows the whole output in any case"),
        ];
        for (_, flag, why) in given.iter().filter(|g| g.0) {
            notes.push(format!("{flag} changes nothing: {why}"));
        }
        Ok(notes)
    }
}
