//! `os/arch[/variant]`, normalised as containerd and docker do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The platform that an image is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture, Go's GOARCH.
    pub architecture: String,
    /// Operating system, Go's GOOS.
    pub os: String,
    /// Operating system version (Windows).
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// Required operating system features.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// CPU variant, such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a string is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected os/arch or os/arch/variant, such as linux/amd64")]
pub struct PlatformError(String);

impl Platform {
    /// A normalised platform.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, variant) = normalise(architecture, variant);
        Self { architecture, os: normalise_os(os), os_version: None, os_features: Vec::new(), variant }
    }

    /// The platform that this binary runs on.
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, None)
    }

    /// Whether an image for `self` also runs on `host` without emulation.
    pub fn runs_on(&self, host: &Platform) -> bool {
        if self.os != host.os {
            return false;
        }
        let level = |p: &Platform| -> u32 {
            let v = p.variant.as_deref().and_then(|v| v.strip_prefix('v')).and_then(|v| v.parse().ok());
            v.unwrap_or(if p.architecture == "arm" { 7 } else { 0 })
        };
        match (self.architecture.as_str(), host.architecture.as_str()) {
            (a, b) if a == b => level(self) <= level(host),
            ("386", "amd64") | ("arm", "arm64") => true,
            _ => false,
        }
    }
}

fn normalise_os(os: &str) -> String {
    match os.to_ascii_lowercase().as_str() {
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    }
}

fn normalise(architecture: &str, variant: Option<&str>) -> (String, Option<String>) {
    let variant = variant.filter(|v| !v.is_empty()).map(str::to_ascii_lowercase);
    let arch = architecture.to_ascii_lowercase();
    let (arch, variant) = match arch.as_str() {
        "i386" | "i686" | "x86" => ("386", None),
        "x86_64" | "x86-64" => ("amd64", variant),
        "aarch64" => ("arm64", variant),
        "armhf" => ("arm", Some("v7".to_owned())),
        "armel" => ("arm", Some("v6".to_owned())),
        other => (other, variant),
    };
    let variant = match (arch, variant.as_deref()) {
        ("amd64", Some("v1")) => None,
        ("arm64", Some("8" | "v8")) => None,
        ("arm", None | Some("7")) => Some("v7".to_owned()),
        ("arm", Some("5")) => Some("v5".to_owned()),
        ("arm", Some("6")) => Some("v6".to_owned()),
        ("arm", Some("8")) => Some("v8".to_owned()),
        _ => variant,
    };
    (arch.to_owned(), variant)
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(v) => write!(f, "/{v}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(s: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError(s.chars().take(100).collect());
        let valid = |p: &&str| {
            p.starts_with(|c: char| c.is_ascii_alphanumeric())
                && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
        };
        let parts: Vec<&str> = s.trim().split('/').collect();
        if !parts.iter().all(&valid) {
            return Err(bad());
        }
        match parts[..] {
            ["local"] => Ok(Self::host()),
            ["linux" | "windows" | "darwin" | "freebsd"] => Ok(Self { os: normalise_os(parts[0]), ..Self::host() }),
            [arch] if is_known_arch(arch) => Ok(Self::new("linux", arch, None)),
            [os, arch] => Ok(Self::new(os, arch, None)),
            [os, arch, variant] => Ok(Self::new(os, arch, Some(variant))),
            _ => Err(bad()),
        }
    }
}

fn is_known_arch(arch: &str) -> bool {
    let (arch, _) = normalise(arch, None);
    matches!(
        arch.as_str(),
        "386" | "amd64" | "arm" | "arm64" | "loong64" | "mips64le" | "ppc64le" | "riscv64" | "s390x" | "wasm"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_containerd() {
        let shown = |s: &str| s.parse::<Platform>().map(|p| p.to_string());
        assert_eq!(shown("linux/aarch64").unwrap(), "linux/arm64");
        assert_eq!(shown("linux/arm64/v8").unwrap(), "linux/arm64");
        assert_eq!(shown("linux/arm").unwrap(), "linux/arm/v7");
        assert_eq!(shown("amd64").unwrap(), "linux/amd64");
        assert_eq!(shown("Linux/x86_64").unwrap(), "linux/amd64");
        for bad in ["", "linux/", "linux/a/b/c", "lin ux/amd64", "../x"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }
}
