//! What a server of images may do wrong, and what a reader of the disk may see of it: the right bytes, or an error in
//! bounded time. Never wrong bytes, never a dead server, never a hang.
//!
//! Each test drives a block server through its NBD socket, with one kind of lie at the other end; first told once, then
//! every time, then no more. The list of lies is that of `backends::testing::Lie`.
//!
//! The block server is ours, or any other that reads from a web server and speaks NBD on a unix socket. How one is started,
//! in the foreground, says LYING_ORIGIN_SERVER, a line for a shell in which {url} is the image's and {socket} the socket's
//! place:
//!
//! ```sh
//! LYING_ORIGIN_SERVER='qemu-nbd --read-only --persistent --format raw --socket {socket} {url}' \
//!     cargo test --test lying_origin -- --nocapture
//! ```
//!
//! Of another server only the promise above is asked, not when it tries again; each test prints what it saw.

mod common;

use backends::testing::{Lie, Origin};
use common::{Dir, Server, becomes_true, text};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest that any read may take: the server's own deadline, and some for a busy machine.
const LONGEST: Duration = Duration::from_secs(30);
const SIZE: usize = 16 << 20;
const LEN: usize = 4096;

/// How far apart reads are: no server that reads ahead has the next one already.
const APART: usize = 3 << 20;

/// The server under test, ended with the test.
enum Tested {
    Ours(Server),
    Other(Child, PathBuf),
}

impl Tested {
    fn start(dir: &Dir, url: &str) -> Tested {
        let Ok(line) = std::env::var("LYING_ORIGIN_SERVER") else {
            return Tested::Ours(Server::start(dir, &["--no-cache", "--format", "raw", url]));
        };
        let socket = dir.join("nbd.sock");
        let line = line.replace("{url}", &format!("'{url}'")).replace("{socket}", text(&socket));
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).process_group(0);
        let child = command.spawn().unwrap();
        let tested = Tested::Other(child, socket.clone());
        becomes_true(&format!("{line} listens"), || UnixStream::connect(&socket).is_ok());
        tested
    }

    fn socket(&self) -> &Path {
        match self {
            Tested::Ours(server) => &server.socket,
            Tested::Other(_, socket) => socket,
        }
    }
}

impl Drop for Tested {
    fn drop(&mut self) {
        if let Tested::Other(child, _) = self {
            // The shell, and what it started. It may have ended already.
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
            let _ = child.wait();
        }
    }
}

/// What became of a read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Right,
    Error,
    /// Other bytes than the image's.
    Wrong,
    /// No answer within [`LONGEST`].
    Hang,
    /// The connection ended, or there is none.
    Dead,
}

/// A client of the transmission phase that asks for one range at a time.
struct Client {
    socket: PathBuf,
    stream: Option<UnixStream>,
}

impl Client {
    /// The same connection as before, or a new one after one that ended or hung.
    fn stream(&mut self) -> std::io::Result<&mut UnixStream> {
        if self.stream.is_none() {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(LONGEST))?;
            let mut greeting = [0; 18];
            stream.read_exact(&mut greeting)?;
            assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
            // Client flags "fixed newstyle, no zeroes", then NBD_OPT_EXPORT_NAME with the empty name.
            stream.write_all(
                &[&3_u32.to_be_bytes()[..], b"IHAVEOPT", &1_u32.to_be_bytes(), &[0; 4]].concat(),
            )?;
            let mut export = [0; 10];
            stream.read_exact(&mut export)?;
            assert_eq!(export[..8], (SIZE as u64).to_be_bytes());
            self.stream = Some(stream);
        }
        Ok(self.stream.as_mut().unwrap())
    }

    /// The bytes, or the error number.
    fn ask(&mut self, offset: u64) -> std::io::Result<Result<Vec<u8>, u32>> {
        let stream = self.stream()?;
        let request = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &[0; 4],
            &7_u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &(LEN as u32).to_be_bytes(),
        ];
        stream.write_all(&request.concat())?;
        let mut reply = [0; 16];
        stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => {
                let mut bytes = vec![0; LEN];
                stream.read_exact(&mut bytes)?;
                Ok(Ok(bytes))
            }
            error => Ok(Err(error)),
        }
    }

    fn read(&mut self, offset: usize, content: &[u8]) -> Seen {
        match self.ask(offset as u64) {
            Ok(Ok(bytes)) if bytes == content[offset..offset + LEN] => Seen::Right,
            Ok(Ok(_)) => Seen::Wrong,
            Ok(Err(_)) => Seen::Error,
            Err(error) => {
                self.stream = None;
                let late =
                    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
                if late { Seen::Hang } else { Seen::Dead }
            }
        }
    }
}

