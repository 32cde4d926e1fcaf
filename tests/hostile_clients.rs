//! Clients that say anything at all, a hundred thousand of them: the server goes on as if they had never been there.

mod common;

use common::nbd::Nbd;
use common::{Dir, Server};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CLIENTS: u64 = 100_000;
const THREADS: u64 = 8;
const SIZE: usize = 4 << 20;

/// Numbers that are not random, and look it (xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

const OPTION: u64 = 0x4948_4156_454f_5054;

fn option(number: u32, announced: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION.to_be_bytes()[..], &number.to_be_bytes(), &announced.to_be_bytes(), data].concat()
}

/// What a client says when it has been greeted, and whether it wants an answer.
fn negotiation(noise: &mut Noise) -> Vec<u8> {
    let flags = 3_u32.to_be_bytes();
    let number = noise.next() as u32 % 14;
    let len = noise.next() % 64;
    let data = noise.bytes(len);
    let said = match noise.next() % 8 {
        0 => return noise.bytes(len * 4),
        1 => return noise.next().to_be_bytes()[..4].to_vec(),
        2 => option(number, u32::MAX, &data),
        3 => option(noise.next() as u32, data.len() as u32, &data),
        4 => option(number, data.len() as u32 + 1, &data),
        5 => (0..100).flat_map(|_| option(number, data.len() as u32, &data)).collect(),
        6 => {
            // NBD_OPT_GO with a name that is longer than its data, or than anything.
            let name = [u32::MAX, 5000, 4097, 70][noise.next() as usize % 4].to_be_bytes();
            option(7, data.len() as u32 + 4, &[&name[..], &data].concat())
        }
        _ => option(1, data.len() as u32, &data),
    };
    [&flags[..], &said].concat()
}

/// What a client says that got as far as an export.
fn requests(noise: &mut Noise) -> Vec<u8> {
    let mut said = Vec::new();
    for _ in 0..=noise.next() % 8 {
        let magic = if noise.next().is_multiple_of(16) { noise.next() as u32 } else { 0x2560_9513 };
        let command = noise.next() as u16 % 10;
        let at = [0, 512, SIZE as u64 - 1, SIZE as u64, u64::MAX, noise.next()][noise.next() as usize % 6];
        let len = [0, 1, 4096, 1 << 20, 33 << 20, u32::MAX][noise.next() as usize % 6];
        said.extend(magic.to_be_bytes());
        said.extend((noise.next() as u16 % 64).to_be_bytes());
        said.extend(command.to_be_bytes());
        said.extend(noise.next().to_be_bytes());
        said.extend(at.to_be_bytes());
        said.extend(len.to_be_bytes());
    }
    said
}

/// One client: it may read a little of what it is told, and leaves in its own way. Errors are what it came for.
fn hostile(socket: &Path, noise: &mut Noise) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    if noise.next().is_multiple_of(4) {
        // NBD_OPT_EXPORT_NAME of the default export.
        stream.write_all(&[&3_u32.to_be_bytes()[..], &option(1, 0, &[])].concat())?;
        stream.write_all(&requests(noise))?;
    } else {
        stream.write_all(&negotiation(noise))?;
    }
    match noise.next() % 4 {
        0 => Ok(()),
        1 => stream.read_exact(&mut [0; 18]),
        2 => {
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_to_end(&mut Vec::new()).map(|_| ())
        }
        _ => stream.read(&mut [0; 4096]).map(|_| ()),
    }
}

/// A client that is no stranger any more.
fn well_meant(socket: &Path) -> Nbd {
    let mut client = Nbd::connect(socket).unwrap();
    for block in 0..40 {
        client.read(block * 4096, 4096).unwrap().unwrap();
    }
    client
}

/// Memory of a process that is no file's, in bytes, and how many files it has open.
fn cost(pid: u32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (kib << 10, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

#[test]
fn a_hundred_thousand_hostile_clients_leave_no_trace() {
    let dir = Dir::new();
    let content: Vec<u8> = (0..SIZE as u64 / 8).flat_map(u64::to_le_bytes).collect();
    fs::write(dir.join("disk.raw"), &content).unwrap();
    let image = dir.join("disk.raw");
    let server = Server::start(&dir, &["--no-cache", "--format", "raw", image.to_str().unwrap()]);
    let noise = |seed: u64| Noise(0x9e37_79b9_7f4a_7c15 ^ (seed + 1));
    let attack = |clients: u64, seed: u64| {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (server, mut noise) = (&server, noise(seed * THREADS + thread));
                scope.spawn(move || {
                    for _ in 0..clients / THREADS {
                        // What a hostile client makes of its answers is its own affair.
                        let _ = hostile(&server.socket, &mut noise);
                    }
                });
            }
        });
    };
    // What a server takes once and keeps, it takes now: also a thread for each processor, to serve as many clients at once as
    // have read for a while.
    let processors = std::thread::available_parallelism().unwrap().get();
    let guests: Vec<Nbd> = (0..processors).map(|_| well_meant(&server.socket)).collect();
    drop(guests);
    attack(CLIENTS / 20, 0);
    std::thread::sleep(Duration::from_millis(500));
    let (memory, files) = cost(server.pid());

    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // A client that means well is served all the while.
        scope.spawn(|| {
            let mut client = Nbd::connect(&server.socket).unwrap();
            while !over.load(Ordering::Relaxed) {
                let at = served.fetch_add(1, Ordering::Relaxed) * 4096 % SIZE as u64;
                let bytes = client.read(at, 4096).unwrap().unwrap();
                assert!(bytes == content[at as usize..at as usize + 4096]);
            }
        });
        attack(CLIENTS - CLIENTS / 20, 1);
        over.store(true, Ordering::Relaxed);
    });
    assert!(served.load(Ordering::Relaxed) > 1000, "{} reads", served.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_millis(500));
    let (memory_after, files_after) = cost(server.pid());
    assert!(files_after <= files, "{files} open files, then {files_after}");
    assert!(memory_after < memory + (8 << 20), "{memory} bytes, then {memory_after}");
    server.terminate();
}
