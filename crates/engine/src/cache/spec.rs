//! `--cache-from` and `--cache-to`, read from their attributes. Everything that can be said against them is said here,
//! before the build begins.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_oci::media::Compression;
use kiln_oci::{Digest, Reference};

use super::s3::Bucket;
use crate::error::{Error, Result};
use crate::request::CacheSpec;

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A name in a registry. `local_first`: an image of that name in the store is as good.
    Registry {
        /// The name.
        reference: Reference,
        /// Whether to look in the store first.
        local_first: bool,
        /// Whether its registry may be asked by plain HTTP, or with a certificate that nobody vouches for.
        insecure: bool,
    },
    /// An OCI layout.
    Local {
        /// Its directory.
        dir: PathBuf,
        /// The tag in it.
        tag: String,
        /// The manifest in it; instead of the tag.
        digest: Option<Digest>,
    },
    /// A bucket.
    S3(Box<Bucket>),
}

/// A cache to import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFrom {
    /// Where it is.
    pub place: Place,
}

/// A cache to export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheTo {
    /// Where it goes; `None` for one inside the image.
    pub place: Option<Place>,
    /// `mode=max`: layers of all stages rather than only the result's.
    pub max: bool,
    /// Compression of new layers; that of the image where absent.
    pub compression: Option<Compression>,
    /// Its level.
    pub level: Option<i32>,
    /// Also for layers that exist in another compression.
    pub force: bool,
    /// OCI rather than Docker media types.
    pub oci: bool,
    /// An image manifest rather than an index.
    pub image_manifest: bool,
    /// Cache mounts that travel.
    pub mounts: MountSelection,
    /// Most bytes of all mounts.
    pub mounts_max: Option<u64>,
}

/// Which cache mounts travel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountSelection {
    /// None.
    #[default]
    None,
    /// All that the build's steps use.
    All,
    /// These.
    Ids(Vec<String>),
}

impl CacheFrom {
    /// Reads it.
    pub fn parse(spec: &CacheSpec) -> Result<Self> {
        let mut attrs = Attrs::new("--cache-from", spec);
        let place = match spec.kind.as_str() {
            // What `--cache-from NAME` means.
            "image" => attrs.registry(true)?,
            "registry" => attrs.registry(false)?,
            "local" => Place::Local {
                dir: attrs.required("src")?.into(),
                tag: attrs.take("tag").unwrap_or_else(|| "latest".to_owned()),
                digest: attrs.digest("digest")?,
            },
            "s3" => Place::S3(Box::new(attrs.bucket()?)),
            other => return Err(attrs.unsupported(other, "registry, local and s3")),
        };
        attrs.finish()?;
        Ok(Self { place })
    }
}

impl CacheTo {
    /// Reads it.
    pub fn parse(spec: &CacheSpec) -> Result<Self> {
        let mut attrs = Attrs::new("--cache-to", spec);
        let place = match spec.kind.as_str() {
            "inline" => None,
            "image" | "registry" => Some(attrs.registry(false)?),
            "local" => Some(Place::Local {
                dir: attrs.required("dest")?.into(),
                tag: attrs.take("tag").unwrap_or_else(|| "latest".to_owned()),
                digest: None,
            }),
            "s3" => Some(Place::S3(Box::new(attrs.bucket()?))),
            other => return Err(attrs.unsupported(other, "inline, registry, local and s3")),
        };
        let max = match attrs.take("mode").as_deref() {
            None | Some("min") => false,
            Some("max") => true,
            Some(other) => return Err(attrs.wrong("mode", other, "min or max")),
        };
        if place.is_none() && max {
            return Err(Error::request_with_hint(
                "--cache-to type=inline: an image has only its own layers, so mode=max is not possible",
                "use type=registry with a name of its own for mode=max",
            ));
        }
        // BuildKit fails a build because of its cache if this is false. Here no cache failure does.
        attrs.flag("ignore-error")?;
        let compression = attrs.compression()?;
        let to = Self {
            max,
            level: attrs.level(compression)?,
            compression,
            force: attrs.flag("force-compression")?.unwrap_or(false),
            oci: attrs.flag("oci-mediatypes")?.unwrap_or(true),
            image_manifest: attrs.flag("image-manifest")?.unwrap_or(true),
            mounts: attrs.mounts(),
            mounts_max: attrs.bytes("mounts-max-size")?,
            place,
        };
        if to.place.is_none() && to.mounts != MountSelection::None {
            return Err(Error::request(
                "--cache-to type=inline: cache mounts can't be inside an image; use another type",
            ));
        }
        attrs.finish()?;
        Ok(to)
    }
}

