//! `RUN --mount`. Values may hold variables, even the type, so a mount is kept as its fields and typed by [`Mount::resolve`].
//! The parser resolves at once every mount without variables: its errors are then syntax errors.

use crate::expand::ExpandError;
use crate::nearest::nearest;
use crate::source::Span;
use crate::values::{parse_bool, parse_bytes};

/// One `--mount` flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The flag's value.
    pub raw: String,
    /// Its fields in order.
    pub fields: Vec<MountField>,
    /// The flag's value.
    pub span: Span,
}

/// `key=value` or `key` in a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountField {
    /// Key in lower case.
    pub key: String,
    /// Value as written; `None` without `=`.
    pub value: Option<String>,
}

/// A mount with its variables expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSpec {
    /// A file or directory of the context, a stage or an image.
    Bind {
        /// Stage, image or named context; the build context when `None`.
        from: Option<String>,
        /// Path in it; empty is the root.
        source: String,
        /// Mount point; relative to the working directory.
        target: String,
        /// Writes are refused (else: discarded).
        readonly: bool,
    },
    /// A directory kept between builds.
    Cache {
        /// Identity; the cleaned target when `None`.
        id: Option<String>,
        /// What an empty cache starts from.
        from: Option<String>,
        /// Path in `from`.
        source: String,
        /// Mount point.
        target: String,
        /// Writes are refused.
        readonly: bool,
        /// What two builds at once get.
        sharing: Sharing,
        /// Mode of the new directory (0755 when `None`).
        mode: Option<u32>,
        /// Owner of the new directory.
        uid: Option<u32>,
        /// Group of the new directory.
        gid: Option<u32>,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Mount point.
        target: String,
        /// Size limit in bytes.
        size: Option<u64>,
    },
    /// A secret as a file, a variable or both.
    Secret {
        /// The secret's id.
        id: String,
        /// File; `None` when only a variable was asked for.
        target: Option<String>,
        /// Variable.
        env: Option<String>,
        /// The build fails without it.
        required: bool,
        /// Mode of the file (0400 when `None`).
        mode: Option<u32>,
        /// Owner.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
    },
    /// An agent socket.
    Ssh {
        /// The agent's id (`default` when `None`).
        id: Option<String>,
        /// Socket path (`/run/buildkit/ssh_agent.N` when `None`).
        target: Option<String>,
        /// The build fails without it.
        required: bool,
        /// Mode of the socket (0600 when `None`).
        mode: Option<u32>,
        /// Owner.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
    },
}

/// `sharing=` of a cache mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// All builds use one directory at once.
    #[default]
    Shared,
    /// A build that finds it busy gets another one.
    Private,
    /// A build that finds it busy waits.
    Locked,
}

/// A mount that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MountError {
    /// What is wrong.
    pub message: String,
    /// What was expected, or the nearest name.
    pub help: Option<String>,
}

impl MountError {
    fn new(message: impl Into<String>) -> MountError {
        MountError { message: message.into(), help: None }
    }

    fn near(mut self, name: &str, candidates: &[&'static str]) -> MountError {
        self.help = Some(match nearest(name, candidates.iter().copied()) {
            Some(best) => format!("did you mean {best}?"),
            None => format!("expected one of {}", candidates.join(", ")),
        });
        self
    }
}

impl From<ExpandError> for MountError {
    fn from(error: ExpandError) -> MountError {
        MountError::new(error.to_string())
    }
}

const TYPES: &[&str] = &["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARING: &[&str] = &["shared", "private", "locked"];
const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl Mount {
    /// Splits a flag's value into fields.
    pub fn parse(raw: &str, span: Span) -> Result<Mount, MountError> {
        let mut fields = Vec::new();
        for field in split_csv(raw)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (field.as_str(), None),
            };
            let mount_field = MountField { key: key.to_lowercase(), value };
            if mount_field.key == "from" && mount_field.value.as_deref().is_some_and(has_variable) {
                let mut error =
                    MountError::new("'from' doesn't support variable expansion, define alias stage instead");
                error.help = Some("write FROM <image with variables> AS <name> and use from=<name>".into());
                return Err(error);
            }
            fields.push(mount_field);
        }
        Ok(Mount { raw: raw.to_owned(), fields, span })
    }

