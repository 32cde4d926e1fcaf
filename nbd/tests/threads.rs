//! Connections share a few threads: what becomes of the others, of the thread and of the place on it when one goes wrong,
//! and when all go.

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;
use thinorigin_nbd::wire::consts::CommandFlags;
use thinorigin_nbd::wire::{Command, Cookie, Request};
use thinorigin_nbd::{
    Client, Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Failure, Limits, Segment, Segments,
    Server,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 1 << 20;
/// Where a read panics on the connection's own thread, and where in a task of its own.
const PANICS_AT_ONCE: u64 = 4096;
const PANICS_LATER: u64 = 8192;
/// The request that lets a client in is its 32nd.
const GREETED: usize = 32;

/// The number of the thread that asks.
fn own_number() -> i32 {
    let own = std::fs::read_link("/proc/thread-self").unwrap();
    own.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// A disk whose bytes are the number of the thread that answers.
struct Disk;

impl Export for Disk {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: SIZE, preferred_block: 4096, description: String::new() }
    }

    fn try_read(&self, offset: u64, _len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        assert_ne!(offset, PANICS_AT_ONCE, "a bug of the export");
        (offset != PANICS_LATER).then(|| {
            out.push(Segment::Bytes(Bytes::copy_from_slice(&own_number().to_be_bytes())));
            Ok(())
        })
    }

    async fn read(&self, _offset: u64, _len: u32) -> Result<Segments, Failure> {
        panic!("another bug of the export");
    }

    async fn block_status(&self, _offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent { len, flags: ExtentFlags::empty(), depth: 1, local: true }])
    }

    async fn prefetch(&self, _offset: u64, _len: u64) {}
}

struct Only;

impl Exports for Only {
    type Export = Disk;

    async fn lookup(&self, _name: &str, _client: &Client) -> Option<Arc<Disk>> {
        Some(Arc::new(Disk))
    }

    fn names(&self, _client: &Client) -> Vec<String> {
        Vec::new()
    }
}

/// Runs a test of this file while no other does: they look at all threads and descriptors of the process, and one takes
/// descriptors away, which a runtime needs to be made.
fn in_turn(test: impl Future<Output = ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A server on a unix socket.
struct World {
    server: Server<Only>,
    serving: JoinHandle<io::Result<()>>,
    stop: CancellationToken,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        no_threads_serve().await;
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap().into();
        let (server, stop) = (Server::new(Arc::new(Only), Limits::default()), CancellationToken::new());
        let serving = {
            let (server, stop) = (server.clone(), stop.clone());
            tokio::spawn(async move { server.serve(listener, stop).await })
        };
        Self { server, serving, stop, socket, _directory: directory }
    }

    /// A client that has negotiated.
    async fn enter(&self) -> Reader {
        let mut socket = UnixStream::connect(&self.socket).await.unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).await.unwrap();
        socket.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").await.unwrap();
        assert_eq!(socket.read_u64().await.unwrap(), SIZE);
        socket.read_u16().await.unwrap();
        Reader(socket)
    }

    /// A client that is served inside.
    async fn enter_and_sit(&self) -> Reader {
        let mut reader = self.enter().await;
        for _ in 0..GREETED {
            reader.thread().await.unwrap();
        }
        reader
    }
}

struct Reader(UnixStream);

impl Reader {
    async fn ask(&mut self, offset: u64) {
        let mut bytes = Vec::new();
        let flags = CommandFlags::empty();
        Request { flags, command: Command::Read, cookie: Cookie(7), offset, length: 4 }.encode(&mut bytes);
        self.0.write_all(&bytes).await.unwrap();
    }

    /// The thread that answers a read.
    async fn thread(&mut self) -> io::Result<i32> {
        self.ask(0).await;
        let answer = async {
            let mut header = [0; 16];
            self.0.read_exact(&mut header).await?;
            self.0.read_i32().await
        };
        timeout(Duration::from_secs(10), answer).await.expect("no answer")
    }

