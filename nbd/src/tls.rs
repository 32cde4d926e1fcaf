//! What a server shows and asks for when connections are encrypted.
//!
//! A directory of PEM files, named as qemu, nbdkit and libnbd name them: `server-cert.pem` (with what leads to its
//! authority), `server-key.pem`, and `ca-cert.pem`, the authorities that vouch for clients.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// The server's side of encryption. Clones share it.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Anybody may connect.
    Anybody,
    /// Those that an authority in `ca-cert.pem` vouches for.
    Vouched,
}

/// Why certificates cannot be used: which file, and what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl Tls {
    /// Reads the files in `directory`. TLS 1.2 and 1.3 are spoken, with what the process's crypto provider offers; one
    /// must have been installed.
    pub fn load(directory: &Path, clients: Clients) -> Result<Tls, TlsError> {
        let wrong = |name: &str, error: &dyn fmt::Display| {
            TlsError(format!("{}: {error}", directory.join(name).display()))
        };
        let certificates = |name: &str| {
            let found = CertificateDer::pem_file_iter(directory.join(name)).and_then(Iterator::collect);
            let found: Vec<CertificateDer<'static>> = found.map_err(|error| wrong(name, &error))?;
            if found.is_empty() { Err(wrong(name, &"it holds no certificate")) } else { Ok(found) }
        };
        let builder = ServerConfig::builder();
        let builder = match clients {
            Clients::Anybody => builder.with_no_client_auth(),
            Clients::Vouched => {
                let mut authorities = RootCertStore::empty();
                for certificate in certificates("ca-cert.pem")? {
                    authorities.add(certificate).map_err(|error| wrong("ca-cert.pem", &error))?;
                }
                let verifier = WebPkiClientVerifier::builder(Arc::new(authorities)).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| wrong("ca-cert.pem", &error))?)
            }
        };
        let chain = certificates("server-cert.pem")?;
        let key = PrivateKeyDer::from_pem_file(directory.join("server-key.pem"));
        let key = key.map_err(|error| wrong("server-key.pem", &error))?;
        let config =
            builder.with_single_cert(chain, key).map_err(|error| wrong("server-cert.pem", &error))?;
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}