    /// The `from=` operand, which is never expanded.
    pub fn from(&self) -> Option<&str> {
        self.fields.iter().rev().find(|f| f.key == "from").and_then(|f| f.value.as_deref()).filter(|v| !v.is_empty())
    }

    /// Whether any value holds a `$`.
    pub fn has_variables(&self) -> bool {
        self.fields.iter().any(|f| f.value.as_deref().is_some_and(|v| v.contains('$')))
    }

    /// Expands each value with `expand` and types the result.
    pub fn resolve(
        &self,
        expand: &mut dyn FnMut(&str) -> Result<String, ExpandError>,
    ) -> Result<MountSpec, MountError> {
        let mut draft = Draft::default();
        for field in &self.fields {
            match &field.value {
                Some(value) => draft.set(&field.key, &expand(value)?)?,
                None => draft.set_bare(&field.key)?,
            }
        }
        draft.finish()
    }
}

/// A `$` that is not the last character.
fn has_variable(value: &str) -> bool {
    value.find('$').is_some_and(|i| i + 1 != value.len())
}

#[derive(Default)]
struct Draft {
    kind: Option<&'static str>,
    from: Option<String>,
    source: String,
    target: String,
    readonly: Option<bool>,
    id: Option<String>,
    sharing: Option<Sharing>,
    required: bool,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

impl Draft {
    fn kind(&self) -> &'static str {
        self.kind.unwrap_or("bind")
    }

    fn set_bare(&mut self, key: &str) -> Result<(), MountError> {
        match key {
            "readonly" | "ro" => self.readonly = Some(true),
            "readwrite" | "rw" => self.readonly = Some(false),
            "required" => self.set_required(true)?,
            _ => return Err(MountError::new(format!("invalid field '{key}' must be a key=value pair"))),
        }
        Ok(())
    }

