//! The store: its objects, its lock, and its accounts.

use super::disk::{self, Geometry};
use super::keeper;
use super::object::{Core, Object};
use super::{Fill, Key};
use crate::{Error, Kind};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How long nothing is stored after the disk failed.
const REST: Duration = Duration::from_secs(30);

/// How long readers do not wait for what is being stored after one had to wait too long.
const LATE: Duration = Duration::from_secs(1);

/// How much fetched data may wait to be written. What comes when that much waits is passed through.
const MAX_WRITING: u64 = 128 << 20;
/// How much of it at most while more is fetched than is asked for.
const MAX_AHEAD: u64 = 16 << 20;
/// Most threads that write to the disk.
const MAX_WRITERS: usize = 4;

/// The part of a key that says that an object holds a file as it is.
const RAW: &str = "raw";

/// How long [`Store::sync`] waits for a disk that does not take what is being written to it.
const LANDING: Duration = Duration::from_secs(30);

/// The store under one directory. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What the store, its objects and its keeper share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Where the objects' directories are.
    root: PathBuf,
    max: u64,
    /// Disk space taken and reserved. Never below what is taken, once the owner has looked.
    used: AtomicU64,
    /// Bytes on their way to the disk.
    writing: AtomicU64,
    /// Who may write to the disk, each with a thread of its own.
    pub(super) writers: Arc<Semaphore>,
    /// How many flights have their bytes and do not have them in the file yet.
    landing: Mutex<u64>,
    landed: Condvar,
    /// The locked file, once this process owns the store.
    lock: OnceLock<File>,
    objects: Mutex<HashMap<String, Entry>>,
    /// Names of the objects that hold files as they are, by location; once somebody asked. Some may be gone.
    places: Mutex<Option<HashMap<String, Vec<String>>>>,
    /// Objects with blocks that are not in their index yet. They live on until they are saved.
    dirty: Mutex<HashMap<String, Arc<Core>>>,
    /// Held while they are being saved, so that who asks for it returns after it was done.
    saving: Mutex<()>,
    /// Until when nothing is stored.
    resting: Mutex<Option<Instant>>,
    /// Until when readers do not wait for what is being stored.
    late: Mutex<Option<tokio::time::Instant>>,
    pub(super) bell: Arc<keeper::Bell>,
}

/// What the store knows of an object.
#[derive(Debug)]
pub(super) struct Entry {
    /// Disk space as last looked at.
    pub(super) allocated: u64,
    /// The object, if it is open.
    pub(super) core: Weak<Core>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is a single step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens, or makes, the store under `dir`, which may grow to `max_bytes`. If another process owns it, this one
    /// reads from it, and owns it once the other ends.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Store, Error> {
        let root = dir.join("objects");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&root).map_err(|error| {
            Error::new(Kind::Io, format!("{}: the cache directory cannot be made: {error}", dir.display()))
        })?;
        let shared = Arc::new(Shared {
            root,
            max: max_bytes,
            used: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            writers: Arc::new(Semaphore::new(MAX_WRITERS)),
            landing: Mutex::default(),
            landed: Condvar::new(),
            lock: OnceLock::new(),
            objects: Mutex::default(),
            places: Mutex::default(),
            dirty: Mutex::default(),
            saving: Mutex::default(),
            resting: Mutex::default(),
            late: Mutex::default(),
            bell: Arc::default(),
        });
        shared.try_own().map_err(|error| {
            Error::new(Kind::Io, format!("{}: the cache cannot be used: {error}", dir.display()))
        })?;
        if !shared.owner() {
            tracing::info!(dir = %dir.display(), "another process owns the cache: it is read from, not written to");
        }
        keeper::start(&shared).map_err(|error| {
            Error::new(Kind::Io, format!("{}: the cache's thread cannot be started: {error}", dir.display()))
        })?;
        Ok(Store { shared })
    }

    /// The object `key` of `size` bytes in blocks of `block` bytes (a power of two, at least 4096). What an earlier
    /// process left under this key is used. Equal keys share one file and one set of flights; each call's object has
    /// its own fill. A key whose identity has no validator gets a file that is gone when the object is closed.
    pub fn object<F: Fill>(
        &self,
        key: &Key,
        size: u64,
        block: u32,
        fill: F,
    ) -> Result<Arc<Object<F>>, Error> {
        if block < 4096 || !block.is_power_of_two() {
            return Err(Error::new(
                Kind::Io,
                format!("a cache block of {block} bytes, not a power of two from 4096 on"),
            ));
        }
        // The end of the last block must be an offset that files can have.
        if size > i64::MAX as u64 - u64::from(block) {
            return Err(Error::new(
                Kind::Range,
                format!("{}: {size} bytes are too large", key.identity.location),
            ));
        }
        let geometry = Geometry { size, block: block.into() };
        Ok(Object::new(self.shared.core(key, geometry), fill))
    }

    /// What was last known of the object at `location`, if something of it is in the store.
    pub fn known(&self, location: &crate::Location) -> Option<crate::Identity> {
        self.latest(location, |_| true)
    }

    /// What is known of the object at `location` if all that readers of it need is in the store
    /// ([`Object::mark_complete`]): of several contents, the one that was opened last.
    pub fn complete(&self, location: &crate::Location) -> Option<crate::Identity> {
        self.latest(location, disk::is_complete)
    }

    fn latest(&self, location: &crate::Location, wanted: fn(&Path) -> bool) -> Option<crate::Identity> {
        let known = self.shared.directories_of(&location.to_string()).into_iter().filter_map(|directory| {
            let (Key { identity, .. }, _) = disk::read_meta(&directory).ok()?;
            wanted(&directory).then(|| (disk::opened(&directory), identity))
        });
        known.max_by_key(|(opened, _)| *opened).map(|(_, identity)| identity)
    }

    /// Makes durable what was delivered to readers so far, but for what there was no room for. For an orderly end:
    /// waits for the disk.
    pub fn sync(&self) {
        let landing = locked(&self.shared.landing);
        let all_landed = self.shared.landed.wait_timeout_while(landing, LANDING, |landing| *landing > 0);
        drop(all_landed);
        self.shared.save();
    }

    /// Disk space taken, in bytes.
    pub fn used(&self) -> u64 {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// Disk space it may take, in bytes.
    pub fn limit(&self) -> u64 {
        self.shared.max
    }

    /// Who may write to the disk.
    #[cfg(test)]
    pub(super) fn writers(&self) -> Arc<Semaphore> {
        self.shared.writers.clone()
    }

    /// Whether this process owns the store.
    pub fn is_owner(&self) -> bool {
        self.shared.owner()
    }
}

