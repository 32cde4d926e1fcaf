//! A server that gives root up: what it keeps, and what it can no longer do.

mod common;

use common::nbd::Nbd;
use common::{Dir, Server, THINORIGIN, text};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

/// A user and a group that every Debian has, and that own nothing.
const NOBODY: (u32, u32) = (65534, 65534);

/// True for root. Otherwise says that `test` is skipped, or panics where nothing may be.
fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs root");
    eprintln!("SKIPPED: {test}: needs root");
    false
}

/// The numbers behind `field` in a status of `/proc`.
fn numbers(status: &str, field: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn a_server_that_became_somebody_else_has_nothing_of_root_left() {
    if !is_root("a_server_that_became_somebody_else_has_nothing_of_root_left") {
        return;
    }
    let dir = Dir::new();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, mode) in [("everybodys", 0o644), ("roots", 0o600)] {
        fs::write(dir.join(name), vec![7; 1 << 20]).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let cache = dir.join("cache");
    fs::create_dir(&cache).unwrap();
    chown(&cache, Some(NOBODY.0), Some(NOBODY.1)).unwrap();
    let (everybodys, roots) = (dir.join("everybodys"), dir.join("roots"));
    let options = ["--user", "65534:65534", "--lazy", "--cache", text(&cache)];
    let server = Server::start(&dir, &[&options[..], &[text(&everybodys), text(&roots)]].concat());

    // Every thread, since system calls that change the user are for one thread each.
    let mut threads = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap() {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert_eq!(numbers(&status, "Uid:"), [NOBODY.0; 4], "{status}");
        assert_eq!(numbers(&status, "Gid:"), [NOBODY.1; 4], "{status}");
        assert_eq!(numbers(&status, "Groups:"), [NOBODY.1], "{status}");
        for capabilities in ["CapPrm:", "CapEff:", "CapAmb:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(capabilities)).unwrap();
            assert_eq!(u64::from_str_radix(line.trim(), 16), Ok(0), "{capabilities} {line}");
        }
        threads += 1;
    }
    assert!(threads > 1, "{threads} threads");

    // The socket was made by root, and is still listened on; what only root may read is not read.
    let mut client = Nbd::connect_to(&server.socket, "everybodys").unwrap();
    assert_eq!(client.read(0, 4).unwrap().unwrap(), [7; 4]);
    assert!(Nbd::connect_to(&server.socket, "roots").is_err());
    drop(client);
    server.terminate();
}

#[test]
fn a_user_that_cannot_be_become_is_refused() {
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    let socket = dir.join("nbd.sock");
    let start = |options: &[&str]| {
        let arguments = ["serve", "--no-cache", "--unix", text(&socket)];
        let output = Command::new(THINORIGIN).args(arguments).args(options).arg(&disk).output().unwrap();
        assert!(!socket.exists(), "a server that did not start leaves its socket");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, said) = start(&["--user", "nobody-of-that-name"]);
    assert!(status == Some(2) && said.contains("nobody-of-that-name"), "{said}");
    // Devices of the kernel are root's.
    let admin = format!("unix:{}", text(&dir.join("admin.sock")));
    let (status, said) = start(&["--user", "65534:65534", "--admin", &admin]);
    assert!(status == Some(2) && said.contains("--admin"), "{said}");
    if !rustix::process::geteuid().is_root() {
        let (status, said) = start(&["--user", "0:0"]);
        assert!(status == Some(1) && said.contains("cannot become user 0"), "{said}");
    }
}
