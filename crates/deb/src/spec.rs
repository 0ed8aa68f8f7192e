//! `deb://SUITE?packages=…&variant=…`: what base somebody asks for. Pure text; nothing is looked up here.

use std::fmt;
use std::str::FromStr;

use kiln_oci::Platform;

use crate::{suggest, version};

const OPTIONS: [&str; 11] =
    ["packages", "variant", "mirror", "components", "keyring", "arch", "snapshot", "suites", "lock", "docs", "debug"];

/// A base image made of a distribution's packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The suite or codename, `bookworm` or `stable`.
    pub suite: String,
    /// The packages that were named, in the order given.
    pub packages: Vec<PackageRequest>,
    /// What kind of base; see [`Spec::variant`].
    pub variant: Option<Variant>,
    /// Base address of the archive, in place of the machine's apt configuration.
    pub mirror: Option<String>,
    /// Archive components, in place of the configured ones (or `main`).
    pub components: Vec<String>,
    /// A file with the archive's keys, in place of the configured ones.
    pub keyring: Option<String>,
    /// Debian's name of an architecture; [`Spec::for_platform`] sets it.
    pub arch: Option<String>,
    /// A point in time, `YYYYMMDDTHHMMSSZ`.
    pub snapshot: Option<String>,
    /// Exactly the suites to use, in place of `suite` with its updates and security.
    pub suites: Vec<String>,
    /// Path of a lock file; the caller reads and writes it.
    pub lock: Option<String>,
    /// Keep documentation, manual pages and translations in a distroless base.
    pub docs: bool,
    /// Add a shell and tools below `/busybox` to a distroless base.
    pub debug: bool,
}

/// What kind of base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// Files only: no maintainer scripts, no package manager, no shell unless asked for.
    Distroless,
    /// A working system with apt, configured as debootstrap does.
    Minbase,
}

impl Variant {
    /// The word in a spec.
    pub fn as_str(self) -> &'static str {
        match self {
            Variant::Distroless => "distroless",
            Variant::Minbase => "minbase",
        }
    }
}

/// A package that was asked for: `name` or `name=version`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageRequest {
    /// Its name.
    pub name: String,
    /// The exact version, if demanded.
    pub version: Option<String>,
}

impl fmt::Display for PackageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.version.as_ref().map_or(Ok(()), |version| write!(f, "={version}"))
    }
}

/// Why a text is not a [`Spec`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No `deb://`.
    #[error("{0:?} is not a package base: expected deb://SUITE, for example deb://bookworm?packages=python3")]
    Scheme(String),
    /// No suite, or one that could be a path.
    #[error("{0:?} is not the name of a suite: expected one such as bookworm or noble")]
    Suite(String),
    /// An option that does not exist.
    #[error("unknown option {name:?} in a deb:// base{}; known are: {}", suggest::hint(nearest), OPTIONS.join(", "))]
    Option {
        /// What was written.
        name: String,
        /// The nearest known options.
        nearest: Vec<String>,
    },
    /// An option given twice.
    #[error("option {0:?} is given twice in a deb:// base")]
    Duplicate(&'static str),
    /// An option with a value that it can't have.
    #[error("{option}={value:?} in a deb:// base: expected {expected}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was written.
        value: String,
        /// What is accepted.
        expected: String,
    },
    /// A platform that no Debian architecture is for.
    #[error("no Debian architecture is known for platform {0}")]
    Platform(String),
}

