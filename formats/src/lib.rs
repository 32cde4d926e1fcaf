//! Parsers for virtual disk images: raw, qcow, qcow2, vhd, vhdx, vmdk. No I/O, no async, no `unsafe`.
//!
//! # The two-level model
//!
//! Every supported format keeps its map of the disk in two levels: a small *root* table that is read when the
//! image is opened (qcow2's L1 table, vhd's block allocation table, vmdk's grain directory) and *leaf* tables that
//! are read when an offset under them is first asked for (L2 tables, sector bitmaps, grain tables). A parser is
//! therefore three functions, and none of them reads anything:
//!
//! * *open* ([`Opening`]): says which bytes and which other files it needs until it can answer;
//! * *locate* ([`Layer::locate`]): an offset in the virtual disk becomes a [`Run`], or "read this leaf table";
//! * *decode* ([`Layer::decode`]): the bytes of a leaf table become sorted, coalesced [`Runs`].
//!
//! After `decode` all formats are the same: a binary search over runs. [`Chain`] walks an image and its parents on
//! top of that. Byte order, flags and file offsets exist only inside the format modules.
//!
//! # What callers may rely on
//!
//! Images are hostile. No input makes this crate panic, loop without progress, or allocate more than a constant
//! named in [`limits`]. Names of other files that an image contains are returned to the caller and never acted on.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::panic
    )
)]

mod chain;
pub mod container;
mod error;
mod fields;
pub mod inflate;
mod known;
mod layer;
pub mod limits;
pub mod memory;
mod open;
mod probe;
mod qcow;
mod qcow2;
mod raw;
mod runs;
mod vhd;
mod vhdx;
mod vmdk;

pub use chain::{Chain, Extent, Kind, Resolved, TableCache};
pub use error::{FormatError, Label, Result};
pub use inflate::Inflater;
pub use layer::{Info, Layer, Located, TableRef};
pub use open::{Ask, Format, Opened, Opening, Options, ParentCheck, ParentRef, Progress, Role};
pub use runs::{Codec, Damage, FileIndex, Mapping, Run, Runs, Unit};
