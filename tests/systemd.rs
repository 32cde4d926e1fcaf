//! The units that are shipped, and what passes between a server and a service manager.

mod common;

use common::nbd::Nbd;
use common::{Dir, Server, THINORIGIN, assert_same_bytes, becomes_true, has, run, text};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn the_units_are_sound() {
    if !has("the_units_are_sound", &["systemd-analyze"]) {
        return;
    }
    let dir = Dir::new();
    let mut units = Vec::new();
    for unit in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/systemd")).unwrap() {
        let unit = unit.unwrap();
        // The program is not installed here.
        let content = fs::read_to_string(unit.path()).unwrap().replace("/usr/bin/thinorigin", THINORIGIN);
        let path = dir.join(unit.file_name().to_str().unwrap());
        fs::write(&path, content).unwrap();
        units.push(path);
    }
    assert_eq!(units.len(), 2);
    let paths: Vec<&str> = units.iter().map(|path| text(path)).collect();
    let output = run("systemd-analyze", &[&["verify", "--man=no"][..], &paths].concat());
    // What it does not know is a warning to it. Units of the machine itself are not ours to judge.
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.lines().any(|line| line.contains("thinorigin")), "{said}");
}

#[test]
fn a_server_listens_on_what_it_is_passed() {
    if !has("a_server_listens_on_what_it_is_passed", &["nbdcopy", "nbdinfo", "systemd-socket-activate"]) {
        return;
    }
    let dir = Dir::new();
    let disk = dir.guest_disk("disk.raw");
    // libnbd's tools start a server so, and pass it one socket.
    let serve = ["--", "[", THINORIGIN, "serve", "--no-cache", text(&disk), "]"];
    let copy = dir.join("copy");
    run("nbdcopy", &[&serve[..], &[text(&copy)]].concat());
    assert_same_bytes("nbdcopy", &fs::read(&copy).unwrap(), &fs::read(&disk).unwrap());
    let size = run("nbdinfo", &[&["--size"][..], &serve].concat()).stdout;
    assert_eq!(String::from_utf8(size).unwrap().trim(), fs::metadata(&disk).unwrap().len().to_string());

    // Several, of several kinds.
    let (one, two) = (dir.join("one"), dir.join("two"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tcp = format!("127.0.0.1:{port}");
    let mut server = Command::new("systemd-socket-activate")
        .args(["-l", text(&one), "-l", &tcp, "-l", text(&two)])
        .args([THINORIGIN, "serve", "--no-cache", text(&disk)])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    becomes_true("it listens", || two.exists());
    for socket in [&two, &one] {
        let bytes = Nbd::connect(socket).unwrap().read(0, 512).unwrap().unwrap();
        assert_same_bytes("first sector", &bytes, &fs::read(&disk).unwrap()[..512]);
    }
    run("nbdinfo", &["--size", &format!("nbd://{tcp}")]);
    run("kill", &["-TERM", &server.id().to_string()]);
    assert!(server.wait().unwrap().success());
}

#[test]
fn a_service_manager_is_told_what_goes_on() {
    let dir = Dir::new();
    let disk = dir.guest_disk("disk.raw");
    let config = dir.join("serve.toml");
    fs::write(&config, "").unwrap();
    let notify = UnixDatagram::bind(dir.join("notify")).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let told = || {
        let mut text = [0; 256];
        let length = notify.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap().trim().to_owned()
    };
    let place = dir.join("notify");
    let arguments = ["--no-cache", "--config", text(&config), text(&disk)];
    let server = Server::start_in(&dir, &[("NOTIFY_SOCKET", text(&place))], &arguments);
    assert_eq!(told(), "READY=1");
    run("kill", &["-HUP", &server.pid().to_string()]);
    assert_eq!(told(), "RELOADING=1");
    assert_eq!(told(), "READY=1");
    server.terminate();
    assert_eq!(told(), "STOPPING=1");
}
