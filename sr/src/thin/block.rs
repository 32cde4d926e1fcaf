//! Blocks of a metadata device, and its superblock.
//!
//! Every block begins with its checksum: CRC-32C of what follows, without the final inversion, xor a number that says
//! what kind of block it is (Linux, persistent-data/dm-block-manager.c, `dm_bm_checksum`). Numbers are little-endian.

use crate::dm::SECTOR;
use crate::error::{Error, Result};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a metadata block.
pub(super) const LEN: usize = 4096;

const SUPERBLOCK_SALT: u32 = 160_774;
const MAGIC: u64 = 27_022_010;
/// Versions of the metadata that are read: 1 and 2 are laid out alike.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;

/// A block in memory, aligned as direct I/O wants it.
#[repr(align(4096))]
pub(super) struct Block(pub(super) [u8; LEN]);

impl Block {
    pub(super) fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn long(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    /// Whether the block is what `salt` says, and the one that belongs at `number`.
    fn is(&self, salt: u32, number: u64) -> bool {
        self.word(0) == !crc32c::crc32c(&self.0[4..]) ^ salt && self.long(8) == number
    }
}

/// What the superblock says (Linux, dm-thin-metadata.c, `struct thin_disk_superblock`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    /// The checksum: another one is another commit.
    sum: u32,
    /// The root of the mappings: by device id, then by block.
    pub(super) mappings: u64,
    /// The root of what is known of each device.
    pub(super) details: u64,
    /// The pool's block size, in bytes.
    pub(super) chunk: u64,
    transaction_id: u64,
    time: u32,
}

/// A metadata device.
#[derive(Debug)]
pub(super) struct Blocks {
    file: File,
    path: PathBuf,
}

impl Blocks {
    /// Opens the device for direct I/O: the kernel writes it beneath the page cache, which would go on showing what it
    /// had read once.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let open = |flags| rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | flags, 0.into());
        let file = match open(OFlags::DIRECT) {
            // A file on a file system without direct I/O, which has no other way to it either.
            Err(Errno::INVAL) => open(OFlags::empty()),
            other => other,
        };
        match file {
            Ok(file) => Ok(Self { file: file.into(), path: path.into() }),
            Err(e) => {
                Err(Error::failed(format!("cannot open {}", path.display())).because(io::Error::from(e)))
            }
        }
    }

    fn read(&self, number: u64) -> Result<Box<Block>> {
        let mut block = Box::new(Block([0; LEN]));
        let at = number.checked_mul(LEN as u64).ok_or_else(|| self.damaged(number, "is beyond its end"))?;
        match self.file.read_exact_at(&mut block.0, at) {
            Ok(()) => Ok(block),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.damaged(number, "is beyond its end"))
            }
            Err(e) => {
                Err(Error::failed(format!("cannot read block {number} of {}", self.path.display()))
                    .because(e))
            }
        }
    }

    /// The block at `number`, if it is of the kind that `salt` says.
    pub(super) fn checked(&self, number: u64, salt: u32) -> Result<Box<Block>> {
        let block = self.read(number)?;
        if !block.is(salt, number) {
            return Err(self.damaged(number, "has another checksum than it should"));
        }
        Ok(block)
    }

    /// An error that says what is wrong with a block.
    pub(super) fn damaged(&self, number: u64, how: &str) -> Error {
        Error::failed(format!(
            "the pool's metadata on {} is damaged: block {number} {how}",
            self.path.display()
        ))
    }

    /// The superblock at `number`, which is 0 or where a metadata snapshot begins.
    pub(super) fn superblock(&self, number: u64) -> Result<Superblock> {
        let block = self.checked(number, SUPERBLOCK_SALT)?;
        if block.long(32) != MAGIC {
            return Err(self.damaged(number, "is no superblock"));
        }
        let version = block.word(40);
        if !VERSIONS.contains(&version) {
            return Err(Error::failed(format!(
                "the pool's metadata on {} has version {version}, and this smctl knows versions 1 and 2",
                self.path.display()
            )));
        }
        // Features that a reader must know, of which there are none yet.
        if block.word(360) != 0 {
            return Err(Error::failed(format!(
                "the pool's metadata on {} has features that this smctl does not know: {:#x}",
                self.path.display(),
                block.word(360)
            )));
        }
        let chunk = u64::from(block.word(336)) * SECTOR;
        if chunk == 0 {
            return Err(self.damaged(number, "says that blocks of the pool are empty"));
        }
        Ok(Superblock {
            sum: block.word(0),
            mappings: block.long(320),
            details: block.long(328),
            chunk,
            transaction_id: block.long(48),
            time: block.word(44),
        })
    }
}
