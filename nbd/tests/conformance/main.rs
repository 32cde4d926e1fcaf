//! The protocol over a raw socket: every MUST of the protocol document that can be seen from outside.
//!
//! The same checks run against qemu-nbd and nbdkit, so that the checks themselves are checked; where those differ, the
//! reason stands beside the check's number.

mod handshake;
mod hole;
mod raw;
mod transmission;

#[path = "../../examples/memory/disk.rs"]
mod disk;

use disk::{Disk, One};
use hole::Hole;
use raw::{BLOCK_STATUS, CACHE, EINVAL, Mode, Named, READ, Raw};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thinorigin_nbd::{Limits, Server};
use tokio_util::sync::CancellationToken;

/// A server under test, with the default export `image`.
pub(crate) struct Target {
    socket: PathBuf,
    image: Vec<u8>,
    /// Where a stretch of 64 KiB begins that holds both data and a hole.
    mixed: u64,
    contexts: &'static [&'static str],
    extended: bool,
}

/// An image with data, holes, and a last sector that is not whole.
fn image(directory: &Path) -> (PathBuf, Vec<u8>) {
    let mut image = vec![0; (6 << 20) + 77];
    let mut state = 1_u64;
    for (index, chunk) in image.chunks_mut(8).enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Data in every other 256 KiB.
        if index / (256 << 10 >> 3) % 2 == 0 {
            chunk.copy_from_slice(&state.to_be_bytes()[..chunk.len()]);
        }
    }
    let path = directory.join("image");
    let file = File::create(&path).unwrap();
    for (index, chunk) in image.chunks(256 << 10).enumerate() {
        if index % 2 == 0 {
            file.write_all_at(chunk, (index * (256 << 10)) as u64).unwrap();
        }
    }
    file.set_len(image.len() as u64).unwrap();
    (path, image)
}

/// Runs all checks and answers the numbers of those that failed, with the reasons.
fn run(target: &Target, skip: &[&str]) -> Vec<(String, String)> {
    let checks: Vec<Named> = [handshake::CHECKS, transmission::CHECKS].concat();
    let mut failed = Vec::new();
    for (name, check) in checks {
        let number = name.split(' ').next().unwrap_or_default();
        if skip.contains(&number) {
            continue;
        }
        if let Err(error) = check(target) {
            println!("{name}: {error}");
            failed.push((number.to_owned(), error.to_string()));
        }
    }
    failed
}

