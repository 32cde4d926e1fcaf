//! What one client can do to another, and what happens when the server is to stop.

use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use thinorigin_nbd::wire::consts::CommandFlags;
use thinorigin_nbd::wire::{Command, Cookie, Request};
use thinorigin_nbd::{
    Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Failure, Limits, Link, Listener, Segment,
    Segments, Server, serve_transmission, serve_until_quiet,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const MIB: u64 = 1 << 20;
/// Where a read waits until it is told to go on, where it fails, where it panics, where it is short.
const SLOW: u64 = MIB;
const FAILS: u64 = 2 * MIB;
const PANICS: u64 = 3 * MIB;
const SHORT: u64 = 4 * MIB;

/// A disk of ones with places of trouble. Below `SLOW` everything is at hand.
#[derive(Default)]
struct Trouble {
    go_on: Notify,
    /// Reads that wait now.
    waiting: AtomicUsize,
}

impl Export for Trouble {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: 64 * MIB, preferred_block: 4096, description: String::new() }
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        (offset < SLOW).then(|| {
            out.push(Segment::Bytes(Bytes::from(vec![1; len as usize])));
            Ok(())
        })
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Segments, Failure> {
        match offset {
            SLOW => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.go_on.notified().await;
                self.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            FAILS => return Err(Failure { errno: Errno::Io, at: Some(FAILS + 8) }),
            PANICS => panic!("a bug of the export"),
            SHORT => return Ok(Segments::from_iter([Segment::Zero(len - 1)])),
            _ => {}
        }
        Ok(Segments::from_iter([Segment::Zero(len)]))
    }

    async fn block_status(&self, _offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent { len, flags: ExtentFlags::empty(), depth: 1, local: true }])
    }

    async fn prefetch(&self, _offset: u64, _len: u64) {}
}

struct Only(Arc<Trouble>);

impl Exports for Only {
    type Export = Trouble;

    async fn lookup(&self, _name: &str, _client: &thinorigin_nbd::Client) -> Option<Arc<Trouble>> {
        Some(Arc::clone(&self.0))
    }

    fn names(&self, _client: &thinorigin_nbd::Client) -> Vec<String> {
        Vec::new()
    }
}

fn request(command: Command, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let request = Request { flags: CommandFlags::empty(), command, cookie: Cookie(cookie), offset, length };
    request.encode(&mut bytes);
    bytes
}

/// A client in transmission with simple replies, and the task that serves it.
struct Client {
    socket: UnixStream,
    served: tokio::task::JoinHandle<std::io::Result<Option<Link>>>,
}

impl Client {
    fn new(export: &Arc<Trouble>, stop: &CancellationToken) -> Self {
        let (socket, own) = UnixStream::pair().unwrap();
        let served = tokio::spawn(serve_transmission(Link::new(own), Arc::clone(export), stop.clone()));
        Self { socket, served }
    }

    async fn send(&mut self, command: Command, cookie: u64, offset: u64, length: u64) {
        self.socket.write_all(&request(command, cookie, offset, length)).await.unwrap();
    }

    /// Error and cookie of the next reply, and its data.
    async fn reply(&mut self, length: usize) -> (u32, u64, Vec<u8>) {
        let receive = async {
            assert_eq!(self.socket.read_u32().await.unwrap(), 0x6744_6698);
            let error = self.socket.read_u32().await.unwrap();
            let cookie = self.socket.read_u64().await.unwrap();
            let mut data = vec![0; if error == 0 { length } else { 0 }];
            self.socket.read_exact(&mut data).await.unwrap();
            (error, cookie, data)
        };
        timeout(Duration::from_secs(10), receive).await.expect("no reply")
    }

    /// Nothing but the end comes, and the server's task is done.
    async fn ended(mut self) -> std::io::Result<()> {
        let mut rest = Vec::new();
        timeout(Duration::from_secs(10), self.socket.read_to_end(&mut rest)).await.expect("no end").unwrap();
        assert!(rest.is_empty());
        self.served.await.unwrap().map(|link| assert!(link.is_none(), "a link without a client"))
    }
}

async fn until(condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), poll).await.expect("it does not happen");
}

