//! The engine: the store, the executor and the clients that all operations share.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};

use kiln_executor::{Executor, ExecutorOptions};
use kiln_oci::Digest;
use kiln_registry::Client;
use kiln_rootfs::Ownership;
use kiln_source::HttpClient;
use kiln_store::{Lease, Store};

use crate::budget::Keeper;
use crate::cache;
use crate::download::Origins;
use crate::error::Result;
use crate::growing::Growing;
use crate::layers::Unpacker;
use crate::views::Views;

/// What the command line knows of its surroundings.
pub struct EngineOptions {
    /// The store's directory.
    pub root: std::path::PathBuf,
    /// How owners are stored: natively, or beside the file where the kernel refuses.
    pub ownership: Ownership,
    /// The registry client.
    pub registry: Client,
    /// Root of the machine's apt configuration, for `deb://` bases.
    pub apt_root: std::path::PathBuf,
    /// The user's `known_hosts`, for git over ssh.
    pub known_hosts: Option<std::path::PathBuf>,
    /// The access key for buckets that the environment has.
    pub s3: Option<cache::Credentials>,
}

/// One kiln process's engine. Cheap to make: nothing is started before it is needed.
pub struct Engine {
    /// The store.
    pub store: Store,
    /// Holds what this process uses against collection.
    pub lease: Lease,
    /// File system states as directories.
    pub views: Views,
    /// Unpacks layers.
    pub unpacker: Unpacker,
    /// The registry client.
    pub registry: Arc<Client>,
    /// Files by HTTP.
    pub http: HttpClient,
    /// How owners are stored.
    pub ownership: Ownership,
    /// Threads for compression.
    pub threads: usize,
    /// What the command line knows.
    pub apt_root: std::path::PathBuf,
    /// The user's `known_hosts`.
    pub known_hosts: Option<std::path::PathBuf>,
    /// Access keys for buckets.
    pub s3_keys: Arc<cache::Keys>,
    /// Keeps the store to a budget, if it was given one.
    pub(crate) keeper: OnceLock<Keeper>,
    /// Layers' blobs that are being written.
    pub(crate) growing: Growing,
    /// Images of the store that were used.
    pub(crate) used_images: Mutex<BTreeSet<Digest>>,
    executor: OnceLock<Executor>,
}

impl Engine {
    /// Opens the store.
    pub fn open(options: EngineOptions) -> Result<Arc<Self>> {
        let store = Store::open(&options.root)?;
        let lease = store.lease()?;
        let registry = Arc::new(options.registry);
        let s3_keys = Arc::new(cache::Keys::new(options.s3));
        let origins = Origins { client: Arc::clone(&registry), keys: Arc::clone(&s3_keys) };
        let unpacker = Unpacker::new(store.clone(), options.ownership, origins);
        let views = Views::new(store.clone(), options.ownership, unpacker.clone())?;
        Ok(Arc::new(Self {
            store,
            lease,
            views,
            unpacker,
            registry,
            http: HttpClient::new(),
            ownership: options.ownership,
            threads: kiln_rootfs::processors(),
            apt_root: options.apt_root,
            known_hosts: options.known_hosts,
            s3_keys,
            keeper: OnceLock::new(),
            growing: Growing::default(),
            used_images: Mutex::default(),
            executor: OnceLock::new(),
        }))
    }

    /// The executor; its helper process starts with the first container.
    pub fn executor(&self) -> Result<&Executor> {
        if self.executor.get().is_none() {
            let made = Executor::new(ExecutorOptions::default())?;
            let _ = self.executor.set(made);
        }
        self.executor.get().ok_or(crate::error::Error::Cancelled)
    }

    /// How many layers are packed at the same time: each may use all cores, and has buffers.
    pub fn layers_at_once(&self) -> usize {
        self.threads.clamp(1, 3)
    }

    /// `/etc/resolv.conf` for containers on the host's network.
    pub fn resolv_conf(&self) -> Vec<u8> {
        kiln_executor::default_resolv_conf(kiln_executor::Network::Host)
    }
}