impl Spec {
    /// Parses `deb://…`.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let rest = text.strip_prefix("deb://").ok_or_else(|| SpecError::Scheme(clip(text)))?;
        let (suite, query) = rest.split_once('?').unwrap_or((rest, ""));
        let suite = decode(suite.trim_end_matches('/')).unwrap_or_default();
        if !is_suite(&suite) {
            return Err(SpecError::Suite(clip(&suite)));
        }
        let mut spec = Self::suite(suite);
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, raw) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(option) = OPTIONS.into_iter().find(|option| *option == name) else {
                return Err(SpecError::Option { name: clip(name), nearest: suggest::nearest(name, OPTIONS, 3) });
            };
            if seen.contains(&option) {
                return Err(SpecError::Duplicate(option));
            }
            seen.push(option);
            let value = decode(raw).ok_or_else(|| bad(option, raw, "percent-encoded UTF-8"))?;
            spec.set(option, &value)?;
        }
        Ok(spec)
    }

    /// The base `deb://suite` with no options.
    pub fn suite(suite: impl Into<String>) -> Self {
        Self {
            suite: suite.into(),
            packages: Vec::new(),
            variant: None,
            mirror: None,
            components: Vec::new(),
            keyring: None,
            arch: None,
            snapshot: None,
            suites: Vec::new(),
            lock: None,
            docs: false,
            debug: false,
        }
    }

    /// The variant: the one named, or distroless when packages are named, or minbase.
    pub fn variant(&self) -> Variant {
        match (self.variant, self.packages.is_empty()) {
            (Some(variant), _) => variant,
            (None, true) => Variant::Minbase,
            (None, false) => Variant::Distroless,
        }
    }

    /// The same base for a platform. An `arch` that is already there must agree with it.
    pub fn for_platform(mut self, platform: &Platform) -> Result<Self, SpecError> {
        let name = platform.to_string();
        let variant = platform.variant.as_deref();
        let arch = match (platform.architecture.as_str(), variant) {
            _ if platform.os != "linux" => return Err(SpecError::Platform(name)),
            ("amd64" | "arm64" | "s390x" | "riscv64" | "loong64", _) => platform.architecture.as_str(),
            ("386", _) => "i386",
            ("arm", Some("v5" | "v6")) => "armel",
            ("arm", _) => "armhf",
            ("ppc64le", _) => "ppc64el",
            ("mips64le", _) => "mips64el",
            _ => return Err(SpecError::Platform(name)),
        };
        if let Some(given) = self.arch.as_deref().filter(|given| *given != arch) {
            return Err(bad(
                "arch",
                given,
                &format!(
                    "{arch}, since the platform is {name}; another one is asked for with --platform, also of FROM"
                ),
            ));
        }
        self.arch = Some(arch.to_owned());
        Ok(self)
    }

    /// The platform that the base is for, once `arch` is known.
    pub fn platform(&self) -> Option<Platform> {
        let text = match self.arch.as_deref()? {
            "i386" => "linux/386",
            "armhf" => "linux/arm/v7",
            "armel" => "linux/arm/v5",
            "ppc64el" => "linux/ppc64le",
            "mips64el" => "linux/mips64le",
            arch => return format!("linux/{arch}").parse().ok(),
        };
        text.parse().ok()
    }

    fn set(&mut self, option: &'static str, value: &str) -> Result<(), SpecError> {
        match option {
            "packages" => self.packages = list(value).map(package).collect::<Result<_, _>>()?,
            "variant" => self.variant = Some(variant(value)?),
            "mirror" => self.mirror = Some(mirror(value)?),
            "components" => self.components = words(option, value, "component names such as main,contrib")?,
            "suites" => self.suites = words(option, value, "suite names such as bookworm,bookworm-security")?,
            "keyring" => self.keyring = Some(non_empty(option, value, "the path of a file with OpenPGP keys")?),
            "lock" => self.lock = Some(non_empty(option, value, "the path of a lock file")?),
            "arch" => {
                let good = !value.is_empty() && value.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
                self.arch = Some(good.then(|| value.to_owned()).ok_or_else(|| {
                    bad("arch", value, "Debian's name of an architecture, such as amd64, arm64 or armhf")
                })?);
            }
            "snapshot" => self.snapshot = Some(snapshot(value)?),
            "debug" => self.debug = flag(option, value)?,
            _ => self.docs = flag(option, value)?,
        }
        Ok(())
    }
}

impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(s: &str) -> Result<Self, SpecError> {
        Self::parse(s)
    }
}

/// The canonical spelling: parsing it gives an equal value.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deb://{}", self.suite)?;
        let packages: Vec<String> = self.packages.iter().map(PackageRequest::to_string).collect();
        let pairs = [
            ("packages", Some(packages.join(",")).filter(|p| !p.is_empty())),
            ("variant", self.variant.map(|v| v.as_str().to_owned())),
            ("mirror", self.mirror.clone()),
            ("components", Some(self.components.join(",")).filter(|c| !c.is_empty())),
            ("keyring", self.keyring.clone()),
            ("arch", self.arch.clone()),
            ("snapshot", self.snapshot.clone()),
            ("suites", Some(self.suites.join(",")).filter(|s| !s.is_empty())),
            ("lock", self.lock.clone()),
            ("docs", self.docs.then(|| "true".to_owned())),
            ("debug", self.debug.then(|| "true".to_owned())),
        ];
        let mut sign = '?';
        for (name, value) in pairs {
            if let Some(value) = value {
                write!(f, "{sign}{name}={}", encode(&value))?;
                sign = '&';
            }
        }
        Ok(())
    }
}

fn bad(option: &'static str, value: &str, expected: &str) -> SpecError {
    SpecError::Value { option, value: clip(value), expected: expected.to_owned() }
}

fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ' ']).filter(|item| !item.is_empty())
}

fn non_empty(option: &'static str, value: &str, expected: &str) -> Result<String, SpecError> {
    if value.is_empty() { Err(bad(option, value, expected)) } else { Ok(value.to_owned()) }
}

fn flag(option: &'static str, value: &str) -> Result<bool, SpecError> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        other => Err(bad(option, other, "true or false")),
    }
}

fn words(option: &'static str, value: &str, expected: &str) -> Result<Vec<String>, SpecError> {
    let words: Vec<String> = list(value).map(str::to_owned).collect();
    if words.is_empty() || !words.iter().all(|word| is_suite(word)) {
        return Err(bad(option, value, expected));
    }
    Ok(words)
}

/// A suite or component is part of a URL path: one or more plain names with slashes between, no `..`.
pub(crate) fn is_suite(name: &str) -> bool {
    name.len() <= 100
        && name.split('/').all(|part| {
            part.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
                && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._+".contains(&c))
        })
}

/// Whether `name` can be a package. Policy wants two characters, dpkg is content with one.
pub(crate) fn is_package_name(name: &str) -> bool {
    name.len() <= 128
        && name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c))
}

fn package(text: &str) -> Result<PackageRequest, SpecError> {
    let (name, wanted) = match text.split_once('=') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    if !is_package_name(name) || wanted.is_some_and(|v| !version::is_valid(v)) {
        return Err(bad("packages", text, "names such as nodejs or nodejs=18.19.0+dfsg-6, with commas between"));
    }
    Ok(PackageRequest { name: name.to_owned(), version: wanted.map(str::to_owned) })
}

fn variant(value: &str) -> Result<Variant, SpecError> {
    match value {
        "distroless" => Ok(Variant::Distroless),
        "minbase" => Ok(Variant::Minbase),
        other => {
            let nearest = suggest::nearest(other, ["distroless", "minbase"], 1);
            Err(bad("variant", other, &format!("distroless or minbase{}", suggest::hint(&nearest))))
        }
    }
}

fn mirror(value: &str) -> Result<String, SpecError> {
    let known = ["http://", "https://", "file:///"].iter().any(|scheme| value.starts_with(scheme));
    let clean = value.bytes().all(|c| c.is_ascii_graphic()) && !value.contains(['?', '#']);
    match known && clean {
        true => Ok(value.trim_end_matches('/').to_owned()),
        false => Err(bad("mirror", value, "an http://, https:// or file:/// address without a query")),
    }
}

