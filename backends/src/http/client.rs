//! The HTTP clients: connection pools, time limits and TLS.

use crate::{Error, Kind};
use std::sync::{Arc, OnceLock};
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
pub(crate) struct Clients(Arc<Pools>);

/// One pool per scheme: plain HTTP must work on a machine without trusted certificates.
#[derive(Debug, Default)]
struct Pools {
    plain: OnceLock<reqwest::Client>,
    tls: OnceLock<reqwest::Client>,
}

impl Clients {
    /// The client for `scheme`, `http` or `https`.
    pub(crate) fn get(&self, scheme: &str) -> Result<&reqwest::Client, Error> {
        let tls = scheme == "https";
        let slot = if tls { &self.0.tls } else { &self.0.plain };
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        install_crypto();
        // HTTP/1.1, for many connections carry more over a long way than the one that HTTP/2 multiplexes on.
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(IDLE_TIMEOUT)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(128)
            .user_agent(concat!("thinorigin/", env!("CARGO_PKG_VERSION")));
        if !tls {
            builder = builder.tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| {
            Error::new(Kind::Io, format!("the HTTP client cannot be set up: {}", super::root_cause(&error)))
        })?;
        Ok(slot.get_or_init(|| client))
    }
}
