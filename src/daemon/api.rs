//! What goes over the control socket, as JSON.

use crate::export::{Progress, Waiting};
use serde::{Deserialize, Serialize};

/// `POST /v1/attachments`: make an image a kernel device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// The image.
    pub location: String,
    /// What the asker calls it. A second request with the same key answers with the device of the first.
    pub key: String,
    /// The image's format; absent: probe.
    #[serde(default)]
    pub format: Option<String>,
    /// The internal snapshot to read; absent: the active disk.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// The file of an archive that is the image; absent: the only one that is named like a disk.
    #[serde(default)]
    pub member: Option<String>,
    /// Location prefixes that the image may refer to beyond its own directory.
    #[serde(default)]
    pub allow_reference: Vec<String>,
    /// The identity the image must have ([`crate::image::Image::pin`]); absent: any.
    #[serde(default)]
    pub pin: Option<String>,
    /// Number of the nbd device to use; absent: one that is free.
    #[serde(default)]
    pub index: Option<u32>,
    /// Whether servers are asked for the version of objects, too, that the cache has all of.
    #[serde(default)]
    pub revalidate: bool,
    /// For how many seconds reads wait for a server that is away before they end in EIO; absent: what the server was
    /// started with.
    #[serde(default)]
    pub patience: Option<u64>,
}

/// An image that is a kernel device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// What the asker calls it.
    pub key: String,
    /// The device: `/dev/nbd0`.
    pub device: String,
    /// Its number.
    pub index: u32,
    /// The image, without secrets.
    pub location: String,
    /// The image's format.
    pub format: String,
    /// The identity of every file the disk is made of.
    pub pin: String,
    /// Size of the virtual disk in bytes. The device is this size, rounded up to whole sectors of 512 bytes.
    pub size: u64,
    /// Whether reads are answered. False after a restart while the image cannot be opened: reads wait.
    pub serving: bool,
    /// How much of it is local; absent where that cannot be said at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The reads that wait; absent where none does, or it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Since when reads that nothing local answers fail or wait in vain, in RFC 3339; absent if the last of them was
    /// answered, or it was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_since: Option<String>,
}

/// What an image that is a kernel device holds, and how much of that is local.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes of the disk that are not known to be zero.
    pub stored: u64,
    /// How many of them can be read without asking a server.
    pub local: u64,
    /// Where they are: start and length of ranges in bytes, in order, rounded outwards to 64 KiB and merged.
    pub ranges: Vec<(u64, u64)>,
}

/// An image that is exported under a name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    /// Its name.
    pub name: String,
    /// The image, without secrets.
    pub location: String,
    /// Whether it was opened yet: `--lazy` waits until somebody asks for it.
    pub open: bool,
    /// The image's format; absent before it is open, as is what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Size of the virtual disk in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// How much of it is local; absent where that cannot be said at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// The reads that wait; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
}

/// An error as it goes over the socket.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Problem {
    /// One sentence.
    pub(super) error: String,
    /// Whether nothing was changed because the state differs from what was asked.
    pub(super) refused: bool,
}

/// `GET /v1/health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Health {
    pub(super) version: String,
    pub(super) pid: u32,
    pub(super) exports: Vec<String>,
    pub(super) attached: usize,
}
