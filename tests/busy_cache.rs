//! Busy parts of the cache's files are mapped, and whatever happens to them meanwhile no client gets a wrong byte.

mod common;

use common::nbd::Nbd;
use common::{Dir, Http, Server, becomes_true, has, run, text};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const TOOLS: [&str; 4] = ["nginx", "setsid", "qemu-img", "stat"];

/// The part of the disk that clients read most.
const BUSY: Range<u64> = 4_000_000..4_500_000;

/// How much of a store's files the server has mapped and in memory, in KiB.
fn mapped(server: &Server) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", server.pid())).unwrap();
    let mut of_cache = false;
    let mut sum = 0;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["Rss:", kilobytes, "kB"] if of_cache => sum += kilobytes.parse::<u64>().unwrap(),
            _ if !first.ends_with(':') => of_cache = line.ends_with("/data"),
            _ => {}
        }
    }
    sum
}

/// Whether files below `directory` are on a file system whose files are mapped.
fn is_local(directory: &Path) -> bool {
    let kind = run("stat", &["-f", "-c", "%T", text(directory)]);
    ["ext2/ext3", "xfs", "btrfs", "tmpfs"].contains(&String::from_utf8_lossy(&kind.stdout).trim())
}

/// Clients that read small stretches, as fast as they can and several at a time, until `work` is done: of 16 one all over the
/// disk, the others in a part that is a twentieth of it. Every byte is compared with `disk`.
fn while_busy(server: &Server, disk: &[u8], work: impl FnOnce(&AtomicU64)) {
    let (over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for client in 1..=4_u64 {
            let (over, reads) = (&over, &reads);
            scope.spawn(move || {
                let mut nbd = Nbd::connect(&server.socket).unwrap();
                let mut state = client;
                while !over.load(Ordering::Relaxed) {
                    let places: Vec<_> = (0..16)
                        .map(|n| {
                            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(client);
                            let len = 1 + (state >> 33) % 9000;
                            let room = if n == 0 { 0..disk.len() as u64 } else { BUSY };
                            (room.start + (state >> 20) % (room.end - room.start - len), len as u32)
                        })
                        .collect();
                    for (bytes, (at, len)) in nbd.read_all(&places).unwrap().into_iter().zip(&places) {
                        let wanted = &disk[*at as usize..][..*len as usize];
                        assert!(bytes.expect("a read is answered") == wanted, "{len} bytes at {at:#x}");
                    }
                    reads.fetch_add(16, Ordering::Relaxed);
                }
            });
        }
        // So that the clients end as well when it fails.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&reads)));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = done {
            std::panic::resume_unwind(panic);
        }
    });
}

fn some_more(reads: &AtomicU64) {
    let before = reads.load(Ordering::Relaxed);
    becomes_true("clients read on", || reads.load(Ordering::Relaxed) > before + 5000);
}

/// A disk in two formats, and its bytes.
fn disks(dir: &Dir) -> (Vec<u8>, [PathBuf; 2]) {
    let raw = dir.guest_disk("disk.raw");
    let packed = dir.join("disk.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&packed)]);
    (fs::read(&raw).unwrap(), [raw, packed])
}

/// Serves a disk in two formats with `options` and a cache, of which more than `least` KiB are mapped once clients are busy;
/// `happen` happens to it then, and they read on.
fn with_busy_clients(test: &str, options: &[&str], least: u64, happen: fn(&Path)) {
    if !has(test, &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let (disk, images) = disks(&dir);
    let http = Http::start(&dir);
    for image in images {
        let location = format!("{}/{}", http.url, image.file_name().unwrap().to_str().unwrap());
        let cache = dir.join("cache");
        let server = Server::start(&dir, &[&["--cache", text(&cache)], options, &[&location]].concat());
        while_busy(&server, &disk, |reads| {
            some_more(reads);
            if is_local(&cache) {
                becomes_true("the cache's files are mapped", || mapped(&server) > least);
            }
            happen(&cache);
            some_more(reads);
        });
        server.terminate();
        fs::remove_dir_all(&cache).unwrap();
    }
}

#[test]
fn what_is_mapped_may_be_cut_off_under_busy_clients() {
    with_busy_clients("what_is_mapped_may_be_cut_off_under_busy_clients", &[], 400, |cache| {
        for object in fs::read_dir(cache.join("objects")).unwrap() {
            let data = fs::File::options().write(true).open(object.unwrap().path().join("data")).unwrap();
            // At a page's end: behind another end there would be zeros for some milliseconds.
            data.set_len(16 << 10).unwrap();
        }
    });
}

#[test]
fn what_is_mapped_may_be_evicted_under_busy_clients() {
    let options = ["--cache-size", "2M"];
    with_busy_clients("what_is_mapped_may_be_evicted_under_busy_clients", &options, 0, |_| {});
}

#[test]
fn what_is_encrypted_is_never_sent_from_where_it_is_mapped() {
    // To encrypt is to read, and where a disk fails what is mapped may only be read by the kernel.
    let tools = ["openssl", "nbdcopy", "nginx", "setsid", "qemu-img", "stat"];
    if !has("what_is_encrypted_is_never_sent_from_where_it_is_mapped", &tools) {
        return;
    }
    let dir = Dir::new();
    let (_, [image, _]) = disks(&dir);
    let tls = dir.join("tls");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/certificates"), &[text(&tls)]);
    let http = Http::start(&dir);
    let location = format!("{}/{}", http.url, image.file_name().unwrap().to_str().unwrap());
    let cache = dir.join("cache");
    for encrypted in [true, false] {
        let mut arguments = vec!["--cache", text(&cache), &location];
        if encrypted {
            arguments.extend(["--tls-certificates", text(&tls)]);
        }
        let server = Server::start(&dir, &arguments);
        let uri = match encrypted {
            true => {
                let (socket, tls) = (text(&server.socket), text(&tls));
                format!(
                    "nbds+unix://localhost/?socket={socket}&tls-certificates={tls}&tls-hostname=localhost"
                )
            }
            false => server.uri(""),
        };
        // Several at once, for a client that decrypts as well is not the fastest.
        let copy = || {
            let nbdcopy = || run("nbdcopy", &["--request-size=4096", "--connections=1", &uri, "null:"]);
            thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(nbdcopy))));
        };
        // For longer than it takes others, who see it mapped in the end.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            copy();
        }
        if encrypted || !is_local(&cache) {
            assert_eq!(mapped(&server), 0);
        } else {
            becomes_true("the cache's files are mapped", || {
                copy();
                mapped(&server) > 0
            });
        }
        server.terminate();
    }
}
