//! Who owns a store: the process that has locked the file `lock` in its directory, until the kernel drops that with it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    /// Locked files. The last is that of the directory which is in use; those before it are of directories that were put away,
    /// which may come back, and in which readers may still have files.
    files: Mutex<Vec<File>>,
    /// How often the store was owned and let go of: odd while it is owned.
    turns: AtomicU64,
}

impl Lock {
    pub(super) fn new(path: PathBuf) -> Lock {
        Lock { path, files: Mutex::default(), turns: AtomicU64::new(0) }
    }

    fn files(&self) -> MutexGuard<'_, Vec<File>> {
        // Each change under this lock is a single step.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when this process owns the store, as a number that no other time has; none if it does not.
    pub(super) fn owned(&self) -> Option<u64> {
        Some(self.turns.load(Ordering::Acquire)).filter(|turns| turns % 2 == 1)
    }

    /// Whether the directory is not the one that was locked any more.
    pub(super) fn is_lost(&self) -> bool {
        self.owned().is_some() && self.files().last().is_some_and(|lock| !is_at(lock, &self.path))
    }

    /// Locks the file if no other process has it; whether it is locked.
    pub(super) fn take(&self) -> io::Result<bool> {
        let mut files = self.files();
        // The directory may be one that was put away and is back.
        if let Some(held) = files.iter().position(|file| is_at(file, &self.path)) {
            let held = files.remove(held);
            files.push(held);
            return Ok(true);
        }
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, &self.path) => {
                files.push(file);
                Ok(true)
            }
            // Put away meanwhile.
            Ok(()) | Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// The store is owned from now on.
    pub(super) fn own(&self) {
        self.turns.fetch_or(1, Ordering::AcqRel);
    }

    /// The store is not owned any more.
    pub(super) fn let_go(&self) {
        if let Some(turn) = self.owned() {
            self.turns.store(turn + 1, Ordering::Release);
        }
    }
}

/// Whether `file` is what `path` names. A disk that cannot say is no reason to think otherwise.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(file), Ok(path)) => (file.dev(), file.ino()) == (path.dev(), path.ino()),
        (_, Err(error)) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, remove_dir_all, rename};

    #[test]
    fn a_directory_that_comes_back_is_owned_again() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, away) = (parent.path().join("cache"), parent.path().join("away"));
        create_dir(&dir).unwrap();
        let lock = Lock::new(dir.join("lock"));
        assert!(lock.take().unwrap() && lock.owned().is_none());
        lock.own();
        let first = lock.owned();
        assert!(first.is_some() && !lock.is_lost());
        rename(&dir, &away).unwrap();
        create_dir(&dir).unwrap();
        assert!(lock.is_lost());
        lock.let_go();
        assert!(lock.owned().is_none() && !lock.is_lost());
        assert!(lock.take().unwrap());
        lock.own();
        assert_ne!(lock.owned(), first);
        remove_dir_all(&dir).unwrap();
        rename(&away, &dir).unwrap();
        assert!(lock.is_lost());
        lock.let_go();
        assert!(lock.take().unwrap(), "this process has it, and nobody else can");
        let other = Lock::new(dir.join("lock"));
        assert!(!other.take().unwrap());
    }
}
