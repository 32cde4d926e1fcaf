//! What an S3 bucket holds below a prefix: ListObjectsV2.

use super::endpoint::Endpoint;
use super::{answer, endpoint};
use crate::retry::Failure;
use crate::tries::{Fault, Tries, error};
use crate::{Error, Kind, Location, Options, Scheme};
use http::{HeaderMap, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio::time::timeout_at;

/// The largest page that is taken, in bytes: a thousand keys of the greatest length, and what stands around them.
const MAX_PAGE: usize = 4 << 20;

/// How many names one listing may have.
const MAX_ENTRIES: usize = 100_000;

/// One name directly below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry {
    /// An object.
    Object {
        /// Where it is.
        location: Location,
        /// Its size in bytes.
        size: u64,
        /// When it was written, as the server says it (RFC 3339); empty if it does not.
        modified: String,
    },
    /// What further names begin with, up to the next slash.
    Prefix(Location),
}

impl Entry {
    /// Where the object is, or what lies below the prefix.
    pub fn location(&self) -> &Location {
        match self {
            Entry::Object { location, .. } | Entry::Prefix(location) => location,
        }
    }
}

/// What the bucket of `location`, an S3 location, has directly below it: its path is the prefix, which ends with a slash
/// if it is to be a directory, and may be empty. In the order of the server, which is that of the names. Keys that no
/// location can spell, such as `a/../b`, are left out with a warning. Retries inside a bounded time per page. Fails on
/// more than 100 000 names.
pub async fn list(location: &Location, options: &Options) -> Result<Vec<Entry>, Error> {
    let prefix = match (location.scheme(), location.as_url()) {
        (Scheme::S3, Some(url)) if url.query().is_none() => {
            percent_decode_str(url.path().trim_start_matches('/')).decode_utf8_lossy().into_owned()
        }
        _ => {
            let what = format!("{location}: only what lies in an S3 bucket can be listed");
            return Err(Error::new(Kind::Unsupported, what));
        }
    };
    let at = |key: &str| {
        let found = location.at_key(key);
        if found.is_none() {
            tracing::warn!(%location, key, "left out of the listing: no location can spell this key");
        }
        found
    };
    let bucket = location.at_key("").unwrap_or_else(|| location.clone());
    let bucket = Endpoint::new(options, &bucket)?;
    let mut entries = Vec::new();
    let mut token = None;
    loop {
        let page = page(&bucket, location, options, &prefix, token.as_deref()).await?;
        for object in &page.contents {
            let Some(location) = at(&object.key) else { continue };
            let (size, modified) = (object.size, object.last_modified.clone());
            entries.push(Entry::Object { location, size, modified });
        }
        entries
            .extend(page.common_prefixes.iter().filter_map(|common| at(&common.prefix)).map(Entry::Prefix));
        if entries.len() > MAX_ENTRIES {
            let what = format!("{location}: more than {MAX_ENTRIES} names, list a longer prefix");
            return Err(Error::new(Kind::Unsupported, what));
        }
        match page.next_continuation_token {
            // A server that goes in circles would never end.
            Some(next) if page.is_truncated && token.as_ref() != Some(&next) => token = Some(next),
            _ => return Ok(entries),
        }
    }
}

/// The `ListBucketResult` of the API reference.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Page {
    contents: Vec<Object>,
    common_prefixes: Vec<Common>,
    is_truncated: bool,
    next_continuation_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Object {
    key: String,
    size: u64,
    #[serde(default)]
    last_modified: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Common {
    prefix: String,
}

/// One page, the one that `token` stands for.
async fn page(
    bucket: &Endpoint,
    location: &Location,
    options: &Options,
    prefix: &str,
    token: Option<&str>,
) -> Result<Page, Error> {
    let endpoint = bucket.changed(|url| {
        let mut query = url.query_pairs_mut();
        query.append_pair("list-type", "2").append_pair("delimiter", "/").append_pair("prefix", prefix);
        token.map(|token| query.append_pair("continuation-token", token));
    });
    let mut tries = Tries::new(options.policy.opening());
    loop {
        let fault = match timeout_at(tries.deadline(), fetch(&endpoint)).await {
            Ok(Ok(page)) => return Ok(page),
            Ok(Err(fault)) => fault,
            Err(_) => tries.out_of_time(),
        };
        tries.failed(fault).await.map_err(|fault| error(location, &fault))?;
    }
}

async fn fetch(endpoint: &Endpoint) -> Result<Page, Fault> {
    let wrong = |what: &str| Fault::new(Kind::BadAnswer, Failure::Wrong, what);
    let mut answer = endpoint.ask(HeaderMap::new()).await?;
    if answer.status() != StatusCode::OK {
        return Err(answer::refusal(answer.status(), answer.headers()));
    }
    let mut body = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|error| endpoint::transport(&error, Failure::Transient))?
    {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_PAGE {
            return Err(wrong("the server's listing has no end"));
        }
    }
    let text = std::str::from_utf8(&body).map_err(|_| wrong("the server's listing is not UTF-8"))?;
    parse(text).map_err(|what| wrong(&format!("the server's listing cannot be understood: {what}")))
}

