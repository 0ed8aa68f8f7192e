//! `kiln build`: `--cache-from` and `--cache-to`.

use std::collections::BTreeMap;

use kiln_engine::cache::{CacheFrom, CacheTo};
use kiln_engine::request::CacheSpec;

use super::parse::attributes;
use crate::error::CliError;

type Result<T> = std::result::Result<T, CliError>;

/// Attributes that need no value.
const FLAGS: [&str; 5] = ["force-compression", "ignore-error", "image-manifest", "oci-mediatypes", "registry.insecure"];

/// `--cache-from`.
pub fn from(list: &[String]) -> Result<Vec<CacheSpec>> {
    // Names may be a list, as docker's classic builder takes them.
    let each =
        list.iter().flat_map(|text| if text.contains('=') { vec![text.as_str()] } else { text.split(',').collect() });
    let specs: Vec<CacheSpec> = each.map(spec).collect::<Result<_>>()?;
    specs.iter().try_for_each(|s| CacheFrom::parse(s).map(|_| ()).map_err(usage))?;
    Ok(specs)
}

/// `--cache-to`.
pub fn to(list: &[String]) -> Result<Vec<CacheSpec>> {
    let specs: Vec<CacheSpec> = list.iter().map(|text| spec(text)).collect::<Result<_>>()?;
    specs.iter().try_for_each(|s| CacheTo::parse(s).map(|_| ()).map_err(usage))?;
    Ok(specs)
}

fn usage(error: kiln_engine::Error) -> CliError {
    match error {
        kiln_engine::Error::Request { message, hint: Some(hint) } => CliError::usage(format!("{message} ({hint})")),
        other => CliError::usage(other.to_string()),
    }
}

/// `NAME`, or `type=…,…`.
fn spec(text: &str) -> Result<CacheSpec> {
    if !text.contains('=') {
        let attrs = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
        return Ok(CacheSpec { kind: "image".to_owned(), attrs });
    }
    let mut attrs: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for (name, value) in attributes(text)? {
        // `mounts=a,b`: what follows it and is no attribute is one more id.
        if value.is_empty() && last == "mounts" && !FLAGS.contains(&name.as_str()) {
            let list = attrs.entry(last.clone()).or_default();
            list.push(',');
            list.push_str(&name);
            continue;
        }
        last.clone_from(&name);
        attrs.insert(name, value);
    }
    let kind = attrs.remove("type").ok_or_else(|| CliError::usage(format!("{text:?}: type= is missing")))?;
    if kind == "s3" {
        for (name, variables) in [("region", &["AWS_REGION", "AWS_DEFAULT_REGION"][..]), ("bucket", &["AWS_BUCKET"])] {
            let value = variables.iter().find_map(|v| std::env::var(v).ok().filter(|v| !v.is_empty()));
            if let (Some(value), false) = (value, attrs.contains_key(name)) {
                attrs.insert(name.to_owned(), value);
            }
        }
    }
    Ok(CacheSpec { kind, attrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_mounts_need_no_quotes() {
        let one = spec("type=local,dest=d,mounts=npm,/root/.cache,mode=max,force-compression").unwrap();
        assert_eq!(one.attrs["mounts"], "npm,/root/.cache");
        assert_eq!((one.attrs["mode"].as_str(), one.attrs["force-compression"].as_str()), ("max", ""));
        assert_eq!(spec("example.com/x").unwrap().kind, "image");
        assert!(spec("dest=d").is_err());
    }

    #[test]
    fn what_can_not_be_done_is_said_before_the_build() {
        assert_eq!(from(&["a,b:1".to_owned(), "c".to_owned()]).unwrap().len(), 3);
        assert!(from(&["type=gha".to_owned()]).is_err());
        assert!(to(&["type=local".to_owned()]).is_err());
    }
}
