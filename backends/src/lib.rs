//! Where image bytes come from: sources by URI, and the block cache that keeps what was read on a local disk.
//!
//! A [`Source`] promises exact reads of an object that does not change: every read is checked against the identity
//! pinned when the source was opened, and a changed object is an error for good, never mixed bytes. [`cache`] keeps
//! blocks in sparse files named by that identity, so what was fetched once is served from the local disk.
//!
//! This crate knows nothing of image formats, NBD or storage repositories.

pub mod cache;
mod error;
mod file;
mod location;
mod source;

pub use error::{Error, Kind};
pub use location::Location;
pub use source::{AnySource, Identity, Options, Source, open};
