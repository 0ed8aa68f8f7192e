//! docker's `config.json` and podman's `auth.json`: the fields about credentials. All others survive a rewrite.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::normalise_key;
use crate::error::Error;
use crate::secret::{Credential, Secret};

/// A parsed file. Not `Debug`: it holds secrets.
#[derive(Default)]
pub(crate) struct AuthFile(Map<String, Value>);

const MAX_SIZE: u64 = 4 << 20;

impl AuthFile {
    pub fn load(path: &Path) -> Result<Option<Self>, Error> {
        let error = |reason: String| Error::Config { path: path.to_owned(), reason };
        match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => return Err(error("not a regular file".into())),
            Ok(meta) if meta.len() > MAX_SIZE => return Err(error("too large for a credentials file".into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let text = fs::read(path).map_err(|e| error(e.to_string()))?;
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Some(Self::default()));
        }
        // the parser's message has a position only: no text of the file
        serde_json::from_slice(&text).map(|map| Some(Self(map))).map_err(|e| error(format!("not valid: {e}")))
    }

    /// Changes a file, which may not be there yet, while no other kiln does. `change` says whether there is something to save.
    pub fn update(path: &Path, change: impl FnOnce(&mut Self) -> bool) -> Result<bool, Error> {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        // The directory is locked: it stays when the file is replaced, and nothing is left behind. Where that can't be done, as
        // on some network file systems, it goes without.
        let directory = real.parent().unwrap_or(Path::new("."));
        _ = fs::create_dir_all(directory);
        let directory = fs::File::open(directory).ok();
        let _locked = directory.filter(|directory| directory.lock().is_ok());
        let mut file = Self::load(path)?.unwrap_or_default();
        let changed = change(&mut file);
        if changed {
            file.save(path)?;
        }
        Ok(changed)
    }

    fn section(&self, name: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.0.get(name).and_then(Value::as_object).into_iter().flatten()
    }

    /// The helpers to ask, with the key to ask for.
    pub fn helpers_for<'a>(&'a self, keys: &'a [String]) -> Vec<(&'a str, &'a str)> {
        let mut all = Vec::new();
        for key in keys {
            let named = self.section("credHelpers").find(|(k, _)| normalise_key(k) == *key);
            all.extend(named.and_then(|(_, helper)| helper.as_str()).map(|helper| (key.as_str(), helper)));
        }
        if let (Some(store), Some(host)) = (self.store(), keys.last()) {
            all.push((host, store));
        }
        all
    }

    fn store(&self) -> Option<&str> {
        self.0.get("credsStore").and_then(Value::as_str).filter(|s| !s.is_empty())
    }

    pub fn helper_for_storing(&self, key: &str) -> Option<&str> {
        let named = self.section("credHelpers").find(|(k, _)| normalise_key(k) == key);
        named.and_then(|(_, helper)| helper.as_str()).or_else(|| self.store())
    }

    /// The entry of `auths` for a normalised key.
    pub fn entry(&self, key: &str) -> Option<Credential> {
        let text =
            |v: &Value, name: &str| v.get(name).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
        let matching = self.section("auths").filter(|(k, _)| normalise_key(k) == key);
        matching.map(|(_, v)| v).find_map(|v| {
            if let Some(token) = text(v, "identitytoken") {
                return Some(Credential::IdentityToken(Secret::new(token)));
            }
            if let Some(token) = text(v, "registrytoken") {
                return Some(Credential::Bearer(Secret::new(token)));
            }
            if let Some(auth) = text(v, "auth") {
                let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
                let (user, password) = decoded.split_once(':')?;
                // docker's old files end the password with NUL
                return Some(Credential::basic(user, password.trim_end_matches('\0')));
            }
            Some(Credential::basic(text(v, "username")?, text(v, "password")?))
        })
    }

    pub fn set_entry(&mut self, server: &str, credential: &Credential) {
        let entry = match credential {
            Credential::Basic { username, password } => {
                serde_json::json!({ "auth": STANDARD.encode(format!("{username}:{}", password.expose())) })
            }
            Credential::IdentityToken(token) => serde_json::json!({ "identitytoken": token.expose() }),
            Credential::Bearer(token) => serde_json::json!({ "registrytoken": token.expose() }),
        };
        self.remove_entry(&normalise_key(server));
        let auths = self.0.entry("auths").or_insert_with(|| Value::Object(Map::new()));
        if !auths.is_object() {
            *auths = Value::Object(Map::new());
        }
        if let Some(auths) = auths.as_object_mut() {
            auths.insert(server.to_owned(), entry);
        }
    }

    pub fn remove_entry(&mut self, key: &str) -> bool {
        let Some(auths) = self.0.get_mut("auths").and_then(Value::as_object_mut) else { return false };
        let before = auths.len();
        auths.retain(|k, _| normalise_key(k) != key);
        auths.len() != before
    }

    /// Replaces the file in one step, readable by its owner only. A symbolic link stays one.
    fn save(&self, path: &Path) -> Result<(), Error> {
        let error = |e: std::io::Error| Error::Config { path: path.to_owned(), reason: e.to_string() };
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let dir = real.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(error)?;
        let temporary = real.with_extension(format!("json.{}.tmp", std::process::id()));
        let _ = fs::remove_file(&temporary);
        let mut text = serde_json::to_vec_pretty(&self.0).map_err(|e| error(e.into()))?;
        text.push(b'\n');
        let written = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut f| f.write_all(&text).and_then(|()| f.sync_all()))
            .and_then(|()| fs::rename(&temporary, &real));
        written.map_err(|e| {
            let _ = fs::remove_file(&temporary);
            error(e)
        })
    }
}
