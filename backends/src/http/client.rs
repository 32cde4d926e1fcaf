//! The HTTP clients: connection pools, time limits and TLS.

use crate::credentials::{Secret, Section};
use crate::{Error, Kind};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a TCP and TLS connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a body, or the answer's start, may stand still. Twice this fits in the deadline of a read, so that a
/// stalled connection is given up in time for another try.
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);

/// Makes ring the process's TLS provider, once; more calls do nothing.
pub fn install_crypto() {
    // An error says that a provider is there already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Connection pools that sources share. Cheap to clone; clones share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients(Arc<Mutex<HashMap<Kin, reqwest::Client>>>);

/// Connections of one kin may serve each other's requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kin {
    /// Plain HTTP works on a machine without trusted certificates.
    tls: bool,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    proxy: Option<Secret>,
    http2: bool,
}

impl Clients {
    /// The client for `scheme`, `http` or `https`, with the certificates and the proxy that `section` names.
    pub(crate) fn get(&self, scheme: &str, section: &Section) -> Result<reqwest::Client, Error> {
        let tls = scheme == "https";
        let kin = Kin {
            tls,
            ca: section.ca.clone().filter(|_| tls),
            certificate: section.certificate.clone().filter(|_| tls),
            proxy: section.proxy.clone(),
            http2: section.http2 && tls,
        };
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&kin) {
            return Ok(client.clone());
        }
        let client = build(&kin)?;
        clients.insert(kin, client.clone());
        Ok(client)
    }
}

fn build(kin: &Kin) -> Result<reqwest::Client, Error> {
    install_crypto();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(128)
        .user_agent(concat!("thinorigin/", env!("CARGO_PKG_VERSION")));
    // Many connections carry more over a long way than the one that HTTP/2 multiplexes on.
    if !kin.http2 {
        builder = builder.http1_only();
    }
    if !kin.tls {
        builder = builder.tls_certs_only([]);
    }
    if let Some(path) = &kin.ca {
        let certificates = reqwest::Certificate::from_pem_bundle(&read(path)?)
            .map_err(|error| wrong(path, "holds no certificates", &error))?;
        builder = builder.tls_certs_merge(certificates);
    }
    if let Some(path) = &kin.certificate {
        let identity = reqwest::Identity::from_pem(&read(path)?)
            .map_err(|error| wrong(path, "holds no certificate with its key", &error))?;
        builder = builder.identity(identity);
    }
    if let Some(proxy) = &kin.proxy {
        let proxy = reqwest::Proxy::all(proxy.reveal())
            .map_err(|_| Error::new(Kind::Location, "the proxy in the credentials is not a URL"))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|error| match &kin.certificate {
        Some(path) => wrong(path, "cannot be shown to a server", &error),
        None => {
            Error::new(Kind::Io, format!("the HTTP client cannot be set up: {}", super::root_cause(&error)))
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path)
        .map_err(|error| Error::new(Kind::Io, format!("{}: cannot be read: {error}", path.display())))
}

fn wrong(path: &Path, what: &str, error: &reqwest::Error) -> Error {
    Error::new(Kind::Location, format!("{}: {what}: {}", path.display(), super::root_cause(error)))
}
