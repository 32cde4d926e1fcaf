//! The port through which templates become block devices.
//!
//! The controller knows a template as a location and an identity that must not change. Opening the location, serving
//! it and handing it to the kernel are somebody else's work: whoever implements [`Origins`].

use crate::{Extent, Outcome};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::SystemTime;
use uuid::Uuid;

/// What the header of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Size of the virtual disk, in bytes.
    pub virtual_size: u64,
    /// The image format, as `qcow2`.
    pub format: String,
    /// What pins this very version of the image; compared, never interpreted.
    pub identity: String,
    /// The location in its canonical form, without secrets.
    pub location: String,
}

/// A template's image as it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned<'a> {
    /// Where it is.
    pub location: &'a str,
    /// What pins its version.
    pub identity: &'a str,
    /// For how many seconds reads wait for its server while that is away; as the server has it if not given.
    pub patience: Option<u64>,
}

/// A template as a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginDevice {
    /// The device node, as `/dev/nbd0`.
    pub path: PathBuf,
    /// Size of the device, in bytes.
    pub size: u64,
}

/// What a template holds, and how much of that is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The parts that are not known to be zeros, by offset, rounded outwards to 64 KiB and merged.
    pub data: Vec<Range<u64>>,
    /// Bytes that are not known to be zeros.
    pub stored: u64,
    /// How many of them can be read without asking a server.
    pub local: u64,
}

/// Why a template could not be opened, in a sentence.
#[derive(Debug)]
pub struct OriginError {
    /// What happened, without secrets.
    pub message: String,
}

impl OriginError {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OriginError {}

/// How a template's block device does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginHealth {
    /// Whether it answers reads, or did when it was last asked for something that is not local.
    pub answers: bool,
    /// When it began not to answer.
    pub silent_since: Option<SystemTime>,
    /// Bytes of the image that are not known to be zero; `None` where that cannot be said now.
    pub data: Option<u64>,
    /// How many of them can be read while its server is away; `None` where that cannot be said now.
    pub local: Option<u64>,
}

impl OriginHealth {
    /// How much of the data is local, in percent, rounded down: all is local at 100 only.
    pub fn local_percent(self) -> Option<u64> {
        let (data, local) = (self.data?, self.local?);
        let percent = (u128::from(local) * 100).checked_div(data.into()).unwrap_or(100);
        Some(percent.min(100) as u64)
    }
}

/// Makes templates block devices.
///
/// Every method is idempotent: after a crash it is called again with the same arguments.
pub trait Origins {
    /// Opens the location and reads the image's header.
    ///
    /// # Errors
    /// The location cannot be read or holds no image that is known.
    fn probe(&mut self, location: &str) -> Result<Probed, OriginError>;

    /// What the image holds, from 0 to its end without gaps, with depth 0 for the image itself. Reads its tables and
    /// no data.
    ///
    /// # Errors
    /// The location cannot be opened or its tables not be read, or what is there now has another identity.
    fn extents(&mut self, location: &str, identity: &str) -> Result<Vec<Extent>, OriginError>;

    /// Makes the template a block device, or finds the one that it already is.
    ///
    /// # Errors
    /// The location cannot be opened, or what is there now has another identity.
    fn attach(&mut self, template: Uuid, image: Pinned<'_>) -> Result<OriginDevice, OriginError>;

    /// Takes the template's block device away, if there is one.
    ///
    /// # Errors
    /// The device is open or the daemon cannot be asked.
    fn detach(&mut self, template: Uuid) -> Result<Outcome, OriginError>;

    /// What a template that is a block device holds. Reads the image's tables, which may mean asking its server.
    ///
    /// # Errors
    /// It is no block device, or its tables cannot be read.
    fn content(&mut self, template: Uuid) -> Result<Content, OriginError>;

    /// Every template that is a block device now.
    ///
    /// # Errors
    /// The daemon cannot be asked. That none runs is no error: then nothing is attached.
    fn attached(&mut self) -> Result<Vec<(Uuid, OriginDevice)>, OriginError>;

    /// How every template that is a block device does. May ask more of the daemon than [`attached`](Self::attached),
    /// and takes seconds at most.
    ///
    /// # Errors
    /// As [`attached`](Self::attached).
    fn health(&mut self) -> Result<Vec<(Uuid, OriginHealth)>, OriginError> {
        let answers = OriginHealth { answers: true, ..OriginHealth::default() };
        Ok(self.attached()?.into_iter().map(|(template, _)| (template, answers)).collect())
    }

    /// The location in the form that [`probe`](Self::probe) gives it, or as it is if it is none.
    fn canonical(&mut self, location: &str) -> String {
        location.to_owned()
    }
}