    /// Nothing but the end comes.
    async fn ends(mut self) {
        let mut rest = Vec::new();
        let end = timeout(Duration::from_secs(10), self.0.read_to_end(&mut rest)).await;
        end.expect("no end").unwrap();
        assert!(rest.is_empty());
    }
}

/// How many threads there are that serve.
fn serving_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end while it is looked at.
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name == "serve\n").count()
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), poll).await.unwrap_or_else(|_| panic!("still not so: {what}"));
}

async fn no_threads_serve() {
    until("no thread serves", || serving_threads() == 0).await;
}

#[test]
fn a_panic_takes_neither_the_others_of_its_thread_nor_the_thread_nor_its_place() {
    in_turn(async {
        let world = World::new().await;
        let threads = available_parallelism().unwrap().get();
        let mut readers = Vec::new();
        for _ in 0..2 * threads {
            readers.push(world.enter_and_sit().await);
        }
        for place in [PANICS_AT_ONCE, PANICS_LATER] {
            let files = open_files();
            // Of equals the first thread is taken: had nothing been given back, the next client would be there.
            let mut unlucky = readers.remove(threads - 1);
            let thread = unlucky.thread().await.unwrap();
            unlucky.ask(place).await;
            unlucky.ends().await;
            until("its sockets are closed, at both ends", || open_files() <= files - 2).await;
            let mut beside = 0;
            for reader in &mut readers {
                beside += usize::from(reader.thread().await.unwrap() == thread);
            }
            assert_eq!(beside, 1, "somebody else is served by that thread");
            assert_eq!(serving_threads(), threads);

            let mut next = world.enter_and_sit().await;
            assert_eq!(next.thread().await.unwrap(), thread, "the place that became free");
            readers.insert(threads - 1, next);
        }
    });
}

#[test]
fn threads_end_with_the_server() {
    in_turn(async {
        let world = World::new().await;
        let files = open_files();
        let mut readers = [world.enter_and_sit().await, world.enter_and_sit().await];
        assert_ne!(serving_threads(), 0);
        for reader in &mut readers {
            reader.thread().await.unwrap();
        }
        let World { server, serving, stop, .. } = world;
        stop.cancel();
        serving.await.unwrap().unwrap();
        drop(server);
        for reader in readers {
            reader.ends().await;
        }
        no_threads_serve().await;
        // The listener and what the door had are gone as well.
        until("all is closed", || open_files() < files).await;
    });
}

#[test]
fn threads_end_with_the_last_who_is_on_them_where_the_server_is_dropped() {
    in_turn(async {
        let world = World::new().await;
        let files = open_files();
        let mut seated = [world.enter_and_sit().await, world.enter_and_sit().await];
        let at_the_door = world.enter().await;
        let World { server, serving, socket, .. } = world;
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
        drop(server);
        at_the_door.ends().await;
        // What accepts ends beside those whom it has let in, in any order.
        until("nobody listens", || std::os::unix::net::UnixStream::connect(&socket).is_err()).await;
        for reader in &mut seated {
            reader.thread().await.expect("who is served is served on");
        }
        let [first, mut second] = seated;
        drop(first);
        second.thread().await.unwrap();
        assert_ne!(serving_threads(), 0);
        drop(second);
        no_threads_serve().await;
        until("all is closed", || open_files() < files).await;
    });
}

#[test]
fn a_client_for_whom_no_thread_can_be_started_is_let_go() {
    in_turn(async {
        let world = World::new().await;
        let mut reader = world.enter().await;
        for _ in 1..GREETED {
            reader.thread().await.unwrap();
        }
        let limit = getrlimit(Resource::Nofile);
        // A thread's runtime needs descriptors, of which there are no more.
        setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..limit }).unwrap();
        let refused = reader.thread().await;
        setrlimit(Resource::Nofile, limit).unwrap();
        // The request that lets it in is answered inside.
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(serving_threads(), 0);

        world.enter_and_sit().await.thread().await.expect("others come in when there are descriptors again");
        assert_ne!(serving_threads(), 0);
    });
}
