//! The port every server kind implements.

use crate::credentials::Credentials;
use crate::http::{Circuits, Clients, HttpSource};
use crate::retry::Policy;
use crate::{Error, Kind, Location, Scheme, file::FileSource};
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

/// How to open sources. Clones share connections, so a process makes one and clones it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub(crate) clients: Clients,
    pub(crate) circuits: Circuits,
    pub(crate) policy: Policy,
    pub(crate) credentials: Credentials,
    pub(crate) known: bool,
    pub(crate) ends: bool,
}

impl Options {
    /// How long and how often reads are tried.
    pub fn with_policy(mut self, policy: Policy) -> Options {
        self.policy = policy;
        self
    }

    /// Objects that are opened were read before, and what it took to find out what they are is at hand: nothing of them
    /// is fetched in advance.
    pub fn with_known(mut self, known: bool) -> Options {
        self.known = known;
        self
    }

    /// Objects that are opened will be read at their ends as well, as images are, which may have a footer: where that saves
    /// a round trip, the last bytes are fetched beside the first. Not those of objects that are known.
    pub fn with_ends(mut self, ends: bool) -> Options {
        self.ends = ends;
        self
    }

    /// What servers are shown.
    pub fn with_credentials(mut self, credentials: Credentials) -> Options {
        self.credentials = credentials;
        self
    }
}

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
    /// An object on an HTTP or S3 server.
    Http(Box<HttpSource>),
    /// An object whose server cannot be reached, known from the cache.
    Away(Box<crate::AwaySource>),
    /// A file on an NFS server.
    #[cfg(feature = "nfs")]
    Nfs(Box<crate::nfs::NfsSource>),
    /// A file on an SMB server.
    #[cfg(feature = "smb")]
    Smb(Box<crate::smb::SmbSource>),
}

impl AnySource {
    /// Whether the object is still the one that was opened, as far as can be said without waiting: a local file is
    /// examined, for others it is what their last answers said. [`Kind::Changed`] is final.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            AnySource::File(source) => source.check(),
            AnySource::Http(source) => source.check(),
            AnySource::Away(source) => source.check(),
            #[cfg(feature = "nfs")]
            AnySource::Nfs(source) => source.check(),
            #[cfg(feature = "smb")]
            AnySource::Smb(source) => source.check(),
        }
    }

    /// As [`check`](Self::check), but for a local file only as often as
    /// [`FileSource::check_now_and_then`] does.
    pub fn check_now_and_then(&self) -> Result<(), Error> {
        match self {
            AnySource::File(source) => source.check_now_and_then(),
            other => other.check(),
        }
    }

    /// How many bytes from the first on can be read without asking a server, for a moment, because opening brought them along.
    pub fn at_hand(&self) -> u64 {
        match self {
            AnySource::Http(source) => source.at_hand(),
            _ => 0,
        }
    }

    /// Lets go of the memory of what opening brought along, but for the first `len` bytes.
    pub fn keep_at_hand(&self, len: u64) {
        if let AnySource::Http(source) = self {
            source.keep_at_hand(len);
        }
    }
}

impl Source for AnySource {
    fn identity(&self) -> &Identity {
        match self {
            AnySource::File(source) => source.identity(),
            AnySource::Http(source) => source.identity(),
            AnySource::Away(source) => source.identity(),
            #[cfg(feature = "nfs")]
            AnySource::Nfs(source) => source.identity(),
            #[cfg(feature = "smb")]
            AnySource::Smb(source) => source.identity(),
        }
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        match self {
            AnySource::File(source) => source.read(range).await,
            AnySource::Http(source) => source.read(range).await,
            AnySource::Away(source) => source.read(range).await,
            #[cfg(feature = "nfs")]
            AnySource::Nfs(source) => source.read(range).await,
            #[cfg(feature = "smb")]
            AnySource::Smb(source) => source.read(range).await,
        }
    }
}

/// Opens the object at `location` and pins its identity.
pub async fn open(location: &Location, options: &Options) -> Result<AnySource, Error> {
    match location.scheme() {
        Scheme::File => Ok(AnySource::File(FileSource::open(location).await?)),
        Scheme::Http | Scheme::Https => {
            Ok(AnySource::Http(Box::new(HttpSource::open(location, options).await?)))
        }
        #[cfg(feature = "s3")]
        Scheme::S3 => Ok(AnySource::Http(Box::new(HttpSource::open(location, options).await?))),
        #[cfg(feature = "nfs")]
        Scheme::Nfs => Ok(AnySource::Nfs(Box::new(crate::nfs::NfsSource::open(location, options).await?))),
        #[cfg(feature = "smb")]
        Scheme::Smb => Ok(AnySource::Smb(Box::new(crate::smb::SmbSource::open(location, options).await?))),
        #[cfg(not(all(feature = "s3", feature = "nfs", feature = "smb")))]
        other => {
            let name = format!("{other:?}").to_lowercase();
            Err(Error::new(Kind::Unsupported, format!("{location}: this build cannot read {name} locations")))
        }
    }
}

/// The length of `range`, if it lies in the object.
pub(crate) fn checked_len(identity: &Identity, range: &Range<u64>) -> Result<usize, Error> {
    let len = range.end.checked_sub(range.start).filter(|_| range.end <= identity.size);
    len.and_then(|len| usize::try_from(len).ok()).ok_or_else(|| {
        Error::new(
            Kind::Range,
            format!(
                "{}: bytes {:#x} to {:#x} are not in an object of {} bytes",
                identity.location, range.start, range.end, identity.size
            ),
        )
    })
}