/// Attributes that were not read yet.
struct Attrs {
    flag: &'static str,
    kind: String,
    rest: BTreeMap<String, String>,
}

impl Attrs {
    fn new(flag: &'static str, spec: &CacheSpec) -> Self {
        Self { flag, kind: spec.kind.clone(), rest: spec.attrs.clone() }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.rest.remove(name).filter(|v| !v.is_empty())
    }

    fn required(&mut self, name: &str) -> Result<String> {
        let missing = || Error::request(format!("{} type={}: {name}= is missing", self.flag, self.kind));
        self.rest.remove(name).filter(|v| !v.is_empty()).ok_or_else(missing)
    }

    fn wrong(&self, name: &str, value: &str, expected: &str) -> Error {
        Error::request(format!("{} type={}: {name}={value} is not {expected}", self.flag, self.kind))
    }

    fn unsupported(&self, kind: &str, supported: &str) -> Error {
        let why = match kind {
            "gha" | "azblob" => "is not supported yet",
            "inline" => "is imported by the image's name: type=registry,ref=NAME",
            _ => "is not known",
        };
        Error::request_with_hint(format!("{}: type={kind} {why}", self.flag), format!("types are {supported}"))
    }

    fn registry(&mut self, local_first: bool) -> Result<Place> {
        let text = self.required("ref")?;
        let wrong = || Error::request(format!("{}: {text:?} is not an image name", self.flag));
        let name: Reference = text.parse().map_err(|_| wrong())?;
        let insecure = self.flag("registry.insecure")?.unwrap_or(false);
        Ok(Place::Registry { reference: name.with_default_tag(), local_first, insecure })
    }

    /// The level of the compression; without one, that of the image is not known yet.
    fn level(&mut self, compression: Option<Compression>) -> Result<Option<i32>> {
        let level: Option<i32> = self.number("compression-level")?;
        let (expected, highest) = match compression {
            Some(Compression::Gzip) => ("a level of gzip: 0 to 9", 9),
            _ => ("a level: 0 to 22", 22),
        };
        match level {
            Some(level) if !(0..=highest).contains(&level) => {
                Err(self.wrong("compression-level", &level.to_string(), expected))
            }
            level => Ok(level),
        }
    }

    fn digest(&mut self, name: &str) -> Result<Option<Digest>> {
        let Some(text) = self.take(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(name, &text, "a digest"))
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.rest.remove(name).as_deref() {
            None => Ok(None),
            // `name` alone, as in `force-compression`.
            Some("" | "true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(self.wrong(name, other, "true or false")),
        }
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.take(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(name, &text, "a number"))
    }

    fn compression(&mut self) -> Result<Option<Compression>> {
        match self.take("compression").as_deref() {
            None => Ok(None),
            Some("gzip") => Ok(Some(Compression::Gzip)),
            Some("zstd") => Ok(Some(Compression::Zstd)),
            Some("uncompressed") => Ok(Some(Compression::Uncompressed)),
            Some(other) => Err(self.wrong("compression", other, "gzip, zstd or uncompressed")),
        }
    }

    fn mounts(&mut self) -> MountSelection {
        match self.take("mounts") {
            None => MountSelection::None,
            Some(all) if all == "all" => MountSelection::All,
            Some(list) => MountSelection::Ids(list.split(',').filter(|i| !i.is_empty()).map(str::to_owned).collect()),
        }
    }

    /// `500MB`, `2g`, or a number of bytes; units are powers of 1024, as in the rest of the field.
    fn bytes(&mut self, name: &str) -> Result<Option<u64>> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let lower = text.to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match lower[digits.len()..].trim_end_matches('b').trim_end_matches('i') {
            "" => Some(0),
            "k" => Some(10),
            "m" => Some(20),
            "g" => Some(30),
            "t" => Some(40),
            _ => None,
        };
        let value = digits.parse::<u64>().ok().zip(shift).and_then(|(n, s)| n.checked_mul(1 << s));
        value.map(Some).ok_or_else(|| self.wrong(name, &text, "a size such as 500MB"))
    }

