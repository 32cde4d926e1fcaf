//! Real servers that are killed, come back, or send what they should not: the reader sees a pause or an error in bounded
//! time, never wrong bytes.

mod common;

use backends::testing::{Relay, Spoil};
use bytes::Bytes;
use common::lab::{LONGEST, Lab, SPELLED, check, has_nfs, has_s3, image, write_credentials};
use common::nbd::Nbd;
use common::{Dir, Server, assert_same_bytes, becomes_true, has, run, text};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One of the lab's servers, whatever its kind, with a directory or an object in it.
struct Far {
    kind: &'static str,
    lab: Lab,
    root: PathBuf,
}

impl Far {
    /// One that holds the file `image`; `root` is the directory it is in. None where it cannot be had.
    fn start(test: &str, kind: &'static str, dir: &Dir, image: &std::path::Path) -> Option<Far> {
        let is_there = has(test, &["qemu-img", "nbdcopy"])
            && match kind {
                "http" => has(test, &["nginx"]),
                "s3" => has_s3(test),
                "nfs" => has_nfs(test),
                "smb" => has(test, &["smbd"]) && has_nfs(test),
                _ => unreachable!(),
            };
        if !is_there {
            return None;
        }
        let root = image.parent().unwrap().to_owned();
        let arguments = if kind == "s3" { vec![] } else { vec!["--root", text(&root)] };
        let lab = Lab::start(kind, dir, &arguments);
        if kind == "s3" {
            lab.run("put", &[text(image), SPELLED]);
        }
        Some(Far { kind, lab, root })
    }

    fn start_again(&self) {
        let arguments = if self.kind == "s3" { vec![] } else { vec!["--root", text(&self.root)] };
        self.lab.run("start", &arguments);
    }

    /// Ends it as a crash would, with all its processes.
    fn kill(&self) {
        let program = match self.kind {
            "http" => "nginx",
            "s3" => "weed",
            "nfs" => "ganesha",
            _ => "smbd",
        };
        let line = fs::read_to_string(self.lab.state.join(format!("{program}.pid"))).unwrap();
        let group = line.split(' ').next().unwrap();
        run("kill", &["-KILL", "--", &format!("-{group}")]);
    }

    fn port(&self) -> u16 {
        let url = self.lab.value(match self.kind {
            "http" => "HTTP_URL",
            "s3" => "S3_ENDPOINT",
            "nfs" => "NFS_URL",
            _ => "SMB_URL",
        });
        let port = url.split(':').nth(2).unwrap().split('/').next().unwrap();
        port.parse().unwrap()
    }

    /// The image's location if the server were on `port`, and what the credentials file says of it.
    fn on(&self, port: u16) -> (String, String) {
        let moved = |text: String| text.replace(&format!(":{}", self.port()), &format!(":{port}"));
        let credentials = |key| moved(fs::read_to_string(self.lab.value(key)).unwrap());
        match self.kind {
            "http" => (moved(format!("{}/{SPELLED}", self.lab.value("HTTP_URL"))), String::new()),
            "s3" => (format!("{}/{SPELLED}", self.lab.value("S3_URL")), credentials("S3_CREDENTIALS")),
            "nfs" => {
                (moved(format!("{}/{SPELLED}", self.lab.value("NFS_URL"))), credentials("NFS_CREDENTIALS"))
            }
            _ => (moved(format!("{}/{SPELLED}", self.lab.value("SMB_URL"))), credentials("SMB_CREDENTIALS")),
        }
    }
}

