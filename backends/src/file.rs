//! Local files and block devices.
//!
//! Opening never blocks on what it finds (FIFOs, sockets) and refuses everything that has no bytes at offsets. Reads
//! that the page cache can answer are done in place; the others go to a thread that may wait for the disk.

use crate::{Buffer, Error, Identity, Kind, Location, Source};
use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

mod beneath;

/// A local file or block device, opened for reading.
#[derive(Debug)]
pub struct FileSource {
    file: Arc<File>,
    identity: Identity,
    stamp: Stamp,
    changed: AtomicBool,
    /// When the file was last seen to be what was opened, in nanoseconds since `opened`.
    seen: AtomicU64,
    opened: Instant,
}

/// How long a look at the file is good for where many reads are answered from it. It costs a seventh of such a read, and no
/// look keeps a writer from the bytes that are sent after it.
const FRESH: Duration = Duration::from_micros(100);

/// What must stay as it was while a file is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: i64,
    mtime: (i64, i64),
}

impl Stamp {
    fn of(stat: &Stat) -> Stamp {
        // The types of these fields differ between platforms; all values fit.
        Stamp { size: stat.st_size, mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)) }
    }
}

/// How files are opened: never inherited, never waiting for a writer, never a controlling terminal.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

impl FileSource {
    /// Opens the file at `location`.
    pub async fn open(location: &Location) -> Result<Self, Error> {
        let location = location.clone();
        blocking(move || FileSource::open_now(&location)).await
    }

    /// As [`open`](Self::open), on the calling thread.
    pub fn open_now(location: &Location) -> Result<Self, Error> {
        let Some(path) = location.as_path() else {
            return Err(Error::new(Kind::Unsupported, format!("{location}: not a local file")));
        };
        let failed = |errno: Errno| error(location, "cannot be opened", errno);
        let fd: OwnedFd = match location.beneath() {
            Some((directory, name)) => beneath::open(directory, name, FLAGS).map_err(|errno| match errno {
                Errno::XDEV | Errno::LOOP => Error::new(
                    Kind::Denied,
                    format!("{location}: leads out of its directory, or through a symbolic link that cannot be followed safely"),
                ),
                errno => failed(errno),
            })?,
            None => rustix::fs::open(path, FLAGS, Mode::empty()).map_err(failed)?,
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        let (size, validator) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let Stamp { size, mtime: (seconds, nanos) } = Stamp::of(&stat);
                let validator = format!("mtime:{seconds}.{nanos:09},inode:{}:{}", stat.st_dev, stat.st_ino);
                (u64::try_from(size).unwrap_or(0), validator)
            }
            // A device's content has no version.
            FileType::BlockDevice if location.beneath().is_none() => {
                match rustix::fs::seek(&fd, SeekFrom::End(0)).map_err(failed)? {
                    // A loop device without a file, an NBD device without a server, a drive without a disk.
                    0 => {
                        let text = format!("{location}: the block device has no medium, for its size is 0");
                        return Err(Error::new(Kind::NotFound, text));
                    }
                    size => (size, String::new()),
                }
            }
            other => return Err(Error::new(Kind::Unsupported, format!("{location}: {}", what(other)))),
        };
        let canonical = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(FileSource {
            file: Arc::new(File::from(fd)),
            identity: Identity { location: Location::from_path(canonical).to_string(), size, validator },
            stamp: Stamp::of(&stat),
            changed: AtomicBool::new(false),
            seen: AtomicU64::new(0),
            opened: Instant::now(),
        })
    }

    /// The open file, so that a server can send from it without copying. Whoever does calls
    /// [`check`](Self::check) afterwards or now and then.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether the file is still what was opened: [`Kind::Changed`] once and for all if its size or its time of
    /// modification are not those seen at open. Does not wait.
    pub fn check(&self) -> Result<(), Error> {
        let same = !self.changed.load(Ordering::Relaxed)
            && match rustix::fs::fstat(&self.file) {
                Ok(stat) => Stamp::of(&stat) == self.stamp,
                Err(errno) => return Err(self.error("cannot be examined", errno)),
            };
        if same || self.identity.validator.is_empty() {
            return Ok(());
        }
        self.changed.store(true, Ordering::Relaxed);
        Err(Error::new(
            Kind::Changed,
            format!("{}: the file changed since it was opened", self.identity.location),
        ))
    }

    /// As [`check`](Self::check), unless the last look was less than 100 microseconds ago.
    pub fn check_now_and_then(&self) -> Result<(), Error> {
        let now = self.opened.elapsed().as_nanos() as u64;
        if now.saturating_sub(self.seen.load(Ordering::Relaxed)) < FRESH.as_nanos() as u64
            && !self.changed.load(Ordering::Relaxed)
        {
            return Ok(());
        }
        self.check()?;
        self.seen.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// Reads from `offset` on what the page cache holds, as far as `buffer` goes, and says how many bytes that is. Does
    /// not wait for the disk: where the kernel or the file system cannot promise that, it reads nothing. Whoever uses
    /// the bytes calls [`check`](Self::check) afterwards.
    pub fn read_resident(&self, buffer: &mut [u8], offset: u64) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let mut slices = [IoSliceMut::new(&mut buffer[done..])];
            match rustix::io::preadv2(&self.file, &mut slices, offset + done as u64, ReadWriteFlags::NOWAIT) {
                Ok(n) if n > 0 => done += n,
                _ => break,
            }
        }
        done
    }

    /// Whether the bytes at `offset` are stored or a hole that reads as zeros, and where that ends. Without support
    /// from the file system everything is stored. `offset` is inside the file.
    pub fn extent(&self, offset: u64) -> (bool, u64) {
        let end = self.identity.size;
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => (false, data.min(end)),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => (true, hole.min(end)),
                _ => (true, end),
            },
            Err(Errno::NXIO) if offset < end => (false, end),
            Err(_) => (true, end),
        }
    }

    fn error(&self, what: &str, errno: Errno) -> Error {
        error(&self.identity.location, what, errno)
    }
}