#[tokio::test]
async fn nothing_queues_behind_a_cold_block() {
    let export = Arc::new(Trouble::default());
    let mut client = Client::new(&export, &CancellationToken::new());
    client.send(Command::Read, 1, SLOW, 512).await;
    client.send(Command::Read, 2, 0, 512).await;
    client.send(Command::Read, 3, FAILS, 512).await;
    assert_eq!(client.reply(512).await, (0, 2, vec![1; 512]));
    assert_eq!(client.reply(512).await, (5, 3, vec![]));
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 1, vec![0; 512]));
    client.send(Command::Disconnect, 4, 0, 0).await;
    client.ended().await.unwrap();
}

#[tokio::test]
async fn the_largest_read_is_answered() {
    let mut client = Client::new(&Arc::default(), &CancellationToken::new());
    for (cookie, offset, byte) in [(1, 0, 1), (2, 32 * MIB, 0)] {
        client.send(Command::Read, cookie, offset, 32 * MIB).await;
        let (error, of, data) = client.reply(32 << 20).await;
        assert_eq!((error, of), (0, cookie));
        assert!(data.iter().all(|found| *found == byte));
    }
    client.send(Command::Read, 3, 0, 32 * MIB + 1).await;
    assert_eq!(client.reply(0).await, (22, 3, vec![]));
}

#[tokio::test]
async fn an_export_that_gives_too_little_is_an_error_of_that_request() {
    let mut client = Client::new(&Arc::default(), &CancellationToken::new());
    client.send(Command::Read, 1, SHORT, 512).await;
    assert_eq!(client.reply(512).await, (5, 1, vec![]));
    client.send(Command::Read, 2, 0, 1).await;
    assert_eq!(client.reply(1).await, (0, 2, vec![1]));
}

#[tokio::test]
async fn a_panic_ends_its_own_connection_alone() {
    let export = Arc::new(Trouble::default());
    let stop = CancellationToken::new();
    let (mut unlucky, mut other) = (Client::new(&export, &stop), Client::new(&export, &stop));
    unlucky.send(Command::Read, 1, PANICS, 512).await;
    assert!(unlucky.ended().await.is_err());
    other.send(Command::Read, 2, 0, 1).await;
    assert_eq!(other.reply(1).await, (0, 2, vec![1]));
}

#[tokio::test]
async fn disconnect_waits_for_what_is_under_way() {
    let export = Arc::new(Trouble::default());
    let mut client = Client::new(&export, &CancellationToken::new());
    client.send(Command::Read, 1, SLOW, 512).await;
    client.send(Command::Disconnect, 2, 0, 0).await;
    until(|| export.waiting.load(Ordering::SeqCst) == 1).await;
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 1, vec![0; 512]));
    client.ended().await.unwrap();
}

#[tokio::test]
async fn a_drain_answers_what_is_under_way_and_takes_no_more() {
    let export = Arc::new(Trouble::default());
    let stop = CancellationToken::new();
    let mut client = Client::new(&export, &stop);
    client.send(Command::Read, 1, SLOW, 512).await;
    until(|| export.waiting.load(Ordering::SeqCst) == 1).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.send(Command::Read, 2, 0, 512).await;
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 1, vec![0; 512]));
    drop(client.served.await.unwrap().unwrap());
    let mut rest = Vec::new();
    // Closing with a request unread resets the connection.
    let _ = client.socket.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "a request after the stop is answered");
}

#[tokio::test]
async fn a_drained_link_is_gone_on_with_where_it_was_left() {
    let export = Arc::new(Trouble::default());
    let stop = CancellationToken::new();
    let mut client = Client::new(&export, &stop);
    let halved = request(Command::Read, 2, 0, 512);
    client.send(Command::Read, 1, SLOW, 512).await;
    client.socket.write_all(&halved[..13]).await.unwrap();
    until(|| export.waiting.load(Ordering::SeqCst) == 1).await;
    stop.cancel();
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 1, vec![0; 512]));
    let link = client.served.await.unwrap().unwrap().expect("the client is there still");
    assert_eq!(link.received(), &halved[..13]);
    assert!(link.is_open());
    // Nobody serves it, and the client goes on all the same.
    client.socket.write_all(&halved[13..]).await.unwrap();
    client.socket.write_all(&request(Command::Read, 3, 0, 1)).await.unwrap();
    let stop = CancellationToken::new();
    client.served = tokio::spawn(serve_transmission(link, Arc::clone(&export), stop.clone()));
    assert_eq!(client.reply(512).await, (0, 2, vec![1; 512]));
    assert_eq!(client.reply(1).await, (0, 3, vec![1; 1]));
    stop.cancel();
    let link = client.served.await.unwrap().unwrap().expect("the client is there still");
    drop(client.socket);
    assert!(!link.is_open());
}

