//! What a server of images may do wrong, and what a reader of the disk may see of it: the right bytes, or an error in
//! bounded time. Never wrong bytes, never a dead server, never a hang.
//!
//! Each test drives the whole program through its NBD socket, with one kind of lie at the other end; first told once,
//! then for good, then no more. The list of lies is that of `backends::testing::Lie`.

mod common;

use backends::testing::{Lie, Origin};
use common::{Dir, Server};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest that any read may take: the server's own deadline, and some for a busy machine.
const LONGEST: Duration = Duration::from_secs(30);
const SIZE: usize = 1 << 20;
const EIO: u32 = 5;

/// A client of the transmission phase that asks for one range at a time.
struct Client(UnixStream);

impl Client {
    fn connect(server: &Server) -> Client {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.set_read_timeout(Some(LONGEST)).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Client flags "fixed newstyle, no zeroes", then NBD_OPT_EXPORT_NAME with the empty name.
        stream
            .write_all(&[&3_u32.to_be_bytes()[..], b"IHAVEOPT", &1_u32.to_be_bytes(), &[0; 4]].concat())
            .unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        assert_eq!(export[..8], (SIZE as u64).to_be_bytes());
        Client(stream)
    }

    /// The bytes, or the error number.
    fn read(&mut self, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
        let began = Instant::now();
        let request = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &[0; 4],
            &7_u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &len.to_be_bytes(),
        ];
        self.0.write_all(&request.concat()).unwrap();
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).expect("an answer, not a hang and not a dead server");
        assert!(began.elapsed() < LONGEST);
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => {
                let mut bytes = vec![0; len as usize];
                self.0.read_exact(&mut bytes).unwrap();
                Ok(bytes)
            }
            error => Err(error),
        }
    }
}

/// What a lie leads to.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    /// Right bytes, however often it is told.
    Served,
    /// Right bytes if it is told once, EIO if it goes on, right bytes again afterwards.
    Retried,
    /// EIO from then on: the object is another one.
    Latched,
}

fn content() -> Vec<u8> {
    // No two places look alike, so bytes from the wrong one are found out.
    (0..SIZE as u32 / 4).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect()
}

fn check(lie: &Lie, outcome: Outcome) {
    let content = content();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = runtime.block_on(Origin::start(content.clone())).unwrap();
    let dir = Dir::new();
    let server = Server::start(&dir, &["--no-cache", "--format", "raw", &origin.url("disk.img")]);
    let mut client = Client::connect(&server);
    let mut read = |offset: usize| match client.read(offset as u64, 4096) {
        Ok(bytes) => {
            assert!(bytes == content[offset..offset + 4096], "wrong bytes at {offset:#x} after {lie:?}");
            true
        }
        Err(error) => {
            assert_eq!(error, EIO);
            false
        }
    };
    assert!(read(0x80_000), "an honest answer");

    origin.lie([lie.clone()]);
    let once = read(0x90_000);
    assert!(once == (outcome != Outcome::Latched), "{lie:?}, told once: {once}");
    origin.always(lie.clone());
    assert_eq!(read(0xa0_000), outcome == Outcome::Served, "{lie:?}, told every time");
    origin.always(Lie::None);
    assert_eq!(read(0xb0_000), outcome != Outcome::Latched, "{lie:?}, told no more");
}

macro_rules! lies {
    ($($name:ident: $lie:expr => $outcome:ident;)*) => {
        $(#[test] fn $name() { check(&$lie, Outcome::$outcome); })*
    };
}

lies! {
    a_503: Lie::Status(503, String::new()) => Retried;
    a_503_that_asks_for_patience: Lie::Status(503, "Retry-After: 1\r\n".into()) => Retried;
    the_whole_object_for_a_range: Lie::Whole => Retried;
    a_page_of_html: Lie::Page => Retried;
    another_range: Lie::Shifted(512) => Retried;
    fewer_bytes_than_asked: Lie::Pieces(1000) => Served;
    a_body_that_breaks_off: Lie::Cut(100) => Served;
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
