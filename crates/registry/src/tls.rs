//! Trust: the system's CA certificates, per-host CA files and client certificates.
//!
//! Nothing here runs before the first https connection: a system without CA certificates can use plain http
//! registries. The system's certificates are read once per process (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured by
//! `rustls-native-certs`).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

use crate::error::Error;
use crate::hosts::HostSettings;

/// The TLS settings for a host.
pub(crate) fn config_for(host_port: &str, settings: &HostSettings, certs_dirs: &[PathBuf]) -> Result<TlsConfig, Error> {
    install_provider();
    let files = HostFiles::find(host_port, settings, certs_dirs);
    let mut roots = system_roots().to_vec();
    for path in &files.ca {
        roots.extend(read_certs(path)?.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()));
    }
    // a CA that was named for this host is meant to be checked, even where the host counts as insecure (loopback)
    let skip = settings.skip_verify || (settings.insecure && files.ca.is_empty());
    let client = files.client.map(|(cert, key)| client_cert(&cert, &key)).transpose()?;
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .disable_verification(skip)
        .client_cert(client)
        .build())
}

/// Whether files in a certs.d say that this host speaks TLS.
pub(crate) fn has_host_files(host_port: &str, settings: &HostSettings, certs_dirs: &[PathBuf]) -> bool {
    let files = HostFiles::find(host_port, settings, certs_dirs);
    !files.ca.is_empty() || files.client.is_some()
}

struct HostFiles {
    ca: Vec<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
}

impl HostFiles {
    /// Docker's convention: `*.crt` are CAs, `x.cert` with `x.key` is a client certificate.
    fn find(host_port: &str, settings: &HostSettings, certs_dirs: &[PathBuf]) -> Self {
        let mut found = Self { ca: settings.ca.clone(), client: settings.client_cert.clone() };
        for dir in certs_dirs {
            let Ok(entries) = std::fs::read_dir(dir.join(host_port)) else { continue };
            let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
            paths.sort();
            for path in paths {
                match path.extension().and_then(|e| e.to_str()) {
                    Some("crt") => found.ca.push(path),
                    Some("cert") if found.client.is_none() => {
                        let key = path.with_extension("key");
                        found.client = Some((path, key));
                    }
                    _ => {}
                }
            }
        }
        found
    }
}

fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // an error means that another crate of this process was first, with the same provider
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn system_roots() -> &'static [Certificate<'static>] {
    static ROOTS: OnceLock<Vec<Certificate<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        // what can't be read is left out: an incomplete store shows itself as an unknown issuer, with a hint
        let loaded = rustls_native_certs::load_native_certs();
        loaded.certs.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect()
    })
}

fn config_error(path: &Path, reason: impl ToString) -> Error {
    Error::Config { path: path.to_owned(), reason: reason.to_string() }
}

fn read_certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = std::fs::read(path).map_err(|e| config_error(path, e))?;
    let certs = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certs {
        Ok(certs) if certs.is_empty() => Err(config_error(path, "no certificate in this file (PEM expected)")),
        Ok(certs) => Ok(certs),
        Err(e) => Err(config_error(path, format!("not a PEM certificate: {e}"))),
    }
}

/// Reads the pair, and lets rustls check it: ureq would panic on a key that does not fit.
fn client_cert(cert: &Path, key: &Path) -> Result<ClientCert, Error> {
    let chain = read_certs(cert)?;
    let pem = std::fs::read(key).map_err(|e| config_error(key, e))?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| config_error(key, format!("not a PEM key: {e}")))?;
    rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_client_auth_cert(chain.clone(), private)
        .map_err(|e| config_error(key, format!("does not fit {}: {e}", cert.display())))?;
    let chain: Vec<_> = chain.iter().map(|c| Certificate::from_der(c.as_ref()).to_owned()).collect();
    let private = PrivateKey::from_pem(&pem).map_err(|e| config_error(key, e))?;
    Ok(ClientCert::new_with_certs(&chain, private))
}
