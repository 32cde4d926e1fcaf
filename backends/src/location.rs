//! Locations: `/path`, `file:///path`, `http://`, `https://`, `s3://`, `nfs://`, `smb://`.
//!
//! A location is shown in messages, logs and JSON, so showing it never shows a secret: passwords are refused when it
//! is parsed, and the query of an `http` location, which may be a signature, is shown as `?…`. Locations are also
//! what the rule about files that images name works on: [`Location::sibling`] is the only way from a name in an image
//! to a location, and what it returns stays in the image's own directory even when it is opened.

use crate::{Error, Kind};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::fmt::{self, Write as _};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use url::Url;

/// How an object is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scheme {
    /// A local file or block device.
    File,
    /// `http:`
    Http,
    /// `https:`
    Https,
    /// `s3:`
    S3,
    /// `nfs:`
    Nfs,
    /// `smb:`
    Smb,
}

/// Where an object is. Displays without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location(Inner);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Inner {
    Path {
        path: PathBuf,
        /// For a file that an image named: the directory that opening it must not leave, and the name below it.
        beneath: Option<(PathBuf, PathBuf)>,
    },
    Url(Scheme, Url),
}

/// Longest location and longest sibling name, in bytes: a path may have 4096.
const MAX_LEN: usize = 4096;

/// What a path segment of a URL cannot hold as it is.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

impl Location {
    /// The location of a local file.
    pub fn from_path(path: impl Into<PathBuf>) -> Location {
        Location(Inner::Path { path: path.into(), beneath: None })
    }

    /// How the object is reached.
    pub fn scheme(&self) -> Scheme {
        match &self.0 {
            Inner::Path { .. } => Scheme::File,
            Inner::Url(scheme, _) => *scheme,
        }
    }

    /// The local path, for `/path` and `file:` locations.
    pub fn as_path(&self) -> Option<&Path> {
        match &self.0 {
            Inner::Path { path, .. } => Some(path),
            Inner::Url(..) => None,
        }
    }

    /// For a [`sibling`](Self::sibling) of a local file: its directory, and its name in there.
    pub(crate) fn beneath(&self) -> Option<(&Path, &Path)> {
        match &self.0 {
            Inner::Path { beneath: Some((directory, name)), .. } => Some((directory, name)),
            _ => None,
        }
    }

    /// The URL with everything a request needs, for every scheme but files. It may hold secrets.
    pub(crate) fn as_url(&self) -> Option<&Url> {
        match &self.0 {
            Inner::Path { .. } => None,
            Inner::Url(_, url) => Some(url),
        }
    }

    /// The object's file name without its directory, percent-decoded.
    pub fn file_name(&self) -> String {
        match &self.0 {
            Inner::Path { path, .. } => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Inner::Url(_, url) => {
                let name = url.path().rsplit('/').next().unwrap_or_default();
                percent_decode_str(name).decode_utf8_lossy().into_owned()
            }
        }
    }

    /// The directory that the object is in, without query.
    pub fn directory(&self) -> Location {
        match &self.0 {
            Inner::Path { path, .. } => Location::from_path(parent(path)),
            Inner::Url(scheme, url) => {
                let mut url = url.clone();
                let end = url.path().rfind('/').map_or(0, |slash| slash + 1);
                let path = url.path()[..end].to_owned();
                url.set_path(&path);
                url.set_query(None);
                Location(Inner::Url(*scheme, url))
            }
        }
    }

