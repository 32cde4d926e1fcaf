//! Credentials: a TOML file with one section per location prefix.
//!
//! ```toml
//! ["https://images.example/private/"]
//! username = "reader"
//! password = "…"
//!
//! ["s3://templates/"]
//! endpoint = "https://s3.example"
//! access_key = "…"
//! secret_key = "…"
//! ```
//!
//! The section with the longest prefix that a location is under speaks for it. The file is readable by its owner
//! alone, or it is refused. What it says stays in memory only, is wiped when it is dropped, and shows as `***`.

use crate::{Error, Kind, Location};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroize;

/// Where credentials are when nobody says otherwise.
pub const CREDENTIALS_FILE: &str = "/etc/thinorigin/credentials.toml";

/// The largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// A text that is not to be seen: shows as `***` and is wiped when dropped.
#[derive(Clone, Default, PartialEq, Eq, Hash, serde::Deserialize)]
#[serde(from = "String")]
pub(crate) struct Secret(String);

impl Secret {
    /// The text, for a request.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// What one section says. Each kind of server takes what it knows and refuses nothing else, for a prefix may be
/// reached in several ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Section {
    /// HTTP basic authentication, SMB.
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    /// SMB.
    pub(crate) domain: Option<String>,
    /// HTTP bearer authentication.
    pub(crate) token: Option<Secret>,
    /// Further HTTP request headers.
    pub(crate) headers: BTreeMap<String, Secret>,
    /// PEM files: certificates to trust besides the system's, and the client's own certificate with its key.
    pub(crate) ca: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    /// HTTPS, S3: HTTP/2 is spoken with servers that have it.
    pub(crate) http2: bool,
    /// The URL of an HTTP proxy, with user and password where it wants them.
    pub(crate) proxy: Option<Secret>,
    /// S3: where the service is, if not at AWS.
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
    /// S3: whether the bucket stands in the path. Without it: yes for an endpoint of one's own, no at AWS.
    pub(crate) path_style: Option<bool>,
    pub(crate) access_key: Option<String>,
    pub(crate) secret_key: Option<Secret>,
    pub(crate) session_token: Option<Secret>,
    /// S3: a profile of the AWS configuration files.
    pub(crate) profile: Option<String>,
    /// S3: requests are not signed.
    pub(crate) anonymous: bool,
    /// S3: the machine's own role may be asked for.
    pub(crate) instance_metadata: bool,
    /// S3: the reader pays.
    pub(crate) requester_pays: bool,
    /// HTTP and S3: other locations below which the same objects lie, asked where this one does not answer.
    pub(crate) mirrors: Vec<String>,
    /// NFS: who reads.
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// NFS: where the MOUNT protocol is served, if nobody is to be asked for it.
    pub(crate) mount_port: Option<u16>,
}

/// The sections of a credentials file. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    file: Option<Arc<Path>>,
    sections: Arc<Vec<(Location, Section)>>,
}

impl Credentials {
    /// Reads `file`; without one, [`CREDENTIALS_FILE`] if there is such a file.
    pub fn load(file: Option<&Path>) -> Result<Credentials, Error> {
        match file {
            Some(file) => Credentials::read(file),
            None => match Credentials::read(Path::new(CREDENTIALS_FILE)) {
                Err(error) if error.kind == Kind::NotFound => Ok(Credentials::default()),
                result => result,
            },
        }
    }

    fn read(path: &Path) -> Result<Credentials, Error> {
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => Kind::NotFound,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Io,
            };
            Error::new(kind, format!("{}: the credentials cannot be read: {error}", path.display()))
        };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(Error::new(
                Kind::Denied,
                format!(
                    "{}: mode {mode:04o} lets others read these credentials; it must be 0600",
                    path.display()
                ),
            ));
        }
        let mut text = String::new();
        (&mut file).take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
        let parsed = Credentials::parse(&text);
        text.zeroize();
        let sections =
            parsed.map_err(|what| Error::new(Kind::Location, format!("{}: {what}", path.display())))?;
        Ok(Credentials { file: Some(path.into()), sections: Arc::new(sections) })
    }

    fn parse(text: &str) -> Result<Vec<(Location, Section)>, String> {
        let table: BTreeMap<String, Section> = toml::from_str(text).map_err(|error| {
            // Its own text would show the line, and what stands in it.
            let line =
                error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            format!("line {line}: {}", error.message())
        })?;
        let mut sections = table
            .into_iter()
            .map(|(prefix, section)| match prefix.parse::<Location>() {
                Ok(location) => Ok((location, section)),
                Err(error) => Err(format!("a section's name is not a location: {}", error.message)),
            })
            .collect::<Result<Vec<_>, _>>()?;
        // The longest first: it is the one that speaks.
        sections.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.secret_form().len()));
        Ok(sections)
    }

    /// What the file says about `location`; nothing by default.
    pub(crate) fn section(&self, location: &Location) -> Section {
        let found = self.sections.iter().find(|(prefix, _)| location.for_credentials().starts_with(prefix));
        found.map(|(_, section)| section.clone()).unwrap_or_default()
    }

    /// The other places of the object at `location`, as its section says. What is shown to them, their own sections say.
    pub(crate) fn mirrors(&self, location: &Location) -> Result<Vec<Location>, Error> {
        let plain = location.for_credentials();
        let Some((prefix, section)) = self.sections.iter().find(|(prefix, _)| plain.starts_with(prefix))
        else {
            return Ok(Vec::new());
        };
        let (whole, prefix) = (plain.secret_form(), prefix.secret_form());
        let rest = whole.strip_prefix(prefix.trim_end_matches('/')).unwrap_or_default();
        let mirror = |mirror: &String| format!("{}{rest}", mirror.trim_end_matches('/')).parse();
        section.mirrors.iter().map(mirror).collect()
    }

    /// The file as it is now, for credentials that were refused may have been renewed there.
    pub(crate) fn reload(&self) -> Result<Credentials, Error> {
        match &self.file {
            Some(file) => Credentials::read(file),
            None => Ok(self.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
