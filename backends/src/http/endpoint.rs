//! Sending one request: authorization, redirects, and what the transport may report.

use super::answer::Fault;
use super::client::Clients;
use crate::{Error, Kind, Location, retry::Failure};
use http::header::{ACCEPT_ENCODING, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use url::Url;

/// How many redirects one request may follow.
const MAX_REDIRECTS: usize = 10;

/// Where requests for one object go.
#[derive(Debug)]
pub(super) struct Endpoint {
    clients: Clients,
    /// As the location says.
    origin: Url,
    /// Where redirects led. Asked directly from then on, until it refuses.
    resolved: Mutex<Option<Arc<Url>>>,
}

impl Endpoint {
    pub(super) fn new(clients: Clients, location: &Location) -> Result<Endpoint, Error> {
        match location.as_url() {
            Some(url) if matches!(url.scheme(), "http" | "https") => {
                Ok(Endpoint { clients, origin: url.clone(), resolved: Mutex::default() })
            }
            _ => Err(Error::new(Kind::Unsupported, format!("{location}: not an HTTP location"))),
        }
    }

    /// Asks for `range`, following redirects. The answer has any status but a redirect.
    pub(super) async fn get(
        &self,
        range: &Range<u64>,
        condition: HeaderMap,
    ) -> Result<reqwest::Response, Fault> {
        let mut headers = condition;
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        headers.insert(RANGE, HeaderValue::try_from(value).map_err(|_| internal())?);
        let resolved = self.resolved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(url) = resolved {
            let answer = self.follow(url, &headers).await?;
            // What a redirect leads to may expire, as presigned URLs do: ask the origin again.
            if !matches!(
                answer.status(),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE
            ) {
                return Ok(answer);
            }
            *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.follow(Arc::new(self.origin.clone()), &headers).await
    }

    async fn follow(&self, mut url: Arc<Url>, headers: &HeaderMap) -> Result<reqwest::Response, Fault> {
        for _ in 0..=MAX_REDIRECTS {
            let client = self.clients.get(url.scheme()).map_err(|error| final_fault(error.message))?;
            let mut request = reqwest::Request::new(Method::GET, Url::clone(&url));
            *request.headers_mut() = headers.clone();
            let answer = client.execute(request).await.map_err(|error| transport(&error))?;
            if !is_redirect(answer.status()) {
                if answer.status().is_success() && *url != self.origin {
                    *self.resolved.lock().unwrap_or_else(PoisonError::into_inner) = Some(url);
                }
                return Ok(answer);
            }
            url = Arc::new(target(&url, answer.headers())?);
        }
        Err(Fault::new(
            Kind::BadAnswer,
            Failure::Wrong,
            format!("the server redirects more than {MAX_REDIRECTS} times, perhaps in a circle"),
        ))
    }
}

/// 300, 304 and 305 are not about where an object is.
fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect from `url` leads. Its own text stays out of messages, for it may hold a signature.
fn target(url: &Url, headers: &HeaderMap) -> Result<Url, Fault> {
    let bad = |what: &str| Fault::new(Kind::BadAnswer, Failure::Wrong, what);
    let value = headers
        .get(LOCATION)
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| bad("the server redirects without saying where to"))?;
    let next = url.join(value).map_err(|_| bad("the server redirects to something that is not a URL"))?;
    match (url.scheme(), next.scheme()) {
        ("https", "http") => {
            Err(final_fault("the server redirects from https to http, which is not followed"))
        }
        (_, "http" | "https") if next.username().is_empty() && next.password().is_none() => Ok(next),
        (_, "http" | "https") => {
            Err(final_fault("the server redirects to a URL with a user name, which is not followed"))
        }
        _ => Err(final_fault(
            "the server redirects to something other than http and https, which is not followed",
        )),
    }
}

fn final_fault(what: impl Into<String>) -> Fault {
    Fault::new(Kind::BadAnswer, Failure::Final, what)
}

fn internal() -> Fault {
    final_fault("the request cannot be written down")
}

/// What the transport's failure means. The URL, which the error knows, stays out of the message.
pub(super) fn transport(error: &reqwest::Error) -> Fault {
    let cause = super::root_cause(error);
    let what = if error.is_connect() && error.is_timeout() {
        "the server cannot be reached: it did not answer in time".to_owned()
    } else if error.is_connect() {
        format!("the server cannot be reached: {cause}")
    } else if error.is_timeout() {
        "the server stopped answering".to_owned()
    } else {
        format!("the connection broke: {cause}")
    };
    // A certificate that is not trusted will not be so at the next try.
    let tls = error.is_connect() && (cause.contains("certificate") || cause.contains("UnknownIssuer"));
    Fault::new(Kind::Unreachable, if tls { Failure::Final } else { Failure::Transient }, what)
}