    /// The location of `name` in this object's own directory on the same server, if `name` is a plain relative
    /// name that stays inside it: no scheme, not absolute, no `..`, no empty component, no backslash, no control
    /// character. Components are separated by `/`; a `.` component means nothing and is dropped. A local one is
    /// opened without leaving the directory, by symbolic link or otherwise.
    pub fn sibling(&self, name: &str) -> Option<Location> {
        if name.len() > MAX_LEN || name.contains(|c: char| c.is_control() || c == '\\') {
            return None;
        }
        if name.split('/').next().is_some_and(|first| first.contains(':')) {
            return None;
        }
        if name.split('/').any(|part| part.is_empty() || part == "..") {
            return None;
        }
        let parts: Vec<&str> = name.split('/').filter(|part| *part != ".").collect();
        if parts.is_empty() {
            return None;
        }
        match &self.0 {
            Inner::Path { path, .. } => {
                let directory = parent(path);
                let name: PathBuf = parts.iter().collect();
                let path = directory.join(&name);
                Some(Location(Inner::Path { path, beneath: Some((directory, name)) }))
            }
            Inner::Url(scheme, _) => {
                let mut url = self.directory().as_url()?.clone();
                let mut path = url.path().to_owned();
                for (i, part) in parts.iter().enumerate() {
                    let slash = if i == 0 { "" } else { "/" };
                    let _ = write!(path, "{slash}{}", utf8_percent_encode(part, SEGMENT));
                }
                url.set_path(&path);
                Some(Location(Inner::Url(*scheme, url)))
            }
        }
    }

    /// The object `key` of the bucket that this S3 location is in; with an empty key, the bucket. None if no location can
    /// spell the key: those with a `.` or `..` between slashes.
    pub(crate) fn at_key(&self, key: &str) -> Option<Location> {
        let Inner::Url(scheme @ Scheme::S3, url) = &self.0 else { return None };
        let parts: Vec<_> =
            key.split('/').map(|part| utf8_percent_encode(part, SEGMENT).to_string()).collect();
        let path = format!("/{}", parts.join("/"));
        let mut url = url.clone();
        url.set_path(&path);
        url.set_query(None);
        (url.path() == path).then_some(Location(Inner::Url(*scheme, url)))
    }

    /// As [`starts_with`](Self::starts_with), for a prefix that a user gave; false if it is not a location.
    pub fn is_under(&self, prefix: &str) -> bool {
        prefix.parse::<Location>().is_ok_and(|prefix| self.starts_with(&prefix))
    }

    /// This location, with a relative local path made absolute against the current directory.
    pub fn absolute(&self) -> Result<Location, Error> {
        let Inner::Path { path, beneath } = &self.0 else { return Ok(self.clone()) };
        let absolute = |path: &Path| {
            std::path::absolute(path).map_err(|error| {
                Error::new(Kind::Io, format!("{self}: the current directory is not known: {error}"))
            })
        };
        let beneath = match beneath {
            Some((directory, name)) => Some((absolute(directory)?, name.clone())),
            None => None,
        };
        Ok(Location(Inner::Path { path: absolute(path)?, beneath }))
    }

    /// The text that parses to this location again, secrets included: not for messages, logs or JSON.
    pub fn secret_form(&self) -> String {
        match &self.0 {
            Inner::Path { path, .. } => path.to_string_lossy().into_owned(),
            Inner::Url(_, url) => url.to_string(),
        }
    }

    /// This location without user, for credentials go by server and path; the user may be what they name.
    pub(crate) fn for_credentials(&self) -> Location {
        let mut location = self.clone();
        if let Inner::Url(_, url) = &mut location.0 {
            // A URL with a host can be without a user.
            let _ = url.set_username("");
        }
        location
    }

