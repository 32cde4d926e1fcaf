//! What a request is authorized with.
//!
//! Authorization goes to the server that the location names, and to no other that it redirects to.

#[cfg(feature = "s3")]
use super::s3::Signer;
use crate::credentials::Section;
use crate::tries::Fault;
use crate::{Error, Kind, Location};
use base64::Engine;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use url::Url;
use zeroize::Zeroizing;

#[derive(Debug)]
pub(super) enum Auth {
    /// The same headers with every request; none for an open server. They show as sensitive.
    Headers(HeaderMap),
    /// A signature for each.
    #[cfg(feature = "s3")]
    Signed(Signer),
}

impl Auth {
    /// What `section` says for an HTTP location.
    pub(super) fn http(location: &Location, section: &Section) -> Result<Auth, Error> {
        let mut headers = HeaderMap::new();
        let user = section.username.as_deref().or_else(|| {
            let user = location.as_url().map_or("", Url::username);
            (!user.is_empty()).then_some(user)
        });
        if let Some(token) = &section.token {
            let value = Zeroizing::new(format!("Bearer {}", token.reveal()));
            headers.insert(AUTHORIZATION, secret(location, &value)?);
        } else if let Some(user) = user {
            let password = section.password.as_ref().map_or("", |password| password.reveal());
            let pair = Zeroizing::new(format!("{user}:{password}"));
            let pair = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pair.as_bytes()));
            let value = Zeroizing::new(format!("Basic {}", *pair));
            headers.insert(AUTHORIZATION, secret(location, &value)?);
        }
        for (name, value) in &section.headers {
            let name = HeaderName::try_from(name.as_str()).map_err(|_| {
                Error::new(
                    Kind::Location,
                    format!("{location}: the credentials hold a header name that is none"),
                )
            })?;
            headers.insert(name, secret(location, value.reveal())?);
        }
        Ok(Auth::Headers(headers))
    }

    /// The headers for a request to `url`. The fault is that there is nothing to sign it with.
    pub(super) async fn headers(&self, url: &Url) -> Result<HeaderMap, Fault> {
        #[cfg(not(feature = "s3"))]
        let _ = url;
        match self {
            Auth::Headers(headers) => Ok(headers.clone()),
            #[cfg(feature = "s3")]
            Auth::Signed(signer) => signer.headers(url).await,
        }
    }

    /// Whether the same section of the credentials file may lead to other headers by now: those that come from
    /// elsewhere are asked for once and kept.
    pub(super) fn may_be_old(&self) -> bool {
        match self {
            Auth::Headers(_) => false,
            #[cfg(feature = "s3")]
            Auth::Signed(signer) => signer.found_elsewhere,
        }
    }

    /// Whether an answer of `status` may be about what a request was authorized with.
    pub(super) fn is_refused_by(&self, status: StatusCode) -> bool {
        match self {
            // How AWS says that a session's token has expired.
            #[cfg(feature = "s3")]
            Auth::Signed(_) if status == StatusCode::BAD_REQUEST => true,
            _ => matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::GONE),
        }
    }

    /// Whether there is anything that could be refused.
    pub(super) fn is_some(&self) -> bool {
        !matches!(self, Auth::Headers(headers) if headers.is_empty())
    }
}

fn secret(location: &Location, text: &str) -> Result<HeaderValue, Error> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        Error::new(
            Kind::Location,
            format!("{location}: the credentials hold characters that a header cannot"),
        )
    })?;
    value.set_sensitive(true);
    Ok(value)
}