impl Source for FileSource {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let len = crate::source::checked_len(&self.identity, &range)?;
        let mut buffer = Buffer::any(len);
        // What the page cache holds costs no thread.
        let done = self.read_resident(buffer.content(), range.start);
        if done < len {
            let file = self.file.clone();
            let (start, name) = (range.start, self.identity.location.clone());
            buffer = blocking(move || {
                read_exact(&file, &mut buffer.content()[done..], start + done as u64, &name).map(|()| buffer)
            })
            .await?;
        }
        self.check()?;
        Ok(buffer.freeze())
    }
}

/// Fills `buffer` from `offset` on; the file is at least that long unless it shrank.
fn read_exact(file: &File, mut buffer: &mut [u8], mut offset: u64, name: &str) -> Result<(), Error> {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, offset) {
            Ok(0) => {
                return Err(Error::new(
                    Kind::Changed,
                    format!("{name}: the file ends early, at {offset:#x}"),
                ));
            }
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(error(name, &format!("cannot be read at {offset:#x}"), errno)),
        }
    }
    Ok(())
}

/// Runs `work` where it may wait for a disk.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Kind::Io, "the runtime is shutting down")),
    }
}

fn error(name: impl std::fmt::Display, what: &str, errno: Errno) -> Error {
    let kind = match errno {
        Errno::NOENT | Errno::NOTDIR => Kind::NotFound,
        Errno::ACCESS | Errno::PERM => Kind::Denied,
        _ => Kind::Io,
    };
    let reason = match errno {
        Errno::NOENT => "no such file".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        // A socket cannot be opened at all.
        Errno::NXIO => "a socket or a device without driver, not a file".to_owned(),
        errno => std::io::Error::from(errno).to_string(),
    };
    Error::new(kind, format!("{name}: {what}: {reason}"))
}

fn what(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Directory => "a directory, not a file",
        FileType::Fifo => "a FIFO, not a file",
        FileType::Socket => "a socket, not a file",
        FileType::CharacterDevice => "a character device, not a file or block device",
        _ => "not a file or block device",
    }
}

#[cfg(test)]
mod tests;
