//! NBD under TLS: clients as people have them read through it, and nothing is said to those who do not encrypt.

mod common;

use common::{Dir, Server, THINORIGIN, assert_same_bytes, has, run, text};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const TOOLS: [&str; 4] = ["openssl", "nbdcopy", "nbdinfo", "qemu-img"];

/// A disk, and certificates.
fn lab() -> (Dir, PathBuf, PathBuf) {
    let dir = Dir::new();
    let disk = dir.guest_disk("disk.raw");
    let tls = dir.join("tls");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/certificates"), &[text(&tls)]);
    (dir, disk, tls)
}

/// Certificates of another authority.
fn strangers(dir: &Dir) -> PathBuf {
    let tls = dir.join("strangers");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/certificates"), &[text(&tls)]);
    tls
}

fn uri(server: &Server, certificates: &str) -> String {
    let socket = text(&server.socket);
    format!("nbds+unix://localhost/?socket={socket}&tls-certificates={certificates}&tls-hostname=localhost")
}

fn copy(from: &str, dir: &Dir) -> Output {
    let to = dir.join("copy");
    // One that is there already would be copied into, and keep its length.
    let _ = fs::remove_file(&to);
    Command::new("nbdcopy").args(["--connections=4", from, text(&to)]).output().unwrap()
}

#[test]
fn usual_clients_read_encrypted() {
    if !has("usual_clients_read_encrypted", &TOOLS) {
        return;
    }
    let (dir, disk, tls) = lab();
    let wanted = fs::read(&disk).unwrap();
    let compressed = dir.join("disk.qcow2");
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&disk), text(&compressed)]);
    let cache = dir.join("cache");
    for image in [&disk, &compressed] {
        let arguments = ["--cache", text(&cache), "--tls-certificates", text(&tls), text(image)];
        let server = Server::start(&dir, &arguments);
        // Cold, and from the cache.
        for _ in 0..2 {
            let copied = copy(&uri(&server, text(&tls)), &dir);
            assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
            assert_same_bytes("nbdcopy", &fs::read(dir.join("copy")).unwrap(), &wanted);
        }
        let credentials = format!("tls-creds-x509,id=tls,endpoint=client,dir={}", text(&tls));
        let source = format!(
            "driver=nbd,server.type=unix,server.path={},tls-creds=tls,tls-hostname=localhost",
            text(&server.socket)
        );
        let raw = dir.join("raw");
        let convert = ["convert", "--object", &credentials, "--image-opts", &source, "-O", "raw", text(&raw)];
        // Older qemu has no name to check a certificate on a unix socket against.
        let converted = Command::new("qemu-img").args(convert).output().unwrap();
        let said = String::from_utf8_lossy(&converted.stderr);
        if !said.contains("tls-hostname") {
            assert!(converted.status.success(), "{said}");
            assert_same_bytes("qemu-img", &fs::read(&raw).unwrap()[..wanted.len()], &wanted);
        }
        server.terminate();
    }
}

#[test]
fn nothing_is_said_in_the_clear() {
    if !has("nothing_is_said_in_the_clear", &TOOLS) {
        return;
    }
    let (dir, disk, tls) = lab();
    let secret = format!("name-that-is-not-public={}", text(&disk));
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let tcp = format!("127.0.0.1:{port}");
    let arguments = ["--no-cache", "--tcp", &tcp, "--tls-certificates", text(&tls), &secret];
    let server = Server::start(&dir, &arguments);
    for arguments in [vec!["--list"], vec![]] {
        let plain = format!("nbd+unix:///?socket={}", text(&server.socket));
        let output = Command::new("nbdinfo").args(&arguments).arg(&plain).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success(), "{said}");
        assert!(!said.contains("name-that-is-not-public"), "{said}");
    }
    // A client that trusts somebody else does not take this for its server. (libnbd asks for that over TCP only.)
    let tcp =
        |certificates: &Path| format!("nbds://localhost:{port}/?tls-certificates={}", text(certificates));
    assert!(!copy(&tcp(&strangers(&dir)), &dir).status.success());
    assert!(copy(&tcp(&tls), &dir).status.success());
    assert!(copy(&uri(&server, text(&tls)), &dir).status.success(), "the server goes on");
    server.terminate();
}

