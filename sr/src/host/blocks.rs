//! Bytes of block devices, past the page cache: what is copied while a guest runs must neither be old, nor drive out what
//! the host needs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What memory and places must be multiples of, at most, for the kernel to pass the page cache by, in bytes.
const ALIGNMENT: usize = 4096;

/// `_IO(0x12, 127)` (Linux, include/uapi/linux/fs.h).
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// Opens block devices.
pub trait Blocks {
    /// The device, for reading, or for writing too.
    ///
    /// # Errors
    /// There is no such device, or it is read-only.
    fn open(&mut self, device: &Path, write: bool) -> io::Result<Box<dyn Block>>;
}

/// An open block device. Offsets and lengths are whole sectors.
pub trait Block {
    /// Reads `len` bytes.
    ///
    /// # Errors
    /// The device gives an error, or ends before.
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Writes all of `bytes`. When this returns the device has them, but a loss of power may still lose them.
    ///
    /// # Errors
    /// The device gives an error; some of the bytes may have been written.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the `len` bytes from `offset` zeros, which stay allocated. When this returns the device has them, but a loss
    /// of power may still lose them. It takes as long as writing them where the device cannot do better.
    ///
    /// # Errors
    /// The device gives an error; some of the bytes may be zeros.
    fn zero(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes durable what was written, and what had to be noted for that (a thin pool's mappings).
    ///
    /// # Errors
    /// The device gives an error.
    fn sync(&self) -> io::Result<()>;
}

/// This host's block devices.
#[derive(Debug, Default)]
pub struct DirectBlocks;

impl Blocks for DirectBlocks {
    fn open(&mut self, device: &Path, write: bool) -> io::Result<Box<dyn Block>> {
        let file = OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(device)?;
        Ok(Box::new(Direct { file }))
    }
}

struct Direct {
    file: File,
}

/// Memory for `len` bytes, and where in it they are to be.
fn aligned(len: usize) -> (Vec<u8>, usize) {
    let memory = vec![0; len + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    (memory, start)
}

impl Block for Direct {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (mut memory, start) = aligned(len);
        self.file.read_exact_at(&mut memory[start..start + len], offset)?;
        memory.copy_within(start..start + len, 0);
        memory.truncate(len);
        Ok(memory)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut memory, start) = aligned(bytes.len());
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        self.file.write_all_at(&memory[start..start + bytes.len()], offset)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = [offset, len];
        // SAFETY: BLKZEROOUT reads two 64-bit numbers, which live until the call returns.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKZEROOUT, range.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