    fn set_required(&mut self, required: bool) -> Result<(), MountError> {
        if !matches!(self.kind(), "secret" | "ssh") {
            return Err(MountError::new(format!("unexpected key 'required' for mount type '{}'", self.kind())));
        }
        self.required = required;
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), MountError> {
        let text = || Some(value.to_owned());
        let boolean = || parse_bool(value).ok_or_else(|| MountError::new(format!("invalid value for {key}: {value}")));
        let number = |radix| {
            u32::from_str_radix(value, radix)
                .ok()
                .filter(|_| !value.starts_with('+'))
                .ok_or_else(|| MountError::new(format!("invalid value {value} for {key}")))
        };
        match key {
            "type" => {
                let lower = value.to_lowercase();
                let error = || MountError::new(format!("unsupported mount type {value:?}")).near(&lower, TYPES);
                self.kind = Some(TYPES.iter().find(|t| **t == lower).copied().ok_or_else(error)?);
            }
            "from" => self.from = text().filter(|v| !v.is_empty()),
            "source" | "src" => self.source = value.to_owned(),
            "target" | "dst" | "destination" => self.target = value.to_owned(),
            "readonly" | "ro" => self.readonly = Some(boolean()?),
            "readwrite" | "rw" => self.readonly = Some(!boolean()?),
            "required" => self.set_required(boolean()?)?,
            "size" if self.kind() == "tmpfs" => {
                let size =
                    parse_bytes(value).map_err(|_| MountError::new(format!("invalid value for {key}: {value}")))?;
                self.size = Some(size);
            }
            "size" => return Err(MountError::new(format!("unexpected key 'size' for mount type '{}'", self.kind()))),
            "id" => self.id = text().filter(|v| !v.is_empty()),
            "sharing" => self.sharing = Some(parse_sharing(value)?),
            "mode" => self.mode = Some(number(8)?),
            "uid" => self.uid = Some(number(10)?),
            "gid" => self.gid = Some(number(10)?),
            "env" => self.env = text(),
            _ => return Err(MountError::new(format!("unexpected key '{key}' in '{key}={value}'")).near(key, KEYS)),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), MountError> {
        let kind = self.kind();
        if matches!(kind, "bind" | "tmpfs") {
            for (set, key) in [(self.mode.is_some(), "mode"), (self.uid.is_some(), "uid"), (self.gid.is_some(), "gid")]
            {
                if set {
                    return Err(MountError::new(format!("{key} not allowed for {kind:?} type mounts")));
                }
            }
        }
        if kind == "secret" {
            if self.from.is_some() {
                return Err(MountError::new("secret mount should not have a from"));
            }
            if self.sharing.is_some() {
                return Err(MountError::new("secret mount should not define sharing"));
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_none() {
                return Err(MountError::new("invalid secret mount. one of source, target required"));
            }
            if !self.source.is_empty() && self.id.is_some() {
                return Err(MountError::new("both source and id can't be set"));
            }
        }
        if self.sharing.is_some() && kind != "cache" {
            return Err(MountError::new(format!("invalid cache sharing set for {kind} mount")));
        }
        Ok(())
    }

    fn finish(self) -> Result<MountSpec, MountError> {
        self.check()?;
        let Draft { from, source, target, id, required, mode, uid, gid, .. } = self;
        let optional_target = Some(target.clone()).filter(|t| !t.is_empty());
        Ok(match self.kind.unwrap_or("bind") {
            "cache" => MountSpec::Cache {
                id,
                from,
                source,
                target,
                readonly: self.readonly.unwrap_or(false),
                sharing: self.sharing.unwrap_or_default(),
                mode,
                uid,
                gid,
            },
            "tmpfs" => MountSpec::Tmpfs { target, size: self.size },
            "secret" => {
                let id = if source.is_empty() { id } else { Some(source) };
                let id = id.unwrap_or_else(|| base_name(&target).to_owned());
                let env = self.env.map(|e| if e.is_empty() { id.clone() } else { e });
                let target = match optional_target {
                    None if env.is_none() => Some(format!("/run/secrets/{}", base_name(&id))),
                    target => target,
                };
                MountSpec::Secret { id, target, env, required, mode, uid, gid }
            }
            "ssh" => MountSpec::Ssh { id, target: optional_target, required, mode, uid, gid },
            _ => MountSpec::Bind { from, source, target, readonly: self.readonly.unwrap_or(true) },
        })
    }
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

fn parse_sharing(value: &str) -> Result<Sharing, MountError> {
    match value.to_lowercase().as_str() {
        "shared" => Ok(Sharing::Shared),
        "private" => Ok(Sharing::Private),
        "locked" => Ok(Sharing::Locked),
        lower => Err(MountError::new(format!("unsupported sharing value {value:?}")).near(lower, SHARING)),
    }
}

/// Comma separated fields; a field that starts with `"` runs to the closing quote, `""` in it is one quote.
pub(crate) fn split_csv(raw: &str) -> Result<Vec<String>, MountError> {
    let mut fields = Vec::new();
    let mut rest = raw;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let (field, after) = quoted_field(quoted)?;
            fields.push(field);
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => return Ok(fields),
            }
            continue;
        }
        let (field, next) = match rest.split_once(',') {
            Some((field, next)) => (field, Some(next)),
            None => (rest, None),
        };
        if field.contains('"') {
            return Err(MountError::new("bare \" in non-quoted-field"));
        }
        fields.push(field.to_owned());
        match next {
            Some(next) => rest = next,
            None => return Ok(fields),
        }
    }
}

