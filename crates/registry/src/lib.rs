//! Distribution client: OCI distribution 1.1 and Docker's registry API v2, over blocking HTTP.
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use kiln_registry::{Client, ClientOptions};
//! let client = Client::new(ClientOptions::default());
//! let image = "alpine:3".parse()?;
//! let resolved = client.resolve(&image)?;
//! # Ok(())
//! # }
//! ```
//!
//! Layers: `http` does one exchange, `auth` answers challenges, `session` is one endpoint with retries, and `pull`,
//! `blob`, `push`, `upload`, `list` and `login` are the operations on [`Client`].
//!
//! Invariants:
//! - what is returned as complete has been verified against its digest and size;
//! - a credential goes to the registry it is for and to that registry's token server, nowhere else, and never into an
//!   error, an event or `Debug` output;
//! - everything that a server sends is bounded in size and in time;
//! - nothing here reads the environment (but `SSL_CERT_FILE` and `SSL_CERT_DIR`, in `rustls-native-certs`) or prints.

mod auth;
mod blob;
mod client;
mod error;
mod event;
mod hosts;
mod http;
mod keychain;
mod list;
mod login;
mod proxy;
mod pull;
mod push;
mod retry;
mod secret;
mod session;
#[cfg(feature = "testing")]
pub mod testing;
mod tls;
mod upload;
mod url;

pub use blob::BlobReader;
pub use client::{Client, ClientOptions};
pub use error::{ConnectionFault, Error, RegistryCode};
pub use event::{Event, EventSink};
pub use hosts::{ConfigPaths, ConfigSource, ConfigWarning, HostSettings, HostsConfig, Mirror, MirrorPull, Rule};
pub use http::Timeouts;
pub use keychain::{HUB_KEY, Keychain, StoredIn};
pub use login::LoggedIn;
pub use proxy::ProxyConfig;
pub use pull::Resolved;
pub use push::{BlobSource, Pushed};
pub use retry::{Cancel, RetryPolicy};
pub use secret::{Credential, Secret};
