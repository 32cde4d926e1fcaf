//! Wrong input: one sentence that says what and where, the exit code that `cli.md` promises, and never a panic.

mod common;

use common::{Dir, Http, Server, THINORIGIN, has, run, text};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const REFUSED: i32 = 3;

fn thinorigin(arguments: &[&str]) -> Output {
    Command::new(THINORIGIN).args(arguments).output().unwrap()
}

/// Fails unless the command ended with `code` and said, on one line of stderr, every one of `words`.
fn assert_says(output: &Output, code: i32, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(output.stdout.is_empty(), "stdout is for results: {}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(said.lines().count(), 1, "one sentence: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!said.trim_end().ends_with('.'), "no trailing stop: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

/// The commands that open an image, but for `serve` and `attach`.
const OPENERS: [&str; 4] = ["info", "map", "check", "cat"];

fn assert_all_say(location: &str, options: &[&str], words: &[&str]) {
    for command in OPENERS {
        let output = thinorigin(&[&[command, "--no-cache", location], options].concat());
        assert_says(&output, FAILED, words);
    }
}

fn compressed_qcow2(dir: &Dir) -> PathBuf {
    let disk = dir.guest_disk("disk");
    let image = dir.join("image.qcow2");
    run("qemu-img", &["convert", "-c", "-O", "qcow2", text(&disk), text(&image)]);
    image
}

/// A copy of the first `length` bytes.
fn cut(image: &Path, name: &str, length: usize) -> PathBuf {
    let path = image.with_file_name(name);
    fs::write(&path, &fs::read(image).unwrap()[..length]).unwrap();
    path
}

#[test]
fn a_missing_file() {
    let dir = Dir::new();
    let missing = dir.join("missing.qcow2");
    assert_all_say(text(&missing), &[], &[text(&missing), "no such file"]);
    let socket = dir.join("nbd.sock");
    let output = thinorigin(&["serve", "--no-cache", "--unix", text(&socket), text(&missing)]);
    assert_says(&output, FAILED, &[text(&missing)]);
    assert!(!socket.exists(), "a server that does not start leaves no socket");
}

#[test]
fn a_directory_instead_of_a_file() {
    let dir = Dir::new();
    assert_all_say(text(dir.path()), &[], &[text(dir.path())]);
}

#[test]
fn json_where_there_is_none() {
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    assert_says(&thinorigin(&["cat", "--json", text(&disk)]), USAGE, &["cat", "JSON"]);
}

#[test]
fn a_404() {
    if !has("a_404", &["nginx"]) {
        return;
    }
    let dir = Dir::new();
    let http = Http::start(&dir);
    let location = format!("{}/missing.qcow2", http.url);
    assert_all_say(&location, &[], &[&location, "404"]);
}

#[test]
fn a_server_without_ranges() {
    if !has("a_server_without_ranges", &["nginx", "qemu-img"]) {
        return;
    }
    let dir = Dir::new();
    compressed_qcow2(&dir);
    let http = Http::start(&dir);
    let location = format!("{}/no-ranges/image.qcow2", http.url);
    assert_all_say(&location, &[], &[&location, "range"]);
}

#[test]
fn an_unreachable_server() {
    // A port that was free a moment ago: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let location = format!("http://127.0.0.1:{port}/image.qcow2");
    let output = thinorigin(&["info", "--no-cache", &location]);
    assert_says(&output, FAILED, &[&location]);
}

#[test]
fn a_truncated_image() {
    if !has("a_truncated_image", &["qemu-img"]) {
        return;
    }
    let dir = Dir::new();
    let image = compressed_qcow2(&dir);
    let size = fs::metadata(&image).unwrap().len() as usize;
    let head = cut(&image, "head.qcow2", 60);
    assert_all_say(text(&head), &[], &[text(&head)]);
    // Its tables say where the missing half was: reading it fails, whatever opening does.
    let half = cut(&image, "half.qcow2", size / 2);
    for command in ["check", "cat"] {
        let output = Command::new(THINORIGIN).args([command, "--no-cache", text(&half)]).output().unwrap();
        assert_eq!(output.status.code(), Some(FAILED), "{command}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(text(&half)) && !said.contains("panicked"), "{said}");
    }
}

#[test]
fn a_format_that_the_image_does_not_have() {
    if !has("a_format_that_the_image_does_not_have", &["qemu-img"]) {
        return;
    }
    let dir = Dir::new();
    let image = compressed_qcow2(&dir);
    for format in ["vmdk", "vhd"] {
        assert_all_say(text(&image), &["--format", format], &[text(&image), format]);
    }
}

#[test]
fn a_backing_file_elsewhere() {
    if !has("a_backing_file_elsewhere", &["qemu-img"]) {
        return;
    }
    let (dir, other) = (Dir::new(), Dir::new());
    let base = other.guest_disk("base");
    let image = dir.join("image.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", text(&base), "-F", "raw", text(&image)]);
    assert_all_say(text(&image), &[], &[text(&image), text(&base)]);
    let prefix = format!("{}/", text(other.path()));
    let output = thinorigin(&["info", "--no-cache", "--allow-reference", &prefix, text(&image)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_socket_that_another_server_uses() {
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    let server = Server::start(&dir, &["--no-cache", text(&disk)]);
    let output = thinorigin(&["serve", "--no-cache", "--unix", text(&server.socket), text(&disk)]);
    assert_says(&output, REFUSED, &[text(&server.socket)]);
    if has("a_socket_that_another_server_uses", &["nbdinfo"]) {
        // The first server is as it was.
        run("nbdinfo", &[&server.uri("disk")]);
    }
}

#[test]
fn a_file_where_the_socket_should_be() {
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    let before = fs::read(&disk).unwrap();
    let output = thinorigin(&["serve", "--no-cache", "--unix", text(&disk), text(&disk)]);
    assert_says(&output, FAILED, &[text(&disk)]);
    assert_eq!(fs::read(&disk).unwrap(), before, "the file is as it was");
}

#[test]
fn no_root() {
    if !has("no_root", &["setpriv"]) {
        return;
    }
    let dir = Dir::new();
    let disk = dir.guest_disk("disk");
    // Somebody else's user may have to run the program: it is copied to where everybody can read it.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.join("thinorigin");
    fs::copy(THINORIGIN, &program).unwrap();
    let mut command = Command::new("setpriv");
    if rustix::process::geteuid().is_root() {
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    }
    let output =
        command.arg("--").arg(&program).args(["attach", "--no-cache", text(&disk)]).output().unwrap();
    assert_says(&output, FAILED, &["root"]);
}

#[test]
fn a_password_in_a_location() {
    let output = thinorigin(&["info", "--no-cache", "http://user:hunter2@127.0.0.1/image.qcow2"]);
    assert!(matches!(output.status.code(), Some(FAILED | USAGE)));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("password") && !said.contains("hunter2"), "{said}");
}

#[test]
fn an_option_that_does_not_exist() {
    let output = thinorigin(&["serve", "--no-such-option"]);
    assert_eq!(output.status.code(), Some(USAGE));
}
