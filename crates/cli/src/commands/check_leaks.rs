//! `kiln check-leaks`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use kiln_engine::check_leaks::{LeakReport, check};
use kiln_engine::leaks::Leak;
use kiln_engine::secrets_search::HitKind;

use super::build_request::{secret, ssh};
use crate::environment::{Environment, protect_memory};
use crate::error::{CliError, code};
use crate::progress::human_size;

/// Search an image for secrets
///
/// Looks at every layer, also for files that a later layer removes, at the config with its history, and at annotations.
/// --secret and --ssh name what must not be there, as for `kiln build`: it is found as it is, in base64, hex, URL and JSON
/// notation. Without them only what has the shape of a credential is found: private keys and tokens of well-known services.
/// Compressed files inside a layer are not looked into.
///
/// Exit codes: 0 nothing was found, or shapes only; 4 a secret was found, with --strict also a shape. A secret that is a word
/// or shorter than 8 characters may be in a file by chance and counts as a shape.
///
/// Examples:
///   kiln check-leaks app
///   kiln check-leaks --secret id=npmrc,src=$HOME/.npmrc --ssh default=$HOME/.ssh/id_ed25519 app
///   docker save app -o app.tar && kiln check-leaks --strict app.tar
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CheckLeaksArgs {
    /// Image: a name, the beginning of an ID, an archive, or the directory of an OCI layout
    #[arg(add = super::complete::images_and_files())]
    image: String,
    /// Secret to look for: `id=ID[,src=PATH|,env=VAR]`
    #[arg(long = "secret", value_name = "SPEC")]
    secrets: Vec<String>,
    /// Private keys to look for: `ID=KEY[,KEY]`
    #[arg(long = "ssh", value_name = "SPEC")]
    ssh: Vec<String>,
    /// Fail for shapes of credentials and common values, too
    #[arg(long)]
    strict: bool,
    /// Print JSON
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

/// How the report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A line for each finding.
    Text,
    /// One object.
    Json,
}

/// Searches, and prints what was found.
pub fn run(args: &CheckLeaksArgs, environment: &Environment) -> Result<ExitCode, CliError> {
    protect_memory();
    let secrets = args.secrets.iter().map(|s| secret(s)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let ssh = args.ssh.iter().map(|s| ssh(s)).collect::<Result<BTreeMap<_, _>, _>>()?;
    let engine = environment.engine()?;
    let report = check(&engine, &args.image, &secrets, &ssh)?;
    match args.format {
        Format::Json => {
            let json = serde_json::to_string_pretty(&json(args, &report));
            println!("{}", json.map_err(|e| CliError::failed(e.to_string()))?);
        }
        Format::Text => text(args, &report),
    }
    let fails = |leak: &Leak| leak.is_secret() || args.strict;
    Ok(if report.leaks.iter().any(fails) { ExitCode::from(code::LEAK) } else { ExitCode::SUCCESS })
}

fn text(args: &CheckLeaksArgs, report: &LeakReport) {
    for (index, leak) in report.leaks.iter().enumerate() {
        println!("{}: {}", if leak.is_secret() { "secret" } else { "warning" }, leak.describe());
        let next = report.leaks.get(index + 1);
        if next.is_none_or(|n| n.remedy() != leak.remedy()) {
            println!("  {}", leak.remedy());
        }
    }
    let secrets = report.leaks.iter().filter(|l| l.is_secret()).count();
    let shapes = report.leaks.len() - secrets;
    let looked = format!(
        "{} of files in {} layer{}",
        human_size(report.bytes),
        report.layers,
        if report.layers == 1 { "" } else { "s" }
    );
    let given = args.secrets.len() + args.ssh.len();
    let what = match given {
        0 => "no --secret was given: only shapes of credentials were looked for".to_owned(),
        _ => format!("{secrets} secret{}", if secrets == 1 { "" } else { "s" }),
    };
    println!("{}: {what}, {shapes} shape{} in {looked}", args.image, if shapes == 1 { "" } else { "s" });
}

fn json(args: &CheckLeaksArgs, report: &LeakReport) -> serde_json::Value {
    let finding = |leak: &Leak| {
        let (kind, name, form) = match &leak.kind {
            HitKind::Secret { name, encoding, chance, .. } => {
                (if *chance { "common value" } else { "secret" }, name.clone(), Some(encoding.describe()))
            }
            HitKind::Shape(shape) => ("shape", shape.describe().to_owned(), None),
        };
        serde_json::json!({
            "kind": kind, "name": name, "form": form, "place": leak.place, "path": leak.path, "remedy": leak.remedy(),
        })
    };
    serde_json::json!({
        "image": args.image,
        "images": report.images,
        "layers": report.layers,
        "bytes": report.bytes,
        "findings": report.leaks.iter().map(finding).collect::<Vec<_>>(),
    })
}
