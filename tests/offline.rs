//! An image server that is away: what the cache has is served, the rest is an error until the server is back.

mod common;

use common::{Dir, Http, Server, THINORIGIN, assert_same_bytes, has, run, text};
use std::fs;
use std::process::Command;

const TOOLS: [&str; 4] = ["nginx", "setsid", "nbdcopy", "qemu-img"];

/// A disk as a raw and as a compressed image.
fn images(dir: &Dir) -> Vec<u8> {
    let raw = dir.guest_disk("disk.raw");
    run(
        "qemu-img",
        &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&dir.join("disk.qcow2"))],
    );
    fs::read(raw).unwrap()
}

#[test]
fn what_is_cached_needs_no_server() {
    if !has("what_is_cached_needs_no_server", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let wanted = images(&dir);
    let http = Http::start(&dir);
    let cache = text(&dir.join("cache")).to_owned();
    let locations = ["disk.raw", "disk.qcow2"].map(|name| format!("{}/{name}", http.url));
    for location in &locations {
        run(THINORIGIN, &["warm", "--cache", &cache, location]);
    }
    http.stop();
    for location in &locations {
        let read = run(THINORIGIN, &["cat", "--cache", &cache, location]).stdout;
        assert_same_bytes(location, &read, &wanted);
        let server = Server::start(&dir, &["--cache", &cache, location]);
        run("nbdcopy", &[&server.uri(""), text(&dir.join("copy"))]);
        assert_same_bytes(location, &fs::read(dir.join("copy")).unwrap()[..wanted.len()], &wanted);
        server.terminate();
    }
    // Of what was never seen nothing is known.
    let never = format!("{}/never", http.url);
    let output = Command::new(THINORIGIN).args(["info", "--cache", &cache, &never]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot be reached"));
}

#[test]
fn the_rest_comes_when_the_server_is_back_unless_it_is_another() {
    if !has("the_rest_comes_when_the_server_is_back_unless_it_is_another", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let wanted = images(&dir);
    let http = Http::start(&dir);
    let (cache, location) = (text(&dir.join("cache")).to_owned(), format!("{}/disk.raw", http.url));
    run(THINORIGIN, &["warm", "--cache", &cache, "--range", "0-1M", &location]);
    http.stop();
    let server = Server::start(&dir, &["--cache", &cache, &location]);
    let uri = server.uri("");
    let read = |at: u64| {
        let command = format!("read -P 0 {at} 512");
        // qemu-io says whether it could read; whether the bytes are zeros does not matter.
        let output =
            Command::new("qemu-io").args(["-r", "-f", "raw", "-c", &command, &uri]).output().unwrap();
        !String::from_utf8_lossy(&output.stdout).contains("read failed")
    };
    assert!(read(4096), "cached");
    assert!(!read(5 << 20), "not cached, and nobody to ask");
    assert!(read(8192), "cached, after an error");
    http.start_again(&dir);
    // The last attempt speaks for a moment.
    let back = (0..50).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(200));
        read(5 << 20)
    });
    assert!(back, "not cached, and the server is back");
    let copy = dir.join("copy");
    run("nbdcopy", &[&uri, text(&copy)]);
    assert_same_bytes("once it is back", &fs::read(&copy).unwrap(), &wanted);
    server.terminate();

    run(THINORIGIN, &["cache", "drop", "--all", "--cache", &cache]);
    run(THINORIGIN, &["warm", "--cache", &cache, "--range", "0-1M", &location]);
    http.stop();
    let server = Server::start(&dir, &["--cache", &cache, &location]);
    let other: Vec<u8> = wanted.iter().map(|byte| !byte).collect();
    fs::write(dir.join("disk.raw"), &other[..8 << 20]).unwrap();
    http.start_again(&dir);
    assert!(read(4096), "cached");
    assert!(!read(5 << 20), "of another object nothing is read");
    server.terminate();
    let opened_again = run(THINORIGIN, &["cat", "--cache", &cache, &location]).stdout;
    assert_same_bytes("opened again", &opened_again, &other[..8 << 20]);
}

#[test]
fn a_patient_reader_waits_for_the_server() {
    if !has("a_patient_reader_waits_for_the_server", &TOOLS) {
        return;
    }
    let dir = Dir::new();
    let wanted = images(&dir);
    let http = Http::start(&dir);
    let locations = ["disk.raw", "disk.qcow2"].map(|name| format!("{name}={}/{name}", http.url));
    let arguments = ["--no-cache", "--patience", "60", &locations[0], &locations[1]];
    let server = Server::start(&dir, &arguments);
    http.stop();
    // Longer than a reader waits who has no patience.
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        for name in ["disk.raw", "disk.qcow2"] {
            let (server, wanted) = (&server, &wanted);
            scope.spawn(move || {
                let mut client = common::nbd::Nbd::connect_to(&server.socket, name).unwrap();
                let bytes = client.read(4_000_000, 4096).unwrap();
                assert!(bytes.as_deref() == Ok(&wanted[4_000_000..4_004_096]), "{name}: {:?}", bytes.err());
            });
        }
        std::thread::sleep(std::time::Duration::from_secs(28));
        http.start_again(&dir);
    });
    assert!(began.elapsed().as_secs() >= 28);
    server.terminate();
}
