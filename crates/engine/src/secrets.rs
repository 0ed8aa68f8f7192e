//! The values of `--secret`, read once and when they are first needed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::request::SecretSource;

/// Largest secret, in bytes; BuildKit's limit.
const MAX_SECRET: u64 = 500 << 10;

/// Secrets by id.
pub struct Secrets {
    sources: BTreeMap<String, SecretSource>,
    values: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Secrets {
    /// The secrets of a build.
    pub fn new(sources: BTreeMap<String, SecretSource>) -> Self {
        Self { sources, values: Mutex::default() }
    }

    /// A secret's value; `None` if there is no such secret.
    pub fn get(&self, id: &str) -> Result<Option<Vec<u8>>> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = values.get(id) {
            return Ok(Some(value.clone()));
        }
        let value = match self.sources.get(id) {
            None => return Ok(None),
            Some(SecretSource::Value(value)) => value.clone(),
            Some(SecretSource::File(path)) => {
                // It may be a pipe, whose length nobody knows.
                let mut value = Vec::new();
                let read = File::open(path).and_then(|file| file.take(MAX_SECRET + 1).read_to_end(&mut value));
                if read.map_err(|e| Error::io("read the secret", path, e))? as u64 > MAX_SECRET {
                    return Err(Error::request(format!("the secret {id:?} has more than {MAX_SECRET} bytes")));
                }
                value
            }
        };
        values.insert(id.to_owned(), value.clone());
        Ok(Some(value))
    }

    /// All secrets with their values.
    pub fn all(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let ids: Vec<String> = self.sources.keys().cloned().collect();
        ids.into_iter().map(|id| self.get(&id).map(|v| (id, v.unwrap_or_default()))).collect()
    }
}