impl Shared {
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn owner(&self) -> bool {
        self.lock.get().is_some()
    }

    /// Takes the lock if no other process has it, and then takes stock.
    pub(super) fn try_own(&self) -> io::Result<()> {
        if self.owner() {
            return Ok(());
        }
        let path = self.root.with_file_name("lock");
        let file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(()),
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
        let mut objects = locked(&self.objects);
        for directory in disk::directories(&self.root)? {
            let Some(name) = directory.file_name().and_then(|name| name.to_str()) else { continue };
            let allocated = disk::allocated(&directory);
            self.used.fetch_add(allocated, Ordering::Relaxed);
            objects.entry(name.to_owned()).or_insert(Entry { allocated: 0, core: Weak::new() }).allocated =
                allocated;
        }
        let _ = self.lock.set(file);
        let live: Vec<Arc<Core>> = objects.values().filter_map(|entry| entry.core.upgrade()).collect();
        drop(objects);
        for core in live {
            core.own();
            self.account(&core);
        }
        Ok(())
    }

    fn core(self: &Arc<Self>, key: &Key, geometry: Geometry) -> Arc<Core> {
        static NAMELESS: AtomicU64 = AtomicU64::new(0);
        let name = match key.identity.validator.is_empty() {
            true => format!("nameless-{}", NAMELESS.fetch_add(1, Ordering::Relaxed)),
            false => disk::name(key, geometry),
        };
        let mut objects = locked(&self.objects);
        let entry = objects.entry(name.clone()).or_insert(Entry { allocated: 0, core: Weak::new() });
        if let Some(core) = entry.core.upgrade() {
            return core;
        }
        if let Some(places) = &mut *locked(&self.places)
            && key.part == RAW
        {
            let names = places.entry(place(&key.identity).to_owned()).or_default();
            if !names.contains(&name) {
                names.push(name.clone());
            }
        }
        let core = Arc::new(Core::new(self.clone(), name, key.clone(), geometry));
        entry.core = Arc::downgrade(&core);
        if self.owner() {
            // With the table locked, so that the files are not evicted under it.
            core.own();
        }
        drop(objects);
        self.account(&core);
        core
    }

    /// The directories of what may be there of the file at `location`.
    fn directories_of(&self, location: &str) -> Vec<PathBuf> {
        let mut places = locked(&self.places);
        let places = places.get_or_insert_with(|| {
            let mut places: HashMap<String, Vec<String>> = HashMap::new();
            for directory in disk::directories(&self.root).unwrap_or_default() {
                let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Ok((Key { identity, part }, _)) = disk::read_meta(&directory)
                    && part == RAW
                {
                    places.entry(place(&identity).to_owned()).or_default().push(name);
                }
            }
            places
        });
        places.get(location).into_iter().flatten().map(|name| self.root.join(name)).collect()
    }

    /// The last user of `core` is gone.
    pub(super) fn closed(&self, core: &Core) {
        let mut objects = locked(&self.objects);
        let Some(entry) = objects.get(&core.name) else { return };
        // Another may have opened it between that and this.
        if (core.nameless() || !self.owner()) && entry.core.strong_count() == 0 {
            let allocated = entry.allocated + core.written.load(Ordering::Relaxed);
            objects.remove(&core.name);
            self.used.fetch_sub(allocated, Ordering::Relaxed);
        }
    }

