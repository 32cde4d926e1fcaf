//! The store: its objects, its lock, and its accounts.

use super::core::Core;
use super::disk::{self, Geometry};
use super::health::{Health, is_of_the_disk};
use super::keeper;
use super::lock::Lock;
use super::object::Object;
use super::{Fill, Key};
use crate::{Error, Kind};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// How much fetched data may wait to be written. What comes when that much waits is passed through.
const MAX_WRITING: u64 = 128 << 20;
/// How much of it at most while more is fetched than is asked for.
const MAX_AHEAD: u64 = 16 << 20;
/// Most threads that write to the disk, and that look for what an earlier process left there.
const MAX_WRITERS: usize = 4;
const MAX_LOADERS: usize = 64;

/// How long the disk may take to say what it has before it is passed by.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The part of a key that says that an object holds a file as it is.
const RAW: &str = "raw";

/// How the names of objects begin that have no directory.
const NAMELESS: &str = "nameless-";

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
    /// Who may look at what is on it, likewise.
    loaders: Arc<Semaphore>,
    lock: Lock,
    objects: Mutex<HashMap<String, Entry>>,
    /// Tells that one of them is not being evicted any more.
    pub(super) evicted: Condvar,
    /// Names of the objects that hold files as they are, by location; once somebody asked. Some may be gone.
    places: Mutex<Option<HashMap<String, Vec<String>>>>,
    /// Objects with blocks that are not in their index yet. They live on until they are saved.
    dirty: Mutex<HashMap<String, Arc<Core>>>,
    /// Held while they are being saved, so that who asks for it returns after it was done.
    saving: Mutex<()>,
    pub(super) health: Health,
    pub(super) bell: Arc<keeper::Bell>,
}

