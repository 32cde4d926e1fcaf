//! What a store holds, seen from outside: for people who list, verify and drop. Works beside the process that owns the
//! store; only dropping needs the store for itself.

use super::Key;
use super::disk::{self, Disk, Geometry};
use crate::{Error, Kind};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The objects of the store under one directory, as they were when it was looked at.
#[derive(Debug)]
pub struct Stock {
    root: PathBuf,
    objects: Vec<Stored>,
    /// Directories of what is none that this version understands.
    others: Vec<PathBuf>,
}

/// A cached object on disk.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What it is.
    pub key: Key,
    /// Size of the whole object in bytes.
    pub size: u64,
    /// How much of it is local, in bytes.
    pub local: u64,
    /// Disk space it takes, in bytes.
    pub allocated: u64,
    /// When it was last opened.
    pub opened: Option<SystemTime>,
    directory: PathBuf,
    geometry: Geometry,
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// How many bytes were read and are whole.
    pub whole: u64,
    /// Ranges of the object whose bytes are not what was stored. Readers find that out for themselves and fetch them
    /// again.
    pub damaged: Vec<Range<u64>>,
}

impl Stock {
    /// Looks at the store under `dir`. A directory that is not there holds nothing; what another version or program
    /// left in it is passed over.
    pub fn look(dir: &Path) -> Result<Stock, Error> {
        let root = dir.join("objects");
        let directories = match disk::directories(&root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(|error| failed(&root, "cannot be listed", &error))?,
        };
        let (mut objects, mut others) = (Vec::new(), Vec::new());
        for path in directories {
            match Stored::read(&path) {
                Ok(stored) => objects.push(stored),
                Err(_) => others.push(path),
            }
        }
        objects.sort_by(|one, other| {
            let order = |stored: &Stored| (stored.key.identity.location.clone(), stored.key.part.clone());
            order(one).cmp(&order(other))
        });
        Ok(Stock { root, objects, others })
    }

    /// The objects, by location.
    pub fn objects(&self) -> &[Stored] {
        &self.objects
    }

    /// Removes the objects that `chosen` says, and returns them. [`Kind::Denied`] while another process uses the
    /// store: it would go on sending from files that are gone, and count their space.
    pub fn drop_objects(self, chosen: impl Fn(&Stored) -> bool) -> Result<Vec<Stored>, Error> {
        let (gone, _): (Vec<Stored>, Vec<Stored>) = self.objects.into_iter().partition(chosen);
        remove(&self.root, gone.iter().map(|object| &object.directory))?;
        Ok(gone)
    }

    /// As [`drop_objects`](Self::drop_objects), of all of them, and what another version or program left with them.
    pub fn drop_all(self) -> Result<Vec<Stored>, Error> {
        let directories = self.objects.iter().map(|object| &object.directory).chain(&self.others);
        remove(&self.root, directories)?;
        Ok(self.objects)
    }
}

/// Removes `directories` of the store whose objects are in `root`, with the store locked.
fn remove<'a>(root: &Path, directories: impl Iterator<Item = &'a PathBuf>) -> Result<(), Error> {
    let mut directories = directories.peekable();
    if directories.peek().is_some() {
        let path = root.with_file_name("lock");
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|error| failed(&path, "cannot be opened", &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let message = format!("{}: a running server uses the cache: stop it first", root.display());
                return Err(Error::new(Kind::Denied, message));
            }
            Err(std::fs::TryLockError::Error(error)) => {
                return Err(failed(&path, "cannot be locked", &error));
            }
        }
        for directory in directories {
            let removed = std::fs::remove_dir_all(directory);
            removed.map_err(|error| failed(directory, "cannot be removed", &error))?;
        }
    }
    Ok(())
}

impl Stored {
    fn read(directory: &Path) -> io::Result<Stored> {
        let (key, geometry) = disk::read_meta(directory)?;
        let mut stored = Stored {
            key,
            size: geometry.size,
            local: 0,
            allocated: disk::allocated(directory),
            opened: disk::opened(directory),
            directory: directory.to_owned(),
            geometry,
        };
        let disk = stored.disk()?;
        for run in disk.recorded()? {
            let bytes = geometry.bytes(&run);
            stored.local += bytes.end - bytes.start;
        }
        Ok(stored)
    }

    fn disk(&self) -> io::Result<Disk> {
        Disk::read_only(&self.directory, &self.key, self.geometry)
    }

    /// Reads everything that is local and compares it with its checksums. `step` is called with how many bytes were
    /// looked at since the last call; false ends the verification. Blocks that are evicted meanwhile do not count.
    pub fn verify(&self, mut step: impl FnMut(u64) -> bool) -> Result<Verified, Error> {
        let broken = |error: io::Error| failed(&self.directory, "cannot be read", &error);
        let disk = self.disk().map_err(broken)?;
        let mut verified = Verified::default();
        for run in disk.recorded().map_err(broken)? {
            for block in run {
                let bytes = self.geometry.bytes(&(block..block + 1));
                let len = bytes.end - bytes.start;
                let mut whole = false;
                disk.read(block..block + 1, |_, _| whole = true);
                if whole {
                    verified.whole += len;
                } else if disk.is_recorded(block).map_err(broken)? {
                    match verified.damaged.last_mut() {
                        Some(last) if last.end == bytes.start => last.end = bytes.end,
                        _ => verified.damaged.push(bytes),
                    }
                }
                if !step(len) {
                    return Ok(verified);
                }
            }
        }
        Ok(verified)
    }
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    Error::new(Kind::Io, format!("{}: {what}: {error}", path.display()))
}
