//! What a server shows and asks for when connections are encrypted.
//!
//! A directory of PEM files, named as qemu, nbdkit and libnbd name them: `server-cert.pem` (with what leads to its
//! authority), `server-key.pem`, and `ca-cert.pem`, the authorities that vouch for clients.

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{CipherSuite, RootCertStore, ServerConfig, SupportedCipherSuite};
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
        let builder = ServerConfig::builder_with_provider(Arc::new(quickest_first()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError(format!("TLS cannot be spoken: {error}")))?;
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
        let mut config =
            builder.with_single_cert(chain, key).map_err(|error| wrong("server-cert.pem", &error))?;
        config.ignore_client_order = true;
        Ok(Tls(TlsAcceptor::from(Arc::new(config))))
    }

    pub(crate) fn acceptor(&self) -> &TlsAcceptor {
        &self.0
    }
}

/// What the process's provider offers, with AES-128-GCM before its longer sister: every byte of a disk is encrypted here and
/// decrypted by the client, which takes a fifth less time with the shorter key. Nothing is known that breaks it
/// (RFC 8446 section 9.1 demands it of everybody), and a client that does not want it does not offer it.
fn quickest_first() -> CryptoProvider {
    let mut provider =
        CryptoProvider::get_default().map_or_else(ring::default_provider, |installed| (**installed).clone());
    let is_quickest = |suite: &SupportedCipherSuite| {
        let suite = suite.suite();
        suite == CipherSuite::TLS13_AES_128_GCM_SHA256
            || suite == CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            || suite == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    };
    provider.cipher_suites.sort_by_key(|suite| !is_quickest(suite));
    provider
}
