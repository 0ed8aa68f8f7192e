//! What is in a `deb://` base, for people and for programs.

use kiln_engine::deb::{Reason, Resolution, ResolvedPackage};
use serde_json::{Value, json};

use super::table;
use crate::error::CliError;
use crate::progress::human_size;

/// The packages, and what they add up to.
pub fn table(base: &Resolution) {
    let rows: Vec<Vec<String>> = base
        .packages
        .iter()
        .map(|p| {
            let suite = base.suites.get(p.suite).map_or_else(String::new, |s| s.name.clone());
            let why = match &p.reason {
                Reason::Needed { by, .. } => format!("for {by}"),
                other => other.describe(),
            };
            vec![p.name.clone(), p.version.clone(), human_size(p.size), human_size(p.installed_size), suite, why]
        })
        .collect();
    table::print(&["PACKAGE", "VERSION", "DOWNLOAD", "INSTALLED", "SUITE", "WHY"], &rows);
    let of = &base.distribution;
    let name = [of.origin.as_str(), of.version.as_str(), of.codename.as_str()].join(" ");
    println!(
        "\n{} packages of {} for {}, {}: {} to download, {} installed",
        base.packages.len(),
        name.split_whitespace().collect::<Vec<_>>().join(" "),
        base.arch,
        base.variant.as_str(),
        human_size(base.download_size()),
        human_size(base.installed_size()),
    );
    if !base.skipped.is_empty() {
        println!(
            "{} dependencies are left out, as only maintainer scripts use them (--format json)",
            base.skipped.len()
        );
    }
}

/// All that is known, as one object; a list of them for several platforms.
pub fn json(bases: &[Resolution]) {
    let all: Vec<Value> = bases.iter().map(describe).collect();
    show(all);
}

fn show(mut all: Vec<Value>) {
    let value = if all.len() == 1 { all.remove(0) } else { Value::Array(all) };
    println!("{value:#}");
}

fn describe(base: &Resolution) -> Value {
    let package = |p: &ResolvedPackage| {
        let sha256: String = p.sha256.iter().map(|b| format!("{b:02x}")).collect();
        json!({
            "name": p.name,
            "version": p.version,
            "architecture": p.arch,
            "suite": base.suites.get(p.suite).map(|s| &s.name),
            "size": p.size,
            "installedSize": p.installed_size,
            "sha256": sha256,
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
pub fn why(bases: &[Resolution], names: &[String]) -> Result<(), CliError> {
    for base in bases {
        if bases.len() > 1 {
            println!("{}:", base.arch);
        }
        for name in names {
            for (depth, line) in chain(base, name)?.iter().enumerate() {
                match depth {
                    0 => println!("{line}"),
                    _ => println!("{}└ {line}", "  ".repeat(depth - 1)),
                }
            }
        }
    }
    Ok(())
}

/// The same for programs.
pub fn why_json(bases: &[Resolution], names: &[String]) -> Result<(), CliError> {
    let mut all = Vec::new();
    for base in bases {
        for name in names {
            all.push(json!({ "package": name, "architecture": base.arch, "chain": chain(base, name)? }));
        }
    }
    show(all);
    Ok(())
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
