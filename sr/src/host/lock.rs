//! Locks between processes: one for each SR, and one for the host.
//!
//! A lock is `flock` on a file, so it goes with its holder however that ends. The host's lock is for what is not of
//! one SR: making, finding and attaching SRs. Lock order: the host's first, then an SR's.
//!
//! The file of a destroyed SR is removed while it is locked. Whoever waited for it then holds a lock on a file that
//! is no longer there, so after taking a lock the file is looked up again, and if it is another one, that is taken.

use crate::error::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Where the locks are.
#[derive(Clone, Debug)]
pub struct Locks {
    directory: PathBuf,
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Locks {
    /// Locks under `run` (`/run/thinorigin`).
    pub fn new(run: &Path) -> Self {
        Self { directory: run.join("lock") }
    }

    /// Waits for the host's lock.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn host(&self) -> Result<Lock> {
        self.take("host")
    }

    /// Waits for an SR's lock.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn sr(&self, sr: Uuid) -> Result<Lock> {
        self.take(&format!("sr-{sr}"))
    }

    /// Takes the lock of whoever does long work on a VDI; `None` if somebody does. It may be asked for with an SR's lock
    /// held, for it is not waited for.
    ///
    /// # Errors
    /// The lock file cannot be made.
    pub fn try_work(&self, vdi: Uuid) -> Result<Option<Lock>> {
        self.attempt(&format!("work-{vdi}"), FlockOperation::NonBlockingLockExclusive)
    }

    fn take(&self, name: &str) -> Result<Lock> {
        let lock = self.attempt(name, FlockOperation::LockExclusive)?;
        lock.ok_or_else(|| Error::failed(format!("cannot lock {}", self.directory.join(name).display())))
    }

    fn attempt(&self, name: &str, operation: FlockOperation) -> Result<Option<Lock>> {
        let path = self.directory.join(name);
        let failed = |e: io::Error| {
            let way_out = match e.kind() {
                io::ErrorKind::PermissionDenied => ": smctl needs root",
                _ => "",
            };
            Error::failed(format!("cannot lock {}{way_out}", path.display())).because(e)
        };
        fs::create_dir_all(&self.directory).map_err(failed)?;
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
            match flock(&file, operation) {
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                other => other.map_err(|e| failed(e.into()))?,
            }
            let held = file.metadata().map_err(failed)?;
            match fs::metadata(&path) {
                Ok(now) if (now.dev(), now.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Some(Lock { _file: file, path }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

impl Lock {
    /// Removes the lock's file, because what it is for is gone.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn retire(self) -> Result<()> {
        fs::remove_file(&self.path)
            .map_err(|e| Error::failed(format!("cannot remove {}", self.path.display())).because(e))
    }
}
