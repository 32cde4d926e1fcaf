//! Asks a running server over its control socket.

use super::admin_path;
use super::api::{AttachRequest, Attached, Content, Exported, Problem};
use crate::error::{Error, Result};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest that a request may take: opening an image over a slow link, and then the kernel's own connect.
const DEADLINE: Duration = Duration::from_secs(60);

/// A control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    http: reqwest::Client,
}

impl Client {
    /// The socket at `address` (`unix:/PATH`). Does not connect.
    pub fn new(address: &str) -> Result<Self> {
        let path = admin_path(address)?;
        backends::install_crypto();
        let http = reqwest::Client::builder()
            .unix_socket(path.as_path())
            .timeout(DEADLINE)
            // Nothing is encrypted on a unix socket, and reading the machine's authorities costs milliseconds.
            .tls_certs_only([])
            .build()
            .map_err(|error| Error::failed(format!("cannot make a control client: {error}")))?;
        Ok(Client { path, http })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a server answers.
    pub async fn is_running(&self) -> bool {
        self.request(Method::GET, "health").send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// Makes an image a kernel device, or finds the device that it is.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Attached> {
        self.send(self.request(Method::POST, "attachments").json(request)).await
    }

    /// Everything that is attached.
    pub async fn attached(&self) -> Result<Vec<Attached>> {
        self.send(self.request(Method::GET, "attachments")).await
    }

    /// As [`attached`](Self::attached), with how much of each is local, which may take two seconds to find out.
    pub async fn attached_with_progress(&self) -> Result<Vec<Attached>> {
        self.send(self.request(Method::GET, "attachments").query(&[("progress", "true")])).await
    }

    /// What the image that `key` names holds. Reads the image's tables, which may mean asking its server.
    pub async fn content(&self, key: &str) -> Result<Content> {
        self.send(self.request(Method::GET, "attachments/content").query(&[("key", key)])).await
    }

    /// Everything that is exported by name, with how much of it is local.
    pub async fn exports(&self) -> Result<Vec<Exported>> {
        self.send(self.request(Method::GET, "exports")).await
    }

    /// Detaches what `key` names. `None`: nothing has that key.
    pub async fn detach(&self, key: &str) -> Result<Option<Attached>> {
        self.send(self.request(Method::DELETE, "attachments").query(&[("key", key)])).await
    }

    fn request(&self, method: Method, resource: &str) -> RequestBuilder {
        self.http.request(method, format!("http://thinorigin/v1/{resource}"))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T> {
        let path = self.path.display();
        let answer = request.send().await.map_err(|error| {
            if error.is_connect() {
                return Error::no_server(format!("{path}: no server answers on this control socket"));
            }
            if error.is_timeout() || error.is_builder() {
                return Error::failed(format!("{path}: the server did not answer: {error}"));
            }
            // What had connected to a server that is ending, and what that was just reading, ends with it.
            Error::no_server(format!("{path}: the server ended before it answered"))
        })?;
        let (status, body) = (answer.status(), answer.bytes().await);
        let body = body.map_err(|error| Error::failed(format!("{path}: the answer broke off: {error}")))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body)
                .map_err(|error| Error::failed(format!("{path}: the answer is not understood: {error}")));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            return Err(Error::no_server(format!("{path}: the server is about to end")));
        }
        match serde_json::from_slice::<Problem>(&body) {
            Ok(Problem { error, refused: true }) => Err(Error::refused(error)),
            Ok(Problem { error, refused: false }) => Err(Error::failed(error)),
            Err(_) => Err(Error::failed(format!("{path}: the server answered {status}"))),
        }
    }
}
