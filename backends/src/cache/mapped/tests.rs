use super::super::tests::{BLOCK, Maker, bytes_of, drive_out, expect, held, key, wait_until};
use super::super::{Span, Spans, Store};
use super::*;
use rustix::io::{Errno, read, write};
use std::io::Write;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;
/// The magic number of a file system in memory (statfs(2)).
const TMPFS: i64 = 0x0102_1994;

fn content(len: u64) -> Vec<u8> {
    (0..len).map(|at| ((at / 7) ^ (at / PAGE * 31)) as u8).collect()
}

fn file(len: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content(len)).unwrap();
    file
}

/// Asks for `range` as often as a busy client does, for some periods or until it is held; whether it is.
fn ask(mapped: &Mapped, file: &File, range: &Range<u64>) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(10 * u64::from(PERIOD)) {
        // Many at a time, for to sleep may take a while where others work, too.
        if (0..64).any(|_| mapped.holds(file, range.clone())) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    false
}

/// Makes the page cache let go of a file of one chunk, where it can; whether it did.
fn forget(file: &File) -> bool {
    file.sync_all().unwrap();
    if !is_local(file) || fstatfs(file).unwrap().f_type == TMPFS {
        return false;
    }
    let memory = Memory::of(file, CHUNK).unwrap();
    // Pages that somebody still holds, be it the kernel for a moment, are left.
    (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        memory.look(0) == Some([0; PAGES / 64])
    }) || panic!("the page cache does not let go")
}

/// What a system call finds at `range`.
fn taken(mapped: &Mapped, file: &File, range: Range<u64>) -> Result<Vec<u8>, Errno> {
    let (from, to) = std::io::pipe().unwrap();
    let memory = mapped.memory(file, range).unwrap();
    let len = write(&to, &memory)?;
    let mut bytes = vec![0; len];
    assert_eq!(read(&from, &mut bytes).unwrap(), len);
    Ok(bytes)
}

#[test]
fn a_busy_stretch_is_sent_from_memory() {
    let len = 3 * CHUNK + 5000;
    let file = file(len);
    let mapped = Mapped::of(&file);
    assert!(mapped.memory(&file, 0..PAGE).is_none(), "nobody asked for it");
    let content = content(len);
    for range in [0..PAGE, CHUNK - 300..CHUNK, 2 * CHUNK + 17..2 * CHUNK + 30_000, 3 * CHUNK + 4999..len] {
        assert_eq!(ask(&mapped, &file, &range), is_local(&file), "{range:?}");
        if is_local(&file) {
            let found = taken(&mapped, &file, range.clone()).unwrap();
            assert!(found == content[range.start as usize..range.end as usize], "{range:?}");
        }
    }
    // Another one of the same chunk is known by the same look.
    assert_eq!(mapped.holds(&file, 3 * CHUNK..3 * CHUNK + 10), is_local(&file));
    for range in [CHUNK - 1..CHUNK + 1, 5..5, len - 1..len + 1, len + CHUNK..len + CHUNK + 1] {
        assert!(!mapped.holds(&file, range.clone()), "{range:?}");
    }
    assert!(mapped.memory(&file, len - 1..len + 1).is_none());
}

#[test]
fn what_is_seldom_asked_for_is_not_mapped() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    for _ in 0..3 {
        assert!((0..BUSY_FILE / 2).all(|_| !mapped.holds(&file, 0..PAGE)));
        std::thread::sleep(Duration::from_millis(u64::from(PERIOD) + 10));
    }
    assert!(mapped.memory.get().is_none());
}

#[test]
fn what_is_not_in_memory_is_not_held() {
    let file = file(CHUNK);
    // So that nothing comes but what is asked for.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let late = forget(&file);
    rustix::io::pread(&file, &mut [0_u8], 0).unwrap();
    let mapped = Mapped::of(&file);
    assert_eq!(ask(&mapped, &file, &(0..PAGE)), is_local(&file));
    assert_eq!(mapped.holds(&file, CHUNK / 2..CHUNK / 2 + PAGE), is_local(&file) && !late);
}

#[test]
fn a_file_that_became_shorter_is_an_error_and_not_the_end() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    if !ask(&mapped, &file, &(0..PAGE)) {
        assert!(!is_local(&file));
        return;
    }
    let memory = mapped.memory(&file, CHUNK - PAGE..CHUNK).unwrap();
    file.set_len(PAGE + 10).unwrap();
    let (_from, to) = std::io::pipe().unwrap();
    assert_eq!(write(&to, &memory), Err(Errno::FAULT));
    // The clock of the kernel's ticks, of which a hundred or more are in a second.
    std::thread::sleep(Duration::from_millis(20));
    assert!(!mapped.holds(&file, PAGE..2 * PAGE), "there are zeros behind the file's end");
    assert!(mapped.memory(&file, PAGE..2 * PAGE).is_none(), "nor is what was queued sent from there");
}