    /// Whether this object is `prefix` itself or below it as a directory: same scheme, server, port and user, and
    /// whole path components. False for paths with `..` in them, and for encoded slashes, which a server may take
    /// for real ones.
    pub fn starts_with(&self, prefix: &Location) -> bool {
        match (&self.0, &prefix.0) {
            (Inner::Path { path, .. }, Inner::Path { path: prefix, .. }) => {
                !path.components().any(|part| part == Component::ParentDir) && path.starts_with(prefix)
            }
            (Inner::Url(scheme, url), Inner::Url(prefix_scheme, prefix)) => {
                let lower = url.path().to_ascii_lowercase();
                let prefix_path = prefix.path().trim_end_matches('/');
                scheme == prefix_scheme
                    && url.host() == prefix.host()
                    && url.port_or_known_default() == prefix.port_or_known_default()
                    && url.username() == prefix.username()
                    && !lower.contains("%2f")
                    && !lower.contains("%5c")
                    && url
                        .path()
                        .strip_prefix(prefix_path)
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            _ => false,
        }
    }
}

/// The directory part of `path`, `.` where it has none.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

/// The scheme of `text`, if it starts with one. A colon alone does not make one: file names may have colons.
fn scheme_of(text: &str) -> Option<&str> {
    let scheme = match text.split_once("://") {
        Some((scheme, _)) => scheme,
        None => text.split_once(':').map(|(scheme, _)| scheme).filter(|s| s.eq_ignore_ascii_case("file"))?,
    };
    let ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    ok.then_some(scheme)
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(Kind::Location, message)
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(wrong("an empty location"));
        }
        if text.len() > MAX_LEN {
            return Err(wrong(format!("a location of {} bytes, at most {MAX_LEN} are taken", text.len())));
        }
        let Some(scheme) = scheme_of(text) else {
            if text.contains('\0') {
                return Err(wrong("a path with a NUL character"));
            }
            return Ok(Location::from_path(text));
        };
        if !scheme.eq_ignore_ascii_case("file") && text[scheme.len()..].starts_with(":///") {
            return Err(wrong(format!("a {scheme} location without a host")));
        }
        // The text is not repeated in errors before it is known to hold no password.
        let url = Url::parse(text).map_err(|error| wrong(format!("not a {scheme} location: {error}")))?;
        if url.password().is_some() {
            return Err(wrong(format!(
                "a {scheme} location with a password in it: passwords belong in the credentials file"
            )));
        }
        let scheme = match url.scheme() {
            "file" => {
                let path = url.to_file_path().map_err(|()| wrong(format!("{url}: not a local path")))?;
                if url.query().is_some() || url.fragment().is_some() {
                    return Err(wrong(format!(
                        "{url}: '?' and '#' in a file location must be percent-encoded"
                    )));
                }
                return Ok(Location::from_path(path));
            }
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "s3" => Scheme::S3,
            "nfs" => Scheme::Nfs,
            "smb" => Scheme::Smb,
            other => {
                return Err(wrong(format!(
                    "locations of scheme '{other}' are not known, only file, http, https, s3, nfs and smb"
                )));
            }
        };
        let location = Location(Inner::Url(scheme, url));
        check_url(&location)?;
        Ok(location)
    }
}

/// What a parsed URL must still fulfil.
fn check_url(location: &Location) -> Result<(), Error> {
    let Inner::Url(scheme, url) = &location.0 else { return Ok(()) };
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong(format!("{location}: no host")));
    }
    if url.fragment().is_some() {
        return Err(wrong(format!("{location}: a '#' must be percent-encoded")));
    }
    match scheme {
        Scheme::Nfs | Scheme::Smb if url.query().is_some() => {
            Err(wrong(format!("{location}: a '?' must be percent-encoded")))
        }
        Scheme::S3 if !only_version(url) => {
            Err(wrong(format!("{location}: the only query an s3 location may have is versionId")))
        }
        _ => Ok(()),
    }
}

/// Whether the query, if any, says nothing but an S3 version, which is no secret.
fn only_version(url: &Url) -> bool {
    url.query_pairs().all(|(name, _)| name == "versionId")
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Path { path, .. } => path.to_string_lossy().chars().try_for_each(|c| {
                if c.is_control() { write!(f, "{}", c.escape_default()) } else { f.write_char(c) }
            }),
            Inner::Url(scheme, url)
                if url.query().is_some() && !(*scheme == Scheme::S3 && only_version(url)) =>
            {
                let mut shown = url.clone();
                shown.set_query(None);
                shown.set_fragment(None);
                write!(f, "{shown}?…")
            }
            Inner::Url(_, url) => write!(f, "{url}"),
        }
    }
}

impl fmt::Debug for Inner {
    /// Derived code would show the query.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Location(self.clone()))
    }
}

#[cfg(test)]
mod tests;
