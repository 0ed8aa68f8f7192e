//! Lock files: the packages of a base, so that it is the same bytes tomorrow and on another machine.
//!
//! A lock holds no address: the machine's own sources, or the `mirror=` of the spec, say where its suites are. What it
//! names by SHA-256 needs no signature. One file has a section for each base and architecture, so that all bases of a
//! project can share it.

use std::fmt::Write as _;

use crate::archive;
use crate::context::Context;
use crate::deb822::{Paragraph, Paragraphs};
use crate::error::{Error, Result};
use crate::files;
use crate::resolution::{Distribution, Resolution, ResolvedPackage};
use crate::resolve::Reason;
use crate::spec::{self, Spec};
use crate::version;

const FORMAT: &str = "1";

/// The part of a spec that a lock is for: not where the packages come from, and not which architecture.
fn subject(spec: &Spec) -> String {
    let mut spec = spec.clone();
    spec.variant = Some(spec.variant());
    (spec.mirror, spec.keyring, spec.lock, spec.arch) = (None, None, None, None);
    spec.to_string()
}

/// The text for one architecture.
pub fn write(resolution: &Resolution) -> String {
    let names = |f: fn(&crate::resolution::SuiteInfo) -> String| -> String {
        resolution.suites.iter().map(f).collect::<Vec<_>>().join(" ")
    };
    let mut out = format!(
        "Kiln-Base-Lock: {FORMAT}\nBase: {}\nArchitecture: {}\nDate: {}\nOrigin: {}\nCodename: {}\nVersion: {}\nSuites: {}\nComponents: {}\n",
        subject(&resolution.spec),
        resolution.arch,
        resolution.date,
        resolution.distribution.origin,
        resolution.distribution.codename,
        resolution.distribution.version,
        names(|s| s.name.clone()),
        names(|s| s.components.join(",")),
    );
    for package in &resolution.packages {
        // Writing to a String does not fail.
        let _ = write!(
            out,
            "\nPackage: {}\nVersion: {}\nArchitecture: {}\nSuite: {}\nFilename: {}\nSize: {}\nInstalled-Size: {}\nSHA256: {}\nReason: {}\n",
            package.name,
            package.version,
            package.arch,
            resolution.suites.get(package.suite).map_or("", |s| s.name.as_str()),
            package.path,
            package.size,
            package.installed_size,
            files::hex(&package.sha256),
            reason_text(&package.reason),
        );
    }
    out
}

/// `existing` with the section of this base and architecture replaced.
pub fn update(resolution: &Resolution, existing: &str) -> Result<String> {
    let own = (subject(&resolution.spec), resolution.arch.clone());
    let mut sections: Vec<((String, String), String)> = vec![(own.clone(), write(resolution))];
    for section in split(existing)? {
        let key = (section.head("Base")?, section.head("Architecture")?);
        if key != own {
            let text: Vec<String> = section
                .paragraphs
                .iter()
                .map(|p| String::from_utf8_lossy(p.text()).trim_end().to_owned() + "\n")
                .collect();
            sections.push((key, text.join("\n")));
        }
    }
    sections.sort();
    Ok(sections.into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n"))
}

struct Section<'a> {
    paragraphs: Vec<Paragraph<'a>>,
}

impl Section<'_> {
    fn head(&self, name: &str) -> Result<String> {
        let value = self.paragraphs.first().and_then(|head| head.get(name));
        value.map(str::to_owned).ok_or_else(|| Error::Lock(format!("its head has no {name}")))
    }
}

fn split(text: &str) -> Result<Vec<Section<'_>>> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for paragraph in Paragraphs::new(text.as_bytes()) {
        match (paragraph.get("Kiln-Base-Lock"), sections.last_mut()) {
            (Some(FORMAT), _) => sections.push(Section { paragraphs: vec![paragraph] }),
            (Some(other), _) => {
                return Err(Error::Lock(format!("it has format {other}, which this kiln does not know")));
            }
            (None, Some(section)) => section.paragraphs.push(paragraph),
            (None, None) => return Err(Error::Lock("it does not start with Kiln-Base-Lock".into())),
        }
    }
    Ok(sections)
}