/// Kills a server in the middle of a body while a reader reads from end to end, starts it again, and kills it for good.
fn comes_and_goes(test: &str, kind: &'static str) {
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let Some(far) = Far::start(test, kind, &dir, &image) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let relay = runtime.block_on(Relay::start(far.port())).unwrap();
    let (location, sections) = far.on(relay.port());
    let credentials = dir.join("credentials.toml");
    write_credentials(&credentials, &sections);
    let (away, local) = (format!("away={location}"), format!("local={}", text(&image)));
    let server = Server::start(&dir, &["--no-cache", "--credentials", text(&credentials), &away, &local]);
    check(&dir, &server, "away", &wanted);
    // The same in a cache, which it is read into while the server is there.
    let other = Dir::new();
    let cache = other.join("cache");
    let cached =
        Server::start(&other, &["--cache", text(&cache), "--credentials", text(&credentials), &away]);
    check(&other, &cached, "away", &wanted);

    // What opening brought along is kept for two seconds.
    std::thread::sleep(Duration::from_secs(3));
    let stop = relay.passed() + 200_000;
    relay.spoil(Spoil::Hold(stop));
    let copy = dir.join("resumed");
    let mut reader = Command::new("nbdcopy").args([&server.uri("away"), text(&copy)]).spawn().unwrap();
    becomes_true("the server is in the middle of its answers", || relay.passed() >= stop);
    far.kill();
    relay.sever();
    relay.spoil(Spoil::None);
    std::thread::sleep(Duration::from_secs(1));
    assert!(reader.try_wait().unwrap().is_none(), "{test}: the reader did not wait for the server");
    far.start_again();
    assert!(reader.wait().unwrap().success(), "{test}: the reader saw an error");
    assert_same_bytes("after a restart", &fs::read(&copy).unwrap(), &wanted);

    far.kill();
    // Nobody listens there any more.
    runtime.block_on(async { drop(relay) });
    let began = Instant::now();
    let output =
        Command::new("nbdcopy").args([&server.uri("away"), "null:"]).stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success(), "{test}: a server that is gone was read");
    assert!(began.elapsed() < LONGEST, "{test}: the error took {:?}", began.elapsed());
    check(&dir, &server, "local", &wanted);
    check(&other, &cached, "away", &wanted);
    server.terminate();
    cached.terminate();
}

#[test]
fn an_http_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error() {
    comes_and_goes("an_http_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error", "http");
}

#[test]
fn an_s3_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error() {
    comes_and_goes("an_s3_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error", "s3");
}

#[test]
fn an_nfs_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error() {
    comes_and_goes("an_nfs_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error", "nfs");
}

#[test]
fn an_smb_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error() {
    comes_and_goes("an_smb_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error", "smb");
}

/// A fault that is put in, and whether it may be an error in spite of all tries.
type Fault = (&'static str, Spoil, bool);

/// Puts `faults` between a server and the program, each on a way of its own, all at once.
fn spoiled(test: &str, kind: &'static str, more: &[Fault]) {
    /// The most memory that the program may take, in KiB: it is some tens of MiB of a test build.
    const MEMORY: u64 = 192 << 10;
    let dir = Dir::new();
    let raw = dir.join("disk \u{fc} 1.qcow2");
    let wanted: Vec<u8> =
        (0..1_000_000_u32).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_be_bytes()).collect();
    fs::write(&raw, &wanted).unwrap();
    let Some(far) = Far::start(test, kind, &dir, &raw) else { return };
    let noise = Bytes::from_static(&[0xff; 4096]);
    let common = [
        ("silence", Spoil::Hold(0), true),
        ("drip", Spoil::Drip, true),
        ("cut", Spoil::Cut(150_000), false),
        ("noise", Spoil::Flood(noise), true),
    ];
    let faults = [&common[..], more].concat();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let relays: Vec<_> = faults.iter().map(|_| runtime.block_on(Relay::start(far.port())).unwrap()).collect();
    // S3 names the server in the credentials alone, so each way has a program of its own.
    let servers: Vec<_> = relays
        .iter()
        .map(|relay| {
            let dir = Dir::new();
            let (location, sections) = far.on(relay.port());
            let credentials = dir.join("credentials.toml");
            write_credentials(&credentials, &sections);
            let arguments = ["--no-cache", "--format", "raw", "--credentials", text(&credentials), &location];
            let server = Server::start(&dir, &arguments);
            (dir, server)
        })
        .collect();
    std::thread::scope(|scope| {
        for (((name, spoil, may_fail), relay), (_, server)) in faults.iter().zip(&relays).zip(&servers) {
            let wanted = &wanted;
            scope.spawn(move || {
                let mut client = Nbd::connect(&server.socket).unwrap();
                let mut read = |at: usize| {
                    let began = Instant::now();
                    let answer = client.read(at as u64, 100_000).expect("the server lives");
                    assert!(began.elapsed() < LONGEST, "{kind}, {name}: {:?}", began.elapsed());
                    match &answer {
                        Ok(bytes) => assert_same_bytes(name, bytes, &wanted[at..at + 100_000]),
                        Err(error) => assert_eq!(*error, 5, "{kind}, {name}"),
                    }
                    answer.is_ok()
                };
                assert!(read(1_000_000), "{kind}, {name}: before");
                relay.spoil(spoil.clone());
                assert!(read(2_000_000) || *may_fail, "{kind}, {name}: an error");
                relay.spoil(Spoil::None);
                assert!(read(3_000_000), "{kind}, {name}: afterwards");
                let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
                let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
                let most: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
                assert!(most < MEMORY, "{kind}, {name}: {most} KiB of memory");
            });
        }
    });
}