fn quoted_field(quoted: &str) -> Result<(String, &str), MountError> {
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let Some((text, after)) = rest.split_once('"') else {
            return Err(MountError::new("extraneous or missing \" in quoted-field"));
        };
        field.push_str(text);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None if after.is_empty() || after.starts_with(',') => return Ok((field, after)),
            None => return Err(MountError::new("extraneous or missing \" in quoted-field")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(raw: &str) -> Result<MountSpec, MountError> {
        Mount::parse(raw, Span::default())?.resolve(&mut |v| Ok(v.replace("$T", "cache")))
    }

    #[test]
    fn kinds_and_defaults() {
        assert_eq!(
            resolve("target=/x,from=base,src=a").unwrap(),
            MountSpec::Bind { from: Some("base".into()), source: "a".into(), target: "/x".into(), readonly: true }
        );
        assert!(matches!(resolve("type=bind,dst=/x,rw").unwrap(), MountSpec::Bind { readonly: false, .. }));
        assert!(matches!(resolve("type=BIND,dst=/x,ro=false").unwrap(), MountSpec::Bind { readonly: false, .. }));
        let MountSpec::Cache { id, sharing, mode, readonly, .. } =
            resolve("type=$T,target=/c,sharing=Locked,mode=0700").unwrap()
        else {
            panic!("not a cache")
        };
        assert_eq!((id, sharing, mode, readonly), (None, Sharing::Locked, Some(0o700), false));
        assert_eq!(
            resolve("type=tmpfs,target=/t,size=64m").unwrap(),
            MountSpec::Tmpfs { target: "/t".into(), size: Some(64 << 20) }
        );
        let secret = |raw| match resolve(raw).unwrap() {
            MountSpec::Secret { id, target, env, required, .. } => (id, target, env, required),
            other => panic!("{other:?}"),
        };
        assert_eq!(secret("type=secret,id=k"), ("k".into(), Some("/run/secrets/k".into()), None, false));
        assert_eq!(secret("type=secret,id=k,env=K,required"), ("k".into(), None, Some("K".into()), true));
        assert_eq!(secret("type=secret,target=/a/b"), ("b".into(), Some("/a/b".into()), None, false));
        assert_eq!(secret("type=secret,id=k,env=K,target=/f").1, Some("/f".into()));
        assert!(matches!(resolve("type=ssh").unwrap(), MountSpec::Ssh { id: None, required: false, .. }));
    }

    #[test]
    fn mistakes_are_named_with_the_nearest_word() {
        let message = |raw: &str| resolve(raw).unwrap_err().to_string();
        let help = |raw: &str| resolve(raw).unwrap_err().help.unwrap_or_default();
        assert_eq!(message("type=cahce,target=/x"), "unsupported mount type \"cahce\"");
        assert_eq!(help("type=cahce,target=/x"), "did you mean cache?");
        assert_eq!(message("type=cache,tagret=/x"), "unexpected key 'tagret' in 'tagret=/x'");
        assert_eq!(help("type=cache,tagret=/x"), "did you mean target?");
        assert_eq!(message("type=cache,sharing=lock,target=/x"), "unsupported sharing value \"lock\"");
        assert_eq!(message("type=bind,foo"), "invalid field 'foo' must be a key=value pair");
        assert_eq!(message("type=bind,required"), "unexpected key 'required' for mount type 'bind'");
        assert_eq!(message("type=bind,mode=7"), "mode not allowed for \"bind\" type mounts");
        assert_eq!(message("type=secret"), "invalid secret mount. one of source, target required");
        assert_eq!(message("type=secret,id=a,source=b"), "both source and id can't be set");
        assert_eq!(message("type=tmpfs,sharing=locked"), "invalid cache sharing set for tmpfs mount");
        assert_eq!(message("type=cache,mode=9"), "invalid value 9 for mode");
        assert!(message("from=$x,target=/y").contains("doesn't support variable expansion"));
        assert!(resolve("from=a$,target=/y").is_ok());
    }

    #[test]
    fn fields_may_be_quoted() {
        assert_eq!(split_csv("a,\"b,c\",\"d\"\"e\"").unwrap(), ["a", "b,c", "d\"e"]);
        assert_eq!(split_csv("").unwrap(), [""]);
        assert_eq!(split_csv("a,").unwrap(), ["a", ""]);
        assert!(split_csv("a\"b").is_err() && split_csv("\"a").is_err() && split_csv("\"a\"b").is_err());
    }
}
