//! What many clients want at a time is fetched once: counted at the server.

mod common;

use backends::testing::Origin;
use common::nbd::Nbd;
use common::{Dir, Server};
use std::ops::Range;
use std::sync::Arc;
use std::sync::Barrier;

const SIZE: usize = 16 << 20;

/// Bytes that tell their place.
fn content() -> bytes::Bytes {
    (0..SIZE as u64 / 8).flat_map(u64::to_le_bytes).collect()
}

/// Has `clients` connect, and each do `work` at the same time.
fn all_at_once(server: &Server, clients: u64, work: impl Fn(u64, &mut Nbd) + Sync) {
    let barrier = Barrier::new(clients as usize);
    std::thread::scope(|scope| {
        for number in 0..clients {
            let (work, barrier) = (&work, &barrier);
            scope.spawn(move || {
                let mut client = Nbd::connect(&server.socket).unwrap();
                barrier.wait();
                work(number, &mut client);
            });
        }
    });
}

/// A server of ours in front of one that counts, with an empty cache.
fn served() -> (tokio::runtime::Runtime, Origin, Dir, Server) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let origin = runtime.block_on(Origin::start(content())).unwrap();
    let dir = Dir::new();
    let cache = dir.join("cache");
    let url = origin.url("disk.raw");
    let server = Server::start(
        &dir,
        &["--cache", cache.to_str().unwrap(), "--format", "raw", "--no-published-trace", &url],
    );
    (runtime, origin, dir, server)
}

fn overlaps(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// Fails where a byte was asked for twice.
fn assert_once(asked: &[Range<u64>]) {
    for (number, one) in asked.iter().enumerate() {
        let twice = asked[..number].iter().find(|other| overlaps(one, other));
        assert_eq!(twice, None, "{one:?} was asked for before");
    }
}

#[test]
fn a_block_that_many_want_is_asked_for_once() {
    let (_runtime, origin, _dir, server) = served();
    let content = content();
    let before = origin.asked().len();
    all_at_once(&server, 64, |number, client| {
        let at = (5 << 20) + number * 512;
        let bytes = client.read(at, 4096).unwrap().unwrap();
        assert!(bytes == content[at as usize..at as usize + 4096]);
    });
    assert_eq!(origin.asked().len() - before, 1, "{:?}", &origin.asked()[before..]);
    server.terminate();
}

#[test]
fn no_block_is_fetched_twice_for_many_clients_here_and_there() {
    let (_runtime, origin, _dir, server) = served();
    let content = Arc::new(content());
    let before = origin.asked().len();
    all_at_once(&server, 200, |number, client| {
        let mut state = number + 1;
        for _ in 0..20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (state >> 33) % (SIZE as u64 - 70_000);
            let len = 1 + (state >> 17) as u32 % 70_000;
            let bytes = client.read(at, len).unwrap().unwrap();
            assert!(bytes == content[at as usize..at as usize + len as usize], "{len} bytes at {at}");
        }
    });
    let asked = origin.asked()[before..].to_vec();
    assert_once(&asked);
    let fetched: u64 = asked.iter().map(|range| range.end - range.start).sum();
    assert!(fetched > SIZE as u64 / 2, "{fetched} bytes of {SIZE}");
    server.terminate();
}

#[test]
fn each_of_several_readers_in_sequence_is_read_ahead_for() {
    const READERS: u64 = 4;
    const READ: u32 = 32 << 10;
    let (_runtime, origin, _dir, server) = served();
    let content = content();
    let before = origin.asked().len();
    let part = SIZE as u64 / READERS;
    all_at_once(&server, READERS, |number, client| {
        for at in (number * part..(number + 1) * part).step_by(READ as usize) {
            let bytes = client.read(at, READ).unwrap().unwrap();
            assert!(bytes == content[at as usize..][..READ as usize], "at {at}");
        }
    });
    let asked = origin.asked()[before..].to_vec();
    assert_once(&asked);
    let blocks = SIZE / (64 << 10);
    assert!(asked.len() <= blocks / 8, "{} requests for {blocks} blocks: {asked:?}", asked.len());
    server.terminate();
}
