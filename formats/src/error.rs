//! The one error type of the parsers: `Copy`, so that hostile images cost no allocations.

use crate::{Damage, Format};
use std::fmt;

/// Why an image, or a part of it, cannot be read.
///
/// Fields called `what` name a structure of the format in the words of its specification; `rule` ends the sentence
/// and says what would have been right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A word that names no format.
    #[error("there is no format of that name: known are raw, qcow, qcow2, vhd, vmdk and vhdx")]
    UnknownName,
    /// Two formats' signatures are in the file, and only the caller can know which one is meant.
    #[error("the file could be {first} and could be {second}: name the format to read it")]
    Ambiguous {
        /// One reading.
        first: &'static str,
        /// The other one.
        second: &'static str,
    },
    /// The file has a format that this crate knows by name and does not read.
    #[error("the file is {what}, which is not read: {way_out}")]
    Foreign {
        /// Article and name.
        what: &'static str,
        /// What a person can do.
        way_out: &'static str,
    },
    /// The file was to be read as `format` and does not have its signature.
    #[error("the file is not a {format} image: it has no {format} signature")]
    Signature {
        /// The format that was named.
        format: Format,
    },
    /// A structure reaches past the end of its file.
    #[error("the {what} at {at:#x} needs {len:#x} bytes, but its file ends at {file_len:#x}")]
    Truncated {
        /// The structure.
        what: &'static str,
        /// Its file offset.
        at: u64,
        /// Its length in bytes.
        len: u64,
        /// The file's length in bytes.
        file_len: u64,
    },
    /// A field holds a value that the format does not allow, or that this crate does not read.
    #[error("{what} is {value:#x}: {rule}")]
    Field {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A structure is larger than is read into memory.
    #[error("{what} is {value} bytes, more than the {limit} that are read")]
    TooLarge {
        /// The structure.
        what: &'static str,
        /// Its size in bytes.
        value: u64,
        /// The cap in bytes.
        limit: u64,
    },
    /// There are more of something than are read.
    #[error("there are more than {limit} {what}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many are read.
        limit: u64,
    },
    /// A checksum does not match.
    #[error("the checksum of the {what} at {at:#x} is wrong")]
    Checksum {
        /// The structure.
        what: &'static str,
        /// Its file offset.
        at: u64,
    },
    /// Something about the image makes reading it impossible or unsafe.
    #[error("{what}: {rule}")]
    Refused {
        /// The structure.
        what: &'static str,
        /// Why.
        rule: &'static str,
    },
    /// A qcow2 incompatible feature that is not known.
    #[error("the image needs incompatible feature bit {bit} ({name}), which is not known")]
    Feature {
        /// Number of the bit.
        bit: u32,
        /// What the image calls it.
        name: Label,
    },
    /// The image is readable, but not at this offset.
    #[error("guest offset {at:#x} cannot be read: {damage}")]
    Damaged {
        /// The guest offset.
        at: u64,
        /// What is wrong there.
        damage: Damage,
    },
    /// A compressed unit does not decode to what it should.
    #[error("compressed data cannot be decoded: {rule}")]
    Compressed {
        /// What is wrong with it.
        rule: &'static str,
    },
    /// A chain without layers, or with too many.
    #[error("a chain has 1 to {limit} layers, not {depth}")]
    ChainDepth {
        /// How many there are.
        depth: usize,
        /// How many there may be.
        limit: usize,
    },
    /// A guest offset outside the virtual disk, or a table that does not belong to the layer.
    #[error("guest offset {at:#x} is not inside the disk or table that was asked")]
    Outside {
        /// The offset.
        at: u64,
    },
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, FormatError>;

/// A short name out of an image, cut and made printable so that it can stand in a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Label {
    bytes: [u8; Label::MAX],
    len: u8,
}

impl Label {
    /// Longest label in bytes: the width of a name in qcow2's feature name table.
    pub const MAX: usize = 46;

    /// The printable ASCII of `bytes` up to the first NUL; anything else becomes `?`.
    pub fn new(bytes: &[u8]) -> Self {
        let mut label = Label { bytes: [0; Label::MAX], len: 0 };
        for (slot, &byte) in label.bytes.iter_mut().zip(bytes.iter().take_while(|&&byte| byte != 0)) {
            *slot = if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'?' };
            label.len = label.len.saturating_add(1);
        }
        label
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        f.write_str(std::str::from_utf8(bytes).unwrap_or_default())
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}
