//! S3: where an object is on a server, and the signature (SigV4) of a request for it.
//!
//! The bytes come through the same range engine as those of every other HTTP server. Credentials come from the
//! credentials file, else from the environment, else from the AWS profile; the machine's own role is asked for only
//! where the file says so.

use super::auth::Auth;
use super::client::Clients;
use crate::credentials::Section;
use crate::retry::Failure;
use crate::tries::Fault;
use crate::{Error, Kind, Location};
use http::{HeaderMap, HeaderValue, Request};
use reqsign_aws_v4::{
    Credential, EnvCredentialProvider, IMDSv2CredentialProvider, ProfileCredentialProvider, RequestSigner,
    StaticCredentialProvider,
};
use reqsign_core::{Context, OsEnv, ProvideCredentialChain};
use reqsign_file_read_tokio::TokioFileRead;
use reqsign_http_send_reqwest::ReqwestHttpSend;
use url::Url;

/// The region where nobody names one: what servers other than AWS expect or ignore.
const DEFAULT_REGION: &str = "us-east-1";

/// Signs requests for one bucket.
#[derive(Debug)]
pub(super) struct Signer {
    signer: reqsign_core::Signer<Credential>,
    requester_pays: bool,
    /// The key is not in the credentials file: the environment, a profile or the machine's role says it.
    pub(super) found_elsewhere: bool,
    /// The machine's role may be what says it.
    asks_the_machine: bool,
}

impl Signer {
    /// The headers that make a GET of `url` an authorized one. Only the host and `x-amz-` headers are signed, so
    /// that proxies may touch the others.
    pub(super) async fn headers(&self, url: &Url) -> Result<HeaderMap, Fault> {
        let failed = |failure, what: String| Fault::new(Kind::Denied, failure, what);
        let mut request = Request::get(url.as_str());
        if self.requester_pays {
            request = request.header("x-amz-request-payer", "requester");
        }
        request = request.header("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
        request = request.header("x-amz-checksum-mode", "ENABLED");
        let (mut parts, ()) = request
            .body(())
            .map_err(|_| failed(Failure::Final, "its URL cannot be signed".to_owned()))?
            .into_parts();
        self.signer.sign(&mut parts, None).await.map_err(|error| {
            // The machine's metadata service may be away for a moment, as every server may. Which provider failed, and how,
            // the error does not say.
            let failure = if self.asks_the_machine { Failure::Transient } else { Failure::Final };
            failed(failure, format!("the request cannot be signed: {error}"))
        })?;
        parts.headers.remove(http::header::HOST);
        parts.headers.values_mut().for_each(|value| value.set_sensitive(true));
        Ok(parts.headers)
    }
}

/// The object's URL, or without a key that of the bucket, and how requests for it are authorized.
pub(super) fn resolve(
    location: &Location,
    section: &Section,
    clients: &Clients,
) -> Result<(Url, Auth), Error> {
    let wrong = |what: &str| Error::new(Kind::Location, format!("{location}: {what}"));
    let s3 = location.as_url().ok_or_else(|| wrong("not an S3 location"))?;
    let bucket = s3.host_str().ok_or_else(|| wrong("no bucket"))?;
    let key = s3.path().trim_start_matches('/');
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let region = section
        .region
        .clone()
        .or_else(|| env("AWS_REGION"))
        .or_else(|| env("AWS_DEFAULT_REGION"))
        .unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let endpoint =
        section.endpoint.clone().or_else(|| env("AWS_ENDPOINT_URL_S3")).or_else(|| env("AWS_ENDPOINT_URL"));
    // A dot in the bucket's name does not fit the certificate of a virtual host.
    let path_style = section.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
    let base = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let mut url = Url::parse(&base).map_err(|_| wrong("the endpoint in its credentials is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong("the endpoint in its credentials is not an HTTP URL"));
    }
    if path_style {
        url.set_path(&format!("{}/{bucket}/{key}", url.path().trim_end_matches('/')));
    } else {
        let host = format!("{bucket}.{}", url.host_str().unwrap_or_default());
        url.set_host(Some(&host)).map_err(|_| wrong("the bucket's name cannot be part of a host name"))?;
        url.set_path(&format!("/{key}"));
    }
    url.set_query(s3.query());
    if section.anonymous {
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-checksum-mode", HeaderValue::from_static("ENABLED"));
        if section.requester_pays {
            headers.insert("x-amz-request-payer", HeaderValue::from_static("requester"));
        }
        return Ok((url, Auth::Headers(headers)));
    }
    let mut context = Context::new().with_file_read(TokioFileRead).with_env(OsEnv);
    let mut chain = ProvideCredentialChain::new();
    let found_elsewhere = section.access_key.is_none();
    match (&section.access_key, &section.secret_key) {
        (Some(access), Some(secret)) => {
            let mut provider = StaticCredentialProvider::new(access, secret.reveal());
            if let Some(token) = &section.session_token {
                provider = provider.with_session_token(token.reveal());
            }
            chain = chain.push(provider);
        }
        (None, None) => {
            let profile = ProfileCredentialProvider::new();
            chain = match &section.profile {
                Some(name) => chain.push(profile.with_profile(name)),
                None => chain.push(EnvCredentialProvider::new()).push(profile),
            };
        }
        _ => return Err(wrong("its credentials have only one of access_key and secret_key")),
    }
    if section.instance_metadata {
        context = context.with_http_send(ReqwestHttpSend::new(clients.get("http", section)?));
        chain = chain.push(IMDSv2CredentialProvider::new());
    }
    let signer = reqsign_core::Signer::new(context, chain, RequestSigner::new("s3", &region));
    let signer = Signer {
        signer,
        requester_pays: section.requester_pays,
        found_elsewhere,
        asks_the_machine: section.instance_metadata,
    };
    Ok((url, Auth::Signed(signer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_stands_in_the_host_or_in_the_path() {
        let location: Location = "s3://bucket/dir/a%20b?versionId=v1".parse().unwrap();
        let dotted: Location = "s3://a.bucket/k".parse().unwrap();
        let own = Section { endpoint: Some("https://s3.lab/base".to_owned()), ..Section::default() };
        let aws = Section { region: Some("eu-x".to_owned()), endpoint: None, ..Section::default() };
        let virtual_host = Section { path_style: Some(false), ..own.clone() };
        for (location, section, wanted) in [
            (&location, &own, "https://s3.lab/base/bucket/dir/a%20b?versionId=v1"),
            (&location, &virtual_host, "https://bucket.s3.lab/dir/a%20b?versionId=v1"),
            (&location, &aws, "https://bucket.s3.eu-x.amazonaws.com/dir/a%20b?versionId=v1"),
            // A certificate of a virtual host would not fit.
            (&dotted, &aws, "https://s3.eu-x.amazonaws.com/a.bucket/k"),
        ] {
            let section = Section { anonymous: true, ..section.clone() };
            let (url, _) = resolve(location, &section, &Clients::default()).unwrap();
            assert_eq!(url.as_str(), wanted);
        }
    }
}