fn parse(text: &str) -> Result<Page, quick_xml::DeError> {
    quick_xml::de::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credentials;
    use crate::testing::{Lie, Origin};
    use std::os::unix::fs::PermissionsExt;

    fn object(key: &str) -> String {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><Size>7</Size></Contents>"
        )
    }

    fn page(inside: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>b</Name>{inside}</ListBucketResult>"
        )
    }

    async fn listed(origin: &Origin, location: &str) -> Result<Vec<Entry>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials.toml");
        let text = format!("[\"s3://b/\"]\nendpoint = \"http://{}\"\nanonymous = true", origin.address());
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let policy =
            crate::retry::Policy { deadline: std::time::Duration::from_secs(2), ..Default::default() };
        let options =
            Options::default().with_credentials(Credentials::load(Some(&file)).unwrap()).with_policy(policy);
        list(&location.parse().unwrap(), &options).await
    }

    #[tokio::test]
    async fn pages_are_put_together_and_keys_become_locations() {
        let origin = Origin::start("").await.unwrap();
        let token = "<IsTruncated>true</IsTruncated><NextContinuationToken>a+/=</NextContinuationToken>";
        let first = format!("{}{token}", object("t/a b&amp;\u{fc}.qcow2"));
        let second = format!(
            "<IsTruncated>false</IsTruncated>{}{}{}<CommonPrefixes><Prefix>t/d/</Prefix></CommonPrefixes>",
            object("t/../x"),
            object("t/x%2fy"),
            object("t/z?versionId=1")
        );
        origin.lie([Lie::Text(page(&first)), Lie::Text(page(&second))]);
        let entries = listed(&origin, "s3://b/t/").await.unwrap();
        let shown: Vec<String> = entries
            .iter()
            .map(|entry| match entry {
                Entry::Object { location, size, modified } => format!("{location} {size} {modified}"),
                Entry::Prefix(location) => location.to_string(),
            })
            .collect();
        let rest = "7 2026-01-02T03:04:05.000Z";
        assert_eq!(
            shown,
            [
                format!("s3://b/t/a%20b&%C3%BC.qcow2 {rest}"),
                format!("s3://b/t/x%252fy {rest}"),
                format!("s3://b/t/z%3FversionId=1 {rest}"),
                "s3://b/t/d/".to_owned()
            ]
        );
        let asked = origin.heads();
        assert!(asked[0].starts_with("GET /b/?list-type=2&delimiter=%2F&prefix=t%2F "), "{}", asked[0]);
        assert!(asked[1].contains("&continuation-token=a%2B%2F%3D "), "{}", asked[1]);
    }

    #[tokio::test]
    async fn what_is_no_listing_is_refused() {
        let origin = Origin::start("").await.unwrap();
        let nested = "<a>".repeat(200_000);
        let endless = page(&object("k").repeat(MAX_PAGE / 60));
        let entity = "<!DOCTYPE x [<!ENTITY a \"aaaa\">]><ListBucketResult><Contents><Key>&a;</Key><Size>1</Size></Contents></ListBucketResult>";
        let size = page("<Contents><Key>k</Key><Size>-1</Size></Contents>");
        for bad in ["", "<html>log in</html", &nested, &endless, entity, &size] {
            origin.always(Lie::Text(bad.to_owned()));
            let error = listed(&origin, "s3://b/").await.unwrap_err();
            assert_eq!(error.kind, Kind::BadAnswer, "{error}");
        }
        origin.always(Lie::Status(403, String::new()));
        assert_eq!(listed(&origin, "s3://b/").await.unwrap_err().kind, Kind::Denied);
        assert_eq!(listed(&origin, "http://b/").await.unwrap_err().kind, Kind::Unsupported);
    }

    #[tokio::test]
    async fn a_listing_that_goes_in_circles_ends() {
        let origin = Origin::start("").await.unwrap();
        let token = "<IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>";
        origin.always(Lie::Text(page(&format!("{}{token}", object("k")))));
        assert_eq!(listed(&origin, "s3://b/").await.unwrap().len(), 2);
    }
}