/// What the store knows of an object.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// Disk space as last looked at.
    pub(super) allocated: u64,
    /// The object, if it is open.
    pub(super) core: Weak<Core>,
    /// Whether its files are being evicted: they are not opened meanwhile.
    pub(super) evicting: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is a single step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens, or makes, the store under `dir`, which may grow to `max_bytes`. If another process owns it, this one
    /// reads from it, and owns it once the other ends. So it is where the disk fails, is full, or cannot be written to: that
    /// is logged, and no error. An error is what somebody has to mend: a path that cannot be, or rights that are missing.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Store, Error> {
        let shared = Arc::new(Shared {
            root: dir.join("objects"),
            max: max_bytes,
            used: AtomicU64::new(0),
            writing: AtomicU64::new(0),
            writers: Arc::new(Semaphore::new(MAX_WRITERS)),
            loaders: Arc::new(Semaphore::new(MAX_LOADERS)),
            landing: Mutex::default(),
            landed: Condvar::new(),
            lock: Lock::new(dir.join("lock")),
            objects: Mutex::default(),
            evicted: Condvar::new(),
            places: Mutex::default(),
            dirty: Mutex::default(),
            saving: Mutex::default(),
            health: Health::default(),
            bell: Arc::default(),
        });
        match shared.try_own() {
            Ok(true) => {}
            Ok(false) => {
                let dir = dir.display();
                tracing::info!(%dir, "another process owns the cache: it is read from, not written to");
            }
            // What can be read of it is; the keeper tries to own it from time to time.
            Err(error) if is_of_the_disk(&error) => shared.failed("the cache cannot be used", &error),
            Err(error) => {
                let message = format!("{}: the cache cannot be used: {error}", dir.display());
                return Err(Error::new(Kind::Io, message));
            }
        }
        keeper::start(&shared).map_err(|error| {
            Error::new(Kind::Io, format!("{}: the cache's thread cannot be started: {error}", dir.display()))
        })?;
        Ok(Store { shared })
    }

    /// The object `key` of `size` bytes in blocks of `block` bytes (a power of two, at least 4096). What an earlier
    /// process left under this key is used. Equal keys share one file and one set of flights; each call's object has
    /// its own fill. A key whose identity has no validator gets a file that is gone when the object is closed.
    ///
    /// Waits for the disk, but not for long: without files the object passes through what its fill brings, until they can be
    /// opened. Must run in a tokio runtime.
    pub async fn object<F: Fill>(
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
        let core = self.shared.core(key, geometry);
        if !core.is_open() {
            let (shared, core) = (self.shared.clone(), core.clone());
            self.shared.ask(move || shared.open_files(&core)).await;
        }
        Ok(Object::new(core, fill))
    }

    /// What was last known of the object at `location`, if something of it is in the store. Must run in a tokio runtime.
    pub async fn known(&self, location: &crate::Location) -> Option<crate::Identity> {
        self.latest(location, |_| true).await
    }

    /// What is known of the object at `location` if all that readers of it need is in the store
    /// ([`Object::mark_complete`]): of several contents, the one that was opened last. Must run in a tokio runtime.
    pub async fn complete(&self, location: &crate::Location) -> Option<crate::Identity> {
        self.latest(location, disk::is_complete).await
    }

    async fn latest(&self, location: &crate::Location, wanted: fn(&Path) -> bool) -> Option<crate::Identity> {
        let (shared, location) = (self.shared.clone(), location.to_string());
        let look = move || {
            let known = shared.directories_of(&location).into_iter().filter_map(|directory| {
                let (Key { identity, .. }, _) = disk::read_meta(&directory).ok()?;
                wanted(&directory).then(|| (disk::opened(&directory), identity))
            });
            known.max_by_key(|(opened, _)| *opened).map(|(_, identity)| identity)
        };
        self.shared.ask(look).await.flatten()
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

    /// Asks the disk something.
    #[cfg(test)]
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.shared.ask(what).await
    }

    /// Whether its disk failed a moment ago: nothing is stored for a while.
    pub fn is_failing(&self) -> bool {
        !self.shared.health.is_well()
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
        self.owned().is_some()
    }

    /// Since when this process owns the store, as a number that no other time has.
    pub(super) fn owned(&self) -> Option<u64> {
        self.lock.owned()
    }

    /// The same, if the directory still is the one that it owns. To be asked after files were opened by their paths, and before
    /// anything is done with them.
    pub(super) fn owned_still(&self) -> Option<u64> {
        self.check_lock();
        self.lock.owned()
    }

    /// Takes the lock if no other process has it, and then takes stock. Says whether this process owns the store.
    pub(super) fn try_own(&self) -> io::Result<bool> {
        if self.owner() {
            return Ok(true);
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        if !self.lock.take()? {
            return Ok(false);
        }
        let found = disk::directories(&self.root)?;
        let found = found.iter().filter_map(|directory| Some((directory.file_name()?.to_str()?, directory)));
        let found: Vec<_> = found.map(|(name, directory)| (name, disk::allocated(directory))).collect();
        let mut objects = locked(&self.objects);
        for (name, allocated) in found {
            let entry = objects.entry(name.to_owned()).or_default();
            let before = std::mem::replace(&mut entry.allocated, allocated);
            self.used.fetch_add(allocated, Ordering::Relaxed);
            self.used.fetch_sub(before, Ordering::Relaxed);
        }
        self.lock.own();
        let live: Vec<Arc<Core>> = objects.values().filter_map(|entry| entry.core.upgrade()).collect();
        drop(objects);
        live.iter().for_each(|core| core.own());
        Ok(true)
    }

    /// Lets go of everything if the directory is not the one that was locked any more: whoever made another one owns that,
    /// and files that both open would be punched by one under the other.
    pub(super) fn check_lock(&self) {
        if !self.lock.is_lost() {
            return;
        }
        let mut objects = locked(&self.objects);
        // Another thread may have been faster, and the store owned again by now.
        if !self.lock.is_lost() {
            return;
        }
        self.lock.let_go();
        tracing::warn!("{}: the cache was removed or replaced: it is filled anew", self.root.display());
        // None of them may be dropped while the table is locked.
        let live: Vec<Arc<Core>> = objects.values().filter_map(|entry| entry.core.upgrade()).collect();
        objects.retain(|name, entry| {
            if !name.starts_with(NAMELESS) {
                self.took(entry, 0);
            }
            entry.core.strong_count() > 0
        });
        *locked(&self.places) = None;
        drop(objects);
        for core in live.iter().filter(|core| !core.nameless()) {
            core.abandon();
            self.used.fetch_sub(core.written.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// The core of `key`, and its entry. Waits for no disk.
    fn core(self: &Arc<Self>, key: &Key, geometry: Geometry) -> Arc<Core> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = match key.identity.validator.is_empty() {
            true => format!("{NAMELESS}{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
            false => disk::name(key, geometry),
        };
        let mut objects = locked(&self.objects);
        if let Some(places) = &mut *locked(&self.places)
            && key.part == RAW
        {
            note(places, &key.identity, &name);
        }
        let entry = objects.entry(name.clone()).or_default();
        if let Some(core) = entry.core.upgrade() {
            return core;
        }
        let core = Arc::new(Core::new(self.clone(), name, key.clone(), geometry));
        entry.core = Arc::downgrade(&core);
        core
    }

    /// Opens the files of `core` if this process owns the store. Waits for the disk.
    pub(super) fn open_files(&self, core: &Core) {
        let objects = locked(&self.objects);
        // Who evicts had begun before the object was opened, and does not begin while it is. If that takes long, the keeper
        // opens them.
        let evicting = |objects: &mut HashMap<String, Entry>| {
            objects.get(&core.name).is_some_and(|entry| entry.evicting)
        };
        let waited = self.evicted.wait_timeout_while(objects, LOAD_TIMEOUT / 2, evicting);
        let (objects, late) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(objects);
        if self.owner() && !late.timed_out() {
            core.own();
            // There may have been no room for its files.
            self.ring_if_full();
        }
    }

    /// The directories of what may be there of the file at `location`. Waits for the disk.
    fn directories_of(&self, location: &str) -> Vec<PathBuf> {
        if locked(&self.places).is_none() {
            let mut places = HashMap::new();
            for directory in disk::directories(&self.root).unwrap_or_default() {
                let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if let Ok((Key { identity, part }, _)) = disk::read_meta(&directory)
                    && part == RAW
                {
                    note(&mut places, &identity, &name);
                }
            }
            // What was opened meanwhile as well.
            let objects = locked(&self.objects);
            let live: Vec<Arc<Core>> = objects.values().filter_map(|entry| entry.core.upgrade()).collect();
            for core in live.iter().filter(|core| core.key.part == RAW) {
                note(&mut places, &core.key.identity, &core.name);
            }
            locked(&self.places).get_or_insert(places);
            drop(objects);
        }
        let places = locked(&self.places);
        let names = places.as_ref().and_then(|places| places.get(location));
        names.into_iter().flatten().map(|name| self.root.join(name)).collect()
    }

    /// The last user of `core` is gone.
    pub(super) fn closed(&self, core: &Core) {
        let mut objects = locked(&self.objects);
        self.used.fetch_sub(core.written.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        // Another may have opened it between that and this.
        let Some(entry) = objects.get_mut(&core.name).filter(|entry| entry.core.strong_count() == 0) else {
            return;
        };
        if let Some(disk) = core.disk().filter(|_| !core.nameless() && self.owner()) {
            return self.took(entry, disk.allocated());
        }
        // Files that could not be opened may be there.
        if core.nameless() || !self.owner() || entry.allocated == 0 {
            self.took(entry, 0);
            objects.remove(&core.name);
        }
    }

    /// Looks at how much space the object takes.
    pub(super) fn account(&self, core: &Core) {
        let mut objects = locked(&self.objects);
        let (Some(entry), Some(disk)) = (objects.get_mut(&core.name), core.disk()) else { return };
        // Written before, so in the files already.
        let written = core.written.swap(0, Ordering::Relaxed);
        self.took(entry, disk.allocated());
        self.used.fetch_sub(written, Ordering::Relaxed);
    }

    /// Takes note of what space an object takes now.
    pub(super) fn took(&self, entry: &mut Entry, allocated: u64) {
        let before = std::mem::replace(&mut entry.allocated, allocated);
        self.used.fetch_add(allocated, Ordering::Relaxed);
        self.used.fetch_sub(before, Ordering::Relaxed);
    }

    /// Room for `len` bytes and what storing them in blocks of `block` bytes takes beside them, if there is some, both on the
    /// way to the disk and on it.
    pub(super) fn reserve(self: &Arc<Self>, len: u64, block: u64) -> Option<Reserved> {
        let writing = self.writing.fetch_add(len, Ordering::Relaxed) + len;
        let reserved = self.take(len, disk::beside(len, block));
        self.ring_if_full();
        reserved.filter(|_| writing <= MAX_WRITING)
    }

    /// Room for the files of another object, before anything is in them.
    pub(super) fn reserve_files(self: &Arc<Self>) -> Option<Reserved> {
        self.take(0, disk::OVERHEAD)
    }

    /// Wakes the keeper if it is time for eviction.
    fn ring_if_full(&self) {
        if self.used.load(Ordering::Relaxed) > self.high() {
            self.bell.ring();
        }
    }

    /// Takes room for `writing` bytes that are on the way to the disk, and for `beside`.
    fn take(self: &Arc<Self>, writing: u64, beside: u64) -> Option<Reserved> {
        let len = writing + beside;
        let used = self.used.fetch_add(len, Ordering::Relaxed) + len;
        let reserved = Reserved { store: self.clone(), len, writing, written: false };
        (used <= self.max).then_some(reserved)
    }

    /// How much it may hold, in bytes.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// Whether more may be fetched than is asked for: it could be kept, and the disk is not behind.
    pub(super) fn has_room(&self) -> bool {
        self.health.is_well() && self.writing.load(Ordering::Relaxed) < MAX_AHEAD
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

    /// Saves all objects that have something to save; whether that is done.
    pub(super) fn save(&self) -> bool {
        let _saving = self.saving();
        let dirty = std::mem::take(&mut *locked(&self.dirty));
        dirty.values().filter(|core| !core.save()).count() == 0
    }

    /// Held while checksums are written to indexes, or taken out of them.
    pub(super) fn saving(&self) -> MutexGuard<'_, ()> {
        locked(&self.saving)
    }

    pub(super) fn objects(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        locked(&self.objects)
    }

    /// The disk failed: says so, once, and stores nothing for a while.
    pub(super) fn failed(&self, what: &str, error: &io::Error) {
        self.health.failed(&self.root, what, error);
    }

    /// Asks the disk something, on a thread that may wait for it. None if it does not say in time, and for a while after that.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if !self.health.answers() {
            return None;
        }
        // Threads that a disk has for ever are not to be all that there are. Many may wait for them where it is only slow.
        let turn = timeout(LOAD_TIMEOUT, self.loaders.clone().acquire_owned()).await.ok()?.ok()?;
        let asked = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            what()
        });
        match timeout(LOAD_TIMEOUT, asked).await {
            Ok(answer) => answer.ok(),
            Err(_) => {
                self.health.does_not_answer(&self.root);
                None
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.bell.ring();
    }
}

/// Notes that the file that `identity` says is, or was, kept under `name`.
fn note(places: &mut HashMap<String, Vec<String>>, identity: &crate::Identity, name: &str) {
    let names = places.entry(place(identity).to_owned()).or_default();
    if !names.iter().any(|other| other == name) {
        names.push(name.to_owned());
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
#[derive(Debug)]
pub(super) struct Reserved {
    store: Arc<Shared>,
    len: u64,
    /// How much of it is on the way to the disk.
    writing: u64,
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
        self.store.writing.fetch_sub(self.writing, Ordering::Relaxed);
        if !self.written {
            self.store.used.fetch_sub(self.len, Ordering::Relaxed);
        }
    }
}