#[test]
fn a_worn_map_holds_nothing() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    if !ask(&mapped, &file, &(0..PAGE)) {
        assert!(!is_local(&file));
        return;
    }
    assert!(!mapped.is_worn());
    let memory = mapped.memory.get().unwrap().as_ref().unwrap();
    assert_eq!(memory.begun.load(Ordering::Relaxed), 1);
    memory.begun.store(WORN, Ordering::Relaxed);
    assert!(mapped.is_worn() && !mapped.holds(&file, 0..PAGE));
    assert_eq!(taken(&mapped, &file, 0..PAGE).unwrap(), content(PAGE), "what is being sent is still there");
}

#[test]
fn what_left_memory_is_not_held_for_long() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    if !ask(&mapped, &file, &(0..PAGE)) {
        assert!(!is_local(&file));
        return;
    }
    if !forget(&file) {
        return;
    }
    let began = Instant::now();
    while mapped.holds(&file, 0..PAGE) {
        assert!(began.elapsed() < Duration::from_secs(10), "it is still said to be in memory");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// A file as long as a thousand chunks more than can be known, with nothing in it but the first page of the first and of
/// another one that has the same place.
fn long_file() -> (File, Memory) {
    let file = tempfile::tempfile().unwrap();
    file.set_len((KNOWN + 1000) * CHUNK).unwrap();
    for chunk in [0, KNOWN] {
        rustix::io::pwrite(&file, &[1; PAGE as usize], chunk * CHUNK).unwrap();
    }
    let memory = Memory::of(&file, (KNOWN + 1000) * CHUNK).unwrap();
    (file, memory)
}

/// Reads the first page of a chunk so many times in a period that begins at `now`; how often it was held.
fn reads(memory: &Memory, chunk: u64, now: u32, count: u32) -> u32 {
    let place = chunk * CHUNK..chunk * CHUNK + PAGE;
    (0..count).map(|n| u32::from(memory.holds(place.clone(), now.wrapping_add(n * PERIOD / count)))).sum()
}

#[test]
fn a_chunk_is_looked_at_while_it_is_busy() {
    let (_file, memory) = long_file();
    let period = |n: u32| 1_000_000 + n * PERIOD;
    assert_eq!(reads(&memory, 0, period(0), BUSY - 1), 0);
    // The first of each period says how many there were in the one before.
    assert_eq!(reads(&memory, 0, period(1), BUSY), 0, "it was not busy");
    assert_eq!(reads(&memory, 0, period(2), STILL_BUSY), STILL_BUSY, "it was");
    assert!(!memory.holds(PAGE..2 * PAGE, period(2) + 1), "that page is not in memory");
    assert_eq!(reads(&memory, 0, period(3), STILL_BUSY - 1), STILL_BUSY - 1, "it was still");
    assert_eq!(reads(&memory, 0, period(4), 1), 0, "it was no more");
    assert_eq!(reads(&memory, 0, period(4) + 1, 2 * BUSY), 0);
    assert_eq!(reads(&memory, 0, period(5) + 1, BUSY), BUSY);
    assert_eq!(reads(&memory, 0, period(8), 1), 0, "what was known long ago is not known");
    assert_eq!(memory.begun.load(Ordering::Relaxed), 1, "it is the same chunk each time");
}

#[test]
fn chunks_that_have_the_same_place_take_turns() {
    let (_file, memory) = long_file();
    assert_eq!(memory.chunks.len() as u64, KNOWN);
    let period = |n: u32| (u32::MAX - 500).wrapping_add(n * PERIOD);
    reads(&memory, 0, period(0), BUSY);
    assert_eq!(reads(&memory, KNOWN, period(1).wrapping_sub(50), BUSY), 0);
    assert_eq!(reads(&memory, 0, period(1), BUSY), BUSY, "who came first stays");
    assert_eq!(reads(&memory, KNOWN, period(3).wrapping_add(100), BUSY), 0);
    assert_eq!(reads(&memory, 0, period(4).wrapping_add(60), BUSY), 0);
    let mut wrapped = 0;
    for n in 0..4 {
        wrapped += reads(&memory, KNOWN, period(4 + n).wrapping_add(100), BUSY);
    }
    assert_eq!(wrapped, 4 * BUSY);
    assert_eq!(memory.begun.load(Ordering::Relaxed), 2);
}

#[test]
fn a_stretch_of_two_chunks_is_not_held() {
    let (file, memory) = long_file();
    rustix::io::pwrite(&file, &[1; 2 * PAGE as usize], 7 * CHUNK - PAGE).unwrap();
    for n in 0..3 {
        let now = 1_000_000 + n * PERIOD;
        for read in 0..BUSY {
            let now = now + read * PERIOD / BUSY;
            let last = memory.holds(7 * CHUNK - PAGE..7 * CHUNK, now);
            let first = memory.holds(7 * CHUNK..7 * CHUNK + PAGE, now);
            assert_eq!((last, first), (n > 0, n > 0), "{n}");
            assert!(!memory.holds(7 * CHUNK - 1..7 * CHUNK + 1, now));
        }
    }
}

#[test]
fn rates_are_for_a_period() {
    let rate = Rate::default();
    rate.begin(u32::MAX - 10);
    assert!((0..100).all(|n| rate.count(n).is_none()));
    // A hundred in two periods, over the end of the numbers.
    assert_eq!(rate.count(2 * PERIOD - 11), Some(50));
    assert_eq!(rate.count(3 * PERIOD - 11), Some(1));
    // Somebody looked at the clock before that.
    assert_eq!(rate.count(3 * PERIOD - 15), None);
    // The first of all comes whenever it does, also when the host has been up for a month.
    for now in [0, PERIOD, u32::MAX / 2 + 1, u32::MAX - LATE] {
        let rate = Rate::default();
        let counted = (0..100).filter_map(|n| rate.count(now + n * PERIOD / 50)).collect::<Vec<_>>();
        assert!(counted.contains(&50), "{now}: {counted:?}");
    }
}

#[test]
fn what_is_no_file_of_ones_own_on_a_local_disk_is_not_mapped() {
    let len = |file: &File| Mapped::of(file).len;
    let own = file(PAGE);
    assert_eq!(len(&own), if is_local(&own) { PAGE } else { 0 });
    assert_eq!(len(&File::open(std::env::temp_dir()).unwrap()), 0, "a directory");
    assert_eq!(len(&File::open("/dev/null").unwrap()), 0);
    // One of sysfs, which says that it is as long as a page, and belongs to root.
    assert_eq!(len(&File::open("/sys/kernel/uevent_seqnum").unwrap()), 0);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::fchown(&own, Some(1), None).unwrap();
        assert_eq!(len(&own), 0, "it is another's");
    }
}