    /// Looks at how much space the object takes.
    pub(super) fn account(&self, core: &Core) {
        let mut objects = locked(&self.objects);
        let (Some(entry), Some(disk)) = (objects.get_mut(&core.name), core.disk()) else { return };
        // Written before, so in the files already.
        let written = core.written.swap(0, Ordering::Relaxed);
        let allocated = disk.allocated();
        let before = std::mem::replace(&mut entry.allocated, allocated);
        self.used.fetch_add(allocated, Ordering::Relaxed);
        self.used.fetch_sub(before + written, Ordering::Relaxed);
    }

    /// Room for `len` bytes, if there is some, both on the way to the disk and on it.
    pub(super) fn reserve(self: &Arc<Self>, len: u64) -> Option<Reserved> {
        let used = self.used.fetch_add(len, Ordering::Relaxed) + len;
        let writing = self.writing.fetch_add(len, Ordering::Relaxed) + len;
        let reserved = Reserved { store: self.clone(), len, written: false };
        if used > self.high() {
            self.bell.ring();
        }
        (used <= self.max && writing <= MAX_WRITING).then_some(reserved)
    }

    /// How much it may hold, in bytes.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Whether more may be fetched than is asked for: it could be kept, and the disk is not behind.
    pub(super) fn has_room(&self) -> bool {
        self.is_well() && self.writing.load(Ordering::Relaxed) < MAX_AHEAD
    }

    /// Says that a flight has bytes that it will deliver and write. To be held until they are written.
    pub(super) fn landing(self: &Arc<Self>) -> Landing {
        *locked(&self.landing) += 1;
        Landing(self.clone())
    }

    /// Where eviction begins. The rest is for what comes while it is under way.
    pub(super) fn high(&self) -> u64 {
        self.max - self.max / 16
    }

    /// How much must go, if it is time for eviction.
    pub(super) fn excess(&self) -> u64 {
        let used = self.used.load(Ordering::Relaxed);
        if used > self.high() { used - (self.max - self.max / 8) } else { 0 }
    }

    /// Notes that `core` has something to save.
    pub(super) fn dirty(&self, core: &Arc<Core>) {
        let mut dirty = locked(&self.dirty);
        if !dirty.contains_key(&core.name) {
            dirty.insert(core.name.clone(), core.clone());
        }
    }

    /// Saves all objects that have something to save.
    pub(super) fn save(&self) {
        let _saving = locked(&self.saving);
        let dirty = std::mem::take(&mut *locked(&self.dirty));
        dirty.values().for_each(|core| core.save());
    }

    pub(super) fn objects(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        locked(&self.objects)
    }

    /// Takes note of space that an object which is not open gave back.
    pub(super) fn freed(&self, entry: &mut Entry, allocated: u64) {
        let before = std::mem::replace(&mut entry.allocated, allocated);
        self.used.fetch_add(allocated, Ordering::Relaxed);
        self.used.fetch_sub(before, Ordering::Relaxed);
    }

    /// Whether storing is worth a try.
    pub(super) fn is_well(&self) -> bool {
        let mut resting = locked(&self.resting);
        match *resting {
            Some(until) if Instant::now() < until => false,
            _ => {
                *resting = None;
                true
            }
        }
    }

    /// Whether what is stored is likely to be written in a moment.
    pub(super) fn is_prompt(&self) -> bool {
        locked(&self.late).is_none_or(|until| tokio::time::Instant::now() > until)
    }

    /// A reader waited too long for what was to be written.
    pub(super) fn note_late(&self) {
        *locked(&self.late) = Some(tokio::time::Instant::now() + LATE);
    }

    /// The disk failed: says so, once, and stores nothing for a while.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        if locked(&self.resting).replace(Instant::now() + REST).is_none() {
            let dir = self.root.display();
            tracing::warn!("{dir}: {what}: {error}; the cache passes data through for {} s", REST.as_secs());
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.bell.ring();
    }
}

/// Where a file is, without the server that identities of S3 add: the same bucket and key may be on several.
fn place(identity: &crate::Identity) -> &str {
    identity.location.split_once(" at ").map_or(&identity.location, |(location, _)| location)
}

/// Bytes that are delivered and not in the file yet, or first one and then the other.
pub(super) struct Landing(Arc<Shared>);

impl Drop for Landing {
    fn drop(&mut self) {
        *locked(&self.0.landing) -= 1;
        self.0.landed.notify_all();
    }
}

/// Room in the store for bytes that are being written. Given back when dropped, unless they were.
pub(super) struct Reserved {
    store: Arc<Shared>,
    len: u64,
    written: bool,
}

impl Reserved {
    /// The bytes are in the files of `core`, or some of them: its accounts have them from now on.
    pub(super) fn written(mut self, core: &Core) {
        core.written.fetch_add(self.len, Ordering::Relaxed);
        self.written = true;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.store.writing.fetch_sub(self.len, Ordering::Relaxed);
        if !self.written {
            self.store.used.fetch_sub(self.len, Ordering::Relaxed);
        }
    }
}
