//! What is in a `deb://` base, for people and for programs.

use kiln_engine::deb::{Reason, Resolution, ResolvedPackage};
use serde_json::{Value, json};

use crate::error::CliError;
use crate::listing::{self, Format, Listing, Row};
use crate::output;
use crate::progress::human_size;

const HEADS: [(&str, &str); 8] = [
    ("Name", "PACKAGE"),
    ("Version", "VERSION"),
    ("Architecture", "ARCHITECTURE"),
    ("Suite", "SUITE"),
    ("Download", "DOWNLOAD"),
    ("Installed", "INSTALLED"),
    ("Why", "WHY"),
    ("SHA256", "SHA256"),
];

/// The packages of each base, and what they add up to. As JSON: one object with all that is known, or a list of them.
pub fn packages(bases: &[Resolution], format: &Format) -> Result<(), CliError> {
    if matches!(format, Format::Json) {
        return show(bases.iter().map(describe).collect());
    }
    for base in bases {
        let rows: Vec<Row> = base.packages.iter().map(|p| row(base, p)).collect();
        let shown = ["Name", "Version", "Download", "Installed", "Suite", "Why"];
        Listing { heads: &HEADS, shown: &shown, rows: &rows }.print(format)?;
        if matches!(format, Format::Table) {
            output::print(&sum(base))?;
        }
    }
    Ok(())
}

fn row(base: &Resolution, package: &ResolvedPackage) -> Row {
    let suite = base.suites.get(package.suite).map_or_else(String::new, |s| s.name.clone());
    let why = match &package.reason {
        Reason::Needed { by, .. } => format!("for {by}"),
        other => other.describe(),
    };
    listing::row([
        ("Name", package.name.clone()),
        ("Version", package.version.clone()),
        ("Architecture", package.arch.clone()),
        ("Suite", suite),
        ("Download", human_size(package.size)),
        ("Installed", human_size(package.installed_size)),
        ("Why", why),
        ("SHA256", hex(&package.sha256)),
    ])
}

fn sum(base: &Resolution) -> String {
    let of = &base.distribution;
    let name = [of.origin.as_str(), of.version.as_str(), of.codename.as_str()].join(" ");
    let mut text = format!(
        "\n{} packages of {} for {}, {}: {} to download, {} installed\n",
        base.packages.len(),
        name.split_whitespace().collect::<Vec<_>>().join(" "),
        base.arch,
        base.variant.as_str(),
        human_size(base.download_size()),
        human_size(base.installed_size()),
    );
    let left_out = base.skipped.len();
    if left_out > 0 {
        let (s, are) = if left_out == 1 { ("y", "is") } else { ("ies", "are") };
        text.push_str(&format!(
            "{left_out} dependenc{s} that only maintainer scripts use {are} left out (--format json)\n"
        ));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn show(mut all: Vec<Value>) -> Result<(), CliError> {
    let value = if all.len() == 1 { all.remove(0) } else { Value::Array(all) };
    output::print(&format!("{value:#}\n"))
}

fn describe(base: &Resolution) -> Value {
    let package = |p: &ResolvedPackage| {
        json!({
            "name": p.name,
            "version": p.version,
            "architecture": p.arch,
            "suite": base.suites.get(p.suite).map(|s| &s.name),
            "size": p.size,
            "installedSize": p.installed_size,
            "sha256": hex(&p.sha256),
            "reason": reason(&p.reason),
        })
    };
    let left_out = |(package, clause): &(String, String)| json!({ "package": package, "dependency": clause });
    json!({
        "base": base.spec.to_string(),
        "variant": base.variant.as_str(),
        "architecture": base.arch,
        "distribution": base.distribution.origin,
        "codename": base.distribution.codename,
        "version": base.distribution.version,
        "date": kiln_engine::oci::Timestamp::from_seconds(base.date).ok().map(|t| t.to_string()),
        "identity": base.digest.to_string(),
        "downloadSize": base.download_size(),
        "installedSize": base.installed_size(),
        "packages": base.packages.iter().map(package).collect::<Vec<_>>(),
        "leftOut": base.skipped.iter().map(left_out).collect::<Vec<_>>(),
    })
}

fn reason(reason: &Reason) -> Value {
    match reason {
        Reason::Needed { by, clause } => json!({ "by": by, "because": clause }),
        Reason::Requested => json!("requested"),
        Reason::Base => json!("base"),
        Reason::Essential => json!("essential"),
        Reason::Required => json!("required"),
    }
}

/// The way from what was asked for to each package.
pub fn why(bases: &[Resolution], names: &[String], format: &Format) -> Result<(), CliError> {
    let (mut text, mut all) = (String::new(), Vec::new());
    for base in bases {
        if bases.len() > 1 {
            text.push_str(&format!("{}:\n", base.arch));
        }
        for name in names {
            let chain = chain(base, name)?;
            for (depth, line) in chain.iter().enumerate() {
                let branch = if depth == 0 { String::new() } else { "  ".repeat(depth - 1) + "└ " };
                text.push_str(&format!("{branch}{line}\n"));
            }
            all.push(json!({ "package": name, "architecture": base.arch, "chain": chain }));
        }
    }
    match format {
        Format::Table => output::print(&text),
        Format::Json => show(all),
        Format::Rows(_) | Format::Columns(_) => Err(CliError::usage("--why has the formats table and json")),
    }
}

fn chain(base: &Resolution, name: &str) -> Result<Vec<String>, CliError> {
    if let Some(chain) = base.why(name) {
        return Ok(chain);
    }
    let mentions = |clause: &str| clause.split(['|', ',']).any(|c| c.split_whitespace().next() == Some(name));
    let left_out = base.skipped.iter().find(|(_, clause)| mentions(clause));
    if let Some((package, clause)) = left_out {
        let message =
            format!("{name} is not in the base: {package} depends on {clause}, but only for its maintainer scripts");
        return Err(CliError::failed(message).with_hint("name it in packages= to have it all the same"));
    }
    let error = CliError::failed(format!("{name} is not in the base"));
    Err(match base.nearest(name).as_slice() {
        [] => error.with_hint("--print shows what is"),
        near => error.with_hint(format!("did you mean {}? --print shows all", near.join(", "))),
    })
}
