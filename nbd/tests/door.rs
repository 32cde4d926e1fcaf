//! Clients come in on a thread of their own, and are served on another.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use thinorigin_nbd::wire::consts::CommandFlags;
use thinorigin_nbd::wire::{Command, Cookie, Request};
use thinorigin_nbd::{
    Client, Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Failure, Limits, Segment, Segments,
    Server,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const SIZE: u64 = 64 << 20;
/// Where reads wait a moment from; below it all is at hand.
const WAITS: u64 = 32 << 20;

/// The disk's byte at `offset`.
fn byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

fn bytes(offset: u64, len: u64) -> Vec<u8> {
    (offset..offset + len).map(byte).collect()
}

/// The names of threads that did something.
#[derive(Default)]
struct Threads(Mutex<BTreeSet<String>>);

impl Threads {
    fn note(&self) {
        let name = thread::current().name().unwrap_or_default().to_owned();
        self.0.lock().unwrap().insert(name);
    }

    fn door_alone(&self) -> bool {
        *self.0.lock().unwrap() == BTreeSet::from(["door".to_owned()])
    }

    fn has_door(&self) -> bool {
        self.0.lock().unwrap().contains("door")
    }
}

#[derive(Default)]
struct Disk {
    /// That answered at once.
    answering: Threads,
    /// That ran what a lookup or a read left to itself.
    begun: Threads,
}

impl Export for Disk {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: SIZE, preferred_block: 4096, description: String::new() }
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        self.answering.note();
        (offset < WAITS).then(|| {
            out.push(Segment::Bytes(Bytes::from(bytes(offset, len.into()))));
            Ok(())
        })
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Segments, Failure> {
        self.begun.note();
        sleep(Duration::from_millis(offset % 7)).await;
        Ok(Segments::from_iter([Segment::Bytes(Bytes::from(bytes(offset, len.into())))]))
    }

    async fn block_status(&self, _offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent { len, flags: ExtentFlags::empty(), depth: 1, local: true }])
    }

    async fn prefetch(&self, _offset: u64, _len: u64) {}
}

struct Only(Arc<Disk>);

impl Exports for Only {
    type Export = Disk;

    async fn lookup(&self, _name: &str, _client: &Client) -> Option<Arc<Disk>> {
        let disk = self.0.clone();
        tokio::spawn(async move { disk.begun.note() });
        Some(Arc::clone(&self.0))
    }

    fn names(&self, _client: &Client) -> Vec<String> {
        Vec::new()
    }
}

/// Negotiates as the oldest clients of the fixed newstyle protocol do.
async fn enter(socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    socket.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").await.unwrap();
    assert_eq!(socket.read_u64().await.unwrap(), SIZE);
    socket.read_u16().await.unwrap();
}

fn read_request(cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let flags = CommandFlags::empty();
    Request { flags, command: Command::Read, cookie: Cookie(cookie), offset, length }.encode(&mut bytes);
    bytes
}

/// Where and how much the read `cookie` asks for: one in four of them waits.
fn asked(cookie: u64) -> (u64, u64) {
    let offset = cookie * 7919 % (16 << 20) + if cookie.is_multiple_of(4) { WAITS } else { 0 };
    (offset, 1 + cookie * 31 % 9000)
}

/// Sends `count` reads, in pieces that are no requests, and looks at each answer.
async fn read_much(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, count: u64) {
    let (mut from, mut to) = tokio::io::split(socket);
    let sending = tokio::spawn(async move {
        let requests: Vec<u8> = (0..count)
            .flat_map(|cookie| {
                let (offset, length) = asked(cookie);
                read_request(cookie, offset, length)
            })
            .collect();
        for piece in requests.chunks(61) {
            to.write_all(piece).await.unwrap();
        }
        to
    });
    let mut left: BTreeSet<u64> = (0..count).collect();
    while !left.is_empty() {
        assert_eq!(from.read_u32().await.unwrap(), 0x6744_6698);
        assert_eq!(from.read_u32().await.unwrap(), 0);
        let cookie = from.read_u64().await.unwrap();
        assert!(left.remove(&cookie), "{cookie} is answered twice");
        let (offset, length) = asked(cookie);
        let mut data = vec![0; length as usize];
        from.read_exact(&mut data).await.unwrap();
        assert!(data == bytes(offset, length), "wrong bytes for {cookie}");
    }
    sending.await.unwrap();
}

/// The niceness in a stat file of a thread that is called `name` or anything: field 19 of proc_pid_stat(5).
fn niceness(stat: &str, name: &str) -> Option<i64> {
    let (begin, rest) = stat.rsplit_once(") ")?;
    // Two fields are in `begin`.
    begin.ends_with(name).then(|| rest.split(' ').nth(16)?.parse().ok())?
}

/// How much nicer than this thread each is of those that are called `door`.
fn doors() -> Vec<i64> {
    let own = niceness(&std::fs::read_to_string("/proc/thread-self/stat").unwrap(), "").unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end while it is looked at.
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    stats.filter_map(|stat| niceness(&stat, "(door")).map(|nice| nice - own).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_greeted_at_the_door_and_served_inside() {
    let disk = Arc::new(Disk::default());
    let server = Server::new(Arc::new(Only(Arc::clone(&disk))), Limits::default());
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = [unix.into(), tcp.into()].map(|listener| {
        let (server, stop) = (server.clone(), stop.clone());
        tokio::spawn(async move { server.serve(listener, stop).await })
    });
    let all = async {
        let mut short = UnixStream::connect(&path).await.unwrap();
        enter(&mut short).await;
        read_much(short, 20).await;
        assert!(disk.answering.door_alone(), "the first requests are answered inside");
        assert_eq!(doors(), [5, 5], "one door for each listener");

        let mut unix = UnixStream::connect(&path).await.unwrap();
        enter(&mut unix).await;
        read_much(unix, 2000).await;
        assert!(!disk.answering.door_alone(), "the client was never let in");

        let mut tcp = TcpStream::connect(address).await.unwrap();
        enter(&mut tcp).await;
        read_much(tcp, 2000).await;
        assert!(!disk.begun.has_door(), "what was begun at the door stays there");
        stop.cancel();
        for serving in serving {
            serving.await.unwrap().unwrap();
        }
        while !doors().is_empty() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(60), all).await.expect("it takes too long");
}
