//! Files around images: archives (tar, and so OVA) and whole-file compression (gzip, xz, Zstandard).
//!
//! A container says where in a file the bytes of another one are: in place, as a member of an archive, or in blocks
//! that are decoded one by one. The inner file is then opened as any file is, whatever its format. A compressed file
//! is taken only where a byte of it can be had without decoding everything in front of it, or where all of it is at
//! most [`limits::BLOCK_BYTES`].

mod decode;
mod gzip;
mod tar;
mod xz;
mod zst;

use crate::known::{Known, Step, View};
use crate::probe::{HEAD, IMAGE};
use crate::{Ask, Result, limits, vhd};
use std::fmt;
pub use tar::{Archive, Member, PickError};

/// What a file turned out to be.
#[derive(Debug)]
pub enum Container {
    /// No container: the file is the image.
    None,
    /// An archive. [`Archive::pick`] says which member is meant.
    Archive(Archive),
    /// One file, compressed.
    Packed(Packed),
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip members (RFC 1952), one to a block, as bgzip writes them.
    Gzip,
    /// Blocks of xz streams, all with these stream flags (The .xz File Format 1.2, 2.1.1.2).
    Xz {
        /// The flags, which say what check ends each block.
        flags: [u8; 2],
    },
    /// Zstandard frames (RFC 8878).
    Zstd,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Packing::Gzip => "gzip",
            Packing::Xz { .. } => "xz",
            Packing::Zstd => "zstd",
        })
    }
}

/// A part of a compressed file that is decoded by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Where its stored bytes begin in the file.
    pub at: u64,
    /// How many stored bytes there are.
    pub len: u32,
    /// The offset, in the decoded file, of its first byte.
    pub start: u64,
    /// How many bytes it decodes to, at least 1.
    pub decoded: u32,
    note: Note,
}

/// What else an index says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Note {
    /// Nothing.
    None,
    /// The low half of the XXH64 of the decoded bytes.
    Check(u32),
    /// How many of the stored bytes are padding (The .xz File Format 1.2, 3.3).
    Padding(u8),
}

/// A compressed file of which every block can be found.
#[derive(Debug)]
pub struct Packed {
    packing: Packing,
    blocks: Vec<Block>,
}

impl Packed {
    /// How it is compressed.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Length of the decoded file in bytes.
    pub fn len(&self) -> u64 {
        self.blocks.last().map_or(0, |last| last.start.saturating_add(last.decoded.into()))
    }

    /// Whether the decoded file is empty.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The decoded size of the largest block in bytes.
    pub fn largest(&self) -> u32 {
        self.blocks.iter().map(|block| block.decoded).max().unwrap_or(0)
    }

    /// The block that holds byte `at` of the decoded file, and its number; `None` past the end.
    pub fn find(&self, at: u64) -> Option<(usize, Block)> {
        let index = self.blocks.partition_point(|block| block.start <= at).checked_sub(1)?;
        let block = *self.blocks.get(index)?;
        (at < block.start.saturating_add(block.decoded.into())).then_some((index, block))
    }

    /// Decodes `block`, of which `stored` are the stored bytes. The result has the block's length and has passed
    /// every checksum there is; anything else is an error. Takes as much memory as the block has bytes, and a
    /// dictionary no larger than [`limits::BLOCK_BYTES`].
    pub fn decode(&self, block: &Block, stored: &[u8]) -> Result<Vec<u8>> {
        decode::block(self.packing, block, stored)
    }
}

/// Blocks in the making: contiguous, not empty, and bounded.
#[derive(Default)]
struct Blocks(Vec<Block>);

impl Blocks {
    /// Appends a block; one that decodes to nothing is left out.
    fn push(&mut self, at: u64, len: u64, decoded: u64, note: Note) -> Result<()> {
        let limit = limits::BLOCK_BYTES.into();
        let too_large = |what, value| crate::FormatError::TooLarge { what, value, limit };
        let stored = u32::try_from(len).ok().filter(|&len| len <= limits::BLOCK_BYTES);
        let stored = stored.ok_or_else(|| too_large("a compressed block of the file", len))?;
        let clear = u32::try_from(decoded).ok().filter(|&decoded| decoded <= limits::BLOCK_BYTES);
        let clear = clear.ok_or_else(|| too_large("a block of the file, unpacked,", decoded))?;
        let start = self.0.last().map_or(0, |last| last.start.saturating_add(last.decoded.into()));
        if clear > 0 {
            self.0.push(Block { at, len: stored, start, decoded: clear, note });
        }
        Ok(())
    }
}

/// A file being looked at. Poll, do what is asked, supply, poll again, as with [`Opening`](crate::Opening).
#[derive(Debug)]
pub struct Unpacking {
    known: Known,
    name: String,
}

/// The answer of [`Unpacking::poll`].
#[derive(Debug)]
pub enum Look {
    /// Something is needed: supply it and poll again.
    Need(Ask),
    /// This is what the file is.
    Done(Container),
}

impl Unpacking {
    /// Begins with file 0, which is called `name` and is `file_len` bytes long. The name serves to find an index
    /// beside the file.
    pub fn new(file_len: u64, name: &str) -> Self {
        Unpacking { known: Known::new(file_len), name: name.to_owned() }
    }

    /// Runs as far as what is known allows. An error is final.
    pub fn poll(&mut self) -> Result<Look> {
        Ok(match self.known.run(|view| look(view, &self.name))? {
            Ok(container) => Look::Done(container),
            Err(ask) => Look::Need(ask),
        })
    }

    /// Answers the last [`Ask::Bytes`]. Shorter than asked only where the file ends.
    pub fn supply_bytes(&mut self, bytes: Vec<u8>) {
        self.known.supply_bytes(bytes);
    }

    /// Answers the last [`Ask::File`]: the file is open and `len` bytes long.
    pub fn supply_file(&mut self, len: u64) {
        self.known.supply_file(len);
    }
}

fn look(view: View<'_>, name: &str) -> Step<Container> {
    let head = view.upto(IMAGE, 0, HEAD)?;
    let is = |magic: &[u8]| head.starts_with(magic);
    let archive = tar::is_header(head);
    if !archive && !is(gzip::MAGIC) && !is(xz::MAGIC) && !is(zst::MAGIC) {
        return Ok(Container::None);
    }
    // A fixed vhd begins with what its guest wrote: that both are possible is said by the probe for formats.
    if !matches!(vhd::probe(view)?, vhd::Signature::None) {
        return Ok(Container::None);
    }
    if archive {
        return Ok(Container::Archive(tar::read(view)?));
    }
    let (packing, blocks) = if is(gzip::MAGIC) {
        (Packing::Gzip, gzip::blocks(view, name)?)
    } else if is(xz::MAGIC) {
        let (flags, blocks) = xz::blocks(view)?;
        (Packing::Xz { flags }, blocks)
    } else {
        (Packing::Zstd, zst::blocks(view)?)
    };
    Ok(Container::Packed(Packed { packing, blocks: blocks.0 }))
}
