//! Small parsers that commands share.

use kiln_engine::dockerfile::nearest;
use kiln_engine::oci::{Platform, Reference};

use crate::error::CliError;

/// Go's operating systems and architectures that images exist for.
const SYSTEMS: [&str; 6] = ["linux", "windows", "darwin", "freebsd", "wasip1", "js"];
const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "sparc64", "wasm",
];

/// The value of `--platform` where one is meant.
pub fn platform(text: &str) -> Result<Platform, CliError> {
    let platform = text.parse::<Platform>().map_err(|e| CliError::usage(format!("--platform: {e}")))?;
    let unknown = |what: &str, name: &str, known: &[&str]| {
        let meant = nearest(name, known.iter().copied()).map(|n| format!("; did you mean {n}?")).unwrap_or_default();
        CliError::usage(format!("--platform {text}: {name:?} is not {what}{meant}"))
    };
    if !SYSTEMS.contains(&platform.os.as_str()) {
        return Err(unknown("an operating system", &platform.os, &SYSTEMS));
    }
    if !ARCHITECTURES.contains(&platform.architecture.as_str()) {
        return Err(unknown("an architecture", &platform.architecture, &ARCHITECTURES));
    }
    let levels: &[&str] = match platform.architecture.as_str() {
        "amd64" => &["v1", "v2", "v3", "v4"],
        "arm" => &["v5", "v6", "v7", "v8"],
        _ => return Ok(platform),
    };
    match platform.variant.as_deref() {
        Some(variant) if !levels.contains(&variant) => {
            Err(CliError::usage(format!("--platform {text}: the variant is not one of {}", levels.join(", "))))
        }
        _ => Ok(platform),
    }
}

/// The name of an image that a flag gives; without a tag it has the tag `latest`.
pub fn reference(flag: &str, text: &str) -> Result<Reference, CliError> {
    let parsed = text.parse::<Reference>().map(Reference::with_default_tag);
    parsed.map_err(|e| CliError::usage(format!("{}: {e}", flag.trim_end_matches('='))))
}

/// `key=value`.
pub fn key_value(flag: &str, text: &str) -> Result<(String, String), CliError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(CliError::usage(format!("{flag} {text}: expected NAME=VALUE"))),
    }
}

/// Comma-separated `key=value` fields, quoted as in CSV (RFC 4180); a key alone has an empty value.
pub fn attributes(text: &str) -> Result<Vec<(String, String)>, CliError> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(CliError::usage(format!("{text}: a quote is not closed")));
    }
    fields.push(field);
    let pair = |f: String| match f.split_once('=') {
        Some((k, v)) => (k.trim().to_owned(), v.to_owned()),
        None => (f.trim().to_owned(), String::new()),
    };
    Ok(fields.into_iter().filter(|f| !f.is_empty()).map(pair).collect())
}

/// A size such as `512`, `64k`, `128m`, `2g`, in powers of 1024 as docker's `--memory`.
pub fn bytes(flag: &str, text: &str) -> Result<u64, CliError> {
    let space = if flag.ends_with('=') { "" } else { " " };
    let bad = || CliError::usage(format!("{flag}{space}{text}: expected a size such as 512m"));
    let lower = text.trim().to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[number.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    let value: f64 = number.parse().ok().filter(|v: &f64| *v >= 0.0).ok_or_else(bad)?;
    Ok((value * (1u64 << shift) as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_follow_csv() {
        let parsed = attributes(r#"type=oci,"dest=a,b.tar",flag"#).unwrap();
        assert_eq!(parsed[1], ("dest".to_owned(), "a,b.tar".to_owned()));
        assert_eq!(parsed[2], ("flag".to_owned(), String::new()));
        assert!(attributes(r#"a="b"#).is_ok(), "a quote inside a field is a character");
        assert!(attributes(r#""a=b"#).is_err());
    }

    #[test]
    fn sizes() {
        for (text, value) in [("512", 512), ("64k", 65536), ("1.5m", 1_572_864), ("2GB", 2 << 30), ("1gib", 1 << 30)] {
            assert_eq!(bytes("-m", text).unwrap(), value, "{text}");
        }
        assert!(bytes("-m", "many").is_err());
        assert!(bytes("-m", "-1").is_err());
    }
}
