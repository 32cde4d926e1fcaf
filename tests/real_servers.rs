//! One image on a real server of each kind, read through the whole program: the same bytes from everywhere, and an
//! error that names what is wrong where there can be none.

mod common;

use common::{Dir, Server, THINORIGIN, assert_same_bytes, has, oracle, run, text};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that a read may take when its server is gone: the program's own deadline, and some for a busy machine.
const LONGEST: Duration = Duration::from_secs(60);

/// The image's name on every server, and as locations spell it.
const NAME: &str = "disk \u{fc} 1.qcow2";
const SPELLED: &str = "disk%20%C3%BC%201.qcow2";

/// A server of `tests/lab`, stopped with the test.
struct Lab {
    script: PathBuf,
    state: PathBuf,
}

impl Lab {
    fn start(kind: &str, dir: &Dir, arguments: &[&str]) -> Lab {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(kind);
        let lab = Lab { script, state: dir.join(&format!(".{kind}")) };
        lab.run("start", arguments);
        lab
    }

    fn run(&self, verb: &str, arguments: &[&str]) {
        run(text(&self.script), &[&[verb, text(&self.state)], arguments].concat());
    }

    fn value(&self, key: &str) -> String {
        // The values are quoted for a shell.
        let line = format!(". {}/env; printf %s \"${key}\"", text(&self.state));
        String::from_utf8(run("bash", &["-euc", &line]).stdout).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A failure to stop it is not what a test is about.
        let _ = Command::new(&self.script).arg("stop").arg(&self.state).status();
    }
}

/// Whether the NFS server can run here: it opens files by handle, which is root's alone.
fn has_nfs(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs root");
        eprintln!("SKIPPED: {test}: needs root");
        return false;
    }
    has(test, &["ganesha.nfsd", "cc"])
}

/// Whether the S3 server is here: it is no package of a distribution.
fn has_s3(test: &str) -> bool {
    let line = ". tests/lab/lib; test -x $LAB_TOOLS/bin/weed";
    let found = Command::new("bash").args(["-c", line]).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    if !found.unwrap().success() {
        assert_ne!(std::env::var("THINORIGIN_REQUIRE").as_deref(), Ok("1"), "{test} needs SeaweedFS");
        eprintln!("SKIPPED: {test}: needs SeaweedFS");
        return false;
    }
    has(test, &["curl"])
}

/// A compressed image and the bytes that a guest sees.
fn image(dir: &Dir) -> (PathBuf, Vec<u8>) {
    let raw = dir.guest_disk("guest.raw");
    let image = dir.join(NAME);
    run("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&image)]);
    let wanted = oracle(&image, "qcow2");
    (image, wanted)
}

fn write_credentials(path: &Path, sections: &str) {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(sections.as_bytes()).unwrap();
}

fn check(dir: &Dir, server: &Server, export: &str, wanted: &[u8]) {
    let copy = dir.join("copy");
    run("nbdcopy", &[&server.uri(export), text(&copy)]);
    assert_same_bytes(export, &fs::read(&copy).unwrap(), wanted);
    fs::remove_file(&copy).unwrap();
}

#[test]
fn every_kind_of_server_serves_the_same_disk() {
    let test = "every_kind_of_server_serves_the_same_disk";
    if !has(test, &["nginx", "openssl", "smbd", "qemu-img", "nbdcopy"]) || !has_nfs(test) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let http = Lab::start("http", &dir, &["--root", text(dir.path()), "--tls"]);
    let nfs = Lab::start("nfs", &dir, &["--root", text(dir.path())]);
    let smb = Lab::start("smb", &dir, &["--root", text(dir.path())]);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), SPELLED]);

    let https = http.value("HTTPS_URL");
    let credentials = dir.join("credentials.toml");
    let sections = [
        format!("[\"{https}/\"]\nca = \"{}\"\n", http.value("HTTPS_CA")),
        fs::read_to_string(nfs.value("NFS_CREDENTIALS")).unwrap(),
        fs::read_to_string(smb.value("SMB_CREDENTIALS")).unwrap(),
        fs::read_to_string(s3.value("S3_CREDENTIALS")).unwrap(),
    ];
    write_credentials(&credentials, &sections.concat());
    let locations = [
        ("file", text(&image).to_owned()),
        ("http", format!("{}/{SPELLED}", http.value("HTTP_URL"))),
        ("https", format!("{https}/{SPELLED}")),
        ("s3", format!("{}/{SPELLED}", s3.value("S3_URL"))),
        ("nfs", format!("{}/{SPELLED}", nfs.value("NFS_URL"))),
        ("smb", format!("{}/{SPELLED}", smb.value("SMB_URL"))),
    ];
    let exports: Vec<String> =
        locations.iter().map(|(kind, location)| format!("{kind}={location}")).collect();
    let cache = dir.join("cache");
    // A round without a cache, one that fills it, and one that is served from it.
    for options in [vec!["--no-cache"], vec!["--cache", text(&cache)], vec!["--cache", text(&cache)]] {
        let mut arguments = options;
        arguments.extend(["--credentials", text(&credentials)]);
        arguments.extend(exports.iter().map(String::as_str));
        let server = Server::start(&dir, &arguments);
        for (kind, _) in &locations {
            check(&dir, &server, kind, &wanted);
            let raw = dir.join("guest.raw");
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&raw), &server.uri(kind)]);
        }
        server.terminate();
    }

    for (kind, location) in &locations {
        let missing = location.replace(".qcow2", ".missing");
        let output = Command::new(THINORIGIN)
            .args(["info", "--no-cache", "--credentials", text(&credentials), &missing])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{kind}: {missing} was found");
        assert!(said.contains(".missing"), "{kind}: the error names no file: {said}");
        assert!(!said.contains("panicked"), "{kind}: {said}");
    }
}