#[test]
fn an_http_server_that_is_spoiled_is_right_bytes_or_an_error() {
    let endless = Bytes::from("HTTP/1.1 100 Continue\r\n\r\n".repeat(100));
    let more = [("only beginnings", Spoil::Flood(endless), true)];
    spoiled("an_http_server_that_is_spoiled_is_right_bytes_or_an_error", "http", &more);
}

#[test]
fn an_s3_server_that_is_spoiled_is_right_bytes_or_an_error() {
    spoiled("an_s3_server_that_is_spoiled_is_right_bytes_or_an_error", "s3", &[]);
}

#[test]
fn an_nfs_server_that_is_spoiled_is_right_bytes_or_an_error() {
    // Answers to a call that nobody made (RFC 5531 section 11: a last fragment of 8 bytes), and fragments without end.
    let others = Bytes::from([0x80, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1].repeat(100));
    let fragments = Bytes::from([&[0, 0, 0, 64][..], &[1; 64]].concat().repeat(100));
    let more =
        [("answers to others", Spoil::Flood(others), true), ("fragments", Spoil::Flood(fragments), true)];
    spoiled("an_nfs_server_that_is_spoiled_is_right_bytes_or_an_error", "nfs", &more);
}

#[test]
fn an_smb_server_that_is_spoiled_is_right_bytes_or_an_error() {
    // Empty messages to a request that nobody made ([MS-SMB2] section 2.2.1), and messages as long as can be.
    let mut other = [0; 68];
    other[3..8].copy_from_slice(&[64, 0xfe, b'S', b'M', b'B']);
    other[8] = 64;
    let others = Bytes::from(other.repeat(60));
    let mut long = vec![0; 1 << 16];
    long[..4].copy_from_slice(&[0, 0xff, 0xff, 0xff]);
    let more = [
        ("answers to others", Spoil::Flood(others), true),
        ("long messages", Spoil::Flood(long.into()), true),
        // Messages are signed.
        ("a changed byte", Spoil::Garble, true),
    ];
    spoiled("an_smb_server_that_is_spoiled_is_right_bytes_or_an_error", "smb", &more);
}

#[test]
fn a_handle_that_an_nfs_server_forgot_is_looked_up_again() {
    let test = "a_handle_that_an_nfs_server_forgot_is_looked_up_again";
    let dir = Dir::new();
    // Nothing of a raw disk is in memory once it was read.
    let raw = dir.guest_disk("disk \u{fc} 1.qcow2");
    let wanted = fs::read(&raw).unwrap();
    let Some(far) = Far::start(test, "nfs", &dir, &raw) else { return };
    let credentials = far.lab.value("NFS_CREDENTIALS");
    let location = format!("{}/{SPELLED}", far.lab.value("NFS_URL"));
    let serve =
        || Server::start(&dir, &["--no-cache", "--format", "raw", "--credentials", &credentials, &location]);
    let forget = || far.lab.run("forget-handles", &[]);
    let server = serve();
    check(&dir, &server, "", &wanted);
    // Another name is no other file.
    fs::rename(&raw, dir.join("renamed")).unwrap();
    check(&dir, &server, "", &wanted);
    fs::rename(dir.join("renamed"), &raw).unwrap();
    for _ in 0..3 {
        forget();
        check(&dir, &server, "", &wanted);
    }

    // A copy with the same bytes, the same length and the same time is another file all the same.
    let copy = dir.join("copy of it");
    run("cp", &["--preserve", text(&raw), text(&copy)]);
    fs::rename(&copy, &raw).unwrap();
    forget();
    let error = |server: &Server| {
        let mut client = Nbd::connect(&server.socket).unwrap();
        client.read(0x40_0000, 4096).unwrap().map(|bytes| bytes.len())
    };
    assert_eq!(error(&server), Err(5));
    assert_eq!(error(&server), Err(5), "for good");
    server.terminate();
    let server = serve();
    check(&dir, &server, "", &wanted);
    fs::remove_file(&raw).unwrap();
    forget();
    assert_eq!(error(&server), Err(5), "it is gone");
    server.terminate();
}