#[tokio::test]
async fn a_worn_map_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let object = store.object(&key("a"), 10 * BLOCK, BLOCK as u32, Maker::new()).await.unwrap();
    let mut spans = Spans::new();
    object.get_exactly(0..10 * BLOCK, &mut spans).await.unwrap();
    let lease = || {
        let mut spans = Spans::new();
        // Bytes are in the file some time after they are in memory.
        while !object.peek(0..BLOCK, &mut spans) {
            std::thread::sleep(Duration::from_millis(1));
        }
        match spans.remove(0) {
            Span::File { lease, .. } => lease,
            Span::Bytes(_) => unreachable!("it is not in memory"),
        }
    };
    let first = lease();
    if !ask(&first.mapped, &first, &(0..BLOCK)) {
        assert!(!is_local(&first));
        return;
    }
    assert!(first.mapped.wear(&first));
    let began = Instant::now();
    while lease().is_worn() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is not replaced");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        taken(&first.mapped, &first, 0..BLOCK).unwrap(),
        expect(0..BLOCK),
        "what is being sent is still there"
    );
    let map = std::sync::Arc::downgrade(&first.mapped);
    drop(first);
    while map.strong_count() > 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "it stays though nobody needs it");
        std::thread::sleep(Duration::from_millis(10));
    }
    let again = lease();
    assert!(ask(&again.mapped, &again, &(0..BLOCK)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_being_sent_is_not_evicted_though_its_lease_was_renewed_before() {
    let dir = tempfile::tempdir().unwrap();
    let (object, spans) = held(Store::open(dir.path(), 4 << 20).unwrap()).await;
    let Span::File { lease, .. } = &spans[0] else { panic!() };
    if !lease.mapped.wear(&lease.file) {
        // Nothing is mapped on this file system.
        return;
    }
    let renewed = || {
        let mut now = Spans::new();
        object.peek(0..1 << 20, &mut now);
        !matches!(&now[..], [Span::File { lease, .. }] if lease.is_worn())
    };
    wait_until("renewed", renewed).await;
    drive_out(&object).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(bytes_of(&spans) == expect(0..1 << 20), "punched while it was held");
}