#[test]
fn a_server_that_checks_signatures_refuses_a_wrong_key() {
    let test = "a_server_that_checks_signatures_refuses_a_wrong_key";
    if !has(test, &["qemu-img"]) || !has_s3(test) {
        return;
    }
    let dir = Dir::new();
    let (image, _) = image(&dir);
    let s3 = Lab::start("s3", &dir, &[]);
    s3.run("put", &[text(&image), "disk.qcow2"]);
    let right = fs::read_to_string(s3.value("S3_CREDENTIALS")).unwrap();
    let secret = "another-secret-than-that-of-the-key";
    let wrong = right.replace(&s3.value("S3_SECRET_KEY"), secret);
    assert_ne!(right, wrong);

    let location = format!("{}/disk.qcow2", s3.value("S3_URL"));
    for (name, sections, served) in [("right.toml", right, true), ("wrong.toml", wrong, false)] {
        let credentials = dir.join(name);
        write_credentials(&credentials, &sections);
        let output = Command::new(THINORIGIN)
            .args(["info", "-vv", "--no-cache", "--credentials", text(&credentials), &location])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), served, "{name}: {said}");
        assert!(!said.contains(secret) && !said.contains(&s3.value("S3_SECRET_KEY")), "{name}: {said}");
    }
}

#[test]
fn a_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error() {
    let test = "a_server_that_comes_back_is_a_pause_and_one_that_does_not_an_error";
    if !has(test, &["qemu-img", "nbdcopy"]) || !has_nfs(test) {
        return;
    }
    let dir = Dir::new();
    let (image, wanted) = image(&dir);
    let nfs = Lab::start("nfs", &dir, &["--root", text(dir.path())]);
    let credentials = nfs.value("NFS_CREDENTIALS");
    let away = format!("away={}/{SPELLED}", nfs.value("NFS_URL"));
    let local = format!("local={}", text(&image));
    let server = Server::start(&dir, &["--no-cache", "--credentials", &credentials, &away, &local]);
    check(&dir, &server, "away", &wanted);

    nfs.run("stop", &[]);
    let copy = dir.join("resumed");
    let mut reader = Command::new("nbdcopy").args([&server.uri("away"), text(&copy)]).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert!(reader.try_wait().unwrap().is_none(), "the reader did not wait for the server");
    nfs.run("start", &["--root", text(dir.path())]);
    assert!(reader.wait().unwrap().success(), "the reader saw an error");
    assert_same_bytes("after a restart", &fs::read(&copy).unwrap(), &wanted);

    nfs.run("stop", &[]);
    let began = Instant::now();
    let output =
        Command::new("nbdcopy").args([&server.uri("away"), "null:"]).stderr(Stdio::piped()).output().unwrap();
    assert!(!output.status.success(), "a server that is gone was read");
    assert!(began.elapsed() < LONGEST, "the error took {:?}", began.elapsed());
    check(&dir, &server, "local", &wanted);
    server.terminate();
}
