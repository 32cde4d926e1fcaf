//! Where image bytes come from: sources by URI, and the block cache that keeps what was read on a local disk.
//!
//! A [`Source`] promises exact reads of an object that does not change: every read is checked against the identity
//! pinned when the source was opened, and a changed object is an error for good, never mixed bytes. [`cache`] keeps
//! blocks in sparse files named by that identity, so what was fetched once is served from the local disk.
//!
//! This crate knows nothing of image formats, NBD or storage repositories.

mod away;
mod buffer;
pub mod cache;
mod credentials;
mod error;
mod file;
mod http;
mod location;
#[cfg(feature = "nfs")]
mod nfs;
#[cfg(any(feature = "nfs", feature = "smb"))]
mod parts;
pub mod retry;
#[cfg(feature = "smb")]
mod smb;
mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tries;

pub use away::AwaySource;
pub use buffer::Buffer;
pub use credentials::{CREDENTIALS_FILE, Credentials};
pub use error::{Error, Kind};
pub use file::FileSource;
#[cfg(feature = "s3")]
pub use http::{Entry, list};
pub use http::{HttpSource, install_crypto};
pub use location::{Location, Scheme};
#[cfg(feature = "nfs")]
pub use nfs::NfsSource;
#[cfg(feature = "smb")]
pub use smb::SmbSource;
pub use source::{AnySource, Identity, Options, Source, open};
