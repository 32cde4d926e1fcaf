//! Against a server that speaks the protocol, and says with it what it should not.

use super::*;
use std::collections::VecDeque;
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const SIZE: u64 = 300_000;

/// What the server answers to a READ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// At most so many of the bytes.
    Pieces(usize),
    /// No bytes at all.
    Nothing,
    /// More bytes than were asked for.
    Long,
    /// As many bytes as were asked for, and the number of others.
    Miscounted,
    /// An answer that ends in the middle of a field.
    Cut,
    /// No attributes of the file.
    Anonymous,
    /// Those of a file with another number, another time, another size.
    OtherFile,
    OtherTime,
    OtherSize,
    /// This `nfsstat3`.
    Status(u32),
    /// That the caller is not allowed to call (RFC 5531 section 9).
    Denied,
    /// Two answers to calls that nobody made, and then the right one.
    Others,
    /// The right one, in pieces of 100 bytes (RFC 5531 section 11).
    Fragments,
    /// Nothing, ever.
    Silence,
}

type Lies = Arc<StdMutex<(VecDeque<Lie>, Lie)>>;

fn content(range: Range<u64>) -> Vec<u8> {
    range.map(|at| (at ^ (at >> 8)) as u8).collect()
}

/// Big endian, as XDR has it.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// `post_op_attr` of the file (RFC 1813 section 2.6), but for what `lie` says.
fn attributes(lie: Lie) -> Vec<u8> {
    if lie == Lie::Anonymous {
        return words(&[0]);
    }
    let size = if lie == Lie::OtherSize { SIZE + 1 } else { SIZE };
    let file_id = if lie == Lie::OtherFile { 8 } else { 7 };
    let seconds = if lie == Lie::OtherTime { 1001 } else { 1000 };
    let (high, low) = ((size >> 32) as u32, size as u32);
    let head = words(&[1, REGULAR, 0o644, 1, 0, 0, high, low, high, low, 0, 0, 0, 1]);
    [head, words(&[0, file_id, 5, 5, seconds, 0, 6, 6])].concat()
}

/// The results of a call, or None for silence.
fn results(procedure: Procedure, arguments: &[u8], lie: Lie) -> Option<Vec<u8>> {
    let handle = words(&[8, 1, 2]);
    Some(match procedure {
        MNT => [words(&[0]), handle, words(&[0])].concat(),
        LOOKUP => [words(&[0]), handle, attributes(Lie::None), words(&[0])].concat(),
        FSINFO => [words(&[0, 0]), words(&[65_536; 12])].concat(),
        READ => {
            // Behind the handle, which is 8 bytes long.
            let field = |at: usize| u32::from_be_bytes(arguments[at..at + 4].try_into().unwrap());
            let start = u64::from(field(12)) << 32 | u64::from(field(16));
            let mut data = content(start..(start + u64::from(field(20))).min(SIZE));
            match lie {
                Lie::Silence => return None,
                Lie::Status(status) => return Some([words(&[status]), attributes(lie)].concat()),
                Lie::Pieces(most) => data.truncate(most),
                Lie::Nothing => data.clear(),
                Lie::Long => data.extend([0xee; 8]),
                _ => {}
            }
            let len = data.len() as u32;
            let count = if lie == Lie::Miscounted { len - 4 } else { len };
            data.resize(data.len().next_multiple_of(4), 0);
            let mut answer = [words(&[0]), attributes(lie), words(&[count, 1, len]), data].concat();
            if lie == Lie::Cut {
                answer.truncate(70);
            }
            answer
        }
        _ => Vec::new(),
    })
}

fn record(xid: u32, results: &[u8], lie: Lie) -> Vec<u8> {
    // REPLY, accepted, no verifier, done; or denied for want of authority.
    let head = if lie == Lie::Denied { words(&[xid, 1, 1, 1, 5]) } else { words(&[xid, 1, 0, 0, 0, 0]) };
    let message = [&head, results].concat();
    let step = if lie == Lie::Fragments { 100 } else { message.len() };
    let last = message.len().div_ceil(step) - 1;
    let fragment = |(number, piece): (usize, &[u8])| {
        let head = piece.len() as u32 | if number == last { 0x8000_0000 } else { 0 };
        [&head.to_be_bytes()[..], piece].concat()
    };
    message.chunks(step).enumerate().flat_map(fragment).collect()
}

