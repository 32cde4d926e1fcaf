//! Where a server listens, who may connect, and how many.

mod common;

use common::nbd::Nbd;
use common::{Dir, Server, THINORIGIN, becomes_true, has, run, text};
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

fn disk(dir: &Dir) -> String {
    let disk = dir.join("disk.raw");
    fs::write(&disk, vec![7; 1 << 20]).unwrap();
    text(&disk).to_owned()
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn refused(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--insecure-tcp") && said.contains("--tls-certificates"), "{said}");
}

#[test]
fn what_is_not_encrypted_is_for_this_machine() {
    let dir = Dir::new();
    let disk = disk(&dir);
    for address in ["0.0.0.0", "[::]"] {
        let address = format!("{address}:{}", free_port());
        refused(
            &Command::new(THINORIGIN)
                .args(["serve", "--no-cache", "--tcp", &address, &disk])
                .output()
                .unwrap(),
        );
    }
    let port = free_port();
    let (local, any) = (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"));
    for arguments in [&["--tcp", &local][..], &["--tcp", &any, "--insecure-tcp"]] {
        let server = Server::start(&dir, &[&["--no-cache"], arguments, &[&disk]].concat());
        let mut greeting = [0; 8];
        TcpStream::connect(&local).unwrap().read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"NBDMAGIC");
        server.terminate();
    }
}

#[test]
fn what_a_service_manager_passes_is_no_exception() {
    if !has("what_a_service_manager_passes_is_no_exception", &["systemd-socket-activate", "timeout"]) {
        return;
    }
    let dir = Dir::new();
    let disk = disk(&dir);
    let any = format!("0.0.0.0:{}", free_port());
    // The server is started by the first connection.
    let connect = format!("127.0.0.1:{}", any.rsplit_once(':').unwrap().1);
    let activated = Command::new("timeout")
        .args(["20", "systemd-socket-activate", "-l", &any, THINORIGIN, "serve", "--no-cache", &disk])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut client = None;
    becomes_true("it listens", || {
        client = TcpStream::connect(&connect).ok();
        client.is_some()
    });
    refused(&activated.wait_with_output().unwrap());
}

#[test]
fn a_unix_socket_is_its_owners_unless_told_otherwise() {
    let dir = Dir::new();
    let disk = disk(&dir);
    let server = Server::start(&dir, &["--no-cache", &disk]);
    let mode = |server: &Server| fs::metadata(&server.socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&server), 0o600);
    server.terminate();
    let server = Server::start(&dir, &["--no-cache", "--unix-mode", "0660", &disk]);
    assert_eq!(mode(&server), 0o660);
    server.terminate();
    if rustix::process::geteuid().is_root() {
        let options = ["--no-cache", "--unix-mode", "0620", "--unix-owner", "65534:65534", &disk];
        let server = Server::start(&dir, &options);
        let file = fs::metadata(&server.socket).unwrap();
        assert_eq!((file.uid(), file.gid(), mode(&server)), (65534, 65534, 0o620));
        server.terminate();
    }
    for (option, wrong) in [("--unix-mode", "888"), ("--unix-mode", "4755"), ("--unix-owner", "no such user")]
    {
        let socket = dir.join("wrong.sock");
        let arguments = ["serve", "--no-cache", "--unix", text(&socket), option, wrong, &disk];
        let output = Command::new(THINORIGIN).args(arguments).output().unwrap();
        assert!(!output.status.success() && !socket.exists(), "{option} {wrong}");
    }
}

#[test]
fn one_connection_more_is_turned_away_until_another_ends() {
    let dir = Dir::new();
    let disk = disk(&dir);
    let server = Server::start(&dir, &["--no-cache", "--max-connections", "2", &disk]);
    let mut first = Nbd::connect(&server.socket).unwrap();
    let idle = UnixStream::connect(&server.socket).unwrap();
    becomes_true("a third one is turned away", || Nbd::connect(&server.socket).is_err());
    assert_eq!(first.read(0, 2).unwrap(), Ok(vec![7; 2]));
    drop(idle);
    becomes_true("there is room again", || Nbd::connect(&server.socket).is_ok());
    assert_eq!(first.read(4096, 2).unwrap(), Ok(vec![7; 2]));
    run("kill", &["-0", &server.pid().to_string()]);
    server.terminate();
}

#[test]
fn a_server_that_says_it_is_ready_ends_in_order() {
    let dir = Dir::new();
    let disk = disk(&dir);
    // At once; the end is checked to be a success.
    for _ in 0..20 {
        Server::start(&dir, &["--no-cache", &disk]).terminate();
    }
}
