//! Sending one request: authorization, redirects, and what the transport may report.

use super::auth::Auth;
use crate::credentials::{Credentials, Section};
use crate::tries::Fault;
use crate::{Error, Kind, Location, Options, Scheme, retry::Failure};
use http::header::{ACCEPT_ENCODING, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use url::Url;

/// How many redirects one request may follow.
const MAX_REDIRECTS: usize = 10;

/// Where requests for one object go, and with what.
#[derive(Debug)]
pub(super) struct Endpoint {
    location: Location,
    options: Options,
    /// As the location says, without user.
    origin: Url,
    access: Mutex<Arc<Access>>,
    /// Where redirects led. Asked directly from then on, until it refuses.
    resolved: Mutex<Option<Arc<Url>>>,
}

/// What the credentials file says, as last read.
#[derive(Debug)]
struct Access {
    section: Section,
    auth: Auth,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Endpoint {
    pub(super) fn new(options: &Options, location: &Location) -> Result<Endpoint, Error> {
        let (origin, access) = access(options, location, &options.credentials)?;
        Ok(Endpoint {
            location: location.clone(),
            options: options.clone(),
            origin,
            access: Mutex::new(Arc::new(access)),
            resolved: Mutex::default(),
        })
    }

    /// The same server and authorization, for what else is asked of it: `change` makes the URL of that from the
    /// object's.
    #[cfg(feature = "s3")]
    pub(super) fn changed(&self, change: impl FnOnce(&mut Url)) -> Endpoint {
        let mut origin = self.origin.clone();
        change(&mut origin);
        Endpoint {
            location: self.location.clone(),
            options: self.options.clone(),
            origin,
            access: Mutex::new(locked(&self.access).clone()),
            resolved: Mutex::default(),
        }
    }

    /// The server, for what concerns all its objects.
    pub(super) fn server(&self) -> String {
        self.origin.origin().ascii_serialization()
    }

    /// The location for identities. The same bucket and key on another server is another object.
    pub(super) fn canonical(&self) -> String {
        match self.location.scheme() {
            Scheme::S3 => format!("{} at {}", self.location, self.server()),
            _ => self.location.to_string(),
        }
    }

    /// Asks for the last `len` bytes, following redirects. The answer has any status but a redirect. Where redirects led has no
    /// part in where later requests go, for it may be another server than that which the first bytes came from.
    pub(super) async fn get_last(&self, len: u64) -> Result<reqwest::Response, Fault> {
        let value = HeaderValue::try_from(format!("bytes=-{len}")).map_err(|_| internal())?;
        let headers = HeaderMap::from_iter([(RANGE, value)]);
        Ok(self.follow(Arc::new(self.origin.clone()), &headers).await?.0)
    }

    /// Asks for `range`, following redirects. The answer has any status but a redirect.
    pub(super) async fn get(
        &self,
        range: &Range<u64>,
        condition: HeaderMap,
    ) -> Result<reqwest::Response, Fault> {
        let mut headers = condition;
        let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        headers.insert(RANGE, HeaderValue::try_from(value).map_err(|_| internal())?);
        self.ask(headers).await
    }

    /// A GET with `headers`, following redirects. The answer has any status but a redirect.
    pub(super) async fn ask(&self, headers: HeaderMap) -> Result<reqwest::Response, Fault> {
        let resolved = locked(&self.resolved).clone();
        if let Some(url) = resolved {
            let answer = self.follow_and_note(url, &headers).await?;
            // What a redirect leads to may expire, as presigned URLs do: ask the origin again.
            if !expired(answer.status()) {
                return Ok(answer);
            }
            *locked(&self.resolved) = None;
        }
        let origin = Arc::new(self.origin.clone());
        let access = locked(&self.access).clone();
        let answer = self.follow_and_note(origin.clone(), &headers).await?;
        if access.auth.is_refused_by(answer.status()) && self.renew(&access) {
            return self.follow_and_note(origin, &headers).await;
        }
        Ok(answer)
    }

    /// Reads the credentials again, for `before` were refused. Says whether they may be others now.
    fn renew(&self, before: &Arc<Access>) -> bool {
        let renewed = self.options.credentials.reload();
        match renewed.and_then(|credentials| access(&self.options, &self.location, &credentials)) {
            Ok((_, renewed)) if renewed.section != before.section || renewed.auth.may_be_old() => {
                let mut access = locked(&self.access);
                // Somebody else may have done it meanwhile.
                if Arc::ptr_eq(&access, before) {
                    *access = Arc::new(renewed);
                }
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::warn!("{error}");
                false
            }
        }
    }

    /// As [`follow`](Self::follow); later requests go at once to where redirects lead.
    async fn follow_and_note(&self, url: Arc<Url>, headers: &HeaderMap) -> Result<reqwest::Response, Fault> {
        let (answer, url) = self.follow(url, headers).await?;
        if answer.status().is_success() && *url != self.origin {
            *locked(&self.resolved) = Some(url);
        }
        Ok(answer)
    }

    /// Asks at `url`, and where that redirects to. The answer, and where it came from.
    async fn follow(
        &self,
        mut url: Arc<Url>,
        headers: &HeaderMap,
    ) -> Result<(reqwest::Response, Arc<Url>), Fault> {
        let local = |error: Error| Fault::new(error.kind, Failure::Final, error.message);
        let access = locked(&self.access).clone();
        for _ in 0..=MAX_REDIRECTS {
            let client = self.options.clients.get(url.scheme(), &access.section).map_err(local)?;
            let mut request = reqwest::Request::new(Method::GET, Url::clone(&url));
            *request.headers_mut() = headers.clone();
            request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            // Nobody else is shown what the origin is.
            if access.auth.is_some() && url.origin() == self.origin.origin() {
                request.headers_mut().extend(access.auth.headers(&url).await?);
            }
            let answer =
                client.execute(request).await.map_err(|error| transport(&error, Failure::Unreached))?;
            if !is_redirect(answer.status()) {
                return Ok((answer, url));
            }
            if let Some(region) = answer.headers().get("x-amz-bucket-region") {
                return Err(final_fault(format!(
                    "the bucket is in region {region:?}; its credentials must say so"
                )));
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

/// The object's URL and what it is asked for with.
fn access(options: &Options, location: &Location, credentials: &Credentials) -> Result<(Url, Access), Error> {
    let section = credentials.section(location);
    let (url, auth) = match (location.scheme(), location.as_url()) {
        (Scheme::Http | Scheme::Https, Some(url)) => (url.clone(), Auth::http(location, &section)?),
        #[cfg(feature = "s3")]
        (Scheme::S3, Some(_)) => super::s3::resolve(location, &section, &options.clients)?,
        _ => return Err(Error::new(Kind::Unsupported, format!("{location}: not an HTTP location"))),
    };
    let mut url = url;
    // A user name is for the authorization alone; a URL with a host can be without one.
    let _ = url.set_username("");
    #[cfg(not(feature = "s3"))]
    let _ = options;
    Ok((url, Access { section, auth }))
}

/// How a server says that a URL which a redirect led to leads nowhere any more.
fn expired(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::NOT_FOUND
            | StatusCode::GONE
            | StatusCode::BAD_REQUEST
    )
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

/// What the transport's failure means, which as to trying again is `failure` unless it is final. The URL, which the
/// error knows, stays out of the message.
pub(super) fn transport(error: &reqwest::Error, failure: Failure) -> Fault {
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
    Fault::new(Kind::Unreachable, if tls { Failure::Final } else { failure }, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_to_http_without_a_user_and_never_from_tls_to_none() {
        for (from, to, wanted) in [
            ("http://a/x/y", "z?sig=1", Some("http://a/x/z?sig=1")),
            ("http://a/x", "https://b/y", Some("https://b/y")),
            ("https://a/x", "//b/y", Some("https://b/y")),
            ("https://a/x", "http://a/x", None),
            ("http://a/x", "http://user@a/x", None),
            ("http://a/x", "http://:word@a/x", None),
            ("http://a/x", "file:///etc/passwd", None),
            ("http://a/x", "ftp://a/x", None),
            ("http://a/x", "http://", None),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(to))]);
            let next = target(&Url::parse(from).unwrap(), &headers);
            assert_eq!(next.as_ref().ok().map(Url::as_str), wanted, "{from} to {to}");
            if let Err(fault) = next {
                assert!(!fault.what.contains("word") && !fault.what.contains("passwd"), "{}", fault.what);
            }
        }
        assert!(target(&Url::parse("http://a/").unwrap(), &HeaderMap::new()).is_err());
    }
}