#[test]
fn this_server() {
    let directory = tempfile::tempdir().unwrap();
    let (path, image) = image(directory.path());
    let socket = directory.path().join("socket");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let limits = Limits { handshake: Duration::from_secs(2), ..Limits::default() };
    let disk = Disk::open(image.len() as u64, Some(File::open(path).unwrap())).unwrap();
    let server = Server::new(Arc::new(One(Arc::new(disk))), limits);
    let serving = {
        let _context = runtime.enter();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let stop = stop.clone();
        runtime.spawn(async move { server.serve(listener.into(), stop).await })
    };
    let contexts = &["base:allocation", "qemu:allocation-depth", "x-thinorigin:cached"];
    let target = Target { socket, image, mixed: (256 << 10) - 4096, contexts, extended: true };
    let failed = run(&target, &[]);
    stop.cancel();
    runtime.block_on(serving).unwrap().unwrap();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Lengths that take 64 bits, on a disk that has them.
#[test]
fn a_disk_of_a_tebibyte() {
    const SIZE: u64 = 1 << 40;
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stop = CancellationToken::new();
    let server = Server::new(Arc::new(Hole(SIZE)), Limits::default());
    let listener = {
        let _context = runtime.enter();
        tokio::net::UnixListener::bind(&socket).unwrap()
    };
    let serving = {
        let stop = stop.clone();
        std::thread::spawn(move || runtime.block_on(server.serve(listener.into(), stop)))
    };
    let check = || -> raw::Check {
        let hole = [&SIZE.to_be_bytes()[..], &3_u64.to_be_bytes()].concat();
        let mut raw = Raw::transmit(&socket, Mode::Extended, &["base:allocation"])?;
        let reply = raw.request(BLOCK_STATUS, 0, 0, SIZE)?;
        let [(6, payload)] = &reply.chunks[..] else { return Err(format!("{reply:?}").into()) };
        assert_eq!(payload[8..], hole, "one extent of all");
        assert_eq!(raw.request(CACHE, 0, 0, SIZE)?.error, 0);
        assert_eq!(raw.read(SIZE - 5, 5)?, [0; 5]);
        let cookie = raw.put_request(READ, 0, 0, SIZE)?;
        let reply = raw.reply(|_| 0, |_| 0)?;
        assert_eq!((reply.cookie, reply.error), (cookie, EINVAL));
        raw.refused(BLOCK_STATUS, 0, 1, SIZE, &[EINVAL])?;
        // With 32 bits it takes more requests.
        let mut raw = Raw::transmit(&socket, Mode::Structured, &["base:allocation"])?;
        let reply = raw.request(BLOCK_STATUS, 0, SIZE - u64::from(u32::MAX), u32::MAX.into())?;
        let [(5, payload)] = &reply.chunks[..] else { return Err(format!("{reply:?}").into()) };
        assert_eq!(payload[4..], [&u32::MAX.to_be_bytes()[..], &3_u32.to_be_bytes()].concat());
        Ok(())
    };
    check().unwrap();
    stop.cancel();
    serving.join().unwrap().unwrap();
}

/// A foreign server, ended when dropped.
struct Foreign(Child);

impl Drop for Foreign {
    fn drop(&mut self) {
        // It may have ended by itself, which the checks have noticed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program; `None` if it is not installed.
fn start(program: &str, arguments: &[&str], socket: &Path) -> Option<Foreign> {
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).spawn();
    let foreign = match child {
        Ok(child) => Foreign(child),
        Err(error) => {
            assert!(std::env::var_os("THINORIGIN_REQUIRE").is_none(), "{program}: {error}");
            eprintln!("SKIPPED: nbd conformance: needs {program}");
            return None;
        }
    };
    let start = Instant::now();
    while UnixStream::connect(socket).is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "{program} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(foreign)
}

/// No check fails but those `known` to.
fn compare(failed: &[(String, String)], known: &[(&str, &str)]) {
    let unknown: Vec<_> =
        failed.iter().filter(|(number, _)| !known.iter().any(|(of, _)| of == number)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn qemu_nbd() {
    let directory = tempfile::tempdir().unwrap();
    let (path, mut image) = image(directory.path());
    // qemu rounds disks up to whole sectors.
    image.resize(image.len().next_multiple_of(512), 0);
    let socket = directory.path().join("socket");
    let (path, at) = (path.to_str().unwrap(), socket.to_str().unwrap());
    let arguments = ["-r", "-t", "-e", "0", "-f", "raw", "-A", "-k", at, path];
    let Some(_server) = start("qemu-nbd", &arguments, &socket) else { return };
    let contexts = &["base:allocation", "qemu:allocation-depth"];
    let extended = qemu_has_extended_headers();
    let target = Target { socket, image, mixed: (256 << 10) - 4096, contexts, extended };
    let failed = run(&target, if extended { &[] } else { EXTENDED });
    compare(&failed, QEMU);
}

#[test]
fn nbdkit() {
    let directory = tempfile::tempdir().unwrap();
    let (path, image) = image(directory.path());
    let socket = directory.path().join("socket");
    let (path, at) = (path.to_str().unwrap(), socket.to_str().unwrap());
    let Some(_server) = start("nbdkit", &["-f", "-r", "-U", at, "file", path], &socket) else { return };
    let target =
        Target { socket, image, mixed: (256 << 10) - 4096, contexts: &["base:allocation"], extended: false };
    // These kill nbdkit 1.32: an assertion fails when a client leaves that did not read its replies.
    compare(&run(&target, &["T23", "T25"]), NBDKIT);
}

/// What needs extended headers.
const EXTENDED: &[&str] = &["H26", "T26", "T27", "T28", "T29"];

/// qemu-nbd has them from version 8.2 on.
fn qemu_has_extended_headers() -> bool {
    let said =
        Command::new("qemu-nbd").arg("--version").output().expect("it was started a moment ago").stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let version = said.split_whitespace().nth(1).and_then(|version| version.split_once('.'));
    let number = |text: &str| text.split('.').next().and_then(|number| number.parse::<u32>().ok());
    version.is_some_and(|(major, minor)| (number(major), number(minor)) >= (Some(8), Some(2)))
}

/// Where qemu-nbd 7.2 and 10.0 differ, and why.
const QEMU: &[(&str, &str)] = &[
    ("H22b", "bytes after the last query are ignored"),
    ("H34", "a negotiation may take 10 s, longer than the check waits"),
    ("H35", "a negotiation may take 10 s, longer than the check waits"),
    ("T08", "commands that were not announced are invalid, whether the export is read-only or not"),
    ("T18", "a bad magic number is answered with an error before the connection is closed"),
    ("T21", "depending on time, it closes the connection before it has answered what is under way"),
];

/// Where nbdkit 1.32 differs, and why.
const NBDKIT: &[(&str, &str)] = &[
    ("H10", "the file plugin serves any name"),
    ("H16", "the file plugin serves any name"),
    ("H20", "a malformed selection does not clear the one before"),
    ("H22b", "bytes after the last query are ignored"),
    ("H24", "the file plugin serves any name"),
    ("H26", "no extended headers"),
    ("H29", "the file plugin serves any name"),
    ("H31", "the file plugin serves any name"),
    ("H32", "the file plugin serves any name"),
    ("H34", "a negotiation may take for ever"),
    ("H35", "a negotiation may take for ever"),
    ("T10", "FUA is invalid where it is not announced"),
    ("T26", "no extended headers"),
    ("T27", "no extended headers"),
    ("T28", "no extended headers"),
    ("T29", "no extended headers"),
];