async fn connection(mut stream: TcpStream, lies: Lies) -> std::io::Result<()> {
    loop {
        let len = stream.read_u32().await? & 0x7fff_ffff;
        let mut call = vec![0; len as usize];
        stream.read_exact(&mut call).await?;
        let field = |at: usize| u32::from_be_bytes(call[at..at + 4].try_into().unwrap());
        let (xid, procedure) = (field(0), (field(12), field(16), field(20)));
        // Behind the credential, and a verifier of nothing.
        let arguments = &call[32 + field(28) as usize + 8..];
        let lie = match procedure {
            READ => {
                let mut lies = lies.lock().unwrap_or_else(PoisonError::into_inner);
                let always = lies.1;
                lies.0.pop_front().unwrap_or(always)
            }
            _ => Lie::None,
        };
        let Some(results) = results(procedure, arguments, lie) else { continue };
        if lie == Lie::Others {
            for other in [xid.wrapping_add(1000), xid.wrapping_sub(1000)] {
                stream.write_all(&record(other, &[0xee; 200], Lie::None)).await?;
            }
        }
        stream.write_all(&record(xid, &results, lie)).await?;
    }
}

async fn server() -> (u16, Lies, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let lies: Lies = Arc::new(StdMutex::new((VecDeque::new(), Lie::None)));
    let shared = lies.clone();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connection(stream, shared.clone()));
        }
    });
    (port, lies, task)
}

async fn open(port: u16) -> NfsSource {
    // By name, as people do.
    let location = format!("nfs://localhost:{port}/images/disk").parse().unwrap();
    let policy = Policy { deadline: Duration::from_secs(2), ..Policy::default() };
    NfsSource::open(&location, &Options::default().with_policy(policy)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_answer_of_a_server_is_wrong_bytes() {
    let (port, lies, _server) = server().await;
    let always = |lie| lies.lock().unwrap().1 = lie;
    // Whether it is right bytes if it is told once, and what it is if it is told every time.
    let cases = [
        (Lie::Pieces(1000), true, Ok(())),
        (Lie::Fragments, true, Ok(())),
        (Lie::Others, true, Ok(())),
        (Lie::Nothing, true, Err(Kind::BadAnswer)),
        (Lie::Long, true, Err(Kind::BadAnswer)),
        (Lie::Miscounted, true, Err(Kind::BadAnswer)),
        (Lie::Cut, true, Err(Kind::BadAnswer)),
        (Lie::Anonymous, true, Err(Kind::BadAnswer)),
        // NFS3ERR_IO, NFS3ERR_JUKEBOX, NFS3ERR_SERVERFAULT, NFS3ERR_STALE, NFS3ERR_BADHANDLE, and one that is none.
        (Lie::Status(5), true, Err(Kind::Unreachable)),
        (Lie::Status(10008), true, Err(Kind::Unreachable)),
        (Lie::Status(10006), true, Err(Kind::Unreachable)),
        (Lie::Status(70), true, Err(Kind::Unreachable)),
        (Lie::Status(10001), true, Err(Kind::Unreachable)),
        (Lie::Status(12345), true, Err(Kind::BadAnswer)),
        (Lie::Status(13), false, Err(Kind::Denied)),
        (Lie::Denied, false, Err(Kind::Denied)),
        (Lie::Silence, false, Err(Kind::Unreachable)),
    ];
    for (lie, passes, outcome) in cases {
        let source = open(port).await;
        let read = async |range: Range<u64>| {
            let began = Instant::now();
            let outcome = source.read(range.clone()).await;
            assert!(began.elapsed() < Duration::from_secs(4), "{lie:?}: {:?}", began.elapsed());
            outcome.map(|bytes| assert!(bytes == content(range), "{lie:?}: wrong bytes")).map_err(|e| e.kind)
        };
        lies.lock().unwrap().0.push_back(lie);
        assert_eq!(read(1000..250_000).await.is_ok(), passes, "{lie:?}, told once");
        always(lie);
        assert_eq!(read(2000..60_001).await, outcome, "{lie:?}, told every time");
        always(Lie::None);
        lies.lock().unwrap().0.clear();
        assert_eq!(read(3000..299_999).await, Ok(()), "{lie:?}, told no more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_of_another_file_are_an_error_for_good() {
    let (port, lies, _server) = server().await;
    for lie in [Lie::OtherFile, Lie::OtherTime, Lie::OtherSize] {
        let source = open(port).await;
        lies.lock().unwrap().0.push_back(lie);
        for _ in 0..2 {
            assert_eq!(source.read(5..600).await.unwrap_err().kind, Kind::Changed, "{lie:?}");
        }
        assert_eq!(open(port).await.read(5..600).await.unwrap(), content(5..600));
    }
}
