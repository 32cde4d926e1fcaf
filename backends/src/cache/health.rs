//! How the store's disk does: what it failed at is not asked of it again at once.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing is stored after the disk failed. Tests wait for the end of it.
const REST: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// How long a disk must have done well for its next failure to be told.
const NEWS: Duration = Duration::from_secs(3600);

/// How long readers do not wait for what is being stored after one had to wait too long.
const LATE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Times>);

/// When it was last that...
#[derive(Debug, Default)]
struct Times {
    /// it failed,
    failed: Option<Instant>,
    /// it did not answer,
    silent: Option<Instant>,
    /// a reader waited too long for what was to be written.
    late: Option<tokio::time::Instant>,
}

impl Health {
    fn times(&self) -> MutexGuard<'_, Times> {
        // Each change under this lock is a single step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether storing is worth a try.
    pub(super) fn is_well(&self) -> bool {
        self.times().failed.is_none_or(|failed| failed.elapsed() > REST)
    }

    /// Whether the disk has answered whenever it was asked of late.
    pub(super) fn answers(&self) -> bool {
        self.times().silent.is_none_or(|silent| silent.elapsed() > REST)
    }

    /// Whether what is stored is likely to be written in a moment.
    pub(super) fn is_prompt(&self) -> bool {
        self.times().late.is_none_or(|late| late.elapsed() > LATE)
    }

    /// A reader waited too long for what was to be written.
    pub(super) fn is_late(&self) {
        self.times().late = Some(tokio::time::Instant::now());
    }

    /// The disk that `dir` is on failed: says so, unless it has of late, and nothing is stored for a while.
    pub(super) fn failed(&self, dir: &Path, what: &str, error: &io::Error) {
        let before = self.times().failed.replace(Instant::now());
        let dir = dir.display();
        if before.is_some_and(|before| before.elapsed() < NEWS) {
            tracing::debug!("{dir}: {what}: {error}");
        } else {
            tracing::warn!(
                "{dir}: {what}: {error}; the cache passes data through until it can be stored again"
            );
        }
    }

    /// The disk did not answer in time: it is not asked for a while.
    pub(super) fn does_not_answer(&self, dir: &Path) {
        self.times().silent = Some(Instant::now());
        self.failed(dir, "the disk does not answer", &io::ErrorKind::TimedOut.into());
    }
}

/// Whether `error` is the disk's, or the host's, and not that of who chose the directory.
pub(super) fn is_of_the_disk(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, TimedOut};
    let kinds = [QuotaExceeded, ReadOnlyFilesystem, StaleNetworkFileHandle, StorageFull, TimedOut];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
