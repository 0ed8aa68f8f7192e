//! `kiln base`.

use std::io::Cursor;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::{Args, Parser, ValueHint};
use kiln_engine::deb::{Resolution, Spec};
use kiln_engine::debian::{Asked, packages};
use kiln_engine::oci::Platform;
use kiln_engine::request::{BuildRequest, ContextSource, DockerfileSource};

use super::build::BuildArgs;
use super::{base_print, build_request, build_run};
use crate::environment::Environment;
use crate::error::CliError;
use crate::listing::Format;
use crate::progress::{Display, Mode};

/// Make a base image from a distribution's signed packages, without a registry
///
/// BASE is deb://SUITE?OPTION=VALUE&…, as in FROM and --build-context, or a suite alone.
/// PACKAGE adds to its packages=.
///
/// With packages named, the base is distroless: the packages with all they need, but no shell,
/// package manager or maintainer script. Without, or with variant=minbase, it is a system with
/// apt. Mirrors and keys are those of this machine's apt configuration.
///
/// Fields for --format: .Name .Version .Architecture .Suite .Download .Installed .Why .SHA256
///
/// Options of a deb:// base:
///   packages=A,B=1.2   what has to be in it
///   variant=           distroless or minbase
///   debug=true         distroless with a shell in /busybox
///   docs=true          distroless with manuals and translations
///   lock=FILE          the same packages every time; the file is made if it does not exist
///   snapshot=TIME      the archive as it was, such as 20260701T000000Z
///   mirror=URL         where the archive is; keyring=FILE, the keys that sign it
///   components=A,B     such as main,universe; suites=A,B, exactly these suites; arch=ARCH
///
/// Examples:
///   kiln base bookworm nodejs ca-certificates -t node
///   kiln base 'deb://bookworm?packages=python3&lock=python.lock' -t python
///   kiln base --print bookworm nodejs
///   kiln base --print --format '{{.Name}}={{.Version}}' bookworm nodejs
///   kiln base --why libicu72 bookworm nodejs
///   kiln base bookworm -t debian --platform linux/arm64
///   kiln build --build-context node=deb://bookworm?packages=nodejs .
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct BaseArgs {
    /// deb://SUITE?…, or a suite such as bookworm
    base: String,
    /// Packages to have in it
    packages: Vec<String>,
    /// Name for the image, `name[:tag]`
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// Platforms to make it for, such as linux/arm64
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    platforms: Vec<String>,
    /// Where the result goes, as in `kiln build`
    #[arg(short, long = "output", value_name = "SPEC")]
    outputs: Vec<String>,
    /// Use the packages of this lock file; it is made if it does not exist
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    lock: Option<PathBuf>,
    /// Find the packages anew and replace them in the lock file
    #[arg(long)]
    update_lock: bool,

    /// Show the packages and make nothing
    #[arg(long)]
    print: bool,
    /// Show why a package is in the base and make nothing
    #[arg(long, value_name = "PACKAGE")]
    why: Vec<String>,
    /// Format of --print and --why: table, json, or for --print a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,

    /// Look at the archive's indexes even if that was done within the last hour
    #[arg(long)]
    pull: bool,
    /// Make the base again, although it is in the store; packages are not downloaded again
    #[arg(long)]
    no_cache: bool,
    /// How progress is shown
    #[arg(long, value_name = "MODE", default_value = "auto", env = "BUILDKIT_PROGRESS")]
    progress: Mode,
    /// Print the image ID only
    #[arg(short, long)]
    quiet: bool,
}

/// The name that the Dockerfile of `kiln base` has for the base.
const NAME: &str = "base";

/// Makes the base, or shows what is in it.
pub fn run(args: &BaseArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    let mut args = args.clone();
    let spec = spec(&args)?;
    // Nothing else is made, so the architecture alone says for what.
    if let (Some(platform), true) = (spec.platform(), args.platforms.is_empty()) {
        args.platforms.push(platform.to_string());
    }
    let args = &args;
    if args.update_lock && spec.lock.is_none() {
        return Err(CliError::usage("--update-lock needs --lock FILE"));
    }
    if !args.print && args.why.is_empty() {
        let (arguments, request) = build(args, &spec)?;
        return build_run::build(&arguments, request, environment, Vec::new());
    }
    let format = Format::parse(args.format.as_deref())?;
    let mut all = Vec::new();
    let platforms = match args.platforms.as_slice() {
        [] => vec![Platform::host()],
        list => build_request::platforms(list)?,
    };
    for platform in &platforms {
        all.push(resolve(args, &spec, platform, environment)?);
    }
    match args.why.as_slice() {
        [] => base_print::packages(&all, &format)?,
        names => base_print::why(&all, names, &format)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn spec(args: &BaseArgs) -> Result<Spec, CliError> {
    let usage = |e: kiln_engine::deb::SpecError| CliError::usage(e.to_string());
    let text = match args.base.contains("://") {
        true => args.base.clone(),
        false => format!("deb://{}", args.base),
    };
    let mut spec = Spec::parse(&text).map_err(usage)?;
    if !args.packages.is_empty() {
        let more = format!("deb://{}?packages={}", spec.suite, args.packages.join(","));
        spec.packages.extend(Spec::parse(&more).map_err(usage)?.packages);
    }
    if let Some(lock) = &args.lock {
        let lock = lock.to_str().ok_or_else(|| CliError::usage("--lock: the path is not UTF-8"))?;
        spec.lock = Some(lock.to_owned());
    }
    Ok(spec)
}

fn resolve(
    args: &BaseArgs,
    spec: &Spec,
    platform: &Platform,
    environment: &Environment,
) -> Result<Resolution, CliError> {
    let engine = environment.engine()?;
    let display = Display::start(if args.quiet { Mode::Quiet } else { args.progress }, false);
    let text = spec.to_string();
    let asked = Asked { text: &text, platform, refresh: args.pull || args.update_lock, relock: args.update_lock };
    let found = packages(&engine, &asked, Arc::clone(&display) as _);
    display.finish();
    Ok(found?)
}

/// `kiln build` of a Dockerfile that is nothing but the base.
fn build(args: &BaseArgs, spec: &Spec) -> Result<(BuildArgs, BuildRequest), CliError> {
    #[derive(Parser)]
    struct Inner {
        #[command(flatten)]
        build: BuildArgs,
    }
    let mut words = vec!["kiln".to_owned(), format!("--build-context={NAME}={spec}")];
    words.extend(args.tags.iter().map(|t| format!("--tag={t}")));
    words.extend(args.platforms.iter().map(|p| format!("--platform={p}")));
    words.extend(args.outputs.iter().map(|o| format!("--output={o}")));
    words.extend(args.pull.then(|| "--pull".to_owned()));
    let inner = Inner::try_parse_from(words).map_err(|e| CliError::usage(e.to_string()))?;
    let mut arguments = inner.build;
    arguments.quiet = args.quiet;
    arguments.progress = args.progress;
    let mut request = build_request::request(&arguments)?;
    let dockerfile = format!("FROM {NAME}\n");
    request.context = ContextSource::Stream(Arc::new(Mutex::new(Some(Box::new(Cursor::new(dockerfile.clone()))))));
    request.dockerfile = DockerfileSource::Generated(dockerfile.into_bytes());
    request.relock = args.update_lock;
    request.remake = args.no_cache;
    Ok((arguments, request))
}
