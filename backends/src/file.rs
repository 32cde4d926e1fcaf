//! Local files and block devices.

use crate::{Error, Identity, Kind, Location, Source};
use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// A local file or block device, opened for reading.
#[derive(Debug)]
pub struct FileSource {
    file: Arc<File>,
    identity: Identity,
}

impl FileSource {
    /// Opens the file at `location`.
    pub async fn open(location: &Location) -> Result<Self, Error> {
        Err(Error::new(Kind::Unsupported, format!("{location}: not a local file")))
    }

    /// The open file, so that a server can send from it without copying.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }
}

impl Source for FileSource {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, _range: Range<u64>) -> Result<Bytes, Error> {
        Err(Error::new(Kind::Io, "unread"))
    }
}
