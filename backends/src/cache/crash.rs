//! What a crash may do to the store, tried: processes killed at every step and at any time, and power that fails with what
//! was not made durable lost or torn.

use super::tests::{BLOCK, Maker, expect, key, read};
use super::{Object, Store};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Says to a process of this test where it dies: a point's name, and at which time of passing it.
const DIE_AT: &str = "THINORIGIN_TEST_DIE_AT";
/// The store that such a process uses.
const STORE: &str = "THINORIGIN_TEST_STORE";

/// Every point that [`super::disk`] passes when it changes something.
const POINTS: [&str; 10] = [
    "files made",
    "meta written",
    "meta named",
    "data half written",
    "data written",
    "data durable",
    "index half written",
    "index written",
    "index durable",
    "data punched",
];

const BLOCKS: u64 = 256;
const SIZE: u64 = BLOCKS * BLOCK - 100;

/// So little that blocks are evicted all the time.
const ROOM: u64 = 100 * BLOCK;

/// Numbers that are not random, and look it (xorshift64).
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Ends the process if this is where it dies.
pub(super) fn point(name: &str) {
    static DEATH: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let death = DEATH.get_or_init(|| {
        let text = std::env::var(DIE_AT).ok()?;
        let (name, count) = text.split_once(':')?;
        Some((name.to_owned(), AtomicU64::new(count.parse().ok()?)))
    });
    if let Some((at, count)) = death
        && at == name
        && count.fetch_sub(1, Ordering::Relaxed) == 1
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Before `bytes` are written: if the process dies when half of them are, writes those.
pub(super) fn half(file: &File, name: &str, bytes: &[u8], at: u64) {
    let dying = std::env::var_os(DIE_AT).is_some_and(|text| text.to_string_lossy().contains("half"));
    if dying {
        file.write_all_at(&bytes[..bytes.len() / 2], at).unwrap();
        point(&format!("{name} half written"));
    }
}

/// A change of a file.
#[derive(Clone, Debug)]
enum Change {
    Written { at: u64, bytes: Vec<u8> },
    Punched { at: u64, len: u64 },
    Synced,
}

/// Changes of all files while somebody watches, each with the number of its file.
static WATCHED: AtomicBool = AtomicBool::new(false);
static CHANGES: Mutex<Vec<(u64, Change)>> = Mutex::new(Vec::new());

fn note(file: &File, change: impl FnOnce() -> Change) {
    if WATCHED.load(Ordering::Relaxed) {
        let number = file.metadata().unwrap().ino();
        CHANGES.lock().unwrap_or_else(PoisonError::into_inner).push((number, change()));
    }
}

pub(super) fn written(file: &File, name: &str, bytes: &[u8], at: u64) {
    note(file, || Change::Written { at, bytes: bytes.to_vec() });
    point(&format!("{name} written"));
}

/// What is to happen when a file, of that number, is made durable: once.
type Syncing = (u64, Box<dyn FnOnce() -> std::io::Result<()> + Send>);
static SYNCING: Mutex<Option<Syncing>> = Mutex::new(None);

pub(super) fn when_synced(file: u64, what: impl FnOnce() -> std::io::Result<()> + Send + 'static) {
    *SYNCING.lock().unwrap() = Some((file, Box::new(what)));
}

/// Before a file is made durable: whether the disk is to fail now.
pub(super) fn syncing(file: &File) -> std::io::Result<()> {
    let number = file.metadata().unwrap().ino();
    let mut syncing = SYNCING.lock().unwrap();
    let Some((_, what)) = syncing.take_if(|(file, _)| *file == number) else { return Ok(()) };
    drop(syncing);
    what()
}

pub(super) fn synced(file: &File, name: &str) {
    note(file, || Change::Synced);
    point(&format!("{name} durable"));
}

pub(super) fn punched(file: &File, at: u64, len: u64) {
    note(file, || Change::Punched { at, len });
}

async fn open(dir: &Path) -> (Store, Arc<Object<Maker>>, Maker) {
    let maker = Maker::new();
    let store = Store::open(dir, ROOM).unwrap();
    let object = store.object(&key("a"), SIZE, u32::try_from(BLOCK).unwrap(), maker.clone()).await.unwrap();
    (store, object, maker)
}

/// Reads and checks ranges here and there, `count` of them, from several tasks.
async fn load(object: &Arc<Object<Maker>>, seed: u64, count: u64) {
    let readers = (1..=4).map(|reader| {
        let object = object.clone();
        tokio::spawn(async move {
            let mut noise = Noise(seed * 5 + reader);
            for _ in 0..count {
                let start = noise.below(SIZE);
                let end = (start + noise.below(12 * BLOCK)).min(SIZE);
                assert!(read(&object, start..end).await.unwrap() == expect(start..end), "{start}..{end}");
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
}

/// The process that dies: reads until then. As a test of its own it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_victim() {
    let Some(dir) = std::env::var_os(STORE) else { return };
    let (store, object, _) = open(Path::new(&dir)).await;
    let syncing = std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(3));
            store.sync();
        }
    });
    for seed in 1.. {
        load(&object, seed + u64::from(std::process::id()), 20).await;
        assert!(!syncing.is_finished());
    }
}

fn start_victim(dir: &Path, die_at: Option<String>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "cache::crash::the_victim"]).env(STORE, dir);
    if let Some(at) = die_at {
        command.env(DIE_AT, at);
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until the process is dead, and fails if it ended in another way: then it had read a wrong byte.
fn buried(mut victim: Child, what: &str) {
    use std::os::unix::process::ExitStatusExt;
    let began = std::time::Instant::now();
    loop {
        if let Some(status) = victim.try_wait().unwrap() {
            assert_eq!(status.signal(), Some(9), "{what}: {status}");
            return;
        }
        if began.elapsed() > Duration::from_secs(180) {
            let _ = victim.kill();
            panic!("{what}: never came to pass");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_kill_leaves_a_wrong_byte() {
    const KILLS: usize = 500;
    let mut noise = Noise(0x5eed);
    let (mut kills, mut kept) = (0, 0);
    let mut dir = tempfile::tempdir().unwrap();
    while kills < KILLS {
        // A new store now and then, for its beginning is a time to die as well. In another place, for the thread of the
        // old one may outlive it by a moment, and works by name.
        let new = kills % 10 == 0;
        if new {
            dir = tempfile::tempdir().unwrap();
        }
        let point = POINTS[(kills / 10) % POINTS.len()];
        let what = match (new, noise.below(3)) {
            (true, _) => Some(format!("{point}:1")),
            // What happens only once in the life of an object does not happen to this one any more.
            (false, 0) if !point.starts_with("meta") && point != "files made" => {
                Some(format!("{point}:{}", 1 + noise.below(20)))
            }
            _ => None,
        };
        let mut victim = start_victim(dir.path(), what.clone());
        if what.is_none() {
            tokio::time::sleep(Duration::from_millis(5 + noise.below(60))).await;
            victim.kill().unwrap();
        }
        buried(victim, what.as_deref().unwrap_or("any time"));
        kills += 1;

        let (_store, object, maker) = open(dir.path()).await;
        assert!(read(&object, 0..SIZE).await.unwrap() == expect(0..SIZE), "after kill {kills}, at {what:?}");
        kept += BLOCKS as usize - maker.counts().len();
    }
    assert!(kept > KILLS * 5, "only {kept} blocks survived {KILLS} kills: nothing was put to the test");
}

/// A file as it may be after the power failed when the first `crash` of `changes` had been made: what was durable is there,
/// of the rest each change is there, or not, or in part.
fn after_power_loss(changes: &[(u64, Change)], file: u64, size: u64, noise: &mut Noise) -> Vec<u8> {
    const SECTOR: u64 = 512;
    let mine: Vec<&Change> = changes.iter().filter(|(of, _)| *of == file).map(|(_, change)| change).collect();
    let durable = mine.iter().rposition(|change| matches!(change, Change::Synced)).unwrap_or(0);
    let mut content = vec![0; size as usize];
    for (number, change) in mine.into_iter().enumerate() {
        let fate = if number < durable { 0 } else { noise.below(3) };
        match (change, fate) {
            (_, 1) | (Change::Synced, _) => {}
            (Change::Punched { at, len }, _) => {
                let end = (at + len).min(size);
                content[*at as usize..end as usize].fill(0);
            }
            (Change::Written { at, bytes }, fate) => {
                for (number, sector) in bytes.chunks(SECTOR as usize).enumerate() {
                    let start = (at + number as u64 * SECTOR) as usize;
                    if fate == 0 || noise.below(2) == 0 {
                        content[start..start + sector.len()].copy_from_slice(sector);
                    }
                }
            }
        }
    }
    content
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_loss_of_power_leaves_a_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    WATCHED.store(true, Ordering::Relaxed);
    let (store, object, _) = open(dir.path()).await;
    for seed in 1..=8 {
        load(&object, seed, 10).await;
        store.sync();
    }
    WATCHED.store(false, Ordering::Relaxed);
    let place: PathBuf =
        std::fs::read_dir(dir.path().join("objects")).unwrap().next().unwrap().unwrap().path();
    let meta = std::fs::read(place.join("meta")).unwrap();
    let number = |name: &str| std::fs::metadata(place.join(name)).unwrap().ino();
    let files = HashMap::from([("data", (number("data"), SIZE)), ("index", (number("index"), BLOCKS * 8))]);
    drop((store, object));
    let mut changes = CHANGES.lock().unwrap_or_else(PoisonError::into_inner).clone();
    changes.retain(|(of, _)| files.values().any(|(number, _)| number == of));
    let count = |wanted: fn(&Change) -> bool| changes.iter().filter(|(_, change)| wanted(change)).count();
    assert!(count(|change| matches!(change, Change::Punched { .. })) > 0, "nothing was evicted");
    assert!(count(|change| matches!(change, Change::Synced)) > 4, "nothing was made durable");

    let (mut noise, mut kept) = (Noise(7), 0);
    for _ in 0..300 {
        let crash = noise.below(changes.len() as u64 + 1) as usize;
        let after = tempfile::tempdir().unwrap();
        let object_dir = after.path().join("objects").join(place.file_name().unwrap());
        std::fs::create_dir_all(&object_dir).unwrap();
        std::fs::write(object_dir.join("meta"), &meta).unwrap();
        for (name, (number, size)) in &files {
            let content = after_power_loss(&changes[..crash], *number, *size, &mut noise);
            std::fs::write(object_dir.join(name), content).unwrap();
        }
        let (_store, object, maker) = open(after.path()).await;
        assert!(read(&object, 0..SIZE).await.unwrap() == expect(0..SIZE), "after change {crash}");
        kept += BLOCKS as usize - maker.counts().len();
    }
    assert!(kept > 300, "only {kept} blocks survived: nothing was put to the test");
}