fn snapshot(value: &str) -> Result<String, SpecError> {
    // A date alone is its first moment, as snapshot archives have it.
    let full = if value.len() == 8 { format!("{value}T000000Z") } else { value.to_owned() };
    match crate::time::parse_snapshot(&full) {
        Some(_) => Ok(full),
        None => Err(bad("snapshot", value, "a date and time such as 20260701T000000Z")),
    }
}

/// Percent-decodes; `+` stays, because package names have it.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | b'&' | b'#' | b'?' | b' ' | 0x7f.. => out.push_str(&format!("%{byte:02X}")),
            byte => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(text: &str) -> String {
        Spec::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn variants_follow_packages() {
        assert_eq!(Spec::parse("deb://bookworm").unwrap().variant(), Variant::Minbase);
        assert_eq!(Spec::parse("deb://bookworm?packages=").unwrap().variant(), Variant::Minbase);
        assert_eq!(Spec::parse("deb://bookworm?packages=nodejs").unwrap().variant(), Variant::Distroless);
        let both = Spec::parse("deb://bookworm?packages=gcc,libstdc++6&variant=minbase").unwrap();
        assert_eq!(both.variant(), Variant::Minbase);
        assert_eq!(both.packages[1].name, "libstdc++6");
    }

    #[test]
    fn round_trip() {
        for text in [
            "deb://bookworm",
            "deb://noble?packages=nodejs=18.1+dfsg-1,ca-certificates&variant=distroless&mirror=http://127.0.0.1:1/u",
            "deb://bookworm?components=main,contrib&keyring=/k%20x.gpg&arch=arm64&snapshot=20260701T000000Z",
            "deb://bookworm?suites=bookworm,bookworm/updates&lock=base.lock&docs=true",
        ] {
            let spec = Spec::parse(text).unwrap();
            assert_eq!(spec.to_string(), text);
            assert_eq!(Spec::parse(&spec.to_string()), Ok(spec));
        }
        assert_eq!(Spec::parse("deb://x?snapshot=20260701").unwrap().snapshot.as_deref(), Some("20260701T000000Z"));
    }

    #[test]
    fn errors_name_what_is_near() {
        assert!(fails("deb://bookworm?package=x").contains("did you mean packages?"));
        assert!(fails("deb://bookworm?variant=distrolles").contains("did you mean distroless?"));
        assert!(fails("deb://bookworm?packages=Node_JS").contains("names such as nodejs"));
        assert!(fails("deb://bookworm?packages=a&packages=b").contains("twice"));
        assert!(fails("deb://").contains("not the name of a suite"));
        assert!(fails("deb://../etc").contains("not the name of a suite"));
        assert!(fails("bookworm").contains("expected deb://SUITE"));
        assert!(fails("deb://b?mirror=ftp://x").contains("http://"));
        assert!(fails("deb://b?mirror=http://x%0Ay").contains("percent-encoded"));
        assert!(fails("deb://b?snapshot=yesterday").contains("20260701T000000Z"));
        assert!(fails("deb://b?arch=AMD64").contains("amd64"));
        assert!(fails("deb://b?suites=../x").contains("suite names"));
    }

    #[test]
    fn platforms() {
        let spec = |platform: &str| Spec::suite("x").for_platform(&platform.parse().unwrap());
        assert_eq!(spec("linux/amd64").unwrap().arch.as_deref(), Some("amd64"));
        assert_eq!(spec("linux/arm/v7").unwrap().arch.as_deref(), Some("armhf"));
        assert_eq!(spec("linux/386").unwrap().platform().unwrap().to_string(), "linux/386");
        assert!(matches!(spec("windows/amd64"), Err(SpecError::Platform(_))));
        let fixed = Spec::parse("deb://x?arch=arm64").unwrap();
        assert!(fixed.for_platform(&"linux/amd64".parse().unwrap()).is_err());
    }
}