/// What a server that wants encryption says to `sent`, in the clear, until it closes.
fn in_the_clear(server: &Server, sent: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = vec![0; 18];
    stream.read_exact(&mut answer).unwrap();
    // It may have closed before all was sent.
    let _ = stream.write_all(sent);
    let _ = stream.shutdown(Shutdown::Write);
    answer.clear();
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn what_comes_behind_the_wish_to_encrypt_is_not_listened_to() {
    if !has("what_comes_behind_the_wish_to_encrypt_is_not_listened_to", &["openssl", "nbdcopy"]) {
        return;
    }
    let (dir, disk, tls) = lab();
    let arguments = ["--no-cache", "--tls-certificates", text(&tls), text(&disk)];
    let server = Server::start(&dir, &arguments);
    let option = |number: u32, data: &[u8]| {
        let length = data.len() as u32;
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &length.to_be_bytes(), data].concat()
    };
    let flags = 3_u32.to_be_bytes();
    let reply = |number: u32, kind: u32| {
        let head = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        [&head[..], &number.to_be_bytes(), &kind.to_be_bytes(), &[0; 4]].concat()
    };
    const TLS_REQUIRED: u32 = 0x8000_0005;
    let (list, starttls, abort) = (3, 5, 2);
    // Everything else is answered with one error, in step.
    let said = in_the_clear(
        &server,
        &[&flags[..], &option(list, b""), &option(77, b"x"), &option(abort, b"")].concat(),
    );
    assert_eq!(said, [reply(list, TLS_REQUIRED), reply(77, TLS_REQUIRED), reply(abort, 1)].concat());
    // NBD_OPT_EXPORT_NAME has no error but the end.
    assert_eq!(in_the_clear(&server, &[&flags[..], &option(1, b"")].concat()), b"");
    // CVE-2021-3716: what an attacker puts in behind STARTTLS must not be taken for what the client says encrypted.
    let said = in_the_clear(&server, &[&flags[..], &option(starttls, b""), &option(list, b"")].concat());
    assert!(said.is_empty() || said == reply(starttls, 1), "{said:?}");
    // Neither is it a client's to say something else than TLS.
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[&flags[..], &option(starttls, b"")].concat()).unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..], reply(starttls, 1));
    stream.write_all(&option(list, b"")).unwrap();
    let mut rest = Vec::new();
    // It may say in TLS that this is none.
    let _ = stream.read_to_end(&mut rest);
    assert!(!rest.windows(4).any(|bytes| bytes == b"disk"), "{rest:?}");
    assert!(copy(&uri(&server, text(&tls)), &dir).status.success(), "the server goes on");
    server.terminate();
}

#[test]
fn clients_can_be_made_to_show_who_they_are() {
    if !has("clients_can_be_made_to_show_who_they_are", &TOOLS) {
        return;
    }
    let (dir, disk, tls) = lab();
    let arguments = ["--no-cache", "--tls-certificates", text(&tls), "--tls-verify-peer", text(&disk)];
    let server = Server::start(&dir, &arguments);
    assert!(copy(&uri(&server, text(&tls)), &dir).status.success());
    // A client without a certificate, and one with another authority's.
    let (bare, other) = (dir.join("bare"), strangers(&dir));
    fs::create_dir(&bare).unwrap();
    fs::copy(tls.join("ca-cert.pem"), bare.join("ca-cert.pem")).unwrap();
    assert!(!copy(&uri(&server, text(&bare)), &dir).status.success());
    fs::copy(tls.join("ca-cert.pem"), other.join("ca-cert.pem")).unwrap();
    assert!(!copy(&uri(&server, text(&other)), &dir).status.success());
    assert!(copy(&uri(&server, text(&tls)), &dir).status.success(), "the server goes on");
    server.terminate();
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    if !has("certificates_that_cannot_be_used_are_named", &["openssl"]) {
        return;
    }
    let (dir, disk, tls) = lab();
    let start = |more: &[&str]| {
        let socket = dir.join("nbd.sock");
        let output = Command::new(THINORIGIN)
            .args(["serve", "--unix", text(&socket), "--no-cache", "--tls-certificates", text(&tls)])
            .args(more)
            .arg(text(&disk))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    fs::rename(tls.join("ca-cert.pem"), tls.join("gone")).unwrap();
    assert!(start(&["--tls-verify-peer"]).contains("/tls/ca-cert.pem"));
    fs::write(tls.join("server-key.pem"), "no key").unwrap();
    assert!(start(&[]).contains("/tls/server-key.pem"));
    fs::write(tls.join("server-cert.pem"), "").unwrap();
    assert!(start(&[]).contains("/tls/server-cert.pem"));
}

#[test]
fn an_export_can_be_for_some_clients_alone() {
    if !has("an_export_can_be_for_some_clients_alone", &TOOLS) {
        return;
    }
    let (dir, disk, tls) = lab();
    let fingerprint = |certificate: &str| {
        let file = tls.join(certificate);
        let output = run("openssl", &["x509", "-noout", "-fingerprint", "-sha256", "-in", text(&file)]);
        String::from_utf8(output.stdout).unwrap().trim().rsplit_once('=').unwrap().1.to_owned()
    };
    let config = dir.join("serve.toml");
    let table = |name: &str, clients: &[String]| {
        format!("[[export]]\nname = {name:?}\nlocation = {:?}\nclients = {clients:?}\n", text(&disk))
    };
    // The server's certificate stands for somebody else.
    let (own, other) = (fingerprint("client-cert.pem"), fingerprint("server-cert.pem"));
    let tables = [table("everybody", &[]), table("own", &[other.clone(), own]), table("other", &[other])];
    fs::write(&config, tables.concat()).unwrap();
    let arguments = ["--no-cache", "--tls-certificates", text(&tls), "--config", text(&config)];
    let server = Server::start(&dir, &[&arguments[..], &["--tls-verify-peer"]].concat());
    let named = |name: &str| uri(&server, text(&tls)).replace("localhost/?", &format!("localhost/{name}?"));
    for (name, may) in [("everybody", true), ("own", true), ("other", false)] {
        assert_eq!(copy(&named(name), &dir).status.success(), may, "{name}");
    }
    let listed = run("nbdinfo", &["--list", "--json", &named("")]).stdout;
    let listed = String::from_utf8(listed).unwrap();
    assert!(
        listed.contains("everybody") && listed.contains("own") && !listed.contains("\"other\""),
        "{listed}"
    );
    server.terminate();
    // Without certificates nobody could be known.
    let output = Command::new(THINORIGIN).arg("serve").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && said.contains("--tls-verify-peer"), "{said}");
}