/// Asks for one thing after the other, as quickly as a thread can, and returns the socket.
async fn hurried(client: UnixStream) -> UnixStream {
    let hurry = tokio::task::spawn_blocking(move || {
        let mut socket = client.into_std().unwrap();
        socket.set_nonblocking(false).unwrap();
        let mut reply = [0; 16 + 512];
        for cookie in 0..2000 {
            std::io::Write::write_all(&mut socket, &request(Command::Read, cookie, 0, 512)).unwrap();
            std::io::Read::read_exact(&mut socket, &mut reply).unwrap();
            assert_eq!(reply[8..16], cookie.to_be_bytes());
            assert_eq!(reply[16..], [1; 512]);
        }
        socket.set_nonblocking(true).unwrap();
        socket
    });
    UnixStream::from_std(hurry.await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_waited_for_awake_is_heard_whatever_it_does_next() {
    let export = Arc::new(Trouble::default());
    let stop = CancellationToken::new();
    let mut client = Client::new(&export, &stop);
    client.socket = hurried(client.socket).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.send(Command::Read, 1, 0, 512).await;
    assert_eq!(client.reply(512).await, (0, 1, vec![1; 512]));

    client.socket = hurried(client.socket).await;
    client.send(Command::Read, 2, SLOW, 512).await;
    until(|| export.waiting.load(Ordering::SeqCst) == 1).await;
    client.send(Command::Read, 3, 0, 512).await;
    assert_eq!(client.reply(512).await, (0, 3, vec![1; 512]));
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 2, vec![0; 512]));

    client.socket = hurried(client.socket).await;
    client.send(Command::Read, 4, 0, 32 * MIB).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(client.reply(32 << 20).await.1, 4);

    let mut stop = stop;
    let hurry = tokio::spawn(hurried(client.socket));
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        stop.cancel();
        let link = client.served.await.unwrap().unwrap().expect("the client is there still");
        stop = CancellationToken::new();
        client.served = tokio::spawn(serve_transmission(link, Arc::clone(&export), stop.clone()));
    }
    client.socket = hurry.await.unwrap();
    client.send(Command::Disconnect, 5, 0, 0).await;
    client.ended().await.unwrap();
}

/// A link that was drained, and that is served until it is quiet; one slow read is under way on it.
async fn left_with_a_slow_read(limit: Duration) -> (Arc<Trouble>, Client) {
    let export = Arc::new(Trouble::default());
    let stop = CancellationToken::new();
    let mut client = Client::new(&export, &stop);
    stop.cancel();
    let link = client.served.await.unwrap().unwrap().expect("the client is there still");
    client.socket.write_all(&request(Command::Read, 1, SLOW, 512)).await.unwrap();
    let quiet = serve_until_quiet(link, Arc::clone(&export), limit);
    client.served = tokio::spawn(async move { quiet.await.map(|()| None) });
    until(|| export.waiting.load(Ordering::SeqCst) == 1).await;
    (export, client)
}

#[tokio::test]
async fn a_link_that_nobody_goes_on_with_is_closed_when_nothing_is_under_way() {
    let (export, mut client) = left_with_a_slow_read(Duration::from_secs(10)).await;
    // One that comes while another is under way is answered as well.
    client.send(Command::Read, 2, 0, 512).await;
    assert_eq!(client.reply(512).await, (0, 2, vec![1; 512]));
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 1, vec![0; 512]));
    client.ended().await.unwrap();
}

#[tokio::test]
async fn a_link_that_is_never_quiet_is_closed_all_the_same() {
    let (export, mut client) = left_with_a_slow_read(Duration::from_millis(50)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.send(Command::Read, 2, 0, 512).await;
    export.go_on.notify_one();
    assert_eq!(client.reply(512).await, (0, 1, vec![0; 512]));
    let mut rest = Vec::new();
    // Closing with a request unread resets the connection.
    let _ = client.socket.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "a request after the limit is answered");
}

