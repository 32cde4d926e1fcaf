//! Opening an image: a conversation in which the parser asks and the caller reads.
//!
//! A format's opener is a plain function over what is known so far. Where it needs bytes that are not known yet, it
//! stops and the need is handed to the caller; once supplied, the function runs again from the start and gets
//! further. Openers need few steps, so running again costs less than keeping state, and there is no state to get
//! wrong.

use crate::known::Known;
use crate::{FileIndex, FormatError, Layer, Result, probe};
use std::fmt;
use std::sync::Arc;

/// An image format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// No format: the file is the disk.
    Raw,
    /// qcow, the version 1 of qcow2.
    Qcow,
    /// qcow2, versions 2 and 3.
    Qcow2,
    /// Microsoft's Virtual Hard Disk 1.0.
    Vhd,
    /// VMware's virtual disk.
    Vmdk,
    /// Microsoft's VHDX.
    Vhdx,
}

impl Format {
    /// The format's name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow => "qcow",
            Format::Qcow2 => "qcow2",
            Format::Vhd => "vhd",
            Format::Vmdk => "vmdk",
            Format::Vhdx => "vhdx",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = FormatError;

    /// Reads what [`Display`](fmt::Display) writes.
    fn from_str(name: &str) -> Result<Self> {
        let all = [Format::Raw, Format::Qcow, Format::Qcow2, Format::Vhd, Format::Vmdk, Format::Vhdx];
        all.into_iter().find(|format| format.name() == name).ok_or(FormatError::UnknownName)
    }
}

/// Why an image needs another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A vmdk extent.
    Extent,
    /// A qcow2 external data file.
    DataFile,
    /// The parent (backing file) of a layer.
    Parent,
    /// The index that belongs to a compressed file.
    Index,
}

/// How the caller wants an image read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Read as this format; `None` probes. Probing an image that a guest can write as raw lets the guest choose the
    /// format: give the format wherever it is known.
    pub format: Option<Format>,
    /// Read this internal snapshot instead of the active disk, by its name or its id (qcow2).
    pub snapshot: Option<String>,
}

/// What the parser needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Bytes `at..at + len` of `file`, fewer only where the file ends. `len` is at most
    /// [`crate::limits::ROOT_BYTES`].
    Bytes {
        /// Which file.
        file: FileIndex,
        /// First byte.
        at: u64,
        /// How many.
        len: u32,
    },
    /// Another file, by a name that stands in the image. It becomes `index` once supplied. The name is hostile:
    /// the caller decides what it may reach.
    File {
        /// The name as it stands in the image, decoded to text.
        name: String,
        /// What it is for.
        role: Role,
        /// The index it will have.
        index: FileIndex,
    },
}

/// What a layer knows of the parent it was made from, to be compared with [`Opened::content_id`] of the parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentCheck {
    /// Nothing is recorded (qcow2).
    None,
    /// The parent's [`Opened::content_id`] must be this.
    Id([u8; 16]),
}

/// The parent of a layer as the image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentRef {
    /// Names to try, best first; relative to the directory of the image.
    pub names: Vec<String>,
    /// The parent's format where the image says it. `None`: the format does not record one, and the caller
    /// decides whether it may be probed.
    pub format: Option<Format>,
    /// How to tell that a file found by name is the right one.
    pub check: ParentCheck,
}

/// An opened layer.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The map.
    pub layer: Arc<dyn Layer>,
    /// The parent it needs, if any.
    pub parent: Option<ParentRef>,
    /// What a child's [`ParentCheck::Id`] is compared with; `None` where the format records nothing.
    pub content_id: Option<[u8; 16]>,
}

/// The answer of [`Opening::poll`].
#[derive(Debug)]
pub enum Progress {
    /// Something is needed: supply it and poll again.
    Need(Ask),
    /// The image is open.
    Done(Opened),
}

/// An image being opened. Poll, do what is asked, supply, poll again.
#[derive(Debug)]
pub struct Opening {
    known: Known,
    options: Options,
}

impl Opening {
    /// Begins with file 0, which is `file_len` bytes long.
    pub fn new(file_len: u64, options: Options) -> Self {
        Opening { known: Known::new(file_len), options }
    }

    /// Runs as far as what is known allows. An error is final.
    pub fn poll(&mut self) -> Result<Progress> {
        Ok(match self.known.run(|view| probe::open(view, &self.options))? {
            Ok(opened) => Progress::Done(opened),
            Err(ask) => Progress::Need(ask),
        })
    }

    /// Answers the last [`Ask::Bytes`]. Shorter than asked only where the file ends. Does nothing if something else
    /// was asked.
    pub fn supply_bytes(&mut self, bytes: Vec<u8>) {
        self.known.supply_bytes(bytes);
    }

    /// Answers the last [`Ask::File`]: the file is open and `len` bytes long. Does nothing if something else was
    /// asked.
    pub fn supply_file(&mut self, len: u64) {
        self.known.supply_file(len);
    }
}