    fn bucket(&mut self) -> Result<Bucket> {
        let flag = self.flag("use_path_style")?.unwrap_or(false);
        let key = self.take("access_key_id").zip(self.take("secret_access_key"));
        let session = self.take("session_token");
        let prefix = self.take("prefix").unwrap_or_default();
        Ok(Bucket {
            region: self.required("region")?,
            bucket: self.required("bucket")?,
            name: self.take("name").unwrap_or_else(|| "buildkit".to_owned()),
            endpoint: self.take("endpoint_url"),
            path_style: flag,
            blobs: format!("{prefix}{}", self.take("blobs_prefix").unwrap_or_else(|| "blobs/".to_owned())),
            manifests: format!("{prefix}{}", self.take("manifests_prefix").unwrap_or_else(|| "manifests/".to_owned())),
            credentials: key.map(|(id, secret)| super::s3::Credentials { id, secret, session }),
            parallel: self.number("upload_parallelism")?.unwrap_or(4),
        })
    }

    fn finish(mut self) -> Result<()> {
        // BuildKit renews objects that expire by age; here each export does what is needed.
        self.rest.remove("touch_refresh");
        match self.rest.keys().next() {
            None => Ok(()),
            Some(name) => {
                Err(Error::request(format!("{} type={}: {name} is not an attribute of it", self.flag, self.kind)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, attrs: &[(&str, &str)]) -> CacheSpec {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CacheSpec { kind: kind.to_owned(), attrs }
    }

    #[test]
    fn attributes_are_read() {
        let to = CacheTo::parse(&spec(
            "registry",
            &[
                ("ref", "r.example/x"),
                ("mode", "max"),
                ("registry.insecure", "true"),
                ("compression", "zstd"),
                ("mounts", "a,b"),
                ("mounts-max-size", "2GB"),
            ],
        ))
        .unwrap();
        assert!(to.max && to.image_manifest && to.oci);
        assert_eq!(to.mounts, MountSelection::Ids(vec!["a".into(), "b".into()]));
        assert_eq!(to.mounts_max, Some(2 << 30));
        let Some(Place::Registry { reference, insecure: true, .. }) = to.place else { panic!() };
        assert_eq!(reference.to_string(), "r.example/x:latest");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (kind, attrs, part) in [
            ("gha", &[][..], "type=gha is not supported yet"),
            ("azblob", &[], "type=azblob is not supported yet"),
            ("registry", &[], "ref= is missing"),
            ("local", &[("src", "x")], "dest= is missing"),
            ("local", &[("dest", "x"), ("mode", "most")], "mode=most is not min or max"),
            (
                "local",
                &[("dest", "x"), ("compression", "gzip"), ("compression-level", "10")],
                "is not a level of gzip: 0 to 9",
            ),
            ("registry", &[("ref", "A B")], "\"A B\" is not an image name"),
            ("local", &[("dest", "x"), ("color", "red")], "color is not an attribute"),
            ("inline", &[("mode", "max")], "mode=max is not possible"),
            ("inline", &[("mounts", "all")], "can't be inside an image"),
            ("s3", &[("region", "eu")], "bucket= is missing"),
            ("local", &[("dest", "x"), ("mounts-max-size", "many")], "is not a size"),
        ] {
            let error = CacheTo::parse(&spec(kind, attrs)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(CacheFrom::parse(&spec("gha", &[])).is_err());
    }
}
