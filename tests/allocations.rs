//! A read of what is local allocates nothing: counted, with the program's own cache, images and server in this process.

use backends::cache::Store;
use backends::testing::Origin;
use bytes::Bytes;
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use thinorigin::export::ImageExport;
use thinorigin::image::{Image, OpenOptions};
use tokio_util::sync::CancellationToken;

/// The system's allocator, which counts what is asked of it.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all is left to the system's allocator, whose promises these are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SIZE: usize = 16 << 20;
/// Reads that are counted together, and in how many rounds.
const READS: u64 = 2048;
const ROUNDS: usize = 20;
/// What time brings, however much is read: what is done each second in the background, a queue that grows to its size.
const BESIDE: u64 = 16;

struct Only(Arc<ImageExport>);

impl nbd::Exports for Only {
    type Export = ImageExport;

    async fn lookup(&self, _name: &str, _client: &nbd::Client) -> Option<Arc<ImageExport>> {
        Some(self.0.clone())
    }

    fn names(&self, _client: &nbd::Client) -> Vec<String> {
        Vec::new()
    }
}

/// A client that allocates nothing once it is connected, but its buffers have this size.
struct Client {
    stream: UnixStream,
    requests: Vec<u8>,
    answers: Vec<u8>,
    state: u64,
}

impl Client {
    fn connect(socket: &Path) -> Client {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        assert_eq!(export[..8], (SIZE as u64).to_be_bytes());
        Client { stream, requests: Vec::with_capacity(28 * 64), answers: vec![0; 8 << 20], state: 1 }
    }

    /// Reads `len` bytes at `together` places of `content`, with which the disk begins, at once, and compares them with it.
    fn read(&mut self, len: usize, together: usize, content: &[u8]) {
        self.requests.clear();
        for _ in 0..together {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (self.state >> 33) % ((content.len() - len) as u64 / 512) * 512;
            self.requests.extend([0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0]);
            // The answer says where it is from.
            self.requests.extend(at.to_be_bytes());
            self.requests.extend(at.to_be_bytes());
            self.requests.extend((len as u32).to_be_bytes());
        }
        self.stream.write_all(&self.requests).unwrap();
        let answers = &mut self.answers[..(16 + len) * together];
        self.stream.read_exact(answers).unwrap();
        for answer in answers.chunks(16 + len) {
            assert_eq!(answer[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
            let at = u64::from_be_bytes(answer[8..16].try_into().unwrap()) as usize;
            assert!(answer[16..] == content[at..at + len], "{len} bytes at {at}");
        }
    }
}

/// Whether files that are called `data` are mapped by this process.
fn maps_data() -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().any(|line| line.ends_with("/data"))
}

/// Whether the cache maps files that lie in `directory`: ext, XFS, Btrfs, tmpfs (statfs(2)).
fn can_be_mapped(directory: &Path) -> bool {
    let kind = rustix::fs::statfs(directory).unwrap().f_type;
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994].contains(&kind)
}

/// Fails unless there are rounds of reads by `client` that allocate nothing.
fn allocates_nothing(client: &mut Client, len: usize, together: usize, content: &[u8]) {
    let mut counts = Vec::with_capacity(ROUNDS);
    // Until what was stored is durable and queues are as large as they become, there is more.
    while counts.last().is_none_or(|count| *count > BESIDE) {
        let what = "allocations in each round of reads";
        assert!(counts.len() < ROUNDS, "{len} bytes, {together} at once: {counts:?} {what} ({READS})");
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..READS / together as u64 {
            client.read(len, together, content);
        }
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
    }
}

#[test]
fn a_read_of_what_is_local_allocates_nothing() {
    let content: Bytes = (0..SIZE as u64 / 8).flat_map(u64::to_le_bytes).collect();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stop = CancellationToken::new();
    let (_origin, serving) = runtime.block_on(async {
        let origin = Origin::start(content.clone()).await.unwrap();
        let options = OpenOptions {
            store: Some(Store::open(&dir.path().join("cache"), 1 << 30).unwrap()),
            ..OpenOptions::default()
        };
        let location = origin.url("disk.raw").parse().unwrap();
        let image = Arc::new(Image::open(&location, &options).await.unwrap());
        let export = Arc::new(ImageExport::new("disk".to_owned(), image));
        let server = nbd::Server::new(Arc::new(Only(export)), nbd::Limits::default());
        let listener = tokio::net::UnixListener::bind(&socket).unwrap().into();
        let stop = stop.clone();
        (origin, tokio::spawn(async move { server.serve(listener, stop).await }))
    });
    let mut client = Client::connect(&socket);
    for _ in 0..400 {
        client.read(256 << 10, 1, &content);
    }
    for (len, together) in [(256 << 10, 1), (256 << 10, 16), (4096, 1), (4096, 16)] {
        allocates_nothing(&mut client, len, together, &content);
    }
    // A part that is read more than others is mapped.
    let busy = &content[..2 << 20];
    let began = Instant::now();
    while can_be_mapped(dir.path()) && !maps_data() {
        client.read(4096, 16, busy);
        assert!(began.elapsed() < Duration::from_secs(30), "the cache's file is not mapped");
    }
    for together in [1, 16] {
        allocates_nothing(&mut client, 4096, together, busy);
    }
    stop.cancel();
    drop(client);
    runtime.block_on(serving).unwrap().unwrap();
}