#[tokio::test]
async fn a_link_in_the_middle_of_a_payload_is_not_given_back() {
    let stop = CancellationToken::new();
    let mut client = Client::new(&Arc::default(), &stop);
    client.send(Command::Write, 1, 0, 512).await;
    assert_eq!(client.reply(0).await, (1, 1, vec![]));
    stop.cancel();
    assert!(client.served.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn a_client_has_no_more_under_way_than_its_share() {
    let export = Arc::new(Trouble::default());
    let mut client = Client::new(&export, &CancellationToken::new());
    for cookie in 0..60 {
        client.send(Command::Read, cookie, SLOW, MIB).await;
    }
    let share = (Limits::default().connection_memory / MIB) as usize;
    until(|| export.waiting.load(Ordering::SeqCst) == share).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(export.waiting.load(Ordering::SeqCst), share);
    // The rest follows as replies are taken.
    for _ in 0..60 {
        export.go_on.notify_one();
        assert_eq!(client.reply(MIB as usize).await.0, 0);
    }
}

#[tokio::test]
async fn all_clients_together_have_no_more_in_memory_than_the_server_may() {
    const CLIENTS: u64 = 3;
    const READS: u64 = 20;
    let export = Arc::new(Trouble::default());
    let limits = Limits { memory: 40 * MIB, ..Limits::default() };
    let server = Server::new(Arc::new(Only(Arc::clone(&export))), limits);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (mut socket, own) = UnixStream::pair().unwrap();
        let server = server.clone();
        tokio::spawn(async move { server.serve_stream(own, CancellationToken::new()).await });
        clients.spawn(async move {
            let (greeting, answer) = (18, 10);
            socket.read_exact(&mut vec![0; greeting]).await.unwrap();
            // NBD_OPT_EXPORT_NAME of the default export, of a client that wants no padding.
            socket.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").await.unwrap();
            socket.read_exact(&mut vec![0; answer]).await.unwrap();
            for cookie in 0..READS {
                socket.write_all(&request(Command::Read, cookie, SLOW, MIB)).await.unwrap();
            }
            let mut replies = vec![0; (READS * (16 + MIB)) as usize];
            socket.read_exact(&mut replies).await.unwrap();
        });
    }
    let share = (limits.memory / MIB) as usize;
    until(|| export.waiting.load(Ordering::SeqCst) == share).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(export.waiting.load(Ordering::SeqCst), share);
    // The rest follows as replies are taken.
    let all = async { while clients.join_next().await.transpose().unwrap().is_some() {} };
    let go_on = async {
        loop {
            export.go_on.notify_one();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let both = async {
        tokio::select! { () = all => {}, () = go_on => {} }
    };
    timeout(Duration::from_secs(30), both).await.expect("some wait for ever");
}

#[tokio::test]
async fn a_client_that_leaves_abandons_its_reads() {
    let export = Arc::new(Trouble::default());
    let mut client = Client::new(&export, &CancellationToken::new());
    client.send(Command::Read, 1, SLOW, 512).await;
    until(|| export.waiting.load(Ordering::SeqCst) == 1).await;
    client.served.abort();
    drop(client.socket);
    assert!(client.served.await.unwrap_err().is_cancelled());
    until(|| Arc::strong_count(&export) == 1).await;
}

#[tokio::test]
async fn clients_beyond_the_limit_are_turned_away_and_the_rest_drains() {
    let limits = Limits { max_connections: 2, ..Limits::default() };
    let server = Server::new(Arc::new(Only(Arc::default())), limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn({
        let (server, stop) = (server.clone(), stop.clone());
        async move { server.serve(Listener::Tcp(listener), stop).await }
    });
    let greeted = || async move {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut greeting = Vec::new();
        (&mut socket).take(18).read_to_end(&mut greeting).await.unwrap();
        (socket, greeting.len())
    };
    let (first, second) = (greeted().await, greeted().await);
    assert_eq!((first.1, second.1), (18, 18));
    assert_eq!(greeted().await.1, 0);
    drop(first);
    let again = async {
        while greeted().await.1 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), again).await.expect("the place is not free again");
    stop.cancel();
    timeout(Duration::from_secs(10), serving).await.expect("no end").unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_dropped_in_the_end() {
    let mut client = Client::new(&Arc::default(), &CancellationToken::new());
    for cookie in 0..20 {
        client.send(Command::Read, cookie, 0, MIB / 2).await;
    }
    // Time is simulated: it jumps as soon as everyone waits.
    let error = client.served.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
}