/// What our server makes of a lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    /// Right bytes, however often it is told.
    Served,
    /// Right bytes if it is told once, an error if it goes on, right bytes again afterwards.
    Retried,
    /// An error each time it is told, right bytes afterwards: who says it may mean it.
    Believed,
    /// An error from then on: the object is another one.
    Latched,
}

impl Outcome {
    /// What is seen of a lie told once, of one told every time, and of the truth after it.
    fn seen(self) -> [Seen; 3] {
        use Seen::{Error, Right};
        match self {
            Outcome::Served => [Right, Right, Right],
            Outcome::Retried => [Right, Error, Right],
            Outcome::Believed => [Error, Error, Right],
            Outcome::Latched => [Error, Error, Error],
        }
    }
}

/// No two places look alike, so bytes from the wrong one are found out; nor do two generations.
fn content(generation: u32) -> Vec<u8> {
    (0..SIZE as u32 / 4)
        .flat_map(|word| (word.wrapping_mul(0x9e37_79b1) ^ generation).to_be_bytes())
        .collect()
}

/// Reads at three places, each after `told` has said to the origin what it is to do for it.
fn check(name: &str, outcome: Outcome, told: impl Fn(&Origin, usize)) {
    let content = content(0);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = runtime.block_on(Origin::start(content.clone())).unwrap();
    let dir = Dir::new();
    let server = Tested::start(&dir, &origin.url("disk.img"));
    let mut client = Client { socket: server.socket().to_owned(), stream: None };
    assert_eq!(client.read(APART, &content), Seen::Right, "an honest answer");
    let seen = [0, 1, 2].map(|step| {
        told(&origin, step);
        client.read(APART * (step + 2), &content)
    });
    println!("{name}: {seen:?}");
    let kept = |seen: &Seen| matches!(seen, Seen::Right | Seen::Error);
    assert!(seen.iter().all(kept), "{name}, told once, every time, no more: {seen:?}");
    if let Tested::Ours(_) = server {
        assert_eq!(seen, outcome.seen(), "{name}, told once, every time, no more");
    }
}

macro_rules! lies {
    ($($name:ident: $lie:expr => $outcome:ident;)*) => {
        $(#[test] fn $name() {
            check(stringify!($name), Outcome::$outcome, |origin, step| match step {
                0 => origin.lie([$lie]),
                1 => origin.always($lie),
                _ => origin.always(Lie::None),
            });
        })*
    };
}

lies! {
    a_503: Lie::Status(503, String::new()) => Retried;
    a_503_that_asks_for_patience: Lie::Status(503, "Retry-After: 1\r\n".into()) => Retried;
    a_429: Lie::Status(429, String::new()) => Retried;
    a_500: Lie::Status(500, String::new()) => Retried;
    a_403: Lie::Status(403, String::new()) => Believed;
    a_404: Lie::Status(404, String::new()) => Believed;
    a_416: Lie::Status(416, String::new()) => Retried;
    a_redirect_in_a_circle: Lie::Status(302, "Location: disk.img\r\n".into()) => Retried;
    a_redirect_to_nowhere: Lie::Status(302, String::new()) => Retried;
    the_whole_object_for_a_range: Lie::Whole => Retried;
    a_page_of_html: Lie::Page => Retried;
    another_range: Lie::Shifted(512) => Retried;
    fewer_bytes_than_asked: Lie::Pieces(1000) => Served;
    a_body_that_breaks_off: Lie::Cut(100) => Served;
    a_chunked_body_that_ends_half_way: Lie::Unsized => Retried;
    a_body_longer_than_announced: Lie::Long(100) => Retried;
    a_body_without_end: Lie::Endless => Retried;
    half_a_body_and_then_silence: Lie::Stall => Retried;
    silence: Lie::Freeze => Retried;
    a_byte_a_second: Lie::Drip => Retried;
    a_reset: Lie::Reset => Retried;
    a_new_entity_tag: Lie::Tag("\"another\"".into()) => Latched;
    content_said_to_be_gzip: Lie::Gzip => Retried;
    no_content_range: Lie::Unranged => Retried;
}

#[test]
fn another_object_of_the_same_size() {
    check("another_object_of_the_same_size", Outcome::Latched, |origin, step| match step {
        0 => origin.replace(content(1), "\"2\""),
        1 => origin.replace(content(2), "\"3\""),
        _ => origin.replace(content(0), "\"1\""),
    });
}

#[test]
fn another_object_of_another_size() {
    check("another_object_of_another_size", Outcome::Latched, |origin, step| match step {
        0 => origin.replace(content(1)[..SIZE / 2].to_vec(), "\"2\""),
        1 => origin.replace([content(2), content(3)].concat(), "\"3\""),
        _ => origin.replace(content(0), "\"1\""),
    });
}
