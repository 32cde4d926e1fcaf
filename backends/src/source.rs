//! The port every server kind implements.

use crate::{Error, Location, file::FileSource};
use bytes::Bytes;
use std::ops::Range;

/// Which object, and which content of it. Two sources with equal identities hold the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The location without secrets, in canonical form.
    pub location: String,
    /// Size in bytes.
    pub size: u64,
    /// What tells one content from another: `etag:…`, `version:…`, `mtime:…`; empty if the server offers nothing,
    /// in which case nothing may be kept across opens.
    pub validator: String,
}

/// How to open a source.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Options {}

/// A readable object of fixed size and content.
pub trait Source: Send + Sync + 'static {
    /// What was pinned at open.
    fn identity(&self) -> &Identity;

    /// Size in bytes.
    fn len(&self) -> u64 {
        self.identity().size
    }

    /// Whether there is nothing in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Exactly the bytes of `range`, or an error: never fewer, never those of another version. Retries inside a
    /// bounded time. Dropping the future abandons the request. A range past the end is [`crate::Kind::Range`].
    fn read(&self, range: Range<u64>) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

/// Any of the kinds this crate knows.
#[derive(Debug)]
#[non_exhaustive]
pub enum AnySource {
    /// A local file or block device.
    File(FileSource),
}

impl Source for AnySource {
    fn identity(&self) -> &Identity {
        match self {
            AnySource::File(source) => source.identity(),
        }
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        match self {
            AnySource::File(source) => source.read(range).await,
        }
    }
}

/// Opens the object at `location` and pins its identity.
pub async fn open(location: &Location, _options: &Options) -> Result<AnySource, Error> {
    Ok(AnySource::File(FileSource::open(location).await?))
}