/// The section of a base; else what there is, for the reader to see what changed.
fn find<'a>(text: &'a str, base: &str, arch: &str) -> Result<Section<'a>> {
    let (mut arches, mut bases) = (Vec::new(), Vec::new());
    for section in split(text)? {
        match (section.head("Base")?, section.head("Architecture")?) {
            (b, a) if b == base && a == arch => return Ok(section),
            (b, a) if b == base => arches.push(a),
            (b, _) => bases.push(b),
        }
    }
    bases.dedup();
    Err(Error::Lock(match (arches.is_empty(), bases.as_slice()) {
        (false, _) => {
            format!("it has nothing for architecture {arch}, only for {}; lock again", arches.join(", "))
        }
        (true, []) => "it is empty; remove it, and it will be made".into(),
        (true, [one]) => format!("it is for {one}, but the base is {base}; lock again"),
        (true, all) => format!("it has nothing for {base}, only for {}; lock again", all.join(", ")),
    }))
}

/// The resolution in a lock file.
pub fn read(text: &str, spec: Spec, context: &Context<'_>) -> Result<Resolution> {
    let arch = spec.arch.clone().unwrap_or_default();
    let section = find(text, &subject(&spec), &arch)?;
    let number = |name: &str| -> Result<i64> {
        section.head(name)?.parse().map_err(|_| Error::Lock(format!("{name} is not a number")))
    };
    let suites: Vec<String> = section.head("Suites")?.split_ascii_whitespace().map(str::to_owned).collect();
    let components = section.head("Components")?;
    let mut repositories = Vec::new();
    let available = archive::repositories(context, &spec, &arch)?;
    for (suite, components) in suites.iter().zip(components.split_ascii_whitespace()) {
        // The suite by its name; failing that the base suite's archive, which at least has the same pool.
        let named = available.iter().find(|r| r.suite == *suite).or(available.first());
        let mut repository = named
            .cloned()
            .ok_or_else(|| Error::NoSources { suite: suite.clone(), why: "nothing is configured for it".into() })?;
        repository.suite = suite.clone();
        repository.components = components.split(',').map(str::to_owned).collect();
        repositories.push(repository);
    }
    let packages = section.paragraphs.get(1..).unwrap_or_default().iter();
    let packages = packages.map(|p| package(p, &suites)).collect::<Result<Vec<_>>>()?;
    let distribution = Distribution {
        origin: section.head("Origin")?,
        codename: section.head("Codename")?,
        version: section.head("Version")?,
    };
    let date = number("Date")?;
    Ok(Resolution::new(spec, packages, Vec::new(), (distribution, date, repositories)))
}

fn package(paragraph: &Paragraph<'_>, suites: &[String]) -> Result<ResolvedPackage> {
    let bad = |what: &str| {
        let name = paragraph.get("Package").unwrap_or("a package");
        Error::Lock(format!("line {}: {name} has no usable {what}", paragraph.line()))
    };
    let get = |name: &'static str| paragraph.get(name).filter(|v| !v.contains('\n')).ok_or_else(|| bad(name));
    let number = |name: &'static str| get(name).and_then(|v| v.parse::<u64>().map_err(|_| bad(name)));
    let name = Some(get("Package")?).filter(|n| spec::is_package_name(n)).ok_or_else(|| bad("Package"))?;
    let found = Some(get("Version")?).filter(|v| version::is_valid(v)).ok_or_else(|| bad("Version"))?;
    let path = Some(get("Filename")?).filter(|p| crate::index::is_path(p)).ok_or_else(|| bad("Filename"))?;
    Ok(ResolvedPackage {
        name: name.to_owned(),
        version: found.to_owned(),
        arch: get("Architecture")?.to_owned(),
        size: number("Size")?,
        installed_size: number("Installed-Size")?,
        sha256: files::unhex(get("SHA256")?).ok_or_else(|| bad("SHA256"))?,
        path: path.to_owned(),
        suite: suites.iter().position(|s| Some(s.as_str()) == paragraph.get("Suite")).ok_or_else(|| bad("Suite"))?,
        reason: parse_reason(get("Reason")?),
    })
}

fn reason_text(reason: &Reason) -> String {
    match reason {
        Reason::Requested => "requested".into(),
        Reason::Base => "base".into(),
        Reason::Essential => "essential".into(),
        Reason::Required => "required".into(),
        Reason::Needed { by, clause } => format!("{by}: {clause}"),
    }
}

fn parse_reason(text: &str) -> Reason {
    match text {
        "requested" => Reason::Requested,
        "essential" => Reason::Essential,
        "required" => Reason::Required,
        other => match other.split_once(": ") {
            Some((by, clause)) => Reason::Needed { by: by.to_owned(), clause: clause.to_owned() },
            None => Reason::Base,
        },
    }
}
